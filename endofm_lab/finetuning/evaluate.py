"""A model that exists, tested on the test rows of a manifest: a run like those of fine-tuning, without training."""

from pathlib import Path
from typing import Any

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import UserError
from endofm_lab.model.loading.load import load_model
from endofm_lab.model.video_model import VideoModel
from endofm_lab.runs.run import REPORT, Run, write_run
from endofm_lab.tasks import task_answered_by
from endofm_lab.tasks.examples import read_split


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

    Args:
        model: as `load_model` takes it.
        manifest: with a split "test"; it needs no other.
        out: folder of the run.
        head: which of the model's heads; None if it has only one.
        label: column that holds the class.
        clips: per row, their scores averaged; for classes.
        split_name: "manifest" for its column ``split``, or the name of a further one (column ``split_NAME``).

    Raises:
        UserError: no such head, a run in ``out`` already, or bad data (refused by name, with the count).
    """
    out, table = Path(out), read_split(manifest, split_name)
    if (out / REPORT).is_file():
        raise UserError(f"{out} holds a finished run already; choose another folder.")
    loaded = load_model(model)
    name = _head(loaded, head)
    spec = loaded.card.heads[name]
    task = task_answered_by(spec.kind).of({"label": label, "clips": clips})
    predictions = task.table(loaded, name, task.examples(table, "test", spec), [])
    predictions.insert(0, "seed", 0)
    protocol: dict[str, Any] = {
        "dataset": ", ".join(sorted(set(table.table["dataset"]))),
        "chosen_on": "not said",
        "classes": ", ".join(spec.classes),
        **task.protocol(),
    }
    run = Run(
        run=out.name,
        task=task.name,
        method=f"{loaded.card.name}, head {name}",
        initialisation=loaded.card.initialisation["words"],
        seeds=(0,),
        protocol=protocol,
        test={"fingerprint": Manifest(table.rows("test"), table.root).fingerprint, "split": split_name},
        audit=_audit(loaded, table),
        predictions=predictions,
    )
    write_run(out, run)
    return run


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
