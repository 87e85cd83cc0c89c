"""docs/extend.md as it stands: a package from outside the library is written, trains, saves, and is read elsewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert len(COMMANDS) == 6
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


@pytest.mark.slow
def test_another_process_reads_goes_on_evaluates_and_reports(folder, used):
    assert "needs my_lab.encoder:Tubelets, which is code from outside endofm_lab" in used
    assert "mean over all patches" in used and "worst_error" in used and "not ranked" in used.lower()
    second, first = (json.loads((folder / f"runs/{name}/report.json").read_text()) for name in ("task-again", "task"))
    assert second["metrics"]["mean_absolute_error"] == pytest.approx(first["metrics"]["mean_absolute_error"])
    page = (folder / "runs/objective/report.html").read_text()
    assert "Terms of the loss" in page and "objective_settings.redundancy" in page
    card = json.loads((folder / "runs/objective/model/card.json").read_text())
    assert card["name"] == "barlow pre-training, 6 steps" and card["backbone"]["class"] == "my_lab.encoder:Tubelets"


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
