"""A pre-training run in its own process, which continues when the page or notebook that started it is closed.

The run folder records the process that works on it (``process.json``) and its output (``output.txt``).
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from endofm_lab.errors import UserError
from endofm_lab.files import read_json, write_json
from endofm_lab.folders.run_folder import LOCK, Holder, held_by, refuse_held

PROCESS, OUTPUT = "process.json", "output.txt"


def start_run(manifest: str | Path, out: str | Path, options: Sequence[str] = ()) -> None:
    """Start `endofm-lab pretrain MANIFEST --out OUT` with more options in a new process, and return at once.

    If the folder holds a stopped run with the same settings, the run continues. The process refuses a run with other
    settings in the folder, and its last output (`printed`) then names the differences.

    Raises:
        UserError: the folder is in use.
    """
    _start(Path(out), [str(manifest), "--out", str(out), *options])


def resume_run(out: str | Path) -> None:
    """Continue a stopped run in a new process.

    Raises:
        UserError: the run is already running, or there is no run.
    """
    if not (Path(out) / "config.json").exists():
        raise UserError(f"{out} holds no run to resume. Start one in this folder first.")
    _start(Path(out), [str(out)])


def stop_run(out: str | Path) -> None:
    """Tell a run to save a checkpoint and end, which takes at most one step. A run that is not running is left alone.

    A run that was started in a terminal or a notebook of this machine is interrupted, as Ctrl-C would do.

    Raises:
        UserError: the run belongs to another machine, to another user, or to the calling process.
    """
    if (process := _process(Path(out))) is not None:
        process.terminate()
    elif (holder := held_by(out)) is not None:
        _interrupt(Path(out), holder)


def _interrupt(out: Path, holder: Holder) -> None:
    if holder.host != socket.gethostname():
        raise UserError(
            f"{out} is being worked on by process {holder.pid} on {holder.host}, which cannot be stopped from here. "
            f"Stop the run on {holder.host}; if that machine is gone, delete {out / LOCK}."
        )
    if holder.pid == os.getpid():
        raise UserError(f"{out} is being worked on by this process: interrupt the call that runs it.")
    try:
        psutil.Process(holder.pid).send_signal(signal.SIGINT)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise UserError(
            f"Process {holder.pid}, which works in {out}, belongs to another user: ask that user to stop the run."
        ) from error


def is_running(out: str | Path) -> bool:
    """Whether a process works on a run, including a process that was started in a terminal."""
    return _process(Path(out)) is not None or held_by(out) is not None


def printed(out: str | Path, lines: int = 20) -> str:
    """The last lines that a run printed."""
    path = Path(out) / OUTPUT
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _start(out: Path, arguments: list[str]) -> None:
    if is_running(out):
        refuse_held(out)
        raise UserError(f"{out} is being worked on. Stop that run first.")
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "endofm_lab.cli.main", "pretrain", *arguments]
    with (out / OUTPUT).open("ab") as output:
        process = psutil.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    write_json(out / PROCESS, {"pid": process.pid, "created": process.create_time()})


def _process(out: Path) -> psutil.Process | None:
    """The live process of a run; its start time must match too, because process numbers are reused."""
    if not (out / PROCESS).exists():
        return None
    recorded = read_json(out / PROCESS)
    try:
        process = psutil.Process(recorded["pid"])
        is_same = abs(process.create_time() - recorded["created"]) < 1
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
