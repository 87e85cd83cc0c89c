"""The models of this machine: those that were built, those that can be built, and the demo."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endofm_lab.errors import UserError
from endofm_lab.files import read_object
from endofm_lab.folders.run_folder import held_by
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE, ModelCard, read_card
from endofm_lab.model.loading.locate import PACKAGE_WEIGHTS, models_folder
from endofm_lab.model.loading.seal import is_sealed
from endofm_lab.models.recipe import ModelRecipe, list_model_recipes, load_model_recipe

BUILT = "built.json"  # in a built model's folder: what was reached, beside what was expected
_BUILT_KEYS = {"recipe": str, "version": int, "start": str, "data": dict[str, Any], "metrics": dict[str, Any]}


@dataclass(frozen=True)
class Listed:
    """One model by name.

    Attributes:
        name: what `load_model` takes.
        task: the task of its recipe; "" for models without one.
        state: "built", "not built", "stopped", "being built by process N", "changed", or "in the package".
        about: title and, for a built model, what it reached.
        folder: where it is, or would be.
    """

    name: str
    task: str
    state: str
    about: str
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """The entry as plain values."""
        return {**asdict(self), "folder": str(self.folder)}


def folder_of(name: str) -> Path:
    """The folder of a model with this name, whether it is built or not."""
    return models_folder() / name


def list_models() -> list[Listed]:
    """The demo, the models with a recipe, and all other models in the folder of models, by name."""
    recipes = {recipe.name: recipe for recipe in list_model_recipes()}
    folders = {path.name for path in models_folder().glob("*") if path.is_dir()} if models_folder().is_dir() else set()
    demo = Listed("demo", "", "in the package", "the model of the lessons; it knows generated clips only", _demo())
    return [demo, *(_listed(name, recipes.get(name)) for name in sorted(recipes.keys() | folders))]


def _demo() -> Path:
    return PACKAGE_WEIGHTS / "demo"


def _listed(name: str, recipe: ModelRecipe | None) -> Listed:
    folder = folder_of(name)
    sentences = [] if recipe is None else [recipe.title]
    state = state_of(folder)
    if state == "built":
        sentences += [_reached(read_card(folder))]
    return Listed(name, recipe.task if recipe else "", state, "; ".join(filter(None, sentences)), folder)


def state_of(folder: Path) -> str:
    """The state of a model's folder in words; see `Listed`."""
    if (folder / CARD_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        try:
            is_sealed(folder / WEIGHTS_FILE)
            read_card(folder)
        except UserError as error:
            return f"changed: {error}"
        return "built"
    if holder := held_by(folder) if folder.is_dir() else None:
        return f"being built by process {holder.pid}"
    return "stopped" if (folder / "job.json").is_file() else "not built"


def _reached(card: ModelCard) -> str:
    """The first metric of a card with its interval."""
    if not card.metrics:
        return ""
    metric = card.metrics[0]
    interval = f" [{metric['interval'][0]:.3f}, {metric['interval'][1]:.3f}]" if "interval" in metric else ""
    return f"{metric['name']} {metric['value']:.3f}{interval} on {metric.get('split', 'unknown data')}"


def show(name: str) -> str:
    """A model recipe in words, and what a built model of this name reached.

    Raises:
        UserError: there is neither a recipe nor a built model of this name.
    """
    folder = folder_of(name)
    if state_of(folder) == "built" and name not in {recipe.name for recipe in list_model_recipes()}:
        return "\n".join([f"{name}: {read_card(folder).name}", f"In {folder}.", *built_text(folder)])
    recipe = load_model_recipe(name)
    lines = [f"{recipe.name}: {recipe.title} (version {recipe.version})", recipe.about, "", f"Task: {recipe.task}"]
    for choice in recipe.data:
        data = recipe.data_recipe(choice)
        lines.append(f"Data: {data.name} ({data.title}); licence: {data.facts['licence'] or 'not known'}")
        lines.append(f"  access: {data.facts['access']}; parts: {choice.official or dict(choice.split)}")
    lines.append(f"Cases: {recipe.unit}")
    for start in recipe.starts:
        times = ", ".join(
            f"{words} {'not measured' if start.minutes[key] is None else f'{start.minutes[key]:g} min'}"
            for key, words in (("two_cores", "two cores"), ("gpu", "GPU"))
        )
        lines.append(f"Start from {start.name} ({start.source}): expected {start.expectation}; {times}")
        lines += [f"  {entry.metric}: {entry.measured}" for entry in start.expected]
        lines.append(f"  {', '.join(f'{key} {value}' for key, value in start.training.items())}")
    lines += [f"Intended use: {recipe.intended_use}", *(f"Limit: {limit}" for limit in recipe.limits)]
    lines.append(f"State: {state_of(folder)} ({folder})")
    return "\n".join([*lines, *built_text(folder)])


def built_text(folder: Path) -> list[str]:
    """What a built model reached beside what was expected, a line each; empty for models that were not built here."""
    if not (folder / BUILT).is_file():
        return []
    built = read_object(folder / BUILT, _BUILT_KEYS, "Build the model again.")
    return [f"Built from {built['data']['rows']} rows of {built['data']['recipe']}, start: {built['start']}."] + [
        str(sentence) for sentence in built["expected"]
    ]
