"""Files that are whole or absent: unique temporary names, leftovers of killed writers, permissions, fingerprints."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file

from endofm_lab import files
from endofm_lab.cli import main as command_line
from endofm_lab.errors import UserError, storage_sentence
from endofm_lab.files import atomic_path, fingerprint_of, fits, read_json, sweep, write_json


def test_two_writers_in_one_process_do_not_share_a_temporary_path(tmp_path):
    both_open = threading.Barrier(2)
    failures = []

    def write(text):
        try:
            with atomic_path(tmp_path / "one.txt") as temporary:
                temporary.write_text(text)
                both_open.wait(timeout=10)
        except OSError as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in ("first", "second")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    assert [path.name for path in tmp_path.iterdir()] == ["one.txt"]


def test_what_a_killed_writer_left_is_swept_and_a_living_writers_file_is_not(tmp_path):
    code = (
        "import os, signal, sys; from endofm_lab.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as file:\n"
        "    file.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "below" / "killed.json")], timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "below").iterdir())) == 1
    with atomic_path(tmp_path / "alive.json") as temporary:
        temporary.write_text("{}")
        (tmp_path / ".notes.part").write_text("of somebody else")
        sweep(tmp_path)
        assert temporary.exists()
    assert not list((tmp_path / "below").iterdir())
    assert (tmp_path / ".notes.part").exists()


def test_a_written_file_may_be_read_by_the_group_whatever_its_writer_does(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_UMASK", 0o027)
    with atomic_path(tmp_path / "weights.safetensors") as temporary:
        save_file({"a": torch.zeros(2)}, temporary)  # makes it 0600
    assert stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode) == 0o640
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        save_file({"a": torch.zeros(2)}, temporary / "weights.safetensors")
    assert stat.S_IMODE((tmp_path / "folder" / "weights.safetensors").stat().st_mode) == 0o640


def test_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, files.Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("on disk"), fsync(number)))
    monkeypatch.setattr(files.Path, "replace", lambda path, target: (events.append("named"), replace(path, target))[1])
    write_json(tmp_path / "a.json", 1)
    assert events == ["on disk", "named"]


def test_an_error_of_the_disk_names_the_target_not_the_temporary_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left.*result\.json") as error, atomic_path(tmp_path / "result.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(tmp_path / "result.json") in storage_sentence(error.value)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EMFILE, "Too many files"),
    ],
)
def test_errors_of_the_disk_are_one_sentence_with_file_and_remedy_and_exit_code_2(number, words, monkeypatch, capsys):
    def fail(name, arguments):
        raise OSError(number, os.strerror(number), "/data/run/log.jsonl")

    monkeypatch.setattr(command_line, "_call", fail)
    assert command_line.main(["doctor"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: /data/run/log.jsonl: ")
    assert words in message
    assert "defect" not in message
    assert "Traceback" not in message


def test_a_short_write_of_numpy_counts_as_a_full_disk_and_other_errors_stay_defects(monkeypatch, capsys):
    assert "disk is full" in storage_sentence(OSError("4096 requested and 100 written"))
    monkeypatch.setattr(command_line, "_call", lambda *_: (_ for _ in ()).throw(ConnectionResetError(104, "reset")))
    assert command_line.main(["doctor"]) == 1
    assert "defect" in capsys.readouterr().err


def test_a_fingerprint_notices_a_change_of_the_same_size_and_time(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(bytes(1_000_000))
    before, times = fingerprint_of(video), video.stat()
    assert fingerprint_of(video) == before
    for place in (0, 500_000, 999_999):
        changed = bytearray(1_000_000)
        changed[place] = 1
        video.write_bytes(changed)
        os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert fingerprint_of(video) != before


def test_the_fingerprint_of_a_folder_notices_names_and_content(tmp_path):
    for name in ("1.png", "2.png", "below/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"same")
    before, times = fingerprint_of(tmp_path), (tmp_path / "2.png").stat()
    (tmp_path / "2.png").write_bytes(b"more")
    os.utime(tmp_path / "2.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = fingerprint_of(tmp_path)
    assert changed != before
    (tmp_path / "below" / "3.png").rename(tmp_path / "below" / "4.png")
    assert fingerprint_of(tmp_path) not in (before, changed)


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        (1, float, True),
        (True, int, False),
        (float("nan"), float, False),
        (10**400, float, False),
        ("abc", tuple[str, ...], False),
        (["a", "b"], tuple[str, ...], True),
        ([1.0, 2.0], tuple[float, float, float], False),
        ({"a": [1]}, dict[str, list[int]], True),
        ({"a": ["1"]}, dict[str, list[int]], False),
        (None, str | None, True),
        (["x"], Literal["x"], False),
        ("x", Literal["x"], True),
    ],
)
def test_values_are_held_against_their_types(value, kind, right):
    assert fits(value, kind) is right


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": 1e999}', '{"a": NaN}', "{", "\ufeff{}"])
def test_json_that_readers_understand_differently_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="not readable JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="is a pipe"):
        read_json(tmp_path / "a.json")


def test_messages_are_one_line_of_at_most_500_letters_that_keep_their_remedy():
    message = str(UserError("The file " + "x" * 5000 + " is\ntoo long. Choose a shorter name."))
    assert len(message) <= 500 and "\n" not in message
    assert message.startswith("The file ") and message.endswith("Choose a shorter name.")
