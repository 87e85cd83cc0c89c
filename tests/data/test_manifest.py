import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from endofm_lab.data.manifest import Manifest, checked, join_manifests, read_manifest, write_manifest
from endofm_lab.errors import ManifestError


def table(**changes):
    rows = pd.DataFrame(
        {
            "video": ["a.mp4", "stück/b.mp4", "c.png"],
            "start_s": [0.0, 1.5, 0.0],
            "end_s": [2.0, 2.5, 0.0],
            "label": ["polyp", "", "normal"],
            "patient": ["1", "2", "2"],
            "dataset": ["x", "x", "y"],
            "split": ["train", "test", "test"],
        }
    )
    for column, values in changes.items():
        rows[column] = values
    return rows


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_is_written_is_read_back(tmp_path, kind):
    written = write_manifest(table(device=["s1", "s2", None]), tmp_path / f"m.{kind}")
    back = read_manifest(tmp_path / f"m.{kind}")
    pd.testing.assert_frame_equal(back.table, written.table)
    assert back.classes == ["normal", "polyp"]
    assert back.rows("test")["video"].tolist() == ["stück/b.mp4", "c.png"]
    assert back.table["device"].tolist() == ["s1", "s2", ""]


@pytest.mark.parametrize(("datasets", "generated"), [(["phantom"] * 3, True), (["phantom", "x", "phantom"], False)])
def test_only_a_manifest_of_nothing_but_phantoms_is_generated(tmp_path, datasets, generated):
    assert write_manifest(table(dataset=datasets), tmp_path / "m.csv").generated is generated


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    first = write_manifest(table(), tmp_path / "a.csv")
    other_order = write_manifest(table().iloc[[2, 0, 1]][sorted(table())], tmp_path / "b.parquet")
    assert first.fingerprint == other_order.fingerprint == read_manifest(tmp_path / "a.csv").fingerprint
    assert write_manifest(table(label=["polyp", "", "ulcer"]), tmp_path / "c.csv").fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"end_s": [np.inf, 2.5, 0.0]}, "end_s: inf is not a number of seconds"),
        ({"fps": ["inf", "", "25"]}, "Row 1, column fps: 'inf' is no number of frames per second"),
        ({"fps": [25.0, -1.0, np.nan]}, "Row 2, column fps: -1.0 is no number of frames per second"),
        ({"fps": ["", "", "fast"]}, "Row 3, column fps: 'fast' is no number"),
        ({"end_s": [2.0, 1.0, 0.0]}, "Row 2, column end_s: 1.0 lies before start_s"),
        ({"start_s": [0.0, -1.0, 0.0]}, "Row 2, column start_s: -1.0 must be 0 or more"),
        ({"start_s": ["0", "soon", "0"]}, "Row 2, column start_s: 'soon' is not a number"),
        ({"video": ["a.mp4", "b.mp4", ""]}, "Row 3, column video: '' is empty"),
    ],
)
def test_a_wrong_cell_is_named_by_row_and_column(tmp_path, changes, words):
    with pytest.raises(ManifestError, match=words):
        write_manifest(table(**changes), tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


def test_a_missing_column_an_empty_table_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ManifestError, match="column patient is missing"):
        write_manifest(table().drop(columns="patient"), tmp_path / "m.csv")
    with pytest.raises(ManifestError, match="no rows"):
        write_manifest(table().iloc[:0], tmp_path / "m.csv")
    with pytest.raises(ManifestError, match=r"absent\.csv"):
        read_manifest(tmp_path / "absent.csv")
    with pytest.raises(ManifestError, match="No row has the split 'val'"):
        Manifest(table(), tmp_path).rows("val")


def test_a_path_cannot_climb_out_of_the_folder(tmp_path):
    with pytest.raises(ManifestError, match="leads out"):
        write_manifest(table(video=["../secret.mp4", "b.mp4", "c.png"]), tmp_path / "m.csv")
    manifest = write_manifest(table(), tmp_path / "m.csv")
    assert manifest.resolve("a.mp4") == tmp_path / "a.mp4"
    with pytest.raises(ManifestError, match="leads out"):
        manifest.resolve("x/../../secret.mp4")


