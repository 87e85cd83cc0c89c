"""A model that exists, tested on the test rows of a manifest: a run like those of fine-tuning, without training."""

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
class _Asked:
    """What is tested: models by seed with one head each, a task with its options, and what is known of their training.

    ``trained`` is the fine-tuning run that they come from; None for a model by itself.
    """

    models: dict[int, VideoModel]
    head: str
    task: Task
    manifest: Path
    split_name: str
    trained: Run | None
    measures: tuple[type[Measure], ...] = ()

    def request(self, table: Manifest) -> dict[str, Any]:
        """What the numbers depend on."""
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

    A finished run of the same model, data and options is read back. From the folder of a fine-tuning run, the models of
    all its seeds are tested; manifest, head and options that are not given are those of that run.

    Args:
        model: a model, what `load_model` takes, or the folder of a fine-tuning run.
        manifest: with a split "test"; it needs no other. None takes that of the run.
        out: folder of the run.
        head: which of the model's heads; None if it has only one.
        label: column that holds the class; "label" for a model by itself.
        clips: per row, their scores averaged, for classes; 3 for a model by itself.
        split_name: "manifest" for its column ``split``, or the name of a further one (column ``split_NAME``).
        device: where the model computes, as in `predict_video`.
        task: of your own, or with options that stand nowhere else; None takes the run's, or the first that the head
            answers.
        metrics: of your own, beside those of the task; to those of the run they are added.

    Raises:
        UserError: no such head, no manifest, ``out`` holds another run (the message names what differs), another
            process works there, or bad data (refused by name, with the count).
    """
    given = {"label": label, "clips": clips, "split_name": split_name}
    given = {name: value for name, value in given.items() if value is not None}
    if not isinstance(model, VideoModel) and (Path(model) / CONFIG).is_file():
        asked = _of_run(Path(model), manifest, given, device, task)
    else:
        asked = _of_model(model, manifest, head, given, device, task)
    asked = replace(asked, measures=tuple(dict.fromkeys((*asked.measures, *metrics))))
    out, table = Path(out), read_split(asked.manifest, asked.split_name)
    with claim(out, asked.request(table), "a run"):
        if (out / REPORT).is_file():
            return read_run(out)
        run = _tested(asked, table, out.name)
        write_run(out, run)
        return run


def _of_model(
    model: VideoModel | str | Path,
    manifest: str | Path | None,
    head: str | None,
    given: dict[str, Any],
    device: str,
    task: Task | None,
) -> _Asked:
    if manifest is None:
        name = model.card.name if isinstance(model, VideoModel) else model
        raise UserError(f"{name} is a model by itself: say with a manifest what it shall be tested on.")
    loaded = model_at(model, device)
    name = _head(loaded, head)
    options = {"label": "label", "clips": 3, "split_name": "manifest", **given}
    task = task or task_answered_by(loaded.card.heads[name].kind).of(options)
    return _Asked({0: loaded}, name, task, Path(manifest), options["split_name"], None)


def _of_run(folder: Path, manifest: str | Path | None, given: dict[str, Any], device: str, task: Task | None) -> _Asked:
    config, trained = read_json(folder / CONFIG), read_run(folder)
    missing = [seed for seed in trained.seeds if not (folder / f"seed-{seed}" / "model").is_dir()]
    if missing:
        raise UserError(f"{folder} has no model of seed {missing[0]}: k nearest neighbours leave none to test again.")
    models = {seed: model_at(folder / f"seed-{seed}" / "model", device) for seed in trained.seeds}
    options = {**config, **given}
    task = task or trained.asked.of(options)
    manifest = Path(manifest or config["manifest"])
    return _Asked(models, task.head_name, task, manifest, options["split_name"], trained, trained.measures)


def _tested(asked: _Asked, table: Manifest, name: str) -> Run:
    """The run of the models' head on the test rows."""
    predictions = []
    for seed, model in asked.models.items():
        examples = asked.task.examples(table, "test", model.card.heads[asked.head])
        predictions.append(asked.task.table(model, asked.head, examples, []))
        predictions[-1].insert(0, "seed", seed)
    model = next(iter(asked.models.values()))
    protocol = {"chosen_on": "not said"} if asked.trained is None else asked.trained.protocol
    protocol = {
        **protocol,
        "dataset": ", ".join(sorted(set(table.table["dataset"]))),
        "classes": ", ".join(model.card.heads[asked.head].classes),
        **asked.task.protocol(),
    }
    return Run(
        run=name,
        task=asked.task.name,
        method=f"{model.card.name}, head {asked.head}" if asked.trained is None else asked.trained.method,
        initialisation=model.card.initialisation["words"],
        seeds=tuple(asked.models),
        protocol=protocol,
        test={"fingerprint": Manifest(table.rows("test"), table.root).fingerprint, "split": asked.split_name},
        audit=_audit(model, table),
        predictions=pd.concat(predictions, ignore_index=True),
        unit=units_of(table, "test").described(),
        provenance=provenance(next(model.parameters()).device),
        outside_task=type(asked.task) if name_of(type(asked.task)) else None,
        measures=asked.measures,
    )


def _head(model: VideoModel, head: str | None) -> str:
    heads = list(model.card.heads)
    if head is None and len(heads) == 1:
        return heads[0]
    if head not in heads:
        raise UserError(f"{model.card.name} has the heads {', '.join(heads) or '(none)'}; name one, not {head!r}.")
    return head


def _audit(model: VideoModel, manifest: Manifest) -> dict[str, Any]:
    """What is known about leakage: of the manifest's own split, and whether the model was trained on that at all."""
    audit_result = audit(manifest, progress=False)
    leaks = [finding.message for finding in audit_result.findings if finding.severity == "leak"]
    if model.card.data.get("fingerprint") == manifest.fingerprint:
        return {"findings": leaks, "verdict": audit_result.verdict}
    sentence = "CANNOT TELL whether the model was trained on these patients: its card names other data, or none."
    of_split = f" The split itself: {audit_result.verdict}" if audit_result.leaks else ""
    return {"findings": [sentence, *leaks], "verdict": sentence + of_split}
