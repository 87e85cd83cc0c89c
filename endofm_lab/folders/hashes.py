"""Hashes of the files of a finished job, which are written last, and the changes since then.

The hashes reveal damage and careless edits but not fraud: anyone who can change a file can also change its hash.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from endofm_lab.errors import UserError
from endofm_lab.files import LEFTOVER, read_json, sha256_of, write_json

HASHES = "hashes.json"
READ_WHOLE_BYTES = 64 << 20


@dataclass(frozen=True)
class Changes:
    """The differences between a folder and its hashes; paths are relative to the folder.

    Attributes:
        n_files: number of files with a hash.
        since: when the hashes were written.
        changed: files with other content.
        missing: files that are gone.
        added: files that were written later, such as reports and reviews; they do not count as damage.
    """

    n_files: int
    since: str
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]


def write_hashes(folder: str | Path, without: Collection[str] = ()) -> Path:
    """Write the SHA-256 of every file in a folder and below to its ``hashes.json``.

    ``without`` names entries of the folder that may still change.
    """
    folder = Path(folder)
    hashes = {name: sha256_of(folder / name) for name in _files(folder) if name.partition("/")[0] not in without}
    written = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    write_json(folder / HASHES, {"written": written, "without": sorted(without), "sha256": hashes})
    return folder / HASHES


def changes(folder: str | Path) -> Changes | None:
    """The changes in a folder since its hashes were written; None if it has no hashes.

    Raises:
        UserError: ``hashes.json`` itself is damaged.
    """
    folder = Path(folder)
    if not (folder / HASHES).is_file():
        return None
    stored = _read_hashes(folder)
    hashes, since, without = stored["sha256"], stored["written"], stored["without"]
    present = {name for name in _files(folder) if name.partition("/")[0] not in without}
    return Changes(
        n_files=len(hashes),
        since=since,
        changed=tuple(name for name in hashes if name in present and sha256_of(folder / name) != hashes[name]),
        missing=tuple(name for name in hashes if name not in present),
        added=tuple(sorted(present - hashes.keys())),
    )


def refuse_changed(folder: Path, *names: str) -> None:
    """Refuse files of a finished job that have changed since the job ended; a folder without hashes is accepted.

    Files of more than `READ_WHOLE_BYTES` are checked by `changes` only, so that a large store opens quickly.

    Raises:
        UserError: a file has other content; the message names it.
    """
    if not (folder / HASHES).is_file():
        return
    stored = _read_hashes(folder)
    for name in names:
        path = folder / name
        if name not in stored["sha256"] or not path.is_file() or path.stat().st_size > READ_WHOLE_BYTES:
            continue
        if sha256_of(path) != stored["sha256"][name]:
            raise UserError(
                f"{path} has changed since the job ended ({stored['written']}): it is damaged or was edited. Copy the "
                f"folder again or create it again; to use the file as it is, delete {HASHES}."
            )


def _read_hashes(folder: Path) -> dict[str, Any]:
    try:
        stored = read_json(folder / HASHES)
        return {
            "sha256": _checked(stored["sha256"]),
            "written": str(stored["written"]),
            "without": set(stored["without"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / HASHES} is damaged ({type(error).__name__}), so the other files cannot be checked. Copy the "
            "folder again, or create it again."
        ) from error


def _checked(hashes: Any) -> dict[str, str]:
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise TypeError("hashes must map names of files to texts")
    return hashes


def _files(folder: Path) -> list[str]:
    """The files below a folder by relative path, sorted, without `HASHES`, hidden files and leftovers."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != HASHES)
    names = (path.relative_to(folder) for path in paths if not LEFTOVER.fullmatch(path.name))
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
