"""The shape of the project: rooms, direction of imports, one place for versions."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

from tests.structure import misnamed, sources

ROOT = Path(__file__).resolve().parents[1]

# A module may import from its own room and from rooms of a lower rank.
RANK = {
    "machine": -1,
    "brief": -2,
    "messages": -2,
    "__init__": 0,
    "errors": -2,
    "files": -1,
    "outside": -1,
    "folders": 1,
    "video": 1,
    "data": 2,
    "familiarity": 2,
    "model": 3,
    "training": 4,
    "metrics": 4,
    "pretraining": 5,
    "tasks": 5,
    "runs": 6,
    "finetuning": 7,
    "explain": 6,
    "temporal": 8,
    "prediction": 6,
    "parts": 7,
    "portable": 4,
    "predict": 8,
    "models": 8,
    "study": 9,
    "integrity": 10,
    "demo": 9,
    "figures": 10,
    "reports": 11,
    "benchmarking": 12,
    "course": 12,
    "widgets": 12,
    "cli": 13,
}


def modules():
    for path in sorted((ROOT / "endofm_lab").rglob("*.py")):
        room = path.relative_to(ROOT / "endofm_lab").parts[0].removesuffix(".py")
        yield path, room


def imports_of(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_in_one_direction():
    wrong = []
    for path, room in modules():
        assert room in RANK, f"{path} is in no known room"
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "endofm_lab" or len(parts) < 2 or parts[1] not in RANK or parts[1] == room:
                continue
            if RANK[parts[1]] >= RANK[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_only_widgets_import_notebook_packages_and_nothing_imports_streamlit():
    for path, room in modules():
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert "streamlit" not in roots, path
        if room != "widgets":
            assert not roots & {"IPython", "ipywidgets", "anywidget"}, path


def test_no_module_holds_two_ideas():
    long = {str(path.relative_to(ROOT)): n for path, _ in modules() if (n := len(path.read_text().splitlines())) > 420}
    assert not long, f"over 420 lines: {long}"


def test_variables_are_named_by_nouns():
    wrong = misnamed(sources())
    assert not wrong, "Name these variables by a noun that says what they hold:\n" + "\n".join(wrong)


def test_a_variable_that_is_not_named_by_a_noun_is_reported_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.structure.ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text("class A:\n    found: int\n\ndef f(told, *given):\n    self.said = [one for one in told]\n")
    assert misnamed([path]) == [f"module.py:{line}" for line in ("4: given", "4: told", "5: one", "5: said")]


def test_no_test_imports_another_test_or_fixtures():
    """What several tests build is in a module of its own, such as tests/builders.py."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name in imports_of(path):
            if any(part == "conftest" or part.startswith("test_") for part in name.split(".")):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_environment_yaml_is_python_plus_this_project():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *conda, pip = environment["dependencies"]
    assert conda[0].startswith(f"python{project['requires-python']}")
    assert conda[1:] == ["pip"]
    install = pip["pip"][-1]
    extras = re.fullmatch(r"-e \.\[(.+)\]", install).group(1).split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert f'EXTRAS = "{",".join(extras)}"' in (ROOT / "bootstrap.py").read_text()


def test_every_direct_dependency_is_pinned_and_no_pin_is_idle():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {re.match(r"[A-Za-z0-9_.-]+", requirement).group(0).lower() for requirement in requirements}
    pins = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert names - pins == {"decord2"}, "decord2 stands in for decord on other platforms"
    assert pins <= names


def test_every_public_name_exists():
    import endofm_lab as lab

    for name in lab.__all__:
        assert getattr(lab, name) is not None
