"""Whether a finished folder is whole and unchanged: a model, run, store, study, prediction or prepared data set."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.phantom_set import RECORD
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import STORE, load_store
from endofm_lab.files import read_json
from endofm_lab.folders.hashes import Changes, changes
from endofm_lab.model.card import CARD_FILE
from endofm_lab.model.loading.load import load_model
from endofm_lab.prediction import load_prediction
from endofm_lab.pretraining.trainer import CONFIG, MODEL
from endofm_lab.runs.run import REPORT, read_run
from endofm_lab.study.study import load_study


@dataclass(frozen=True)
class Integrity:
    """What a look at a folder found.

    Attributes:
        folder: the folder.
        kind: what it holds: "model", "study", ...
        hashes: what has changed since the job ended; None for a folder without hashes.
        problems: why the folder is not whole, a sentence each; empty for a whole one.
    """

    folder: Path
    kind: str
    hashes: Changes | None
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged, missing or unfinished, as far as can be told."""
        return not self.problems

    def text(self) -> str:
        """A report for people."""
        if self.problems:
            return "\n".join([f"{self.folder} ({self.kind}) is DAMAGED:", *(f"  {text}" for text in self.problems)])
        if self.hashes is None:
            return f"{self.folder} ({self.kind}): no hashes; whole as far as can be told, since it can be read."
        n, since = self.hashes.n_files, self.hashes.since
        lines = [f"{self.folder} ({self.kind}) is whole: {n} files are as they were at {since}."]
        if self.hashes.added:
            lines.append(f"  Added since, and not judged: {_some(self.hashes.added)}.")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        hashes = None if self.hashes is None else asdict(self.hashes)
        return {**asdict(self), "folder": str(self.folder), "hashes": hashes, "whole": self.whole}


def check_folder(folder: str | Path) -> Integrity:
    """Compare a finished folder with the hashes that its job wrote last, and read what it holds.

    A folder without hashes (copied in part, or written by an older version) is read only: damage that leaves a file
    readable is not noticed there. A model's weights have their hash in its card.

    Raises:
        UserError: there is no such folder, or it holds nothing of this library.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give that of a model, run, store, study, prediction or data set.")
    kind, read = _kind(folder)
    problems: list[str] = []
    found = None
    try:
        found = changes(folder)
    except UserError as error:
        problems.append(str(error))
    if found is not None:
        if found.changed:
            problems.append(f"{len(found.changed)} files have changed since {found.since}: {_some(found.changed)}.")
        if found.missing:
            problems.append(f"{len(found.missing)} files are missing: {_some(found.missing)}.")
    try:
        read(folder)
    except UserError as error:
        problems.append(str(error))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        problems.append(f"It cannot be read ({type(error).__name__}: {str(error)[:200]}).")
    return Integrity(folder, kind, found, tuple(problems))


def _kind(folder: Path) -> tuple[str, Callable[[Path], Any]]:
    """What a folder holds, by the file that its job writes, and the function that reads it."""
    for name, kind, read in _KINDS:
        if (folder / name).exists():
            return kind, read
    if (folder / "job.json").exists() or (folder / CONFIG).exists():
        return "unfinished job", _refuse_unfinished
    raise UserError(
        f"{folder} holds no model, run, store, study, prediction or data set of endofm-lab: give the folder that a "
        "command wrote to."
    )


def _refuse_unfinished(folder: Path) -> None:
    raise UserError("The job was not finished: run the same command again, it goes on from there.")


def _read_manifest_of(folder: Path) -> None:
    found = [path for path in (folder / "manifest.csv", folder / "manifest.parquet") if path.is_file()]
    if not found:
        raise UserError("The manifest is missing: run the same command again, it goes on from there.")
    read_manifest(found[0])


def _read_prepared(folder: Path) -> None:
    read_json(folder / "prepare.json")
    _read_manifest_of(folder)


_KINDS: tuple[tuple[str, str, Callable[[Path], Any]], ...] = (
    (CARD_FILE, "model", load_model),
    (REPORT, "run", read_run),
    (STORE, "store", load_store),
    ("study.json", "study", load_study),
    ("prediction.json", "prediction", load_prediction),
    ("prepare.json", "prepared data set", _read_prepared),
    (RECORD, "phantom", _read_manifest_of),
    (MODEL, "pre-training run", lambda folder: load_model(folder / MODEL)),
)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
