"""Files and folders to choose from are below allowed folders: neither links nor ".." lead out of them."""

import os
from pathlib import Path

import pytest

from endofm_lab.errors import UserError

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """An allowed folder with links, beside a secret one."""
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(APP))
    inside, secret = tmp_path / "inside", tmp_path / "secret"
    (inside / "folder").mkdir(parents=True)
    secret.mkdir()
    for path in (inside / "frame 10.mp4", inside / "frame 9.MP4", inside / "notes.txt", inside / ".hidden.mp4"):
        path.write_bytes(b"x")
    (secret / "patient.mp4").write_bytes(b"x")
    for name, target in (("out", secret), ("out.mp4", secret / "patient.mp4"), ("circle", inside / "circle")):
        (inside / name).symlink_to(target)
    (inside / "within.mp4").symlink_to(inside / "frame 10.mp4")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("ENDOFM_LAB_FOLDERS", f"{inside}{os.pathsep}{tmp_path / 'absent'}")
    return tmp_path


def names(folder, *endings):
    from machine.browse import entries

    return [entry.path.name for entry in entries(folder, endings)]


def test_folders_come_first_and_files_of_a_kind_in_natural_order_without_links_that_leave(tree):
    assert names(tree / "inside", ".mp4") == ["folder", "frame 9.MP4", "frame 10.mp4", "within.mp4"]
    assert "notes.txt" in names(tree / "inside")


@pytest.mark.parametrize(
    "path", ["secret", "inside/..", "inside/out", "inside/folder/../../secret", ".", "inside/circle"]
)
def test_no_path_leads_out_of_the_allowed_folders(tree, path):
    with pytest.raises(UserError, match=r"none of the folders|can no longer be opened"):
        names(tree / path)


def test_the_current_folder_and_those_that_are_named_are_allowed(tree):
    from machine.browse import roots

    assert roots()[:2] == [tree / "inside", tree / "cwd"] and tree / "absent" not in roots()
    assert all(path.is_relative_to(tree / "cache") for path in roots()[2:])


def test_a_folder_that_is_gone_or_a_text_that_is_no_path_is_a_sentence(tree):
    for path in (tree / "inside" / "gone", Path("a" * 5000), Path("\0")):
        with pytest.raises(UserError, match="can no longer be opened"):
            names(path)
