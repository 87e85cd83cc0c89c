import json
import subprocess
import sys

import pytest

from endofm_lab.cli.main import COMMANDS, main


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_a_help_text(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"endofm-lab {command}" in capsys.readouterr().out


def test_the_overview_lists_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
    assert "research only" in out


def test_an_unknown_command_is_a_user_error(capsys):
    assert main(["predct"]) == 2
    assert "'predct'" in capsys.readouterr().err


def test_a_missing_video_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "absent.mp4"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "absent.mp4" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_help_does_not_load_torch():
    code = "import sys; from endofm_lab.cli.main import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_doctor_finds_no_problem_on_this_machine(capsys):
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert {"Python", "torch", "video", "demo model"} <= {check["check"] for check in checks}
    assert all(check["ok"] for check in checks)
