"""A manifest from a table of one's own: any table, a preview, and every problem at once."""

import json
import shutil

import pandas as pd
import pytest

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.data.foreign_tables import read_foreign_table
from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.prepare.own_table import TableError, import_table
from endofm_lab.errors import ManifestError, UserError
from tests.data.trees import picture, video

NAMES = ("P01_a.mp4", "P01_b.mp4", "P02_a.mp4", "P03_a.mp4")


@pytest.fixture
def clinic(tmp_path):
    for name in NAMES:
        video(tmp_path / "videos" / name)
    return tmp_path


def table(folder, text, name="labels.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


ROWS = [["videos/P01_a.mp4", "polyp", "0,2"], ["videos/P02_a.mp4", "normal", "0"], ["videos/P03_a.mp4", "Übelkeit", ""]]


@pytest.mark.parametrize(
    ("separator", "encoding", "name", "words"),
    [
        (";", "utf-8-sig", "a.csv", "UTF-8, separated by semicolons"),
        ("\t", "cp1252", "a.tsv", "Windows-1252, separated by tabs"),
        ("|", "utf-8", "a.txt", "UTF-8, separated by vertical bars"),
        ("\t", "utf-16", "a.csv", "UTF-16, separated by tabs"),
    ],
)
def test_any_separator_and_encoding_gives_the_same_manifest(clinic, separator, encoding, name, words):
    text = "\n".join(separator.join(row) for row in [["File", "Finding", "from"], *ROWS])
    path = table(clinic, text, name, encoding)
    done = import_table(path, video="File", label="Finding", start="from", patient_from="(P[0-9]+)_", out=clinic)
    assert read_foreign_table(path).how == words and words in done.notes[0]
    read = read_manifest(clinic / "manifest.csv").table
    assert list(read["label"]) == ["polyp", "normal", "Übelkeit"] and list(read["start_s"]) == [0.2, 0, 0]
    assert list(read["patient"]) == ["P01", "P02", "P03"] and list(read["end_s"]) == [1.0] * 3
    assert list(read["video"]) == [row[0] for row in ROWS]


def test_spreadsheets_and_parquet_are_read_too(clinic):
    pytest.importorskip("openpyxl")
    cells = pd.DataFrame({"v": list(NAMES), "grade": [1, 2, None, 4], "who": ["a", "a", "b", "c"]})
    cells.to_excel(clinic / "a.xlsx", index=False)
    cells.to_parquet(clinic / "a.parquet")
    for name in ("a.xlsx", "a.parquet"):
        done = import_table(
            clinic / name, video="v", label="grade", patient="who", root=clinic / "videos", out=clinic / "m.csv",
            drop_unlabelled=True,
        )  # fmt: skip
        assert list(done.manifest.table["label"]) == ["1", "2", "4"], name
        assert "1 rows without a label were left out." in done.notes
    assert lab.import_table is import_table


def test_every_problem_is_told_at_once_with_its_number_and_an_example(clinic):
    (clinic / "videos" / "broken.mp4").write_bytes(b"no video" * 100)
    path = table(
        clinic,
        "file,label,part,from\n"
        "videos/P01_a.mp4,polyp,train,0\nvideos/P01_a.mp4,polyp,train,0\nvideos/P01_b.mp4,polyp,train,\n"
        "videos/P01_b.mp4,normal,train,\nvideos/gone.mp4,polyp,train,\nvideos/lost.mp4,polyp,train,\n"
        "videos/broken.mp4,polyp,test,\nvideos/P02_a.mp4,,test,\nvideos/P03_a.mp4,normal,tset,soon\n"
        ",normal,test,\nvideos/P03_a.mp4,normal\n",
    )
    with pytest.raises(TableError) as refused:
        import_table(
            path,
            video="file",
            label="label",
            split="part",
            start="from",
            patient_from="(P[0-9]+)",
            out=clinic / "m.csv",
        )
    kinds = {}
    for problem in refused.value.problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    assert kinds == {
        "line of another length": 1, "no label": 1, "no video is named": 1, "no patient": 4, "unknown split": 1,
        "no time": 1, "file is missing": 2, "cannot be read": 1, "repeated row": 1, "conflicting labels": 2,
    }  # fmt: skip
    message = str(refused.value)
    assert len(message) <= 500 and all(f"{kind}: {count} (" in message for kind, count in kinds.items())
    assert message.endswith("Put them right, or delete the lines.") and not (clinic / "m.csv").exists()
    assert "line 6, videos/gone.mp4" in refused.value.text() and "polyp" in refused.value.text()


def test_a_row_beyond_the_end_of_its_video_is_a_problem(clinic):
    path = table(clinic, "v;a;b\nvideos/P01_a.mp4;0:00,5;0:00,9\nvideos/P02_a.mp4;0;2,5\nvideos/P03_a.mp4;0,6;0,5\n")
    with pytest.raises(TableError) as refused:
        import_table(path, video="v", start="a", end="b", out=clinic / "m.csv")
    assert [problem.kind for problem in refused.value.problems] == ["end before start", "end after the video"]


def test_pictures_and_folders_of_frames_are_rows_too(clinic):
    for number in range(4):
        picture(clinic / "seq" / f"{number:04}.png", number)
    picture(clinic / "still.png", 9)
    path = table(clinic, "v,label,size\nseq,polyp,3\nstill.png,normal,4\n")
    done = import_table(path, video="v", label="label", fps=2, out=clinic / "m.csv")
    assert list(done.manifest.table["end_s"]) == [2.0, 0.0] and list(done.manifest.table["size"]) == ["3", "4"]


def test_the_command_shows_first_rows_and_counts_and_says_everything_that_is_wrong(clinic, capsys):
    path = table(clinic, "file;klasse\n" + "".join(f"videos/{name};polyp\n" for name in NAMES))
    line = ["data", "import", str(path), "--video", "file", "--label", "klasse", "--patient-from", "(P[0-9]+)_"]
    assert main([*line, "--out", str(clinic / "m.csv")]) == 0
    output = capsys.readouterr().out
    assert "P01_a.mp4" in output and "4 rows of 3 patients" in output and "semicolons" in output
    assert main([*line, "--out", str(clinic / "m.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 4
    (clinic / "videos" / NAMES[0]).unlink()
    assert main([*line, "--out", str(clinic / "n.csv")]) == 2
    output = capsys.readouterr()
    assert "line 2, videos/P01_a.mp4" in output.out and "file is missing: 1 (line 2" in output.err
    assert output.err.count("\n") == 1 and not (clinic / "n.csv").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"video": "path", "label": "class"}, "There is no column 'path', 'class'; the table"),
        ({"patient_from": "P[0-9]+"}, "has 0 groups in parentheses; give exactly one"),
        ({"patient_from": "(P"}, "is no regular expression"),
        ({"patient_from": "(P)", "patient": "label"}, "leave out one of them"),
        ({"root": "nowhere"}, "is not a folder"),
    ],
)
def test_options_that_cannot_work_are_refused(clinic, options, sentence):
    path = table(clinic, "file,label\nvideos/P01_a.mp4,polyp\n")
    with pytest.raises(UserError, match=".*" + sentence.replace("(", r"\(")):
        import_table(path, **{"video": "file", "label": "label", "out": clinic / "m.csv"} | options)
    with pytest.raises(UserError, match="would replace the table itself"):
        import_table(path, video="file", out=path)


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv"])
def test_a_foreign_table_in_place_of_a_manifest_is_told_the_way(clinic, name):
    path = table(clinic, "file;label\nvideos/P01_a.mp4;polyp\n", name)
    with pytest.raises(ManifestError, match=r"`endofm-lab data import`"):
        read_manifest(path)


def test_a_private_folder_takes_patients_from_names(clinic):
    video(clinic / "videos" / "unknown.mp4")
    done = lab.prepare("private-folder", clinic / "videos", clinic / "out", patient_from="(P[0-9]+)_", kind="csv")
    assert sorted(read_manifest(done.manifest).table["patient"]) == ["", "P01", "P01", "P02", "P03"]
    assert [problem.path for problem in done.problems if problem.kind == "no patient"] == ["unknown.mp4"]
    with pytest.raises(UserError, match="patient_from is"):
        lab.prepare("private-folder", clinic / "videos", clinic / "out", patient_from="(P)[0-9]+_", kind="csv")
    with pytest.raises(UserError, match="--patient-from is for data of your own"):
        lab.prepare("kvasir-seg", clinic / "videos", clinic / "other", patient_from="(P[0-9]+)_")
    shutil.rmtree(clinic / "out")
