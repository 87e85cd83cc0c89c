"""The wheel is the whole product: library, command, app, lessons and recipes, outside any checkout."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.request
import venv
from pathlib import Path

import pytest

from endofm_lab.cli.main import main
from endofm_lab.cli.serve import LESSONS, copy_lessons, free_port, require
from endofm_lab.data.labels import list_mappings
from endofm_lab.data.prepare.recipes import list_recipes
from endofm_lab.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("app", "notebooks", "data_recipes")  # folders beside the package that the wheel has inside it
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def carried(name: str) -> set[str]:
    """Files that a wheel takes from a folder beside the package, relative to it."""
    folder, package = ROOT / name, f"endofm_lab.{name}"
    code = {p for inner in SETUP["packages"] if f"{inner}.".startswith(f"{package}.")
            for p in folder.joinpath(*inner.split(".")[2:]).glob("*.py")}  # fmt: skip
    data = {p for pattern in SETUP["package-data"].get(package, []) for p in folder.glob(pattern)}
    return {str(path.relative_to(folder)) for path in code | data}


def test_the_build_lists_every_package_and_every_folder_that_the_wheel_carries() -> None:
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "endofm_lab").rglob("__init__.py")}
    beside = {f"endofm_lab.{name}" for name in BESIDE}
    beside |= {f"endofm_lab.{'.'.join(p.parent.relative_to(ROOT).parts)}" for p in (ROOT / "app").rglob("*.py")}
    assert set(SETUP["packages"]) == packages | beside


@pytest.mark.parametrize("name", BESIDE)
def test_nothing_of_app_lessons_and_recipes_is_left_out(name: str) -> None:
    kept = subprocess.run(["git", "ls-files", name], cwd=ROOT, capture_output=True, text=True)
    if kept.returncode:
        pytest.skip("this is no checkout")
    files = {str(Path(line).relative_to(name)) for line in kept.stdout.splitlines() if not line.endswith("README.md")}
    assert {path for path in files if (ROOT / name / path).exists()} == carried(name)


def test_lessons_are_copied_once_and_what_was_changed_stays_until_a_reset(tmp_path: Path) -> None:
    copied, changed = copy_lessons(tmp_path / "mine")
    assert len(copied) == len(list(LESSONS.glob("*.ipynb"))) > 10 and not changed
    (tmp_path / "mine" / copied[0]).write_text("my notes")
    (tmp_path / "mine" / copied[1]).unlink()
    assert copy_lessons(tmp_path / "mine") == ([copied[1]], [copied[0]])
    assert (tmp_path / "mine" / copied[0]).read_text() == "my notes"
    assert copy_lessons(tmp_path / "mine", reset=True) == ([], [copied[0]])
    assert copy_lessons(tmp_path / "mine") == ([], [])
    with pytest.raises(UserError, match="contains the original lessons"):
        copy_lessons(LESSONS)


def test_jupyter_opens_the_copies_and_never_the_lessons_of_the_project(tmp_path: Path, monkeypatch, capsys) -> None:
    started = []
    monkeypatch.setattr(subprocess, "run", lambda line: started.append(line) or subprocess.CompletedProcess(line, 0))
    monkeypatch.chdir(tmp_path)
    assert main(["notebooks", "--headless"]) == 0
    assert "endofm_lab_lessons" in started[0] and (tmp_path / "endofm_lab_lessons").is_dir()
    name = next(LESSONS.glob("*.ipynb")).name
    (tmp_path / "endofm_lab_lessons" / name).write_text("{}")
    capsys.readouterr()
    assert main(["notebooks", "--headless", "--reset"]) == 0
    assert name in capsys.readouterr().out


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"The app needs streamlitt.*pip install 'endofm-lab\[app\]'"):
        require("streamlitt", "app", "The app")


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Path:
    """The commands of an environment that has the wheel, and the packages of this one but not its library."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("endofm_lab", *BESIDE):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    python = str(environment / "bin" / "python")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True, capture_output=True)
    return environment / "bin"


