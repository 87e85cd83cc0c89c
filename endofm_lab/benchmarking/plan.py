"""The plan of a benchmark: its cells, and everything about encoders, tasks and budgets that is checked beforehand."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from endofm_lab.benchmarking.config import (
    TEMPORAL,
    BenchmarkConfig,
    EncoderEntry,
    MethodEntry,
    TaskEntry,
    described,
    plain_settings,
    temporal_parts,
)
from endofm_lab.brief import Brief
from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import Manifest, join_manifests
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.explain.instants import KEPT
from endofm_lab.finetuning.config import PROBES, FinetuneConfig
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import without_heads
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.outside import name_of
from endofm_lab.tasks.budgets import ALL, head_within, within_budget
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.examples import SPLITS, read_split, refuse_shared_units, units_of
from endofm_lab.tasks.labels import class_head
from endofm_lab.temporal.config import TemporalConfig

RUNS, FEATURES, DEGRADED, ADDED = "runs", "features", "degraded", "added"


@dataclass(frozen=True, eq=False, repr=False)
class TaskFacts(Brief):
    """What is known of a task before anything is computed.

    Attributes:
        manifest: the rows with the split that is used.
        verdict: of the audit.
        leaks: the leaks that the audit found, a sentence each.
        units: of independence of the test rows, as in a run.
        training: budget -> ``units`` (their number), ``words`` and ``rows`` of the training rows.
        head: that answers the task.
    """

    manifest: Manifest
    verdict: str
    leaks: tuple[str, ...]
    units: dict[str, Any]
    training: dict[str, dict[str, Any]]
    head: HeadSpec


@dataclass(frozen=True, repr=False)
class Cell(Brief):
    """One run of a benchmark: an encoder with a method on a task within a budget."""

    encoder: EncoderEntry
    task: TaskEntry
    method: MethodEntry
    budget: str

    @property
    def run(self) -> str:
        """The name of the run."""
        return f"{self.encoder.name}-{self.method.name}"

    @property
    def key(self) -> str:
        """The name of the cell in its benchmark, and its folder below ``runs``."""
        return f"{self.task.name}/{self.budget.replace(' ', '-').replace('%', 'percent')}/{self.run}"

    @property
    def is_probe(self) -> bool:
        """Whether the method reads nothing but pooled features of clips."""
        return self.method.method in PROBES

    @property
    def is_shared(self) -> bool:
        """Whether the features of the probe are stored; those of several crops are not."""
        return self.is_probe and isinstance(self.task.task, Classification) and self.task.task.crops == 1

    @property
    def is_deterministic(self) -> bool:
        """Whether the method draws nothing at random, so that one seed is enough."""
        return self.is_probe or (self.method.method == TEMPORAL and self.method.settings.get("kind") == "linear")


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Brief):
    """The cells of a benchmark in their order, and the facts about its tasks."""

    config: BenchmarkConfig
    cells: tuple[Cell, ...]
    tasks: dict[str, TaskFacts]
    request: dict[str, Any]

    @classmethod
    def of(cls, config: BenchmarkConfig) -> "Plan":
        """Read every manifest, audit it, and check that each cell can be computed.

        Raises:
            UserError: a file is missing, a split leaks, a budget does not fit, or an encoder lacks what a method needs;
                the message names the task or encoder.
        """
        tasks = {}
        for entry in config.tasks:
            try:
                tasks[entry.name] = _facts(entry, config)
            except UserError as error:
                raise UserError(f"Task {entry.name}: {error}") from error
        cells = tuple(_cells(config))
        request = described(config)
        for encoder in config.encoders:
            try:
                request["encoder"][encoder.name]["weights"] = _content(encoder)
                _refuse_lacking(encoder, [cell for cell in cells if cell.encoder is encoder])
            except UserError as error:
                raise UserError(f"Encoder {encoder.name}: {error}") from error
        plan = cls(config, cells, tasks, request)
        for cell in cells:
            try:
                plan.settings(cell, Path("run"))
            except UserError as error:
                raise UserError(f"Method {cell.method.name} for {cell.task.name}: {error}") from error
        for name, facts in tasks.items():
            task = next(entry.task for entry in config.tasks if entry.name == name)
            request["task"][name]["manifest_fingerprint"] = facts.manifest.fingerprint
            request["task"][name]["files"] = facts.manifest.contents("video", *task.files)
        return plan

    def settings(
        self, cell: Cell, out: Path, features: Path | None = None, device: str = "auto", workers: int = 0
    ) -> FinetuneConfig | TemporalConfig:
        """The configuration of a cell's run.

        Raises:
            UserError: the settings of its method do not suit its task.
        """
        entry, method = cell.task, cell.method
        common: dict[str, Any] = {
            "manifest": entry.manifest,
            "out": out,
            "seeds": self.config.seeds[:1] if cell.is_deterministic else self.config.seeds,
            "split_name": entry.split_name,
            "shared_patients": entry.shared_patients,
            "budget": cell.budget,
        }
        if method.method == TEMPORAL:
            _, network, inputs, settings = temporal_parts(method.settings)
            label: dict[str, Any] = {"label": getattr(entry.task, "label", "label")}
            common |= {**label, "several_labels": entry.several_labels, "features": features or Path()}
            return TemporalConfig(**common, network=network, inputs=inputs, **settings)
        options: dict[str, Any] = {}
        if name_of(type(entry.task)) is None:
            names = {field.name for field in fields(FinetuneConfig)} - ({"loss"} if cell.is_probe else set())
            options = {f.name: getattr(entry.task, f.name) for f in fields(entry.task) if f.name in names}
            options["task"] = entry.task.name
        options |= {**plain_settings(method.settings), "method": method.method}
        return FinetuneConfig(**common, **options, features=features, device=device, workers=workers)


def _cells(config: BenchmarkConfig) -> Iterator[Cell]:
    """All cells, those of one encoder together."""
    for encoder in config.encoders:
        for task in config.tasks:
            for budget in config.budgets:
                for method in config.methods:
                    if task.suits(method) and (encoder.methods is None or method.name in encoder.methods):
                        yield Cell(encoder, task, method, budget)


def _facts(entry: TaskEntry, config: BenchmarkConfig) -> TaskFacts:
    manifest = read_split(entry.manifest, entry.split_name)
    result = audit(manifest, progress=False)
    if missing := sorted(set(SPLITS) - set(manifest.table["split"])):
        raise ManifestError(
            f"The split {entry.split_name!r} has no rows of {', '.join(missing)}, but a benchmark needs train, val and "
            f"test. Make them with `endofm-lab data split`. Audit: {result.verdict}"
        )
    if entry.shared_patients == "refuse":
        refuse_shared_units(manifest)
    label = getattr(entry.task, "label", "label")

    def head_of(part: Manifest) -> HeadSpec:
        return class_head(part, label, True) if entry.several_labels else entry.task.head(part)

    training = {}
    for budget in config.budgets:
        part = within_budget(manifest, budget, label)
        head = head_within(head_of, manifest, part, budget)
        units = units_of(part, "train")
        training[budget] = {"units": units.n, "words": units.words, "rows": len(part.rows("train"))}
    if not entry.several_labels:
        for split in SPLITS:
            entry.task.examples(manifest, split, head)
    leaks = tuple(finding.message for finding in result.findings if finding.severity == "leak")
    return TaskFacts(manifest, result.verdict, leaks, units_of(manifest, "test").described(), training, head)


def _content(encoder: EncoderEntry) -> str:
    if encoder.model is not None:
        return state_fingerprint(encoder.model)
    return encoder.start.content()


def _refuse_lacking(encoder: EncoderEntry, cells: list[Cell]) -> None:
    """Refuse methods that need what the encoder has not.

    Raises:
        UserError: the message names the method.
    """
    methods = {cell.method.name: cell.method for cell in cells}
    spatial = [m for m in methods.values() if m.method == "ST-Adapter" or m.settings.get("head") == "transunet"]
    with_cls = [m for m in methods.values() if m.settings.get("tokens") == "both"]
    if not spatial and not with_cls and encoder.start.source != "scratch":
        return
    backbone = encoder_model(encoder).backbone
    remedy = "Name the methods that it is for: `methods: [...]` in its entry."
    if spatial and not backbone.takes_image_weights:
        raise UserError(
            f"The method {spatial[0].name} needs a plain video transformer, but the backbone is of kind "
            f"{backbone.kind!r}. {remedy}"
        )
    if with_cls and not backbone.has_cls:
        raise UserError(f"The method {with_cls[0].name} has tokens: both, but the encoder has no CLS token. {remedy}")


def encoder_model(encoder: EncoderEntry) -> VideoModel:
    """The encoder as a model without heads, which is named after its entry.

    Raises:
        UserError: the weights cannot be read.
    """
    if encoder.model is not None:
        model = without_heads(encoder.model)
    else:
        model = without_heads(encoder.start.build("label", HeadSpec("multiclass", ("a", "b")), encoder.seed))
    model.card = replace(model.card, name=encoder.name)
    return model.eval()


def rows_to_embed(plan: Plan, encoder: EncoderEntry) -> dict[int, Manifest]:
    """Number of clips -> the rows whose features the encoder's probes read, each content once, of all tasks."""
    entries: dict[int, dict[str, TaskEntry]] = {}
    for cell in plan.cells:
        if cell.encoder is encoder and cell.is_shared and isinstance(cell.task.task, Classification):
            entries.setdefault(cell.task.task.clips, {})[cell.task.name] = cell.task
    return {clips: _joined([plan.tasks[name].manifest for name in of_clips]) for clips, of_clips in entries.items()}


