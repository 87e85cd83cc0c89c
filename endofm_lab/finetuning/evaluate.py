"""Evaluation of an existing model on the test rows of a manifest: a run like those of fine-tuning, without training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.finetuning.finetune import CONFIG
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import claim
from endofm_lab.metrics.measure import Measure
from endofm_lab.model.loading.load import model_at
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.outside import name_of
from endofm_lab.runs.run import REPORT, Run, read_run, write_run
from endofm_lab.tasks import Task, task_answered_by
from endofm_lab.tasks.examples import read_split, units_of


@dataclass(frozen=True)
class _Subject:
    """The models to evaluate by seed, the head and the task with its options, and the run that trained the models.

    ``trained`` is a fine-tuning run; None for a single model.
    """

    models: dict[int, VideoModel]
    head: str
    task: Task
    manifest: Path
    split_name: str
    trained: Run | None
    measures: tuple[type[Measure], ...] = ()

    def request(self, table: Manifest) -> dict[str, Any]:
        """Everything that the results depend on."""
        models = list(self.models.values())
        weights = [state_fingerprint(model) for model in models]
        name, measures = name_of(type(self.task)), [name_of(measure) for measure in self.measures]
        return {
            **({"task_class": name} if name else {}),
            **({"measures": measures} if measures else {}),
            "model": models[0].card.fingerprint,
            "weights": weights[0] if self.trained is None else weights,
            "head": self.head,
            **asdict(self.task),
            **self.task.contents(),
            "split_name": self.split_name,
            "manifest_fingerprint": table.fingerprint,
            "files": table.contents("video", *dict.fromkeys(("masks", "boxes", *self.task.files))),
        }


def evaluate(
    model: VideoModel | str | Path,
    manifest: str | Path | None,
    out: str | Path,
    head: str | None = None,
    label: str | None = None,
    clips: int | None = None,
    split_name: str | None = None,
    device: str = "auto",
    task: Task | None = None,
    metrics: Sequence[type[Measure]] = (),
) -> Run:
    """Test one head of a model on the rows of the split "test" and write the run to ``out``.

    A finished run of the same model, data and options is read back. For the folder of a fine-tuning run, the models of
    all its seeds are tested, and the run provides the manifest, the head and the options that are not given.

    Args:
        model: a model, what `load_model` takes, or the folder of a fine-tuning run.
        manifest: a manifest with a split "test"; it needs no other split. None takes the manifest of the run.
        out: folder of the run.
        head: name of the head; None if the model has only one.
        label: column that holds the class; by default "label" for a single model.
        clips: clips per row, whose scores are averaged, for classes; by default 3 for a single model.
        split_name: "manifest" for its column ``split``, or the name of another split (column ``split_NAME``).
        device: where the model computes, as in `predict_video`.
        task: a task of your own, or with options that no file holds; None takes the task of the run, or the first task
            that suits the head.
        metrics: metrics of your own, in addition to those of the task and of the run.

    Raises:
        UserError: the head does not exist, there is no manifest, ``out`` holds another run (the message names the
            differences), another process works there, or the data are bad (the message names and counts the rows).
    """
    options = {"label": label, "clips": clips, "split_name": split_name}
    options = {name: value for name, value in options.items() if value is not None}
    if not isinstance(model, VideoModel) and (Path(model) / CONFIG).is_file():
        subject = _of_run(Path(model), manifest, options, device, task)
    else:
        subject = _of_model(model, manifest, head, options, device, task)
    subject = replace(subject, measures=tuple(dict.fromkeys((*subject.measures, *metrics))))
    out, table = Path(out), read_split(subject.manifest, subject.split_name)
    with claim(out, subject.request(table), "a run"):
        if (out / REPORT).is_file():
            return read_run(out)
        run = _tested(subject, table, out.name)
        write_run(out, run)
        return run


def _of_model(
    model: VideoModel | str | Path,
    manifest: str | Path | None,
    head: str | None,
    changes: dict[str, Any],
    device: str,
    task: Task | None,
) -> _Subject:
    if manifest is None:
        name = model.card.name if isinstance(model, VideoModel) else model
        raise UserError(f"{name} is a single model, not a run. Give a manifest to test it on.")
    loaded = model_at(model, device)
    name = _head(loaded, head)
    options = {"label": "label", "clips": 3, "split_name": "manifest", **changes}
    task = task or task_answered_by(loaded.card.heads[name].kind).of(options)
    return _Subject({0: loaded}, name, task, Path(manifest), options["split_name"], None)


def _of_run(
    folder: Path, manifest: str | Path | None, changes: dict[str, Any], device: str, task: Task | None
) -> _Subject:
    config, trained = read_json(folder / CONFIG), read_run(folder)
    missing = [seed for seed in trained.seeds if not (folder / f"seed-{seed}" / "model").is_dir()]
    if missing:
        raise UserError(
            f"{folder} has no model of seed {missing[0]}, because knn saves none. Choose a run of another method."
        )
    models = {seed: model_at(folder / f"seed-{seed}" / "model", device) for seed in trained.seeds}
    options = {**config, **changes}
    task = task or trained.task_class.of(options)
    manifest = Path(manifest or config["manifest"])
    return _Subject(models, task.head_name, task, manifest, options["split_name"], trained, trained.measures)


def _tested(subject: _Subject, table: Manifest, name: str) -> Run:
    """The results of the models' head on the test rows, as a run."""
    predictions = []
    for seed, model in subject.models.items():
        examples = subject.task.examples(table, "test", model.card.heads[subject.head])
        predictions.append(subject.task.table(model, subject.head, examples, []))
        predictions[-1].insert(0, "seed", seed)
    model = next(iter(subject.models.values()))
    protocol = {"chosen_on": "not said"} if subject.trained is None else subject.trained.protocol
    protocol = {
        **protocol,
        "dataset": ", ".join(sorted(set(table.table["dataset"]))),
        "classes": ", ".join(model.card.heads[subject.head].classes),
        **subject.task.protocol(),
    }
    return Run(
        run=name,
        task=subject.task.name,
        method=f"{model.card.name}, head {subject.head}" if subject.trained is None else subject.trained.method,
        initialisation=model.card.initialisation["words"],
        seeds=tuple(subject.models),
        protocol=protocol,
        test={"fingerprint": Manifest(table.rows("test"), table.root).fingerprint, "split": subject.split_name},
        audit=_audit(model, table),
        predictions=pd.concat(predictions, ignore_index=True),
        unit=units_of(table, "test").described(),
        provenance=provenance(next(model.parameters()).device),
        outside_task=type(subject.task) if name_of(type(subject.task)) else None,
        measures=subject.measures,
    )


def _head(model: VideoModel, head: str | None) -> str:
    heads = list(model.card.heads)
    if not heads:
        raise UserError(
            f"{model.card.name} has no head, so there are no answers to test. Train a head with `endofm-lab finetune`, "
            "and evaluate that run."
        )
    if head is None and len(heads) == 1:
        return heads[0]
    if head not in heads:
        raise UserError(f"head is {head!r}; name one of the heads of {model.card.name}: {', '.join(heads)}.")
    return head


def _audit(model: VideoModel, manifest: Manifest) -> dict[str, Any]:
    """The audit of the manifest's own split, and whether the model was trained on this manifest at all."""
    audit_result = audit(manifest, progress=False)
    leaks = [finding.message for finding in audit_result.findings if finding.severity == "leak"]
    if model.card.data.get("fingerprint") == manifest.fingerprint:
        return {"findings": leaks, "verdict": audit_result.verdict}
    sentence = "CANNOT TELL whether the model was trained on these patients: its card names other data, or none."
    of_split = f" The split itself: {audit_result.verdict}" if audit_result.leaks else ""
    return {"findings": [sentence, *leaks], "verdict": sentence + of_split}
