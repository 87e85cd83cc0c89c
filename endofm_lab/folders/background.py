"""Commands of endofm-lab in processes of their own, one at a time, which continue when the page that started them ends.

A job is known by the folder that its command writes. It has a folder of its own in the cache with its command
(``job.json``), its process (``process.json``), its end (``end.json``) and its output (``output.txt``). A process that
waits for its turn uses almost no memory and needs no server: jobs go on when the app is stopped and started again.
"""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from endofm_lab.errors import UserError
from endofm_lab.files import cache_folder, read_json, write_json
from endofm_lab.folders.run_folder import LOCK, Holder, held_by, refuse_held

PROGRAM = (sys.executable, "-m", "endofm_lab.cli.main")
WAITING, RUNNING, FINISHED, STOPPED, FAILED, LOST = "waiting", "running", "finished", "stopped", "failed", "lost"
LIVE = (WAITING, RUNNING)
CAN_GO_ON = (STOPPED, FAILED, LOST)
_JOB, _PROCESS, _OUTPUT = "job.json", "process.json", "output.txt"
_BEGIN, _END, _STOP = "begin.json", "end.json", "stop.json"  # when the command began and ended, or was told to stop
_LOOK_EVERY_S = 0.5
_TAIL_BYTES = 64 << 10
_BAR = re.compile(r"(\d+)/(\d+) \[")  # of tqdm
_starting = threading.Lock()


@dataclass(frozen=True)
class Job:
    """A command that was started in the background.

    Attributes:
        out: the folder that the command writes.
        command: its words, without the name of the program.
        title: what it does, for people.
        entered_s: when it was started or resumed, in seconds since 1970.
        state: `WAITING`, `RUNNING`, `FINISHED`, `STOPPED` by the user, `FAILED` with an error, or `LOST`: its process
            ended without a word, because it was killed or the machine was switched off.
        before: number of jobs that are before it in the queue; 0 unless it waits.
    """

    out: Path
    command: tuple[str, ...]
    title: str
    entered_s: float
    state: str
    before: int

    @property
    def progress(self) -> tuple[int, int] | None:
        """Number of finished items and of all items in the last progress bar that was printed, if there is one."""
        bars = _BAR.findall(_tail(job_folder(self.out)))
        return (int(bars[-1][0]), int(bars[-1][1])) if bars else None


