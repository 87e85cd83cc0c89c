"""One habit for every run folder: what was asked of it, who works in it, and the same call again goes on.

>>> with claim("runs/first", {"steps": 100}, "a run") as folder:
...     ...  # work that keeps what is finished in the folder

The request is written first, so that a run which was killed at any moment is known again. A second process is refused
while the first one works; what a dead one left is taken over.
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
_UNFINISHED_S = 2.0  # a lock without content is of a process that was killed while it wrote it, after this time
_FINGERPRINT = re.compile(r"[0-9a-f]{32,64}")
Completion = Callable[[dict[str, Any]], Mapping[str, Any]]


class FolderInUseError(UserError):
    """Another process, or another call in this process, works in the folder."""


@dataclass(frozen=True)
class Holder:
    """Who works in a folder: process number and machine, when the process was born, and since when it works there."""

    pid: int
    host: str
    born_s: float  # seconds since 1970; process numbers are used again
    since: str
    folder: int  # its number on the disk: in a copy of the folder nobody works
    job: str  # of Slurm, and how often that has started it again; "" outside
    token: str

    @classmethod
    def this_process(cls, folder: Path) -> "Holder":
        """This process, from now on, in a folder."""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        pid, number, token = os.getpid(), folder.stat().st_ino, secrets.token_hex(8)
        return cls(pid, socket.gethostname(), psutil.Process(pid).create_time(), now, number, _job(), token)

    def is_gone_from(self, folder: Path) -> bool:
        """Whether the process has ended, or never worked here; one on another machine is taken to be alive.

        Of a Slurm job that was started again, the processes of the start before have ended, wherever they were.
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
    beside: Sequence[str] = (),
    completed: Completion = dict,
    product: Path | None = None,
) -> Iterator[Path]:
    """Work in a folder that is new, empty, or of the same request; nobody else may meanwhile.

    Args:
        folder: made if it is not there.
        request: everything that the result depends on, as JSON can hold it; nested mappings are compared by entry.
        kind: what the folder holds, with its article: "a study".
        record: name of the file that keeps the request.
        about: what is written beside the request and not compared.
        beside: names of files that may lie in a new folder.
        completed: adds to the record of an older version what that did not note yet.
        product: the folder whose files get their hashes when the block has ended well; by default ``folder``.

    Yields:
        The folder.

    Raises:
        FolderInUseError: another process works in it; the message says which, and since when.
        UserError: it holds something else, or the result of another request; the message names what differs.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but {kind} needs a folder: choose another name.")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(request, default=str))
    with _locked(folder):
        new = not (folder / record).exists()
        if new:
            _refuse_foreign(folder, kind, beside)
            write_json(folder / record, {**wanted, **(about or {})})
        else:
            check_request(folder, wanted, kind, record, completed)
        sweep(folder)
        try:
            yield folder
            if not ((product or folder) / HASHES).exists():
                write_hashes(product or folder, without=beside)
        except UserError:  # such as a missing option: what was put right may be asked for in the same folder
            if new and not _foreign(folder, (record, *beside)):
                (folder / record).unlink()
            raise


def check_request(
    folder: Path, request: Mapping[str, Any], kind: str, record: str = "job.json", completed: Completion = dict
) -> None:
    """Refuse a folder whose request was another one.

    Raises:
        UserError: the message names what differs.
    """
    wanted = json.loads(json.dumps(request, default=str))
    try:
        before = read_json(folder / record)
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{folder / record} is damaged: choose another folder, or delete this one.")
    if differing := list(_differences(completed(before), wanted)):
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{folder} holds {kind} with other settings: {'; '.join(differing[:5])}{more}. Choose another folder, or "
            "delete this one."
        )


def held_by(folder: str | Path) -> Holder | None:
    """The living process that works in a folder, if there is one."""
    holder = _read(Path(folder) / LOCK)
    return None if holder is None or holder.is_gone_from(Path(folder)) else holder


def refuse_held(folder: str | Path) -> None:
    """Raise a `FolderInUseError` if a living process works in the folder."""
    folder = Path(folder)
    if holder := held_by(folder):
        where = "here" if holder.host == socket.gethostname() else f"on {holder.host}"
        remedy = f"if it no longer exists, delete {folder / LOCK}" if where != "here" else "or stop it"
        raise FolderInUseError(
            f"{folder} is being worked on by process {holder.pid} {where} since {holder.since}. Wait until that "
            f"process has ended, {remedy}."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock, own = folder / LOCK, Holder.this_process(folder)
    for _ in range(100):
        try:
            number = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            refuse_held(folder)
            _take_away(lock)
            continue
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(asdict(own), file)
        break
    else:
        raise FolderInUseError(f"{folder} is wanted by several processes at once. Run the same again in a moment.")
    try:
        yield
    finally:
        if os.getpid() == own.pid and _read(lock) == own:
            lock.unlink()


def _take_away(lock: Path) -> None:
    """Remove a dead process's lock. Of several that try this at once, none removes the lock of another."""
    dead = _read(lock)
    if dead is None:  # being written, or its writer was killed
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
    if _read(aside) != dead:  # another process was faster and holds it: give the lock back
        aside.rename(lock)
        return
    aside.unlink()


def _read(lock: Path) -> Holder | None:
    try:
        return Holder(**read_json(lock))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _refuse_foreign(folder: Path, kind: str, beside: Sequence[str]) -> None:
    if foreign := _foreign(folder, beside):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{folder} holds something else than {kind} ({foreign[0]}{more}): choose a new or an empty folder."
        )


def _foreign(folder: Path, beside: Sequence[str]) -> list[str]:
    """Names of what lies in a folder and cannot be what a killed run of ours left before it had finished anything."""
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.name not in beside
        and not path.name.startswith(LOCK)
        and not LEFTOVER.fullmatch(path.name)
        and not (path.is_dir() and not any(path.iterdir()))
    ]


def _differences(before: Mapping[str, Any], wanted: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """In words, each entry of ``wanted`` that ``before`` has otherwise; further entries of ``before`` do not count."""
    for key, value in wanted.items():
        path = f"{name}{key}"
        if key not in before:
            yield f"{path} is not noted there"
            continue
        old = before[key]
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
