"""Fine-tuning on a manifest as a generator: it trains, chooses on validation, tests once, and writes a run to compare.

A run folder holds ``config.json``; per seed ``seed-<n>/`` with log, checkpoints, the score of every validation, the
chosen weights, the test's predictions and the model; and, last, the files of ``runs.run``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.explain.embeddings import EmbeddingStore, load_store
from endofm_lab.files import read_json, write_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.features import stored_features
from endofm_lab.finetuning.fitting import Choice, Fit, HeadTraining
from endofm_lab.finetuning.start import Start
from endofm_lab.folders.plain import to_plain
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import agrees, claim
from endofm_lab.metrics.measure import Measure
from endofm_lab.model.adapters import add_low_rank, is_adapter, merge_low_rank
from endofm_lab.model.card import HeadSpec, Metric
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.head import Head
from endofm_lab.model.loading.formats import Checkpoint
from endofm_lab.model.loading.load import in_memory, save_model
from endofm_lab.model.loading.locate import absolute
from endofm_lab.model.precision import dtype_of
from endofm_lab.model.video_model import VideoModel
from endofm_lab.outside import name_of
from endofm_lab.runs.run import PREDICTIONS, REPORT, Run, pooled_predictions, write_predictions, write_run
from endofm_lab.tasks import Task
from endofm_lab.tasks.budgets import ALL, head_within, within_budget
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.examples import SPLITS, Example, read_split, refuse_shared_units, units_of
from endofm_lab.training.loop import Record
from endofm_lab.training.memory import estimated
from endofm_lab.training.processes import train_on

CONFIG = "config.json"


def finetune(
    config: FinetuneConfig,
    task: Task | None = None,
    head: type[Head] | None = None,
    start: VideoModel | Encoder | None = None,
    metrics: Sequence[type[Measure]] = (),
) -> Iterator[Record]:
    """Train, choose on validation, test and write the run.

    A stopped run continues when called again with the same configuration. On CPU in float32, its numbers are bit for
    bit those of a run that was never stopped. A finished run yields nothing.

    Args:
        config: data, task, method and budget of the training.
        task: a task of your own, which replaces the task of ``config``.
        head: class of a head of your own, which replaces the head of the task.
        start: a model or encoder in memory, which replaces the source of ``config.start``.
        metrics: metrics of your own, in addition to those of the task; ``config.chosen_by`` may name one of them.

    Yields:
        One record per seed at its start ("seed", "initialisation", "split", "audit", "device": all in words); one
        record per training step ("seed", "step", "loss", ..., and "validation" at validations) or per candidate of a
        probe ("seed", "l2" or "k", "validation"); and one record per seed at its end ("seed", "chosen", "validation",
        "test": metrics by name).

    Raises:
        UserError: the data are bad (the message names and counts the rows), ``out`` holds a run with another
            configuration, start or videos (the message names the differences), or another process works there.
    """
    job = _Job.open(config, task or config.configured_task, head, start, tuple(metrics))
    manifest = {"manifest": str(Path(config.manifest).absolute())}  # for readers; requests compare its content
    request = job.request()
    job.refuse_other_steps(request)
    with claim(job.out, request, "a run", record=CONFIG, about=manifest, completed=_completed):
        if (job.out / REPORT).is_file():
            return
        for seed in config.seeds:
            if not (job.folder(seed) / PREDICTIONS).is_file():
                yield from job.one_seed(seed)
        job.finish()


def plan_of(
    config: FinetuneConfig, task: Task | None = None, start: VideoModel | Encoder | None = None
) -> dict[str, Any]:
    """What a run would do: "config", rows per split, audit, device, initialisation, and "estimate" (`MemoryEstimate`).

    The arguments are those of `finetune`.

    Raises:
        UserError: as `finetune`.
    """
    job = _Job.open(config, task or config.configured_task, None, start, ())
    method = config.method
    model = job.model(config.seeds[0])
    training = HeadTraining(model, job.task.head_name, frozen=method != "full").train()
    px = model.card.input.size_px
    clips = [] if method in ("linear probe", "knn") else [[(config.batch, 3, model.card.clip.n_frames, px, px)]]
    half = dtype_of(config.precision, job.device.type) != torch.float32
    return {
        "config": to_plain(asdict(config)),
        **{f"{name} rows": len(rows) for name, rows in job.examples.items()},
        "audit": job.verdict,
        "initialisation": model.card.initialisation["words"],
        "device": str(job.device),
        "estimate": estimated(training, model.backbone, clips, half=half),
    }


def trained_parameters(model: VideoModel, method: str) -> str:
    """How many parameters of a model a method trains, in words."""
    n_trained = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if method != "knn" and (method == "full" or name.startswith("heads.") or is_adapter(name))
    )
    return f"{n_trained:,} of {sum(parameter.numel() for parameter in model.parameters()):,} parameters"


def _completed(request: dict[str, Any]) -> dict[str, Any]:
    """The settings in ``config.json``, with the defaults of settings that are newer than the file."""
    start = {**asdict(Start()), **request.get("start", {})}
    defaults = {f.name: f.default for f in fields(FinetuneConfig) if f.default is not MISSING}
    return _absolute({**defaults, **request, "start": start})


def _absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose paths are absolute, so that a run can be continued and tested from every folder."""
    start, mapping = settings["start"], settings.get("mapping")
    absolute_start = {**start, "source": absolute(start["source"])}
    return {**settings, "start": absolute_start, "mapping": mapping and absolute(mapping)}


