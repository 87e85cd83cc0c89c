"""Run folders: the request comes first, one worker at a time, dead ones are noticed, differences are named."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from endofm_lab.cli.main import main
from endofm_lab.data.samples import sample_video
from endofm_lab.errors import UserError
from endofm_lab.folders.run_folder import LOCK, UNSEALED, FolderInUseError, Holder, claim, held_by

REQUEST = {"steps": 100, "seeds": (0, 1), "views": {"px": 64, "frames": 4}, "model": "a" * 64}

HOLDING = """
import sys, time
from endofm_lab.folders.run_folder import claim
with claim(sys.argv[1], {"steps": 1}, "a run"):
    print("holds", flush=True)
    time.sleep(120)
"""


def holding(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "holds"
    return process


def test_the_request_is_written_before_anything_else_and_the_lock_goes_at_the_end(tmp_path):
    with claim(tmp_path / "run", REQUEST, "a run", about={"made": "today"}) as folder:
        assert sorted(path.name for path in folder.iterdir()) == [LOCK, UNSEALED, "job.json"]
        assert held_by(folder).pid == os.getpid()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["hashes.json", "job.json"]
    assert json.loads((tmp_path / "run" / "job.json").read_text())["made"] == "today"
    with claim(tmp_path / "run", REQUEST, "a run", about={"made": "tomorrow"}):
        pass
    assert json.loads((tmp_path / "run" / "job.json").read_text())["made"] == "today"


def test_the_lock_goes_when_the_work_ends_in_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path, REQUEST, "a run"):
        raise ZeroDivisionError
    assert not (tmp_path / LOCK).exists()


def test_another_request_is_refused_by_naming_what_differs(tmp_path):
    with claim(tmp_path, REQUEST, "a run"):
        pass
    request = {"steps": 200, "seeds": [0, 1], "views": {"px": 64, "frames": 8}, "model": "b" * 64, "new": 1}
    sentence = (
        "holds a run with other settings: steps is 100 there, 200 here; views.frames is 4 there, 8 here; different "
        "model; new is not recorded there. Choose another folder, or delete this one."
    )
    with pytest.raises(UserError) as refused, claim(tmp_path, request, "a run"):
        pass
    assert str(refused.value).endswith(sentence)
    assert not (tmp_path / LOCK).exists()


def test_a_second_call_is_refused_while_the_first_one_works_also_in_the_same_process(tmp_path):
    with claim(tmp_path, REQUEST, "a run"):
        refused = pytest.raises(FolderInUseError, match=rf"worked on by process {os.getpid()} here since 20\d\d-")
        with refused, claim(tmp_path, REQUEST, "a run"):
            pass
        assert held_by(tmp_path)
    assert held_by(tmp_path) is None


def test_a_living_process_is_named_and_a_killed_one_is_noticed(tmp_path):
    process = holding(tmp_path / "run")
    with pytest.raises(UserError, match=f"process {process.pid} here"), claim(tmp_path / "run", {"steps": 1}, "a run"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert (tmp_path / "run" / LOCK).exists()
    with claim(tmp_path / "run", {"steps": 1}, "a run") as folder:
        assert held_by(folder).pid == os.getpid()


def test_another_process_with_the_number_of_a_dead_one_is_not_its_holder(tmp_path):
    holder = Holder.this_process(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps({**vars(holder), "born_s": holder.born_s - 1000}))
    with claim(tmp_path, REQUEST, "a run"):
        pass


def test_a_holder_on_another_machine_is_named_with_the_file_to_delete(tmp_path):
    holder = {**vars(Holder.this_process(tmp_path)), "pid": 2**22, "host": f"not-{socket.gethostname()}"}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with pytest.raises(FolderInUseError, match=rf"on not-.*delete .*{LOCK}"), claim(tmp_path, REQUEST, "a run"):
        pass


def test_a_slurm_job_that_is_started_again_on_another_machine_takes_its_folder_over(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    before = {**vars(Holder.this_process(tmp_path)), "host": f"not-{socket.gethostname()}"}
    (tmp_path / LOCK).write_text(json.dumps(before))
    with pytest.raises(FolderInUseError), claim(tmp_path, REQUEST, "a run"):
        pass  # another task of the same start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with claim(tmp_path, REQUEST, "a run"):
        pass
    (tmp_path / LOCK).write_text(json.dumps(before))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(FolderInUseError), claim(tmp_path, REQUEST, "a run"):
        pass


def test_the_command_in_a_folder_that_is_held_is_a_sentence_and_exit_code_2(tmp_path, capsys):
    video = sample_video("Polyp, advancing")
    with claim(tmp_path, {}, "a prediction"):
        assert main(["predict", str(video), "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"is being worked on by process {os.getpid()} here since" in message and "Traceback" not in message


def test_nobody_works_in_a_copy_of_a_folder(tmp_path):
    with claim(tmp_path / "run", REQUEST, "a run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        assert (tmp_path / "copy" / LOCK).exists()
        with claim(tmp_path / "copy", REQUEST, "a run"):
            pass


def test_a_lock_that_was_cut_off_is_taken_away_after_a_moment(tmp_path):
    (tmp_path / LOCK).write_text('{"pid": 12')
    os.utime(tmp_path / LOCK, (time.time() - 60,) * 2)
    with claim(tmp_path, REQUEST, "a run"):
        pass


def test_of_processes_that_find_a_dead_holder_at_once_one_works(tmp_path):
    code = (
        "import sys, time\n"
        "from endofm_lab.errors import UserError\n"
        "from endofm_lab.folders.run_folder import claim\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    with claim(sys.argv[1], {}, 'a run'):\n"
        "        time.sleep(3)\n"
        "    print('worked')\n"
        "except UserError: print('refused')"
    )
    holder = Holder.this_process(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / LOCK).write_text(json.dumps({**vars(holder), "born_s": holder.born_s - 1000}))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) for _ in range(3)]
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    ends = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert ends == ["refused", "refused", "worked"]


def test_a_folder_with_other_files_is_refused_and_one_that_a_kill_left_bare_is_taken(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused = pytest.raises(UserError, match=r"files that do not belong to a run \(thesis.txt\)")
    with refused, claim(tmp_path / "mine", REQUEST, "a run"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with claim(tmp_path / "mine", REQUEST, "a run", allowed_files=("thesis.txt",)):
        pass
    (tmp_path / "bare" / "parts").mkdir(parents=True)
    (tmp_path / "bare" / ".job.0123abcd-4194305-0123abcd.part.json").write_text("{")
    with claim(tmp_path / "bare", REQUEST, "a run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"), claim(tmp_path / "file", REQUEST, "a run"):
        pass


def test_a_request_that_was_refused_before_anything_was_made_does_not_block_the_folder(tmp_path):
    with pytest.raises(UserError, match="no rate"), claim(tmp_path, REQUEST, "a run") as folder:
        (folder / "parts").mkdir()
        raise UserError("There is no rate.")
    with claim(tmp_path, {"steps": 1}, "a run"):
        (tmp_path / "parts" / "part").write_text("work")
    with pytest.raises(UserError, match="other settings"), claim(tmp_path, REQUEST, "a run"):
        pass


def test_a_damaged_record_is_a_sentence(tmp_path):
    (tmp_path / "job.json").write_text('{"steps"')
    with pytest.raises(UserError, match=r"job\.json is damaged"), claim(tmp_path, REQUEST, "a run"):
        pass