def surroundings(folder: Path) -> dict[str, str]:
    """The environment variables of a command that runs outside the checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = folder / "jupyter" / "jupyter_server_config.json"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text('{"ServerApp": {"allow_root": true}}')  # tests may run as root, which Jupyter asks about
    return {**kept, "ENDOFM_LAB_CACHE": str(folder / "cache"), "JUPYTER_CONFIG_DIR": str(settings.parent)}


def outside(commands: Path, folder: Path, name: str, *line: str) -> str:
    """What a command of the environment prints outside the checkout."""
    run = [str(commands / name), *line]
    done = subprocess.run(run, capture_output=True, text=True, cwd=folder, env=surroundings(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_recipes_and_mappings_are_found_from_an_installed_wheel(commands: Path, tmp_path: Path) -> None:
    code = (
        "from endofm_lab.data import labels; from endofm_lab.data.prepare import recipes; print(recipes.__file__);"
        "print(*(recipe.name for recipe in recipes.list_recipes()));"
        "print(*(labels.read_mapping(name).name for name in labels.list_mappings()))"
    )
    where, recipes, mappings = outside(commands, tmp_path, "python", "-c", code).splitlines()
    assert Path(where).is_relative_to(commands.parent)
    assert recipes.split() == [recipe.name for recipe in list_recipes()]
    assert mappings.split() == list_mappings()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_doctor_demo_and_pages_work_from_an_installed_wheel(commands: Path, tmp_path: Path) -> None:
    assert "demo model" in outside(commands, tmp_path, "endofm-lab", "doctor")
    shown = json.loads(outside(commands, tmp_path, "endofm-lab", "demo", "show", "--headless", "--json"))
    assert shown["app"].startswith("http://127.0.0.1:") and (tmp_path / shown["report"]).is_file()
    code = (
        "import sys; from endofm_lab.cli import serve;"
        "from streamlit.testing.v1 import AppTest; sys.path.insert(0, str(serve.APP.parent));"
        "page = AppTest.from_file(str(serve.APP.with_name('main.py')), default_timeout=200).run();"
        "print(serve.APP, len(page.exception), len(page.title))"
    )
    app, *counts = outside(commands, tmp_path, "python", "-c", code).split()
    assert Path(app).is_relative_to(commands.parent) and counts == ["0", "1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("command", "page"), [("app", "_stcore/health"), ("notebooks", "api")])
def test_app_and_lessons_are_served_from_an_installed_wheel(
    commands: Path, tmp_path: Path, command: str, page: str
) -> None:
    port = free_port(8700)
    line = [str(commands / "endofm-lab"), command, "--headless", "--port", str(port)]
    with (tmp_path / "printed.txt").open("w") as output:
        server = subprocess.Popen(
            line, cwd=tmp_path, env=surroundings(tmp_path), stdout=output, stderr=output, start_new_session=True
        )
    try:
        end, status = time.monotonic() + 300, None
        while status != 200 and time.monotonic() < end:
            assert server.poll() is None, (tmp_path / "printed.txt").read_text()
            try:
                status = urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5).status
            except OSError:
                time.sleep(0.5)
        assert status == 200
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)  # the command and the server that it started
            server.wait(timeout=60)
    lessons = {path.name for path in (tmp_path / "endofm_lab_lessons").glob("*.ipynb")}
    assert lessons == ({path.name for path in LESSONS.glob("*.ipynb")} if command == "notebooks" else set())


LESSON = """
import nbformat
from nbclient import NotebookClient
from pathlib import Path
from endofm_lab.cli.serve import copy_lessons

name = copy_lessons(Path("lessons"))[0][0]
lesson = nbformat.read(Path("lessons") / name, 4)
lesson.cells = [*lesson.cells[:10], nbformat.v4.new_code_cell("print(lab.__file__)")]
NotebookClient(lesson, timeout=600, resources={"metadata": {"path": "lessons"}}).execute()
print(lesson.cells[-1].outputs[0].text)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_lesson_begins_with_the_library_of_an_installed_wheel(commands: Path, tmp_path: Path) -> None:
    where = outside(commands, tmp_path, "python", "-c", LESSON).strip()
    assert Path(where).is_relative_to(commands.parent)