@dataclass
class _Job:
    """A run in progress."""

    config: FinetuneConfig
    task: Task
    manifest: Manifest
    within: Manifest
    head: HeadSpec
    examples: dict[str, list[Example]]
    verdict: str
    leaks: list[str]
    device: torch.device
    start: Checkpoint | None
    features: EmbeddingStore | None
    measures: tuple[type[Measure], ...]

    @classmethod
    def open(
        cls,
        config: FinetuneConfig,
        task: Task,
        own_head: type[Head] | None,
        start: VideoModel | Encoder | None,
        measures: tuple[type[Measure], ...],
    ) -> "_Job":
        if config.task not in (Classification.name, task.name):
            raise UserError(f"The task is {task.name}, but the configuration has {config.task}. Give the same in both.")
        config.check_task(task)
        device = train_on(config.device)
        manifest = read_split(config.manifest, config.split_name)
        audit_result = audit(manifest, progress=False)
        if missing := sorted(set(SPLITS) - set(manifest.table["split"])):
            raise ManifestError(
                f"The split {config.split_name!r} has no rows of {', '.join(missing)}, but fine-tuning needs train, "
                f"val and test. Make them with `endofm-lab data split`. Audit: {audit_result.verdict}"
            )
        if config.shared_patients == "refuse":
            refuse_shared_units(manifest)
        within = within_budget(manifest, config.budget, config.label)
        head = head_within(task.head, manifest, within, config.budget)
        if own_head is not None:
            if config.method in ("attentive probe", "linear probe", "knn") or config.head != "light":
                raise UserError(f"The head is {own_head.__name__}, but {config.method!r} has its own: choose 'full'.")
            head = replace(head, by=own_head)
        if config.method == "attentive probe":
            head = replace(head, pooling="attention")
        if config.head != "light":
            head = replace(head, form=config.head)
        if config.augmentation == "strong" and head.answer != "clip":
            raise UserError(
                f"The strong augmentation does not work for masks and boxes. Choose 'light' for {task.name}."
            )
        examples = {split: task.examples(within, split, head) for split in SPLITS}
        leaks = [finding.message for finding in audit_result.findings if finding.severity == "leak"]
        checkpoint = None if start is None else in_memory(start)
        features = None if config.features is None else load_store(config.features)
        verdict = audit_result.verdict
        return cls(
            config, task, manifest, within, head, examples, verdict, leaks, device, checkpoint, features, measures
        )

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return Path(self.config.out)

    def request(self) -> dict[str, Any]:
        """Everything that the run's numbers depend on."""
        settings = {**asdict(self.config), **asdict(self.task), "task": self.task.name}
        classes = {"task_class": type(self.task), "head_class": self.head.by}
        settings |= {name: name_of(kind) for name, kind in classes.items() if isinstance(kind, type)}
        if self.measures:
            settings["measures"] = [name_of(measure) for measure in self.measures]
        if self.start is not None:
            settings["start"] |= {"source": str(self.start.path)}
        settings = _absolute(settings)
        return {
            **{name: value for name, value in settings.items() if name not in _NOT_COMPARED},
            "start_weights": self.config.start.content() if self.start is None else self.start.sha256,
            "manifest_fingerprint": self.manifest.fingerprint,
            **self.task.contents(),
            "files": self.manifest.contents("video", *self.task.files),
        }

    def refuse_other_steps(self, request: dict[str, Any]) -> None:
        """Say why steps are not added if the run in the folder differs from this request in nothing else.

        Raises:
            UserError: this is the case.
        """
        out, steps = self.out, self.config.steps
        n_before = read_json(out / CONFIG).get("steps") if agrees(out, {}, CONFIG) else steps
        if n_before != steps and agrees(out, {**request, "steps": n_before}, CONFIG, _completed):
            raise UserError(
                f"{out} holds a run with other settings: steps is {n_before} there, {steps} here. The number of steps "
                "of a fine-tuning cannot be changed later, because its schedule, its choice on validation and its only "
                "test belong to that number. Choose another folder, or delete this one."
            )

    @property
    def method(self) -> str:
        """The method in words."""
        words = _METHOD_NAMES[self.config.method]
        if self.config.method == "LoRA":
            words += f" of rank {self.config.rank}"
        words += _HEAD_NAMES.get(self.config.head, "")
        if isinstance(self.head.by, type):
            words += f", {self.head.by.__name__}"
        return ", ".join(filter(None, [words, self.task.words()]))

    @property
    def chosen_by(self) -> str:
        """The metric on validation rows that chooses."""
        return self.config.chosen_by or self.task.chosen_by

    def folder(self, seed: int) -> Path:
        return self.out / f"seed-{seed}"

    def model(self, seed: int) -> VideoModel:
        """The model before its training."""
        config = self.config
        adapters = config.method == "ST-Adapter"
        model = config.start.build(self.task.head_name, self.head, seed, adapters, self.start)
        if config.method == "LoRA":
            add_low_rank(model.backbone, config.rank, config.alpha)
        return model

    def one_seed(self, seed: int) -> Iterator[Record]:
        """Train, choose and test with one seed."""
        config, folder = self.config, self.folder(seed)
        torch.manual_seed(seed)
        model = self.model(seed).eval().to(self.device)
        stored = None
        if self.features is not None:
            stored = stored_features(self.features, self.within, model, self.examples, config.clips)
        trained = trained_parameters(model, config.method)
        write_json(folder / "start.json", {**model.card.initialisation, "trained": trained})
        yield {
            "seed": seed,
            "initialisation": model.card.initialisation["words"],
            "trained": trained,
            "split": f"{config.split_name}: {', '.join(f'{len(rows)} {name}' for name, rows in self.examples.items())}",
            "audit": self.verdict,
            "device": str(self.device),
        }
        fit = Fit(config, seed, self.task, model, self.examples, folder, self.measures, stored)
        choice: Choice
        if config.method == "knn":
            choice, table = yield from fit.knn()
        else:
            choice = yield from fit.linear_probe() if config.method == "linear probe" else fit.train()
            merge_low_rank(model.backbone)
            model.card = replace(model.card, heads={self.task.head_name: fit.calibrated()})
            table = fit.table("test")
        metrics = fit.metrics(table)
        if config.method != "knn":  # nearest neighbours give no model to save
            self._save(seed, model, metrics)
        write_predictions(folder / PREDICTIONS, table, units_of(self.manifest, "test").kind)
        yield {
            "seed": seed,
            "chosen": choice.chosen,
            "chosen_by": self.chosen_by,
            "validation": choice.validation,
            "test": metrics,
        }

    def finish(self) -> None:
        """Write the finished run."""
        config, manifest = self.config, self.manifest
        start = read_json(self.folder(config.seeds[0]) / "start.json")
        protocol: dict[str, Any] = {
            "dataset": ", ".join(sorted(set(manifest.table["dataset"]))),
            "chosen_on": "validation",
            "classes": ", ".join(self.head.classes),
            **{split: Manifest(self.within.rows(split), manifest.root).fingerprint for split in ("train", "val")},
            **self.task.protocol(),
        }
        run = Run(
            run=self.out.name,
            task=self.task.name,
            method=self.method,
            initialisation=start["words"],
            seeds=config.seeds,
            protocol=protocol,
            test={
                "fingerprint": Manifest(manifest.rows("test"), manifest.root).fingerprint,
                "split": config.split_name,
            },
            audit={"findings": self.leaks, "verdict": self.verdict},
            predictions=pooled_predictions(self.out, config.seeds),
            unit=units_of(manifest, "test").described(),
            provenance={
                **provenance(self.device),
                "chosen_by": f"validation {self.chosen_by}",
                "trained": start.get("trained", "not recorded"),  # runs that older versions began
            },
            outside_task=type(self.task) if name_of(type(self.task)) else None,
            measures=self.measures,
        )
        write_run(self.out, run)

    def _save(self, seed: int, model: VideoModel, metrics: dict[str, float]) -> None:
        """Save the model with a card that records its training data and its results."""
        config = self.config
        names = ", ".join(sorted(set(self.manifest.table["dataset"])))
        model.card = replace(
            model.card,
            name=f"{self.task.name} on {names} ({self.method})",
            data={
                "description": names,
                "fingerprint": self.manifest.fingerprint,
                "generated": self.manifest.generated,
                "split": f"{config.split_name}: trained on {_part(config)}, chosen on validation, tested once on test",
            },
            audit=self.verdict,
            metrics=tuple(
                Metric(name=name, value=value, data=names, split="test", seed=seed)
                for name, value in metrics.items()
                if not math.isnan(value)
            ),
        )
        save_model(model, self.folder(seed) / "model")


_NOT_COMPARED = ("manifest", "out", "workers", "device", "features")  # settings that change no result
_METHOD_NAMES = {
    "full": "full fine-tuning",
    "frozen": "head on frozen backbone",
    "ST-Adapter": "ST-Adapter",
    "LoRA": "LoRA",
    "attentive probe": "attentive probe",
    "linear probe": "linear probe",
    "knn": "nearest neighbours",
}
_HEAD_NAMES = {"transunet": ", TransUNet head", "stft": ", FCOS head with STFT", "iou": ", scores of fit"}


def _part(config: FinetuneConfig) -> str:
    """The training rows in words."""
    return "train" if config.budget == ALL else f"{config.budget} of train"
