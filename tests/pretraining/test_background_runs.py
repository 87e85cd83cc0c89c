"""Runs in a process of their own: stopped with a checkpoint, resumed, never two on one folder."""

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest

from endofm_lab.errors import UserError
from endofm_lab.files import read_json, write_json
from endofm_lab.folders.background import is_running, job_folder, printed, resume, start, stop
from endofm_lab.folders.run_folder import LOCK, Holder
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import SETTINGS

ENDLESS = ["100000" if word == "8" else word for word in SETTINGS]  # settings of a run that lasts until it is stopped


def start_run(manifest, out, options=()):
    start(["pretrain", str(manifest), "--out", str(out), *options], out)


def wait_until(condition, run, seconds=250):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, printed(run)
        time.sleep(0.05)


@dataclass
class Stopped:
    """A run that was started in a terminal and stopped from here.

    Attributes:
        run: its folder.
        returncode: of the command.
        output: what the command printed to the terminal.
        in_background: whether there was a job for the folder while the command ran.
        steps: steps in the log after the stop.
        checkpoint: name of the last checkpoint after the stop.
    """

    run: Path
    returncode: int
    output: str
    in_background: bool
    steps: int
    checkpoint: str


@pytest.fixture(scope="module")
def in_terminal(manifest, tmp_path_factory):
    run = tmp_path_factory.mktemp("terminal") / "run"
    command = [sys.executable, "-m", "endofm_lab.cli.main", "pretrain", str(manifest), "--out", str(run), *ENDLESS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as terminal:
        try:
            wait_until(lambda: len(read_log(run / "log.jsonl")) >= 2 or terminal.poll() is not None, run)
            in_background = job_folder(run).exists()
            stop(run)
            output = terminal.communicate(timeout=120)[1]
        finally:
            terminal.kill()
    steps, checkpoint = len(read_log(run / "log.jsonl")), Checkpoints(run / "checkpoints").all()[-1].name
    return Stopped(run, terminal.returncode, output, in_background, steps, checkpoint)


def test_a_run_that_was_started_in_a_terminal_can_be_stopped(in_terminal):
    assert not in_terminal.in_background
    assert in_terminal.returncode == 130 and "Stopped." in in_terminal.output
    assert in_terminal.checkpoint == f"step-{in_terminal.steps:08d}"


def test_a_run_goes_on_in_the_background_stops_with_a_checkpoint_and_refuses_other_settings(manifest, in_terminal):
    run = in_terminal.run
    start_run(manifest, run, ENDLESS)  # the same request goes on
    with pytest.raises(UserError, match="is being worked on"):
        start_run(manifest, run)
    with pytest.raises(UserError, match="is being worked on"):
        resume(run)
    enough = in_terminal.steps + 3
    wait_until(lambda: len(read_log(run / "log.jsonl")) >= enough or not is_running(run), run)
    stop(run)
    wait_until(lambda: not is_running(run), run)
    records = read_log(run / "log.jsonl")
    assert len(records) >= enough and [r["step"] for r in records] == list(range(len(records)))
    assert Checkpoints(run / "checkpoints").all()[-1].name == f"step-{len(records):08d}"
    assert "Stopped." in printed(run)
    before = (run / "config.json").read_bytes()
    start_run(manifest, run, [*ENDLESS, "--seed", "7"])  # another request does not, and its last words say why
    wait_until(lambda: not is_running(run), run)
    assert "with other settings: config.seed is 0 there, 7 here" in printed(run, 1)
    assert (run / "config.json").read_bytes() == before


def test_a_run_on_another_machine_is_not_stopped_from_here_and_the_sentence_names_the_machine(tmp_path):
    holder = asdict(Holder.this_process(tmp_path))
    write_json(tmp_path / LOCK, {**holder, "host": "gpu-7"})
    assert is_running(tmp_path)
    with pytest.raises(UserError, match=rf"process {os.getpid()} on gpu-7.*Stop the run on gpu-7"):
        stop(tmp_path)
    write_json(tmp_path / LOCK, holder)
    with pytest.raises(UserError, match="by this process"):
        stop(tmp_path)


def test_another_process_with_that_number_is_not_the_run(tmp_path):
    process = psutil.Process(os.getpid())
    write_json(job_folder(tmp_path) / "process.json", {"pid": process.pid, "created": process.create_time() - 100})
    assert not is_running(tmp_path)
    stop(tmp_path)  # would end this test
    write_json(job_folder(tmp_path) / "process.json", {"pid": process.pid, "created": process.create_time()})
    assert is_running(tmp_path)


def test_a_folder_without_a_run_has_nothing_to_resume(tmp_path):
    assert not is_running(tmp_path) and printed(tmp_path) == ""
    with pytest.raises(UserError, match="no job to resume"):
        resume(tmp_path)


def test_a_run_that_cannot_begin_says_why(manifest, tmp_path):
    start_run(manifest, tmp_path / "run", ["--preset", "enormous"])
    wait_until(lambda: not is_running(tmp_path / "run"), tmp_path / "run")
    assert "enormous" in printed(tmp_path / "run")
    assert read_json(job_folder(tmp_path / "run") / "process.json")["pid"] > 0