def test_an_unknown_end_stays_unknown(tmp_path):
    manifest = write_manifest(table(end_s=[np.nan, 2.5, 0.0]), tmp_path / "m.csv")
    assert np.isnan(read_manifest(tmp_path / "m.csv").table["end_s"][0])
    assert manifest.fingerprint == read_manifest(tmp_path / "m.csv").fingerprint


def test_joined_manifests_keep_every_row_and_find_their_files_from_anywhere(tmp_path):
    first = write_manifest(table(device="s1", masks=["m/a", "", "m/c.png"]), tmp_path / "one" / "m.csv")
    second = write_manifest(table(boxes="boxes.csv"), tmp_path / "other" / "m.parquet")
    joined = join_manifests([first, second])
    assert joined.table["video"].tolist() == [
        str(tmp_path / folder / name) for folder in ("one", "other") for name in ("a.mp4", "stück/b.mp4", "c.png")
    ]
    assert joined.table["masks"].tolist() == [str(tmp_path / "one/m/a"), "", str(tmp_path / "one/m/c.png"), "", "", ""]
    assert joined.table["device"].tolist() == ["s1"] * 3 + [""] * 3
    assert join_manifests([first]) is first
    climbing = Manifest(table(video=["../x.mp4", "b.mp4", "c.png"]), tmp_path, tmp_path / "m.csv")
    with pytest.raises(ManifestError, match="leads out"):
        join_manifests([first, climbing])


def fingerprint_cell_by_cell(manifest):
    def text(value):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return ""
        try:
            return repr(float(value))
        except (TypeError, ValueError):
            return str(value)

    columns = sorted(manifest.table.columns)
    rows = sorted("\x1f".join(map(text, row)) for row in manifest.table[columns].itertuples(index=False))
    return hashlib.sha256("\x1e".join(["\x1f".join(columns), *rows]).encode()).hexdigest()


def test_the_fingerprint_is_that_of_every_cell_whatever_its_type():
    n = 25_000
    start_s = np.arange(n) / 7
    rows = pd.DataFrame(
        {
            "video": [f"case{k % 9}/{k}.png" for k in range(n)],
            "start_s": start_s,
            "end_s": np.where(np.arange(n) % 3, start_s, np.nan),
            "label": "polyp",
            "patient": [str(k % 50) for k in range(n)],
            "dataset": "d",
            "split": "train",
            "signed": np.where(np.arange(n) % 2, 0.0, -0.0),
            "whole": np.arange(n),
            "yes": np.arange(n) % 2 == 0,
            "mixed": [[3, 3.0, "3", None, np.nan, "nan", "1_0", " 2 ", True, "x/y"][k % 10] for k in range(n)],
            "text": pd.array([["a", None, "1e3"][k % 3] for k in range(n)], dtype="string"),
        }
    )
    manifest = Manifest(checked(rows, "made"), Path())
    assert manifest.fingerprint == fingerprint_cell_by_cell(manifest)


@pytest.mark.parametrize("cells", [[[1, 2], [3]], [b"a\xff", b"b"], [{"a": 1}, {"a": 2}]])
@pytest.mark.parametrize("column", ["label", "start_s", "device"])
def test_a_cell_of_parquet_that_is_neither_text_nor_number_is_named(tmp_path, column, cells):
    columns = {"video": ["a.mp4", "b.mp4"], "start_s": 0.0, "end_s": 1.0, "label": "x", "patient": "p", "dataset": "d"}
    pd.DataFrame({**columns, "split": "train", column: cells}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=f"Row 1, column {column}.*neither text nor a number"):
        read_manifest(tmp_path / "m.parquet")


def test_a_row_with_a_cell_too_few_is_refused_and_damaged_parquet_is_noticed(tmp_path):
    """pandas fills such a row up with empty cells: the label would be the patient, without a word."""
    head = "video,start_s,end_s,label,patient,dataset,split,device\n"
    path = tmp_path / "manifest.csv"
    path.write_text(head + "a.mp4,0,1,polyp,p1,made,train,x\nb.mp4,0,1,p2,made,train,x\n")
    with pytest.raises(ManifestError, match="row 2 has more or fewer cells"):
        read_manifest(path)
    path.write_text(head + "a.mp4,0,1,polyp,p1,made,train,x\n")
    written = write_manifest(read_manifest(path).table, tmp_path / "manifest.parquet").path
    content = bytearray(written.read_bytes())
    content[content.index(b"polyp")] ^= 1
    written.write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(written)
