"""docs/extend.md as it stands: a package from outside the library is written, trains, saves, and is read elsewhere."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from endofm_lab.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, re.S))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.strip().splitlines()]


def run(arguments, folder) -> str:
    """The output of a new Python process in a folder, whose packages it can import."""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom):
    """Where a reader of the page works: the package ``my_lab`` beside the programs; the phantom is drawn already."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "phantom").mkdir()
    for file in phantom.parent.iterdir():
        (folder / "phantom" / file.name).symlink_to(file)
    for name, text in PROGRAMS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def chained(*names) -> list[str]:
    """Programs one after the other in one process, each in a namespace of its own."""
    return ["-c", f"import runpy\nfor name in {names!r}:\n    runpy.run_path(name)"]


@pytest.fixture(scope="module")
def trained(folder):
    return run(chained(*(name for name in PROGRAMS if name.startswith("train"))), folder)


@pytest.fixture(scope="module")
def used(folder, trained):
    return run(chained(*(name for name in PROGRAMS if name.startswith("use"))), folder)


def test_the_page_has_three_examples_and_prepares_its_data():
    assert [name for name in PROGRAMS if "/" in name] == [
        "my_lab/encoder.py",
        "my_lab/cleanliness.py",
        "my_lab/barlow.py",
    ]
    assert len(COMMANDS) == 8
    compile(PROGRAMS["prepare.py"], "prepare.py", "exec")
    assert 'write_phantom("phantom", preset="tiny"' in PROGRAMS["prepare.py"]


def test_objects_from_outside_are_trained_and_what_they_save_names_their_classes(folder, trained):
    card = json.loads((folder / "runs/encoder/seed-0/model/card.json").read_text())
    assert card["backbone"]["class"] == "my_lab.encoder:Tubelets"
    card = json.loads((folder / "runs/task/seed-0/model/card.json").read_text())
    assert card["heads"]["cleanliness"]["by"] == "my_lab.cleanliness:NumberHead"
    report = json.loads((folder / "runs/task/report.json").read_text())
    assert report["task_class"] == "my_lab.cleanliness:Cleanliness"
    assert report["measures"] == ["my_lab.cleanliness:WorstError"] and "worst_error" in report["metrics"]
    described = json.loads((folder / "runs/objective/config.json").read_text())
    assert described["config"]["objective_class"] == "my_lab.barlow:Barlow"


def in_the_terminal(folder, monkeypatch, *words):
    """The exit code of a command in the reader's folder, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return main([*words, "--allow", "my_lab"])


def test_the_command_line_names_own_classes_and_makes_them_with_their_default_settings(folder, monkeypatch, capsys):
    encoder = ["--own-encoder", "my_lab.encoder:Tubelets"]
    task = ["finetune", "phantom/manifest.csv", "--out", "runs/named", "--own-task"]
    trainings = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "endofm_lab.cli.train.finetuning", lambda config, task, **more: trainings.append((task, more)) or []
        )
        patch.setattr("endofm_lab.cli.train.show_run", lambda *_: None)
        assert in_the_terminal(folder, monkeypatch, *task, "my_lab.cleanliness:Cleanliness", *encoder) == 0
    assert repr(trainings[0][0]) == "Cleanliness(column='cleanliness')"
    assert trainings[0][1]["start"].kind == "tubelets"

    small = ["--views.global-frames", "4", "4", "--views.global-px", "32", "--batch", "2", "--trackers"]
    own = ["--own-objective", "my_lab.barlow:Barlow", *encoder]
    line = ["pretrain", "phantom/manifest.csv", "--out", "runs/named-barlow", "--preset", "tiny", *own, *small]
    assert in_the_terminal(folder, monkeypatch, *line, "--steps", "2") == 0
    described = json.loads((folder / "runs/named-barlow/config.json").read_text())["config"]
    assert described["objective_class"] == "my_lab.barlow:Barlow"
    assert described["objective_settings"] == {"redundancy": 0.005}

    capsys.readouterr()
    for words, sentence in (
        ([*task, "my_lab.cleanliness:Cleanliness"], "The manifest has no column 'cleanliness'"),
        ([*task, "my_lab.barlow:Barlow"], "my_lab.barlow:Barlow is not Task"),
        ([*task, "my_lab.encoder:Nothing"], "--own-task needs my_lab.encoder:Nothing, which cannot be imported"),
        ([*line, "--backbone.depth", "3"], "--own-encoder has its own configuration. Leave out the options --backbone"),
        ([*line, "--start", "demo"], "--own-encoder has its own size and weights. Leave out --start"),
    ):
        assert in_the_terminal(folder, monkeypatch, *words) == 2
        assert sentence in capsys.readouterr().err
    assert main([*task, "my_lab.cleanliness:Cleanliness"]) == 2
    assert "--own-task needs my_lab.cleanliness:Cleanliness, which is code from outside" in capsys.readouterr().err


def test_the_programs_of_the_page_read_what_was_saved_once_the_package_is_allowed(folder, trained, monkeypatch, capsys):
    monkeypatch.setattr("endofm_lab.outside._always", [])  # what a program allows for its whole process ends here
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in PROGRAMS:
        if name.startswith("use"):
            runpy.run_path(name)
    text = capsys.readouterr().out
    assert "needs my_lab.encoder:Tubelets, which is code from outside endofm_lab" in text
    assert "mean over all patches" in text and "worst_error" in text and "not ranked" in text.lower()
    check_what_was_written(folder)


def check_what_was_written(folder):
    """The evaluation, the report and the model of the programs that use what was trained."""
    second, first = (json.loads((folder / f"runs/{name}/report.json").read_text()) for name in ("task-again", "task"))
    assert second["metrics"]["mean_absolute_error"] == pytest.approx(first["metrics"]["mean_absolute_error"])
    page = (folder / "runs/objective/report.html").read_text()
    assert "Terms of the loss" in page and "objective_settings.redundancy" in page
    card = json.loads((folder / "runs/objective/model/card.json").read_text())
    assert card["name"] == "barlow pre-training, 6 steps" and card["backbone"]["class"] == "my_lab.encoder:Tubelets"


@pytest.mark.slow
def test_another_process_reads_goes_on_evaluates_and_reports(folder, used):
    assert "needs my_lab.encoder:Tubelets, which is code from outside endofm_lab" in used
    assert "mean over all patches" in used and "worst_error" in used and "not ranked" in used.lower()
    check_what_was_written(folder)


@pytest.mark.slow
def test_the_commands_of_the_page_run_once_the_package_is_allowed(folder, used):
    lines = [line.split()[1:] for line in COMMANDS]
    program = f"import sys\nfrom endofm_lab.cli.main import main\nsys.exit(max(main(line) for line in {lines!r}))"
    output = run(["-c", program], folder)
    assert "worst_error" in output and "Tubelets" in output
    assert (folder / "reports/task").exists()


@pytest.mark.slow
def test_a_package_is_not_imported_unless_the_reader_allows_it(folder, used):
    program = (
        "import sys, endofm_lab as lab\n"
        "for read, folder in ((lab.load_model, 'runs/encoder/seed-0/model'), (lab.read_run, 'runs/task'),"
        " (lab.resume, 'runs/objective'), (lab.inspect_checkpoint, 'runs/task/seed-0/model')):\n"
        "    try: print(read(folder))\n"
        "    except lab.UserError as error: print(error)\n"
        "assert not [name for name in sys.modules if name.startswith('my_lab')]"
    )
    assert run(["-c", program], folder).count("only if you allow it") == 4
