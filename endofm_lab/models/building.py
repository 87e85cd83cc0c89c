"""Build a model by its recipe: prepare, split, fine-tune, calibrate, test once, and write a model with its card.

Its last step measures the features of the training clips, so that the model can tell unfamiliar clips.

>>> for record in build("polyp-segmenter", data="Kvasir-SEG"):
...     print(record)

The folder of a model holds the model itself (``card.json``, ``model.safetensors``, ``familiarity.safetensors``),
``built.json`` and, in ``build/``, the prepared data and the run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.prepare.prepared import Prepared
from endofm_lab.errors import UserError
from endofm_lab.explain.familiarity import fit_familiarity
from endofm_lab.files import fingerprint_of, read_json, write_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.folders.run_folder import claim
from endofm_lab.model.card import WEIGHTS_FILE, Metric
from endofm_lab.model.loading.load import load_model, save_model
from endofm_lab.model.loading.locate import ORIGIN, built_model, fetched_folder, hub_id_in
from endofm_lab.model.video_model import VideoModel
from endofm_lab.models.recipe import DataChoice, ModelRecipe, StartChoice, load_model_recipe
from endofm_lab.models.rows import (
    AUDIT,
    PREPARED,
    SPLIT,
    Incomplete,
    audited,
    class_names,
    prepared_data,
    split_manifest,
)
from endofm_lab.models.shelf import BUILT, folder_of
from endofm_lab.runs.run import REPORT
from endofm_lab.training.loop import Record

WORK, RUN = "build", "run"  # the work folder in a model's folder, and the run in it


def build(
    name: str,
    data: str | Path,
    out: str | Path | None = None,
    start: str | None = None,
    dataset: str | None = None,
    incomplete: Incomplete = "refuse",
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
) -> Iterator[Record]:
    """Build a model from a public data set.

    A build that was stopped goes on when called again with the same arguments; a finished one only says what it
    reached.

    Args:
        name: name of a model recipe, or path of one.
        data: folder of the unpacked data set.
        out: folder of the model; by default the one in which `load_model` finds it by its name.
        start: initial weights in place of those of the recipe: a file, a folder, a Hub id, or "scratch". By default
            the first of the recipe's starts that is on this machine; nothing is fetched.
        dataset: data recipe, where a model can be built from several; by default the first that fits the folder.
        incomplete: "refuse" a data set that is not as published, or "accept" it; the card then says so.
        seed: seed of the split and of the training.
        workers: processes that load data.
        device: what computes: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of cuda, mps and cpu.

    Yields:
        One record at each stage ("stage", "words"), those of `finetune` in between, and a last one with "built": name,
        folder, metrics with intervals, and a sentence for each expected number.

    Raises:
        UserError: no such recipe, the data set does not fit or is not as published, ``out`` holds another build, or
            another process builds there.
    """
    recipe, data = load_model_recipe(name), Path(data)
    if not data.is_dir():
        raise UserError(f"{data} is not a folder. Give the folder of the unpacked data set.")
    choice, source = choose_start(recipe, start)
    folder = folder_of(recipe.name) if out is None else Path(out)
    if folder.resolve().is_relative_to(data.resolve()):
        raise UserError(f"{folder} is inside the data set {data}. Choose a folder outside it.")
    request = {
        "recipe": f"{recipe.name}@{recipe.version}",
        "recipe_fingerprint": hashlib.sha256(repr(recipe.facts).encode()).hexdigest()[:32],
        "data": str(data.resolve()),
        "data_fingerprint": fingerprint_of(data),
        "dataset": dataset,
        "incomplete": incomplete,
        "start": source,
        "seed": seed,
    }
    with claim(folder, request, "a model", allowed_files=(WORK,)):
        if not (folder / BUILT).is_file():
            job = _Build(recipe, choice, source, data, folder, seed, incomplete)
            yield from job.run(dataset, workers, device)
        built = read_json(folder / BUILT)
        yield {"built": {"name": recipe.name, "out": str(folder), **built}}


def choose_start(recipe: ModelRecipe, start: str | None) -> tuple[StartChoice, str]:
    """The start of the recipe that is used, and its source.

    Raises:
        UserError: the recipe has no such start, or none that is on this machine.
    """
    if start is None:
        for choice in recipe.starts:
            if on_this_machine(choice.source):
                return choice, choice.source
        raise UserError(
            f"None of the initial weights of {recipe.name} ({', '.join(c.source for c in recipe.starts)}) is on this "
            "machine. Give a file with --start."
        )
    trained = [choice for choice in recipe.starts if (choice.source == "scratch") == (start == "scratch")]
    if not trained:
        raise UserError(f"{recipe.name} has no start {'from scratch' if start == 'scratch' else 'from weights'}.")
    return trained[0], start


def on_this_machine(source: str) -> bool:
    """Whether a start can be read without a network."""
    if (hub_id := hub_id_in(source)) is not None:
        cached = try_to_load_from_cache(hub_id, WEIGHTS_FILE)
        return (fetched_folder(hub_id) / ORIGIN).is_file() or isinstance(cached, str)
    is_name = source in ("scratch", "demo") or built_model(source) is not None
    return is_name or Path(source).expanduser().exists()


class _Build:
    """A build under way."""

    def __init__(
        self,
        recipe: ModelRecipe,
        start: StartChoice,
        source: str,
        data: Path,
        folder: Path,
        seed: int,
        incomplete: Incomplete,
    ) -> None:
        self.recipe, self.start, self.source = recipe, start, source
        self.data, self.folder, self.seed, self.incomplete = data, folder, seed, incomplete
        self.work = folder / WORK

    def run(self, dataset: str | None, workers: int, device: str) -> Iterator[Record]:
        """All stages."""
        yield {"stage": "start", "words": f"{self.start.name} ({self.source}); expected {self.start.expectation}."}
        choice, prepared = prepared_data(self.recipe, self.data, self.work, self.incomplete, dataset)
        yield {"stage": "data", "words": f"{prepared.recipe}, {prepared.rows} rows of {prepared.units}."}
        manifest = self._split(choice, prepared)
        counts = manifest.table["split"].value_counts().to_dict()
        verdict = read_json(self.work / AUDIT)["verdict"]
        yield {"stage": "split", "words": f"{_parts(counts)}. Audit: {verdict}"}
        settings: dict[str, Any] = {"source": self.source, "seeds": (self.seed,), "workers": workers, "device": device}
        assert manifest.path is not None
        config = self.recipe.config(self.start, manifest.path, self.work / RUN, **settings)
        yield from finetune(config)
        model = load_model(Path(config.out) / f"seed-{self.seed}" / "model", device=device)
        model.familiarity = fit_familiarity(model, manifest, seed=self.seed)
        yield {"stage": "familiarity", "words": model.familiarity.words}
        self._finish(model.cpu(), config, manifest, prepared, choice, verdict)

    def _split(self, choice: DataChoice, prepared: Prepared) -> Manifest:
        """The manifest with its parts; made once, since the data is the same in every call of a build."""
        path = self.work / PREPARED / SPLIT
        if not (path.is_file() and (self.work / AUDIT).is_file()):
            layouts = {layout.name: layout for layout in self.recipe.data_recipe(choice).layouts}
            manifest = split_manifest(choice, prepared, layouts, self.start.training.get("label", "label"), self.seed)
            audited(manifest, choice.near_duplicates, self.work / AUDIT)
        return read_manifest(path)

    def _left_out(self, manifest: Manifest, prepared: Prepared) -> list[str]:
        """A sentence about classes of the data set that the model does not know, if there are any."""
        label = self.start.training.get("label", "label")
        classes = class_names(read_manifest(prepared.manifest).table, label) - class_names(manifest.table, label)
        return [f"Does not know the classes {', '.join(sorted(classes))} of the data set."] if classes else []

    def _finish(
        self,
        model: VideoModel,
        config: FinetuneConfig,
        manifest: Manifest,
        prepared: Prepared,
        choice: DataChoice,
        verdict: str,
    ) -> None:
        """Write the model with its whole card, and what was reached."""
        report = read_json(Path(config.out) / REPORT)
        data = self.recipe.data_recipe(choice)
        limits = [*self.recipe.limits, *self._left_out(manifest, prepared)]
        if self.incomplete == "accept":
            different = prepared.counts[~prepared.counts["status"].isin(["as published", "not published"])]
            if len(different):
                limits.append(f"Built from {prepared.rows} rows of {data.name}, which is not all of the data set.")
        primary = config.configured_task.primary
        ordered = sorted(report["metrics"].items(), key=lambda item: item[0] != primary)
        metrics = tuple(
            _metric(name, value, data.name, self.seed, self.recipe.name)
            for name, value in ordered
            if value["value"] is not None
        )
        model.card = replace(
            model.card,
            name=self.recipe.title,
            data={
                **model.card.data,
                "description": data.title,
                "licence": str(data.facts["licence"] or "not known"),
                "recipe": f"{self.recipe.name}@{self.recipe.version} on {prepared.recipe}",
            },
            audit=verdict,
            metrics=metrics,
            intended_use=self.recipe.intended_use,
            limits=tuple(limits),
        )
        save_model(model, self.folder)
        values = {name: entry["value"] for name, entry in report["metrics"].items()}
        sentences = [e.compared(values[e.metric]) for e in self.start.expected if values.get(e.metric) is not None]
        reached = f"{primary} {values[primary]:.3f}; no number was measured for this start before."
        write_json(
            self.folder / BUILT,
            {
                "recipe": self.recipe.name,
                "version": self.recipe.version,
                "start": self.start.name,
                "data": {"recipe": prepared.recipe, "rows": prepared.rows, "unit": report["unit"]},
                "metrics": report["metrics"],
                "expected": sentences or [reached],
            },
        )


def _metric(name: str, value: dict[str, Any], data: str, seed: int, recipe: str) -> Metric:
    metric = Metric(name=name, value=value["value"], data=data, split="test", seed=seed)
    if value["low"] is not None:
        metric["interval"] = [value["low"], value["high"]]
    metric["command"] = f"endofm-lab models build {recipe} --data FOLDER --seed {seed}"
    return metric


def _parts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{counts.get(part, 0)} {part}" for part in ("train", "val", "test"))
