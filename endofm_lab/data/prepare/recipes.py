"""Recipes: the facts about a public data set that turn its unpacked archive into rows of a manifest.

One YAML file per data set in ``data_recipes/``. This module reads and checks the files; `prepare` applies them. The
format is described in ``data_recipes/README.md``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from endofm_lab.brief import Brief
from endofm_lab.data.plain_yaml import Loader, read_yaml
from endofm_lab.data.prepare.names import NamePattern
from endofm_lab.errors import UserError
from endofm_lab.files import bundled, fits, reading

ACCESS = ("open", "on request", "dead link", "yours")
UNITS = ("image", "frame", "sequence", "video")
PATIENTS = ("patient", "sequence", "unknown")  # what names or lists give that tells patients apart
BOX_FORMATS = ("csv", "voc", "coco", "yolo", "polyp-json", "cholect50-json", "counted-lines", "named-lines")
TABLE_FORMATS = ("csv", "cholect50-json", "names", "frame-labels", "ranges")
STATUS = ("verified", "unverified")


class RecipeError(UserError):
    """A recipe that cannot be read; the message names the file and the fact."""


@dataclass(frozen=True)
class Media:
    """One kind of picture or video file. ``says`` are facts that hold for all its files (label, split, ...)."""

    path: NamePattern
    says: Mapping[str, str]


@dataclass(frozen=True)
class Masks:
    """Mask images beside the pictures; in masks that are not binary, pixels above ``binary_above`` are the finding."""

    path: NamePattern
    binary_above: int | None


@dataclass(frozen=True)
class Boxes:
    """Boxes beside the pictures (a file each) or in one file for all.

    ``clamp`` is the largest overhang, as a fraction of the frame, that is corrected; ``labels`` are the names of the
    file's classes; ``columns`` and ``picture`` define how a CSV file is read.
    """

    format: str
    path: NamePattern
    unit: str
    separator: str
    columns: Mapping[str, str]
    picture: Mapping[str, str]
    labels: Mapping[str, str]
    clamp: float


@dataclass(frozen=True)
class Table:
    """A list that accompanies the pictures: the row whose ``match`` columns fit a picture ``gives`` it more facts.

    ``one_hot`` names columns that become labels where they hold 1. Format ``names`` reads no file: the list consists of
    the names of the files that match the pattern. Format ``frame-labels`` gives a video a label per frame, at ``fps``.
    Format ``ranges`` is written in the recipe itself: name -> first and last number.
    """

    file: NamePattern
    format: str
    separator: str
    header: bool
    match: Mapping[str, str]
    gives: Mapping[str, str]
    says: Mapping[str, str]
    one_hot: Sequence[str]
    ranges: Mapping[str, Sequence[int]]
    fps: float
    required: bool


@dataclass(frozen=True)
class Layout:
    """One arrangement of the archive's files on disk."""

    name: str
    note: str
    unit: str
    fps: float | None
    media: Sequence[Media]
    masks: Sequence[Masks]
    boxes: Sequence[Boxes]
    tables: Sequence[Table]
    ignore: Sequence[NamePattern]
    expected: Mapping[str, Any]


@dataclass(frozen=True)
class CorpusPart:
    """A part of a merged corpus: a recipe, the name of its layout, its folder, and the published counts."""

    name: str
    recipe: str
    layout: str | None
    folder: str
    expected: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Recipe(Brief):
    """The content of a recipe file; ``facts`` is the parsed file itself, for printing.

    ``patient_is`` says how patients are told apart: "patient", "sequence" (each recording is another patient) or
    "unknown"; it is empty for merged corpora, whose parts define it, and if the file does not define it.
    """

    name: str
    version: int
    title: str
    path: Path
    facts: Mapping[str, Any]
    layouts: Sequence[Layout] = ()
    parts: Sequence[CorpusPart] = ()
    device: str = ""
    patient_is: str = ""
    translate: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def unverified(self) -> list[str]:
        """The facts that the file marks as unverified."""
        return [fact for fact, status in self.facts["evidence"].items() if str(status).startswith("unverified")]


def recipes_folder() -> Path:
    """The folder of the recipes that come with the project: ``data_recipes/`` beside the package, or inside it."""
    return bundled("data_recipes")


