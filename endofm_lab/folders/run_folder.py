"""Run folders: each records its request and the process that works in it, and is resumed by the same call.

>>> with claim("runs/first", {"steps": 100}, "a run") as folder:
...     ...  # work that saves its finished steps in the folder

The request is written first, so that a run that was killed at any moment can be recognised and resumed. A second
process is refused while the first one works in the folder; the lock of a dead process is taken over.
"""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from endofm_lab.errors import UserError
from endofm_lab.files import LEFTOVER, read_json, sweep, write_json
from endofm_lab.folders.hashes import HASHES, write_hashes

LOCK = ".lock"
UNSEALED = ".unsealed"  # lies in the folder from the request to the hashes: the job is not known to be finished
_UNFINISHED_S = 2.0  # after this time, a lock without content belongs to a process that was killed while writing it
_FINGERPRINT = re.compile(r"[0-9a-f]{32,64}")
Completion = Callable[[dict[str, Any]], Mapping[str, Any]]


class FolderInUseError(UserError):
    """Another process, or another call in this process, works in the folder."""


@dataclass(frozen=True)
class Holder:
    """The process that works in a folder: its number and machine, its start, and the start of its work there."""

    pid: int
    host: str
    born_s: float  # start of the process in seconds since 1970, because process numbers are reused
    since: str
    folder: int  # inode of the folder: the lock in a copy of the folder does not count
    job: str  # number of the Slurm job and how often Slurm has restarted it; "" outside Slurm
    token: str

    @classmethod
    def this_process(cls, folder: Path) -> "Holder":
        """This process, as the holder of a folder from now on."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        pid, number, token = os.getpid(), folder.stat().st_ino, secrets.token_hex(8)
        return cls(pid, socket.gethostname(), psutil.Process(pid).create_time(), since, number, _job(), token)

    def is_gone_from(self, folder: Path) -> bool:
        """Whether the process has ended or never worked in this folder.

        A process on another machine counts as alive. When Slurm restarts a job, the processes of the earlier start
        have ended on every machine.
        """
        if self.job and self.job != _job() and self.job.split(".")[0] == _job().split(".")[0]:
            return True
        if self.host != socket.gethostname():
            return False
        if self.folder != folder.stat().st_ino:
            return True
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born_s) > 1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


def _job() -> str:
    number = os.environ.get("SLURM_JOB_ID", "")
    return number and f"{number}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


@contextmanager
def claim(
    folder: str | Path,
    request: Mapping[str, Any],
    kind: str,
    *,
    record: str = "job.json",
    about: Mapping[str, Any] | None = None,
    allowed_files: Sequence[str] = (),
    completed: Completion = dict,
    product: Path | None = None,
) -> Iterator[Path]:
    """Work in a folder that is new, empty, or has the same request, and keep other processes out meanwhile.

    Args:
        folder: created if it does not exist.
        request: everything that the result depends on, as JSON values; nested mappings are compared entry by entry.
        kind: the content of the folder with its article, such as "a study".
        record: name of the file that holds the request.
        about: further entries of that file, which are not compared.
        allowed_files: names of files that a new folder may already contain; they get no hashes.
        completed: adds entries that an older version did not record.
        product: the folder whose files are hashed when the block has ended without an error; by default ``folder``.
            A product that was finished without hashes (by an earlier version, or because they were deleted) gets none,
            because its files may have changed since.

    Yields:
        The folder.

    Raises:
        FolderInUseError: another process works in the folder; the message says which process, and since when.
        UserError: the folder contains other files, or the result of another request; the message names the differences.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but {kind} needs a folder: choose another name.")
    folder.mkdir(parents=True, exist_ok=True)
    requested = json.loads(json.dumps(request, default=str))
    with _locked(folder):
        new = not (folder / record).exists()
        if new:
            _refuse_foreign(folder, kind, allowed_files)
            (folder / UNSEALED).touch()
            write_json(folder / record, {**requested, **(about or {})})
        else:
            check_request(folder, requested, kind, record, completed)
        sweep(folder)
        try:
            yield folder
            if (folder / UNSEALED).exists():
                if not ((product or folder) / HASHES).exists():
                    write_hashes(product or folder, without=allowed_files)
                (folder / UNSEALED).unlink()
        except UserError:  # such as a missing option: the corrected request may use the same folder
            if new and not _foreign(folder, (record, *allowed_files)):
                (folder / record).unlink()
                (folder / UNSEALED).unlink(missing_ok=True)
            raise


