"""A pre-training run in its own process, which continues when the page or notebook that started it is closed.

The run folder says which process works on it (``process.json``) and what it printed (``output.txt``).
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from endofm_lab.errors import UserError
from endofm_lab.files import read_json, write_json
from endofm_lab.folders.run_folder import held_by, refuse_held

PROCESS, OUTPUT = "process.json", "output.txt"


def start_run(manifest: str | Path, out: str | Path, options: Sequence[str] = ()) -> None:
    """Start `endofm-lab pretrain MANIFEST --out OUT` with more options in a new process, and return at once.

    Raises:
        UserError: the folder is in use, or holds a run already.
    """
    if (Path(out) / "config.json").exists():
        raise UserError(f"{out} holds a run already; resume it, or give the new run another name.")
    _start(Path(out), [str(manifest), "--out", str(out), *options])


def resume_run(out: str | Path) -> None:
    """Continue a stopped run in a new process.

    Raises:
        UserError: the run is running, or there is no run.
    """
    if not (Path(out) / "config.json").exists():
        raise UserError(f"{out} holds no run to resume.")
    _start(Path(out), [str(out)])


def stop_run(out: str | Path) -> None:
    """Ask a run to save a checkpoint and end; it does so within a step. Nothing happens if it is not running."""
    process = _process(Path(out))
    if process is not None:
        process.terminate()


def is_running(out: str | Path) -> bool:
    """Whether a process works on a run, also one that was started in a terminal."""
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
    """The living process of a run; process numbers are used again, so that its time of birth must fit, too."""
    if not (out / PROCESS).exists():
        return None
    known = read_json(out / PROCESS)
    try:
        process = psutil.Process(known["pid"])
        same = abs(process.create_time() - known["created"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