def list_recipes(folder: str | Path | None = None) -> list[Recipe]:
    """All recipes of a folder (default: the project's), by name."""
    folder = Path(folder) if folder else recipes_folder()
    return [read_recipe(path) for path in sorted(folder.glob("*.yaml"))]


def load_recipe(name: str, folder: str | Path | None = None) -> Recipe:
    """The recipe with this name, or at this path if ``name`` ends in ``.yaml``.

    Raises:
        RecipeError: There is no such recipe (the message names those that exist), or the file is malformed.
    """
    folder = Path(folder) if folder else recipes_folder()
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise RecipeError(f"There is no recipe {name!r} in {folder}. Choose one of: {names}.")
    return read_recipe(path)


def read_recipe(path: str | Path) -> Recipe:
    """Read and check one recipe file.

    Raises:
        RecipeError: A fact is missing, unknown or of the wrong type; the message names the file and the fact.
    """
    path = Path(path)
    facts = read_facts(path)
    with reading(path, "Correct the fact that has the wrong kind.", RecipeError):
        return _Reader(path).recipe(facts)


def read_facts(path: Path) -> Any:
    """The content of the YAML file of a recipe, of a data set or of a model, in plain Python values.

    Raises:
        RecipeError: the file is not YAML.
        UserError: it is too large or too deep.
    """
    try:
        return yaml.load(read_yaml(path), Loader=Loader)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path.name} is not readable YAML: {error}") from error


_TOP = {"recipe", "version", "name", "citation", "doi", "page", "licence", "access", "access_note", "modality"}
_TOP |= {"device", "names", "layouts", "parts", "translate", "splits", "clips", "patient", "defects", "evidence"}
_TOP |= {"labels", "about", "download"}
_NEEDED = {"recipe", "version", "name", "citation", "licence", "access", "modality", "defects", "evidence"}
_LAYOUT = {"note", "unit", "fps", "media", "masks", "boxes", "tables", "ignore", "expected"}
_EXPECTED = {"files", "masks", "boxes", "patients", "sequences", "labels", "splits", "labels_by_split"}
_BOXES = {"format", "path", "unit", "separator", "columns", "picture", "labels", "clamp"}
_TABLE = {"file", "format", "separator", "header", "match", "gives", "says", "one_hot", "ranges", "fps", "required"}


