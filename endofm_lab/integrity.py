"""Check that a finished folder is complete and unchanged: a model, run, store, study, prediction or data set."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endofm_lab.brief import Brief
from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.phantom_set import RECORD
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import STORE, load_store
from endofm_lab.files import read_json, read_object, read_parquet
from endofm_lab.folders.hashes import HASHES, Changes, changes
from endofm_lab.model.card import CARD_FILE
from endofm_lab.model.loading.load import load_model
from endofm_lab.prediction import load_prediction
from endofm_lab.pretraining.trainer import CONFIG, MODEL
from endofm_lab.runs.run import REPORT, read_run
from endofm_lab.study.study import load_study
from endofm_lab.temporal.model import CARD, load_temporal
from endofm_lab.temporal.predict import ANSWERS
from endofm_lab.training.loop import LOG


@dataclass(frozen=True, repr=False)
class Integrity(Brief):
    """The result of checking a folder.

    Attributes:
        folder: the folder.
        kind: the content of the folder: "model", "study", ...
        hashes: the changes since the job ended; None for a folder without hashes.
        problems: the reasons why the folder is not whole, a sentence each; empty for a whole folder.
    """

    folder: Path
    kind: str
    hashes: Changes | None
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether no damage and no missing or unfinished file was found."""
        return not self.problems

    def text(self) -> str:
        """A report for people."""
        if self.problems:
            return "\n".join([f"{self.folder} ({self.kind}) is DAMAGED:", *(f"  {text}" for text in self.problems)])
        if self.hashes is None:
            return (
                f"{self.folder} ({self.kind}) can be read. It has no hashes: written by an earlier version, or "
                f"{HASHES} was deleted. Smaller damage may go unnoticed."
            )
        n, since = self.hashes.n_files, self.hashes.since
        lines = [f"{self.folder} ({self.kind}) is whole: {n} files are unchanged since {since}."]
        if self.hashes.added:
            lines.append(f"  Files added since then, which are not checked: {_some(self.hashes.added)}.")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        hashes = None if self.hashes is None else asdict(self.hashes)
        return {**asdict(self), "folder": str(self.folder), "hashes": hashes, "whole": self.whole}


def check_folder(folder: str | Path) -> Integrity:
    """Compare a finished folder with the hashes that its job wrote last, and read its content.

    A folder without hashes (copied in part, or written by an older version) is only read, so that damage goes unnoticed
    there if it leaves the files readable. The hash of a model's weights is in the model's card.

    Raises:
        UserError: the folder does not exist, or contains nothing that this library has written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give the one of a model, run, store, study, prediction or data set."
        )
    kind, read = _kind(folder)
    problems: list[str] = []
    hashes = None
    try:
        hashes = changes(folder)
    except UserError as error:
        problems.append(str(error))
    if hashes is not None:
        if hashes.changed:
            problems.append(f"{len(hashes.changed)} files have changed since {hashes.since}: {_some(hashes.changed)}.")
        if hashes.missing:
            problems.append(f"{len(hashes.missing)} files are missing: {_some(hashes.missing)}.")
    try:
        read(folder)
    except UserError as error:
        problems.append(str(error))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        problems.append(f"It cannot be read ({type(error).__name__}: {str(error)[:200]}).")
    return Integrity(folder, kind, hashes, tuple(problems))


def _kind(folder: Path) -> tuple[str, Callable[[Path], Any]]:
    """The kind of a folder's content, known by the file that its job writes, and the function that reads it."""
    if (folder / LOG).exists() and not (folder / MODEL).exists():  # its report comes after every stop
        return "unfinished job", _refuse_unfinished
    for name, kind, read in _KINDS:
        if (folder / name).exists():
            return kind, read
    if (folder / "job.json").exists() or (folder / CONFIG).exists():
        return "unfinished job", _refuse_unfinished
    raise UserError(
        f"{folder} holds no model, run, store, study, prediction or data set of endofm-lab: give a folder that a "
        "command of endofm-lab has written."
    )


def _refuse_unfinished(folder: Path) -> None:
    raise UserError("The job is not finished. Run the same command again to resume it.")


def _read_manifest_of(folder: Path) -> None:
    manifests = [path for path in (folder / "manifest.csv", folder / "manifest.parquet") if path.is_file()]
    if not manifests:
        raise UserError("The manifest is missing. Run the same command again to create it.")
    read_manifest(manifests[0])


def _read_prepared(folder: Path) -> None:
    read_json(folder / "prepare.json")
    _read_manifest_of(folder)


def _read_benchmark(folder: Path) -> None:
    """Read the result and every run of a benchmark."""
    result = read_object(folder / "benchmark.json", {"rows": list[dict[str, Any]]}, "Run the benchmark again.")
    for row in result["rows"]:
        if not row.get("source"):
            run = check_folder(folder / str(row.get("folder", "")))
            if not run.whole:
                raise UserError(f"{run.folder}: {run.problems[0]}")


_KINDS: tuple[tuple[str, str, Callable[[Path], Any]], ...] = (
    (CARD_FILE, "model", load_model),
    (CARD, "model of time", load_temporal),
    (MODEL, "pre-training run", lambda folder: load_model(folder / MODEL)),
    (REPORT, "run", read_run),
    ("benchmark.json", "benchmark", _read_benchmark),
    (STORE, "store", load_store),
    ("study.json", "study", load_study),
    ("prediction.json", "prediction", load_prediction),
    (ANSWERS, "answers over time", lambda folder: read_parquet(folder / ANSWERS)),
    ("prepare.json", "prepared data set", _read_prepared),
    (RECORD, "phantom", _read_manifest_of),
)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
