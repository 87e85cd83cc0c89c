"""A model that exists, tested on the test rows of a manifest: a run like those of fine-tuning, without training."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import UserError
from endofm_lab.model.loading.load import load_model
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.run_folder import claim
from endofm_lab.runs.run import REPORT, Run, read_run, write_run
from endofm_lab.tasks import Task, task_answered_by
from endofm_lab.tasks.examples import read_split, units_of


def evaluate(
    model: str | Path,
    manifest: str | Path,
    out: str | Path,
    head: str | None = None,
    label: str = "label",
    clips: int = 3,
    split_name: str = "manifest",
) -> Run:
    """Test one head of a model on the rows of the split "test" and write the run to ``out``.

    A finished run of the same model, data and options is read back.

    Args:
        model: as `load_model` takes it.
        manifest: with a split "test"; it needs no other.
        out: folder of the run.
        head: which of the model's heads; None if it has only one.
        label: column that holds the class.
        clips: per row, their scores averaged; for classes.
        split_name: "manifest" for its column ``split``, or the name of a further one (column ``split_NAME``).

    Raises:
        UserError: no such head, ``out`` holds another run (the message names what differs), another process works
            there, or bad data (refused by name, with the count).
    """
    out, table = Path(out), read_split(manifest, split_name)
    loaded = load_model(model)
    name = _head(loaded, head)
    task = task_answered_by(loaded.card.heads[name].kind).of({"label": label, "clips": clips})
    request = {
        "model": loaded.card.fingerprint,
        "weights": state_fingerprint(loaded),
        "head": name,
        **asdict(task),
        "split_name": split_name,
        "manifest_fingerprint": table.fingerprint,
        "files": table.contents("video", "masks", "boxes"),
    }
    with claim(out, request, "a run"):
        if (out / REPORT).is_file():
            return read_run(out)
        run = _tested(loaded, name, task, table, out.name, split_name)
        write_run(out, run)
        return run


def _tested(model: VideoModel, name: str, task: Task, table: Manifest, run_name: str, split_name: str) -> Run:
    """The run of a model's head on the test rows."""
    spec = model.card.heads[name]
    predictions = task.table(model, name, task.examples(table, "test", spec), [])
    predictions.insert(0, "seed", 0)
    protocol: dict[str, Any] = {
        "dataset": ", ".join(sorted(set(table.table["dataset"]))),
        "chosen_on": "not said",
        "classes": ", ".join(spec.classes),
        **task.protocol(),
    }
    return Run(
        run=run_name,
        task=task.name,
        method=f"{model.card.name}, head {name}",
        initialisation=model.card.initialisation["words"],
        seeds=(0,),
        protocol=protocol,
        test={"fingerprint": Manifest(table.rows("test"), table.root).fingerprint, "split": split_name},
        audit=_audit(model, table),
        predictions=predictions,
        unit=units_of(table, "test").described(),
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
    found = audit(manifest, progress=False)
    leaks = [finding.message for finding in found.findings if finding.severity == "leak"]
    if model.card.data.get("fingerprint") == manifest.fingerprint:
        return {"findings": leaks, "verdict": found.verdict}
    sentence = "CANNOT TELL whether the model was trained on these patients: its card names other data, or none."
    of_split = f" The split itself: {found.verdict}" if found.leaks else ""
    return {"findings": [sentence, *leaks], "verdict": sentence + of_split}