def _joined(manifests: list[Manifest]) -> Manifest:
    joined = join_manifests([used_rows(manifest) for manifest in manifests])
    contents = joined.contents()
    table = joined.table.assign(content=[contents[cell] for cell in joined.table["video"]])
    columns = [name for name in ("content", "start_s", "end_s", "fps") if name in table]
    table = table.drop_duplicates(columns).drop(columns="content").reset_index(drop=True)
    return replace(joined, table=table)


def used_rows(manifest: Manifest) -> Manifest:
    """The rows that are in one of the splits."""
    return replace(manifest, table=manifest.table[manifest.table["split"].isin(SPLITS)].reset_index(drop=True))


def instants_key(manifest: Manifest, step_s: float, tokens: str) -> str:
    """A name for the vectors of the instants of a manifest's videos, the same for other labels and splits."""
    table = used_rows(manifest).table.drop_duplicates("video")
    videos = Manifest(table[[name for name in KEPT if name in table]].reset_index(drop=True), manifest.root)
    facts = [videos.fingerprint, sorted(videos.contents().values()), step_s, tokens]
    return f"instants-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def largest_budget(config: BenchmarkConfig) -> str:
    """The budget whose models are tested under degradations: all labels, or else the last one of the file."""
    return ALL if ALL in config.budgets else config.budgets[-1]