class _Reader:
    """Turns the parsed YAML of one file into a `Recipe`; every message begins with the file's name and the fact."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pieces: dict[str, str] = {}

    def fail(self, place: str, problem: str) -> RecipeError:
        return RecipeError(f"{self.path.name}, {place}: {problem}.")

    def mapping(self, value: Any, place: str, allowed: set[str] | None = None, needed: Iterable[str] = ()) -> dict:
        """``value`` as a mapping, after a check of its keys."""
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.fail(place, f"expected a list of `key: value`, found {value!r}")
        if allowed is not None and (strange := sorted(set(map(str, value)) - allowed)):
            raise self.fail(place, f"unknown key {_quoted(strange)}; known are {', '.join(sorted(allowed))}")
        if missing := sorted(set(needed) - set(value)):
            raise self.fail(place, f"{_quoted(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        return value

    def texts(self, value: Any, place: str) -> dict[str, str]:
        return {str(key): str(item) for key, item in self.mapping(value, place).items()}

    def number(self, value: Any, place: str) -> float:
        if not fits(value, float) or not 0 <= value <= 1e6:
            raise self.fail(place, f"expected a number from 0 to 1,000,000, found {value!r}")
        return float(value)

    def counts(self, value: Any, place: str) -> None:
        """Published counts: whole numbers, by label or split where they are divided."""
        for fact, count in value.items():
            self.counts(count, f"{place}.{fact}") if isinstance(count, dict) else None
            if not isinstance(count, dict) and not fits(count, int | None):
                raise self.fail(f"{place}.{fact}", f"expected a whole number, found {count!r}")

    def choice(self, value: Any, place: str, allowed: Sequence[str]) -> str:
        if value not in allowed:
            raise self.fail(place, f"{value!r} is not one of {', '.join(allowed)}")
        return str(value)

    def pattern(self, template: Any, place: str) -> NamePattern:
        if not isinstance(template, str):
            raise self.fail(place, f"expected a pattern of file names, found {template!r}")
        pattern = NamePattern(template, self.pieces)
        try:
            pattern.regex  # noqa: B018  compiled here, so that an invalid expression is reported now
        except UserError as error:
            raise self.fail(place, str(error)) from error
        return pattern

    def recipe(self, facts: Any) -> Recipe:
        if len(gaps := list(_lacking(facts))) > 1:
            places = "; ".join(f"{place}: {_quoted(names)}" for place, names in gaps)
            raise self.fail("the file", f"keys are missing in {len(gaps)} places; {places}")
        facts = self.mapping(facts, "the file", _TOP, _NEEDED)
        if facts["recipe"] != self.path.stem:
            raise self.fail("recipe", f"{facts['recipe']!r} is not the file's name {self.path.stem!r}")
        self.choice(facts["access"], "access", ACCESS)
        for fact, status in self.mapping(facts["evidence"], "evidence").items():
            if not str(status).startswith(STATUS):
                raise self.fail(f"evidence.{fact}", f"{status!r} begins with neither 'verified' nor 'unverified'")
        if ("layouts" in facts) == ("parts" in facts):
            raise self.fail("layouts", "a recipe has either `layouts` (a data set) or `parts` (a merged corpus)")
        for name, piece in self.mapping(facts.get("names"), "names").items():
            piece = self.mapping(piece, f"names.{name}", {"meaning", "is", "example"}, {"meaning", "example"})
            self.pieces[name] = str(piece.get("is", "[^/]+"))
        return Recipe(
            name=facts["recipe"],
            version=int(self.number(facts["version"], "version")),
            title=str(facts["name"]),
            path=self.path,
            facts=facts,
            layouts=tuple(self.layout(n, v) for n, v in self.mapping(facts.get("layouts"), "layouts").items()),
            parts=tuple(self.part(n, v) for n, v in self.mapping(facts.get("parts"), "parts").items()),
            device=str(facts.get("device", "")),
            patient_is=self.patient(facts.get("patient")),
            translate={k: self.texts(v, f"translate.{k}") for k, v in self.mapping(facts.get("translate"), "").items()},
            splits={k: self.split(k, v) for k, v in self.mapping(facts.get("splits"), "splits").items()},
        )

    def patient(self, value: Any) -> str:
        """What tells patients apart; the names must agree with it."""
        if value is None:
            return ""
        value = self.mapping(value, "patient", {"is", "why"}, {"is", "why"})
        kind = self.choice(value["is"], "patient.is", PATIENTS)
        if kind != "patient" and "patient" in self.pieces:
            raise self.fail("patient.is", f"{kind!r} contradicts names.patient, which gives the patient")
        return kind

    def layout(self, name: str, value: Any) -> Layout:
        place = f"layouts.{name}"
        value = self.mapping(value, place, _LAYOUT, {"note", "unit", "media"})
        expected = self.mapping(value.get("expected"), f"{place}.expected", _EXPECTED)
        self.counts(expected, f"{place}.expected")
        return Layout(
            name=name,
            note=str(value["note"]),
            unit=self.choice(value["unit"], f"{place}.unit", UNITS),
            fps=None if value.get("fps") is None else self.number(value["fps"], f"{place}.fps"),
            media=tuple(self.media(item, f"{place}.media") for item in _list(value["media"])),
            masks=tuple(self.masks(item, f"{place}.masks") for item in _list(value.get("masks"))),
            boxes=tuple(self.boxes(item, f"{place}.boxes") for item in _list(value.get("boxes"))),
            tables=tuple(self.table(item, f"{place}.tables") for item in _list(value.get("tables"))),
            ignore=tuple(self.pattern(item, f"{place}.ignore") for item in _list(value.get("ignore"))),
            expected=expected,
        )

    def media(self, value: Any, place: str) -> Media:
        if isinstance(value, str):
            return Media(self.pattern(value, place), {})
        says = self.texts(value, place)
        if "path" not in says:
            raise self.fail(place, "'path' is missing")
        return Media(self.pattern(says.pop("path"), place), says)

    def masks(self, value: Any, place: str) -> Masks:
        value = {"path": value} if isinstance(value, str) else self.mapping(value, place, {"path", "binary_above"})
        return Masks(self.pattern(value.get("path"), place), value.get("binary_above"))

    def boxes(self, value: Any, place: str) -> Boxes:
        value = self.mapping(value, place, _BOXES, {"format", "path"})
        columns = self.texts(value.get("columns"), f"{place}.columns")
        form = self.choice(value["format"], f"{place}.format", BOX_FORMATS)
        if form == "csv" and not {"x1", "y1", "x2", "y2"} <= set(columns):
            raise self.fail(f"{place}.columns", "a CSV file of boxes needs the columns of x1, y1, x2 and y2")
        return Boxes(
            format=form,
            path=self.pattern(value["path"], place),
            unit=self.choice(value.get("unit", "pixel"), f"{place}.unit", ("pixel", "fraction")),
            separator=str(value.get("separator", ",")),
            columns=columns,
            picture=self.texts(value.get("picture"), f"{place}.picture"),
            labels=self.texts(value.get("labels"), f"{place}.labels"),
            clamp=self.number(value.get("clamp", 0), f"{place}.clamp"),
        )

    def table(self, value: Any, place: str) -> Table:
        value = self.mapping(value, place, _TABLE)
        if ("file" in value) == ("ranges" in value):
            raise self.fail(place, "a list has either `file` or `ranges`")
        return Table(
            file=self.pattern(value.get("file", ""), place),
            format=self.choice(value.get("format", "csv"), f"{place}.format", TABLE_FORMATS),
            separator=str(value.get("separator", ",")),
            header=bool(value.get("header", True)),
            match=self.texts(value.get("match"), f"{place}.match"),
            gives=self.texts(value.get("gives"), f"{place}.gives"),
            says=self.texts(value.get("says"), f"{place}.says"),
            one_hot=tuple(map(str, _list(value.get("one_hot")))),
            ranges={str(k): tuple(v) for k, v in self.mapping(value.get("ranges"), f"{place}.ranges").items()},
            fps=self.number(value.get("fps", 25), f"{place}.fps"),
            required=bool(value.get("required", True)),
        )

    def split(self, name: str, value: Any) -> dict[str, Any]:
        """An official split: its note, whether it is the default, and, if the list is short, the ids on each side."""
        value = self.mapping(value, f"splits.{name}", {"note", "default", "by", "sides", "leaks"}, {"note"})
        self.mapping(value.get("sides"), f"splits.{name}.sides")
        return value

    def part(self, name: str, value: Any) -> CorpusPart:
        value = self.mapping(value, f"parts.{name}", {"recipe", "layout", "folder", "expected", "note"}, {"recipe"})
        expected = self.mapping(value.get("expected"), f"parts.{name}.expected", _EXPECTED | {"clips", "frames"})
        self.counts(expected, f"parts.{name}.expected")
        return CorpusPart(name, str(value["recipe"]), value.get("layout"), str(value.get("folder", name)), expected)


# Group of a recipe -> what each of its entries needs.
_ENTRIES = {"names": {"meaning", "example"}, "layouts": {"note", "unit", "media"}, "parts": {"recipe"}}
_ENTRIES |= {"splits": {"note"}}


def _lacking(facts: Any) -> Iterator[tuple[str, list[str]]]:
    """Every place of a recipe that lacks keys, with these keys: all are told at once."""
    facts = facts if isinstance(facts, dict) else {}
    places: list[tuple[str, Any, set[str]]] = [("the recipe", facts, _NEEDED)]
    if "patient" in facts:
        places.append(("patient", facts["patient"], {"is", "why"}))
    for group, needed in _ENTRIES.items():
        entries = facts.get(group)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            places.append((f"{group}.{name}", entry, needed))
            if group == "layouts" and isinstance(entry, dict):
                boxes = _list(entry.get("boxes"))
                places += [(f"layouts.{name}.boxes", box, {"format", "path"}) for box in boxes]
    for place, entry, needed in places:
        if (entry is None or isinstance(entry, dict)) and (missing := sorted(needed - set(entry or {}))):
            yield place, missing


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
