"""What becomes of a job that is killed, meets a full disk, or is not alone in its folder.

Every case runs in processes of its own, made by fork, so that a kill is SIGKILL and no code cleans up. Fault points lie
before and after every rename, removal, sync and opening for writing; further kills come at seeded moments and in the
middle of a write, where a limit on the size of files cuts it off.
"""

import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endofm_lab.errors import UserError, storage_sentence
from endofm_lab.folders.run_folder import FolderInUseError
from tests.faults.jobs import JOBS, Inputs, digests, small_parts

KINDS = ("at a fault point", "at a moment", "inside a write", "full disk", "disk error", "second process")
OUTCOMES = ("same", "refused", "crash", "hang", "different")
LIMIT_S = 120.0
Ending = tuple[str, Any]  # "done", "refused", "crash", "killed" or "hang", and what it left or said


@dataclass(frozen=True)
class Case:
    """One job with one fault."""

    job: str
    kind: str
    place: float  # 0..1: which fault point, moment, size of a file or size of the disk

    def __str__(self) -> str:
        return f"{self.job}, {self.kind}, {self.place:.3f}"


class Points:
    """Counts the calls that change what lies on disk, and does something at one of them."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.count = at, act, 0

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    def install(self) -> None:
        """Put a point before and after the calls; in a process of its own, for good."""
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "fsync"), (shutil, "rmtree")):
            setattr(owner, name, self._around(getattr(owner, name)))
        opened = Path.open

        def opens(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wa+x"):
                self.pass_by()
            return opened(path, mode, *args, **kwargs)

        Path.open = opens  # type: ignore[method-assign]

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def pointed(*args: Any, **kwargs: Any) -> Any:
            self.pass_by()
            result = call(*args, **kwargs)
            self.pass_by()
            return result

        return pointed


def die() -> None:
    """What a kill does: nothing more runs in this process."""
    os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """A job in a process of its own."""

    def __init__(self, job: Callable[[], Any], prepare: Callable[[], None] = lambda: None) -> None:
        reader, writer = os.pipe()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            ending: Ending = ("crash", "")
            try:
                warnings.simplefilter("ignore")
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                small_parts()
                prepare()
                ending = ("done", job())
            except UserError as error:
                ending = ("in use" if isinstance(error, FolderInUseError) else "refused", str(error))
            except OSError as error:
                sentence = storage_sentence(error)
                ending = ("refused", sentence) if sentence else ("crash", traceback.format_exc())
            except BaseException:
                ending = ("crash", traceback.format_exc())
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.write(writer, pickle.dumps(ending)[: 1 << 16])
            os._exit(0)
        os.close(writer)
        self.reader = reader

    def end(self) -> Ending:
        """Wait for it."""
        while time.monotonic() < self.began + LIMIT_S:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.005)
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.reader)
            return "hang", ""
        with os.fdopen(self.reader, "rb") as file:
            answer = file.read()
        self.took_s = time.monotonic() - self.began
        return ("killed", status) if os.WIFSIGNALED(status) else pickle.loads(answer)


class Kills:
    """The jobs, their results without any fault, and one case after another beside them."""

    def __init__(self, root: Path) -> None:
        self.inputs, self.root = Inputs(root), root
        self.whole: dict[str, tuple[dict[str, str], int, float, int]] = {}

    def expected(self, name: str) -> tuple[dict[str, str], int, float, int]:
        """Of a job that nothing happens to: digests, fault points, seconds, bytes of its largest file."""
        if name not in self.whole:
            points, folder = Points(-1, die), self._fresh(name)
            child = Child(lambda: (self._run(name, folder), points.count, _largest(folder))[1:], points.install)
            kind, answer = child.end()
            assert kind == "done", f"{name} without a fault: {kind}: {answer}"
            self.whole[name] = (digests(folder), answer[0], child.took_s, answer[1])
        return self.whole[name]

    def outcome(self, case: Case) -> tuple[str, str]:
        """What became of a case, and more about it where it is none of the good ends."""
        whole, n_points, seconds, largest = self.expected(case.job)
        folder = self._fresh(case.job)
        at = 1 + int(case.place * n_points)
        if case.kind == "second process":
            return self._beside(case.job, folder, at, whole)
        if case.kind == "full disk":
            return self._on_small_disk(case, folder, whole)
        if case.kind == "at a moment":
            prepare: Callable[[], None] = lambda: _alarm(max(0.001, case.place * seconds))  # noqa: E731
        elif case.kind == "inside a write":
            prepare = lambda: _limit_files(int(case.place * largest))  # noqa: E731
        else:
            act = die if case.kind == "at a fault point" else _no_space
            prepare = Points(at, act).install
        kind, answer = Child(lambda: self._run(case.job, folder), prepare).end()
        if kind in ("crash", "hang"):
            return kind, str(answer)
        return self._again(case.job, folder, whole)

    def _again(self, name: str, folder: Path, whole: dict[str, str]) -> tuple[str, str]:
        """Run the same job once more, undisturbed, and compare."""
        kind, answer = Child(lambda: self._run(name, folder)).end()
        if kind != "done":
            return ("refused" if kind in ("refused", "in use") else kind), str(answer)
        hashes = digests(folder)
        differing = [key for key in whole | hashes if whole.get(key) != hashes.get(key)]
        left = [path.name for path in folder.rglob("*") if ".part" in path.name or path.name == ".lock"]
        return ("different", f"{differing} {left}") if differing or left else ("same", "")

    def _beside(self, name: str, folder: Path, at: int, whole: dict[str, str]) -> tuple[str, str]:
        """A process stops at a fault point, another one comes, the first one goes on."""
        reader, writer = os.pipe()

        def wait() -> None:
            os.write(writer, b"x")
            os.kill(os.getpid(), signal.SIGSTOP)

        first = Child(lambda: self._run(name, folder), Points(at, wait).install)
        os.set_blocking(reader, False)
        while time.monotonic() < first.began + LIMIT_S and not _told(reader):
            time.sleep(0.005)
        kind, answer = Child(lambda: self._run(name, folder)).end()
        os.kill(first.pid, signal.SIGCONT)
        ended, first_answer = first.end()
        os.close(reader)
        os.close(writer)
        if kind in ("crash", "hang") or ended in ("crash", "hang"):
            return (kind if kind in ("crash", "hang") else ended), f"{answer} {first_answer}"
        result, message = self._again(name, folder, whole)
        if result == "same" and kind == "in use":
            return "refused", ""  # the second one, which is what has to happen
        return result, message

    def _on_small_disk(self, case: Case, folder: Path, whole: dict[str, str]) -> tuple[str, str]:
        """Work on a disk that is full before the job has ended, then make room."""
        folder.mkdir(parents=True)
        needed = sum(path.stat().st_size for path in self._kept(case.job).rglob("*") if path.is_file())
        size_k = 16 + int(case.place * needed / 1024)
        if not _mounted(folder, size_k):
            return "skipped", "no disk can be mounted here"
        try:
            kind, answer = Child(lambda: self._run(case.job, folder)).end()
            if kind in ("crash", "hang"):
                return kind, str(answer)
            subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)
            return self._again(case.job, folder, whole)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)

    def _kept(self, name: str) -> Path:
        """A finished folder of a job, to measure."""
        kept = self.root / "kept" / name.replace(" ", "-")
        if not kept.exists():
            JOBS[name](self.inputs, kept)
        return kept

    def _run(self, name: str, folder: Path) -> None:
        JOBS[name](self.inputs, folder)

    def _fresh(self, name: str) -> Path:
        """The folder of the next case: always the same path, since some results name it."""
        folder = self.root / "job" / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def cases(per_job: int, seed: int, jobs: list[str] | None = None) -> list[Case]:
    """Cases of every job, the kinds in turn, drawn from a seed."""
    result = []
    for job in jobs or list(JOBS):
        rng = np.random.default_rng([seed, int(hashlib.sha256(job.encode()).hexdigest()[:8], 16)])
        turns = ("at a fault point", *KINDS)  # twice as many of the first kind
        result += [Case(job, turns[n % len(turns)], float(rng.random())) for n in range(per_job)]
    return result


def table(results: list[tuple[Case, str, str]]) -> str:
    """One line per job: how many cases ended how."""
    lines = [f"{'job':<14}" + "".join(f"{name:>11}" for name in (*OUTCOMES, "cases"))]
    for job in [*JOBS, "all"]:
        ends = [end for case, end, _ in results if job in (case.job, "all") and end != "skipped"]
        if ends:
            lines.append(f"{job:<14}" + "".join(f"{ends.count(name):>11}" for name in OUTCOMES) + f"{len(ends):>11}")
    return "\n".join(lines)


def _alarm(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, no Python code runs
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_files(n_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the write is cut off there and the process ended
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))


def _no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _told(reader: int) -> bool:
    try:
        return bool(os.read(reader, 1))
    except BlockingIOError:
        return False


def _largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mounted(folder: Path, size_k: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_k}k", "none", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def main(per_job: int = 60, seed: int = 0, jobs: list[str] | None = None) -> bool:
    """Run the cases and print the table; whether every end was a good one."""
    import tempfile

    import torch

    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder))
        for case in cases(per_job, seed, jobs):
            end, message = kills.outcome(case)
            results.append((case, end, message))
            if end not in ("same", "refused", "skipped"):
                print(json.dumps([str(case), end, message[-1500:]]), flush=True)
    print(table(results), flush=True)
    return all(end in ("same", "refused", "skipped") for _, end, _ in results)