def check_request(
    folder: Path, request: Mapping[str, Any], kind: str, record: str = "job.json", completed: Completion = dict
) -> None:
    """Refuse a folder with another request.

    Raises:
        UserError: the request differs; the message names the differences.
    """
    requested = json.loads(json.dumps(request, default=str))
    try:
        recorded = read_json(folder / record)
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        raise UserError(f"{folder / record} is damaged: choose another folder, or delete this one.")
    recorded = json.loads(json.dumps(completed(recorded), default=str))
    if differing := list(_differences(recorded, requested)):
        remainder = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{folder} holds {kind} with other settings: {'; '.join(differing[:5])}{remainder}. Choose another folder, "
            "or delete this one."
        )


def agrees(folder: Path, request: Mapping[str, Any], record: str = "job.json", completed: Completion = dict) -> bool:
    """Whether the folder has a record, and the request in it is this one."""
    try:
        check_request(folder, request, "", record, completed)
    except (OSError, UserError):
        return False
    return True


def unseal(folder: Path, product: Path) -> None:
    """Take the hashes of a finished product away, whose job in ``folder`` is done again; the job's end writes them."""
    if (product / HASHES).exists():
        (folder / UNSEALED).touch()
        (product / HASHES).unlink()


def held_by(folder: str | Path) -> Holder | None:
    """The living process that works in a folder, if there is one."""
    holder = _read(Path(folder) / LOCK)
    return None if holder is None or holder.is_gone_from(Path(folder)) else holder


def refuse_held(folder: str | Path) -> None:
    """Raise a `FolderInUseError` if a living process works in the folder."""
    folder = Path(folder)
    if holder := held_by(folder):
        place = "here" if holder.host == socket.gethostname() else f"on {holder.host}"
        remedy = f"; if it no longer exists, delete {folder / LOCK}" if place != "here" else ", or stop it"
        raise FolderInUseError(
            f"{folder} is being worked on by process {holder.pid} {place} since {holder.since}. Wait until that "
            f"process has ended{remedy}."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock, holder = folder / LOCK, Holder.this_process(folder)
    for _ in range(100):
        try:
            number = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            refuse_held(folder)
            _take_away(lock)
            continue
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(asdict(holder), file)
        break
    else:
        raise FolderInUseError(f"Several processes are trying to use {folder} at once. Try again in a moment.")
    try:
        yield
    finally:
        if os.getpid() == holder.pid and _read(lock) == holder:
            lock.unlink()


def _take_away(lock: Path) -> None:
    """Remove a dead process's lock, but never the lock of another process that takes over at the same time."""
    dead = _read(lock)
    if dead is None:  # the lock is being written, or its writer was killed
        try:
            if time.time() - lock.stat().st_mtime < _UNFINISHED_S:
                time.sleep(0.1)
                return
        except FileNotFoundError:
            return
    aside = lock.with_name(f"{LOCK}.{secrets.token_hex(4)}")
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != dead:  # another process was faster and holds the lock: give it back
        aside.rename(lock)
        return
    aside.unlink()


def _read(lock: Path) -> Holder | None:
    try:
        return Holder(**read_json(lock))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _refuse_foreign(folder: Path, kind: str, allowed_files: Sequence[str]) -> None:
    if foreign := _foreign(folder, allowed_files):
        remainder = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{folder} already contains files that do not belong to {kind} ({foreign[0]}{remainder}). Choose a new or "
            "an empty folder."
        )


def _foreign(folder: Path, allowed_files: Sequence[str]) -> list[str]:
    """Names of the files in a folder that no run of this library can have left when it was killed at its start."""
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.name not in allowed_files
        and not path.name.startswith((LOCK, UNSEALED))
        and not LEFTOVER.fullmatch(path.name)
        and not (path.is_dir() and not any(path.iterdir()))
    ]


def _differences(recorded: Mapping[str, Any], requested: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """The entries of ``requested`` that differ in ``recorded``, in words; its further entries are ignored."""
    for key, value in requested.items():
        path = f"{name}{key}"
        if key not in recorded:
            yield f"{path} is not recorded there"
            continue
        old = recorded[key]
        if isinstance(value, dict) and isinstance(old, dict):
            yield from _differences(old, value, f"{path}.")
        elif old != value:
            if isinstance(value, str) and _FINGERPRINT.fullmatch(value):
                yield f"different {path.removesuffix('_fingerprint')}"
            else:
                yield f"{path} is {_short(old)} there, {_short(value)} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
