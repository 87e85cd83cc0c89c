"""The commands of docs/encoders.md, as a reader types them."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from endofm_lab.cli.main import main
from endofm_lab.runs.run import read_run

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.strip().splitlines()]


def test_the_commands_of_the_page_work_as_they_are_printed(phantom, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phantom").symlink_to(phantom.parent)
    program = tmp_path / "random_videomae.py"
    program.write_text(re.findall(r"```python\n(.*?)```", TEXT, re.S)[0], encoding="utf-8")
    runpy.run_path(str(program))
    assert len(COMMANDS) == 6
    outputs = []
    for command in COMMANDS:
        name, *arguments = shlex.split(command)
        assert name == "endofm-lab" and main(arguments) == 0, command
        outputs.append(capsys.readouterr().out)
    assert "video model of Hugging Face transformers" in outputs[0]
    runs = [read_run(tmp_path / "runs" / name) for name in ("frozen", "lora", "swin")]
    assert [run.method for run in runs] == ["attentive probe", "LoRA of rank 4", "head on frozen backbone"]
    trained = [int(run.provenance["trained"].split()[0].replace(",", "")) for run in runs]
    assert trained[2] < trained[1] and (tmp_path / "reports" / "encoders").is_dir()
