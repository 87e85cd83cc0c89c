"""A wheel carries the recipes and mappings that stand beside the package in the source tree."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from endofm_lab.data.labels import list_mappings
from endofm_lab.data.prepare.recipes import list_recipes

ROOT = Path(__file__).resolve().parents[2]


def test_the_build_lists_every_package_and_the_recipes() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "endofm_lab").rglob("__init__.py")}
    assert set(listed) == found | {"endofm_lab.data_recipes"}


@pytest.mark.slow
def test_recipes_and_mappings_are_found_from_an_unpacked_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("endofm_lab", "data_recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from endofm_lab.data import labels; from endofm_lab.data.prepare import recipes; print(recipes.__file__);"
        "print(*(recipe.name for recipe in recipes.list_recipes()));"
        "print(*(labels.read_mapping(name).name for name in labels.list_mappings()))"
    )
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"]
    where, recipes, mappings = subprocess.run(
        run, check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert recipes.split() == [recipe.name for recipe in list_recipes()]
    assert mappings.split() == list_mappings()
