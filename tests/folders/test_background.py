"""Jobs in processes of their own: one at a time in their order, stopped, resumed, and found after everything ended."""

import sys
import time

import psutil
import pytest

from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.folders import background
from endofm_lab.folders.background import (
    FAILED,
    FINISHED,
    LOST,
    RUNNING,
    STOPPED,
    WAITING,
    job_folder,
    job_of,
    list_jobs,
    printed,
    remove,
    resume,
    start,
    stop,
)

# A program in place of endofm-lab: works until a file appears, and saves what it has when it is told to stop.
WORK = """
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: (out.joinpath("saved").touch(), print("Stopped."), sys.exit(130)))
print("clip:  40%|####  | 4/10 [00:01<00:02]", file=sys.stderr, flush=True)
while not out.joinpath("go").exists(): time.sleep(0.02)
if out.joinpath("broken").exists(): sys.exit("Error: a sentence.")
"""


@pytest.fixture
def line(tmp_path, monkeypatch):
    """The names of the jobs that were started; all of them end with the test."""
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(background, "PROGRAM", (sys.executable, "-c", WORK))

    def enter(name):
        return start([str(tmp_path / name)], tmp_path / name, f"Job {name}")

    yield enter
    for job in list_jobs():
        stop(job.out)
    until(lambda: all(job.state not in background.LIVE for job in list_jobs()))


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def state(job):
    return job_of(job.out).state


def end(job, broken=False):
    if broken:
        (job.out / "broken").touch()
    (job.out / "go").touch()


def test_jobs_run_one_at_a_time_in_their_order_and_say_how_they_ended(line):
    first, second, third = line("a"), line("b"), line("c")
    until(lambda: (first.out.is_dir(), state(first)) == (True, RUNNING))
    assert [(job.title, job.state, job.before) for job in list_jobs()] == [
        ("Job c", WAITING, 2),
        ("Job b", WAITING, 1),
        ("Job a", RUNNING, 0),
    ]
    until(lambda: job_of(first.out).progress == (4, 10))
    assert not second.out.exists()
    end(first)
    until(lambda: state(first) == FINISHED and second.out.is_dir())
    assert state(second) == RUNNING and job_of(third.out).before == 1 and not third.out.exists()
    end(second, broken=True)
    until(lambda: state(second) == FAILED)
    assert printed(second.out, 1) == "Error: a sentence."
    until(lambda: state(third) == RUNNING)


def test_a_stopped_job_saves_its_work_and_a_waiting_one_leaves_the_line_and_both_go_on(line):
    first, second = line("a"), line("b")
    until(lambda: "4/10" in printed(first.out))
    with pytest.raises(UserError, match="being worked on"):
        resume(first.out)
    with pytest.raises(UserError, match="has not ended"):
        remove(first.out)
    stop(second.out)
    until(lambda: state(second) == STOPPED)
    stop(first.out)
    until(lambda: state(first) == STOPPED)
    assert (first.out / "saved").exists() and printed(first.out, 1) == "Stopped." and not second.out.exists()
    assert resume(first.out).command == first.command
    end(first)
    until(lambda: state(first) == FINISHED)
    remove(first.out)
    assert [job.title for job in list_jobs()] == ["Job b"] and first.out.is_dir()


@pytest.mark.parametrize("victim", ["the command", "both processes"])
def test_a_job_whose_process_was_killed_says_so_and_goes_on(line, victim):
    first, second = line("a"), line("b")
    until(lambda: "4/10" in printed(first.out))
    worker = psutil.Process(read_json(job_folder(first.out) / "process.json")["pid"])
    for process in [*worker.children(), *([worker] if victim == "both processes" else [])]:
        process.kill()
    until(lambda: state(first) == LOST)
    until(lambda: state(second) == RUNNING)
    resume(first.out)
    assert (state(first), job_of(first.out).before) == (WAITING, 1)


def test_a_folder_without_a_job_has_nothing_to_stop_or_to_resume(line, tmp_path):
    stop(tmp_path / "none")
    assert job_of(tmp_path / "none") is None and printed(tmp_path / "none") == "" and not list_jobs()
    with pytest.raises(UserError, match="no job to resume"):
        resume(tmp_path / "none")