def start(command: Sequence[str], out: str | Path, title: str = "") -> Job:
    """Start `endofm-lab COMMAND ...` in a new process, which waits for its turn, and return at once.

    Commands go on with a stopped job of the same settings by themselves. With other settings they refuse the folder,
    and the last output (`printed`) names the differences.

    Args:
        command: the words after `endofm-lab`. They must name ``out`` too.
        out: the folder that the command writes.
        title: what the job does, for people; by default the name of the folder.

    Raises:
        UserError: the folder is in use.
    """
    out = Path(out).absolute()
    folder = job_folder(out)
    with _starting:
        if is_running(out):
            refuse_held(out)
            raise UserError(f"{out} is being worked on. Stop that job first.")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_PROCESS, _BEGIN, _END, _STOP):
            (folder / name).unlink(missing_ok=True)
        facts = {"out": str(out), "command": list(command), "title": title or out.name, "entered_s": time.time()}
        write_json(folder / _JOB, facts)
        with (folder / _OUTPUT).open("wb") as output:
            process = psutil.Popen(
                [sys.executable, "-m", __name__, str(folder), *PROGRAM],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        write_json(folder / _PROCESS, {"pid": process.pid, "created": process.create_time()})
    return _read(folder)


def resume(out: str | Path) -> Job:
    """Continue a stopped, failed or lost job with the same command, at the end of the queue.

    Raises:
        UserError: the folder is in use, or no job was started for it here.
    """
    if (job := job_of(out)) is None:
        raise UserError(f"There is no job to resume for {out}. Start one first.")
    return start(job.command, job.out, job.title)


def stop(out: str | Path) -> None:
    """Tell a job to save its work and end; a job that waits leaves the queue. Without a job nothing happens.

    A command that was started in a terminal or a notebook of this machine is interrupted, as Ctrl-C would do.

    Raises:
        UserError: the folder is in use on another machine, by another user, or by the calling process.
    """
    folder = job_folder(out)
    if (process := _process(folder)) is not None:
        write_json(folder / _STOP, {"time_s": time.time()})
        for child in process.children() if os.name == "nt" else ():  # elsewhere the process passes the signal on
            child.terminate()
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
    """Whether a job for a folder waits or runs, or another process works in it, such as one from a terminal."""
    return _process(job_folder(out)) is not None or held_by(out) is not None


def printed(out: str | Path, lines: int = 20) -> str:
    """The last lines that the job of a folder printed."""
    text = _tail(job_folder(out)).replace("\r", "\n")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def job_of(out: str | Path) -> Job | None:
    """The job that writes a folder, or wrote it."""
    folder = job_folder(out)
    return _read(folder) if (folder / _JOB).is_file() else None


def list_jobs() -> list[Job]:
    """All jobs of this machine, the latest first."""
    jobs = [_read(path.parent) for path in cache_folder("jobs").glob(f"*/{_JOB}")]
    return sorted(jobs, key=lambda job: job.entered_s, reverse=True)


def remove(out: str | Path) -> None:
    """Remove an ended job from the list; the folder that it wrote stays.

    Raises:
        UserError: the job waits or runs.
    """
    if is_running(out):
        raise UserError(f"The job for {out} has not ended. Stop it first.")
    shutil.rmtree(job_folder(out), ignore_errors=True)


def work(folder: Path, program: Sequence[str]) -> int:
    """Run the command of a job when it is its turn, and write down how it ended; returns its exit code."""
    child: subprocess.Popen | None = None
    stopped = False

    def pass_on(*_: object) -> None:
        nonlocal stopped
        stopped = True
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    while _number_before(folder):
        if stopped:
            return 130
        time.sleep(_LOOK_EVERY_S)
    write_json(folder / _BEGIN, {"time_s": time.time()})
    child = subprocess.Popen([*program, *read_json(folder / _JOB)["command"]], stdin=subprocess.DEVNULL)
    if stopped:
        child.terminate()
    code = child.wait()
    write_json(folder / _END, {"time_s": time.time(), "code": code})
    return code


def job_folder(out: str | Path) -> Path:
    """The folder with the facts about the job that writes ``out``."""
    name = hashlib.sha256(str(Path(out).absolute()).encode()).hexdigest()[:24]
    return cache_folder("jobs") / name


def _read(folder: Path) -> Job:
    facts = read_json(folder / _JOB)
    state = _state(folder, Path(facts["out"]))
    before = _number_before(folder) if state == WAITING else 0
    return Job(Path(facts["out"]), tuple(facts["command"]), facts["title"], facts["entered_s"], state, before)


def _state(folder: Path, out: Path) -> str:
    if _process(folder) is not None:
        return RUNNING if (folder / _BEGIN).exists() else WAITING
    if (folder / _END).exists():
        code = read_json(folder / _END)["code"]
        if code == 0 or code == 130 or (folder / _STOP).exists():
            return STOPPED if code else FINISHED
        return FAILED if code > 0 else LOST  # a negative number is the signal that killed the command
    if held_by(out) is not None:
        return RUNNING
    return STOPPED if (folder / _STOP).exists() else LOST


def _number_before(folder: Path) -> int:
    """Number of other jobs that wait or run and that entered the queue earlier."""

    def place(job: Path) -> tuple[float, str]:
        return (float(read_json(job / _JOB)["entered_s"]), job.name)

    def is_live(job: Path) -> bool:
        return _process(job) is not None or (
            (job / _BEGIN).exists() and not (job / _END).exists() and held_by(read_json(job / _JOB)["out"]) is not None
        )

    others = [path.parent for path in folder.parent.glob(f"*/{_JOB}") if path.parent.name != folder.name]
    return sum(place(job) < place(folder) and is_live(job) for job in others)


def _process(folder: Path) -> psutil.Process | None:
    """The live process of a job; its start time must match too, because process numbers are reused."""
    try:
        recorded: dict[str, Any] = read_json(folder / _PROCESS)
        process = psutil.Process(recorded["pid"])
        is_same = abs(process.create_time() - recorded["created"]) < 1
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def _tail(folder: Path) -> str:
    """The end of what a job printed."""
    try:
        with (folder / _OUTPUT).open("rb") as output:
            output.seek(max(0, (folder / _OUTPUT).stat().st_size - _TAIL_BYTES))
            return output.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1]), sys.argv[2:]))
