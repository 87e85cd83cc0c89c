"""Model recipes: how a public data set becomes a model, one YAML file each in ``data_recipes/models/``.

The format is described in ``data_recipes/README.md``. This module reads and checks the files; `build` applies them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from endofm_lab.data.prepare.recipes import Recipe, RecipeError, load_recipe, read_facts, recipes_folder
from endofm_lab.errors import UserError
from endofm_lab.files import fits, reading
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.start import Start

ROWS = ("as prepared", "stretches")  # one row per file or clip, or one per stretch of frames with the same label
_SET_BY_BUILD = (
    "manifest",
    "out",
    "task",
    "start",
    "seeds",
    "device",
    "workers",
    "split_name",
    "shared_patients",
    "features",
)
_START = ("size", "image_px", "n_frames", "stride")
_TOP = {"model", "version", "name", "about", "task", "data", "unit", "training", "starts", "intended_use", "limits"}
_DATA = {"recipe", "layout", "rows", "where", "labelled", "near_duplicates", "split", "official"}
_CHOICE = {"name", "source", "training", "expected", "minutes"}
_EXPECTED = {"metric", "value", "tolerance", "measured"}
_MINUTES = {"two_cores", "gpu"}


@dataclass(frozen=True)
class DataChoice:
    """One data set that a model can be built from.

    Attributes:
        recipe: name of the data recipe, or path of one beside the model recipe.
        layout: of the data recipe; None finds out.
        rows: "as prepared", or "stretches": one row per stretch of a recording's frames with the same label.
        where: column -> value: other rows are left out.
        labelled: column whose empty cells leave a row out; None keeps all rows.
        near_duplicates: whether pictures are compared, so that near-duplicates stay in the same part.
        split: share of each part.
        official: name of an official split with the parts train and test; ``split["val"]`` is then taken from train.
    """

    recipe: str
    split: Mapping[str, float]
    layout: str | None = None
    rows: str = "as prepared"
    where: Mapping[str, str] = field(default_factory=dict)
    labelled: str | None = None
    near_duplicates: bool = False
    official: str | None = None


@dataclass(frozen=True)
class Expected:
    """A number that the model reached when it was measured, and how far another build may differ from it."""

    metric: str
    value: float
    tolerance: float
    measured: str

    def compared(self, value: float) -> str:
        """One sentence about the number that was reached."""
        words = f"{self.metric} {value:.3f}; expected {self.value:.3f} ± {self.tolerance:.3f} ({self.measured})"
        if abs(value - self.value) <= self.tolerance:
            return f"{words}: as expected."
        return f"{words}: {'better' if value > self.value else 'WORSE'} than expected."


@dataclass(frozen=True)
class StartChoice:
    """One possible start of the training, with what is expected from it.

    Attributes:
        name: in words, such as "image weights".
        source: what `Start` takes.
        training: settings of `FinetuneConfig` and `Start` for this start.
        expected: numbers that were measured; empty if none was.
        minutes: "two_cores" and "gpu"; None if it was not measured.
    """

    name: str
    source: str
    training: Mapping[str, Any]
    expected: tuple[Expected, ...]
    minutes: Mapping[str, float | None]

    @property
    def expectation(self) -> str:
        """The expected numbers in words."""
        if not self.expected:
            return "not measured"
        return "; ".join(f"{e.metric} {e.value:.3f} ± {e.tolerance:.3f}" for e in self.expected)


@dataclass(frozen=True)
class ModelRecipe:
    """The content of a model recipe; ``facts`` is the parsed file itself."""

    name: str
    version: int
    title: str
    about: str
    task: str
    data: tuple[DataChoice, ...]
    unit: str
    starts: tuple[StartChoice, ...]
    intended_use: str
    limits: tuple[str, ...]
    path: Path
    facts: Mapping[str, Any]

    def data_recipe(self, choice: DataChoice) -> Recipe:
        """The data recipe of a choice."""
        name = str(self.path.parent / choice.recipe) if choice.recipe.endswith(".yaml") else choice.recipe
        return load_recipe(name)

    def config(self, choice: StartChoice, manifest: Path, out: Path, **settings: Any) -> FinetuneConfig:
        """The fine-tuning that a start asks for; ``settings`` are those of this machine and this build."""
        start = {key: value for key, value in choice.training.items() if key in _START}
        options = {key: value for key, value in choice.training.items() if key not in _START}
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        source = settings.pop("source", choice.source)
        return FinetuneConfig(manifest, out, task=self.task, start=Start(source, **start), **{**options, **settings})


def models_recipes_folder() -> Path:
    """The folder of the model recipes that come with the project."""
    return recipes_folder() / "models"


def list_model_recipes() -> list[ModelRecipe]:
    """All model recipes of the project, by name."""
    return [read_model_recipe(path) for path in sorted(models_recipes_folder().glob("*.yaml"))]


def load_model_recipe(name: str) -> ModelRecipe:
    """The model recipe with this name, or at this path if ``name`` ends in ``.yaml``.

    Raises:
        RecipeError: there is no such recipe (the message names those that exist), or the file is malformed.
    """
    path = Path(name) if name.endswith(".yaml") else models_recipes_folder() / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in models_recipes_folder().glob("*.yaml")))
        raise RecipeError(f"There is no model recipe {name!r}. Choose one of: {names}; or give the path of a file.")
    return read_model_recipe(path)


def read_model_recipe(path: str | Path) -> ModelRecipe:
    """Read and check one model recipe.

    Raises:
        RecipeError: a fact is missing, unknown or of the wrong type; the message names the file and the fact.
    """
    path = Path(path)
    facts = read_facts(path)
    with reading(path, "Correct the fact that has the wrong kind.", RecipeError):
        return _recipe(facts, path)


def _recipe(facts: Any, path: Path) -> ModelRecipe:
    _check(path, "the file", facts, _TOP, _TOP - {"training"})
    if facts["model"] != path.stem:
        raise _fault(path, "model", f"{facts['model']!r} is not the file's name {path.stem!r}")
    for name in ("name", "about", "task", "unit", "intended_use"):
        if not isinstance(facts[name], str):
            raise _fault(path, name, f"expected text, found {facts[name]!r}")
    for name, kind in {"version": int, "data": list[Any], "starts": list[Any], "limits": list[str]}.items():
        if not fits(facts[name], kind) or facts[name] == []:
            raise _fault(path, name, f"{facts[name]!r} has the wrong form")
    common = facts.get("training") or {}
    recipe = ModelRecipe(
        name=facts["model"],
        version=facts["version"],
        title=facts["name"],
        about=facts["about"].strip(),
        task=facts["task"],
        data=tuple(_data(path, f"data[{number}]", value) for number, value in enumerate(facts["data"])),
        unit=facts["unit"].strip(),
        starts=tuple(_start(path, f"starts[{number}]", v, common) for number, v in enumerate(facts["starts"])),
        intended_use=facts["intended_use"].strip(),
        limits=tuple(facts["limits"]),
        path=path,
        facts=facts,
    )
    for choice in recipe.data:
        recipe.data_recipe(choice)
    for start in recipe.starts:
        try:
            recipe.config(start, Path("manifest.csv"), Path("run"))
        except UserError as error:
            raise _fault(path, f"start {start.name!r}", str(error).rstrip(".")) from error
    return recipe


def _data(path: Path, place: str, value: Any) -> DataChoice:
    _check(path, place, value, _DATA, {"recipe", "split"})
    types = get_type_hints(DataChoice) | {"split": dict[str, float], "where": dict[str, str]}
    _check_types(path, place, value, types)
    if value.get("rows", ROWS[0]) not in ROWS:
        raise _fault(path, f"{place}.rows", f"{value['rows']!r} is not one of {', '.join(ROWS)}")
    parts = set(value["split"])
    if parts != ({"val"} if value.get("official") else {"train", "val", "test"}):
        raise _fault(path, f"{place}.split", "give shares of train, val and test, or with `official` that of val")
    return DataChoice(**value)


def _start(path: Path, place: str, value: Any, common: Mapping[str, Any]) -> StartChoice:
    _check(path, place, value, _CHOICE, _CHOICE)
    training = {**common, **(value["training"] or {})}
    settings = {f.name for f in fields(FinetuneConfig)} - set(_SET_BY_BUILD)
    _check(path, f"{place}.training", training, settings | set(_START), {"steps"})
    _check_types(path, f"{place}.training", training, get_type_hints(FinetuneConfig) | get_type_hints(Start))
    expected = []
    for entry in value["expected"] or []:
        _check(path, f"{place}.expected", entry, _EXPECTED, _EXPECTED)
        _check_types(path, f"{place}.expected", entry, get_type_hints(Expected))
        expected.append(Expected(**entry))
    _check(path, f"{place}.minutes", value["minutes"], _MINUTES, _MINUTES)
    _check_types(path, f"{place}.minutes", value["minutes"], dict.fromkeys(_MINUTES, float | None))
    return StartChoice(str(value["name"]), str(value["source"]), training, tuple(expected), value["minutes"])


def _fault(path: Path, place: str, problem: str) -> RecipeError:
    return RecipeError(f"{path.name}, {place}: {problem}.")


def _check(path: Path, place: str, value: Any, allowed: set[str], needed: set[str]) -> None:
    """Refuse a value that is no mapping, or has unknown or missing keys."""
    if not isinstance(value, dict):
        raise _fault(path, place, f"expected a list of `key: value`, found {value!r}")
    if strange := sorted(set(map(str, value)) - allowed):
        raise _fault(path, place, f"unknown key {_quoted(strange)}; known are {', '.join(sorted(allowed))}")
    if missing := sorted(needed - set(value)):
        raise _fault(path, place, f"{_quoted(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def _check_types(path: Path, place: str, value: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    for name, entry in value.items():
        if not fits(entry, types[name]):
            hint = ""
            if isinstance(entry, str) and entry[:1].isdigit():
                hint = "; a number with an exponent needs a point, such as 3.0e-4"
            raise _fault(path, f"{place}.{name}", f"{entry!r} has the wrong form{hint}")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
