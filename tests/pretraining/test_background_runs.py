"""Runs in a process of their own: stopped with a checkpoint, resumed, never two on one folder."""

import os
import subprocess
import sys
import time
from dataclasses import asdict

import psutil
import pytest

from endofm_lab.errors import UserError
from endofm_lab.files import read_json, write_json
from endofm_lab.folders.background import is_running, job_folder, printed, resume, start, stop
from endofm_lab.folders.run_folder import LOCK, Holder
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import SETTINGS


def start_run(manifest, out, options=()):
    start(["pretrain", str(manifest), "--out", str(out), *options], out)


def wait_until(condition, run, seconds=250):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, printed(run)
        time.sleep(0.05)


def test_a_run_in_the_background_stops_with_a_checkpoint_and_goes_on_and_refuses_other_settings(manifest, tmp_path):
    run = tmp_path / "run"
    settings = ["100000" if word == "8" else word for word in SETTINGS]
    start_run(manifest, run, settings)
    with pytest.raises(UserError, match="is being worked on"):
        start_run(manifest, run)
    wait_until(lambda: len(read_log(run / "log.jsonl")) >= 3 or not is_running(run), run)
    stop(run)
    wait_until(lambda: not is_running(run), run)
    done = len(read_log(run / "log.jsonl"))
    assert done >= 3 and Checkpoints(run / "checkpoints").all()[-1].name == f"step-{done:08d}"
    assert "Stopped." in printed(run)
    resume(run)
    with pytest.raises(UserError, match="is being worked on"):
        resume(run)
    wait_until(lambda: len(read_log(run / "log.jsonl")) > done or not is_running(run), run)
    stop(run)
    wait_until(lambda: not is_running(run), run)
    done = len(read_log(run / "log.jsonl"))
    start_run(manifest, run, settings)  # the same request goes on, too
    wait_until(lambda: len(read_log(run / "log.jsonl")) > done or not is_running(run), run)
    stop(run)
    wait_until(lambda: not is_running(run), run)
    records = read_log(run / "log.jsonl")
    assert len(records) > done and [r["step"] for r in records] == list(range(len(records)))
    before = (run / "config.json").read_bytes()
    start_run(manifest, run, [*settings, "--seed", "7"])  # another request does not, and its last words say why
    wait_until(lambda: not is_running(run), run)
    assert "with other settings: config.seed is 0 there, 7 here" in printed(run, 1)
    assert (run / "config.json").read_bytes() == before


def test_a_run_that_was_started_in_a_terminal_can_be_stopped(manifest, tmp_path):
    run = tmp_path / "run"
    options = ["100000" if word == "8" else word for word in SETTINGS]
    command = [sys.executable, "-m", "endofm_lab.cli.main", "pretrain", str(manifest), "--out", str(run), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as terminal:
        try:
            wait_until(lambda: len(read_log(run / "log.jsonl")) >= 2 or terminal.poll() is not None, run)
            assert not job_folder(run).exists()
            stop(run)
            output = terminal.communicate(timeout=120)[1]
        finally:
            terminal.kill()
    assert terminal.returncode == 130 and "Stopped." in output
    done = len(read_log(run / "log.jsonl"))
    assert Checkpoints(run / "checkpoints").all()[-1].name == f"step-{done:08d}"


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
