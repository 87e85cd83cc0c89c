"""Class mapping: hand-made mapping files, the shipped ones, and the official label lists where they are present."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from endofm_lab.cli.main import main
from endofm_lab.data.coverage import coverage
from endofm_lab.data.labels import MappingError, list_mappings, map_labels, read_mapping
from endofm_lab.data.manifest import write_manifest
from endofm_lab.errors import UserError

TREE = """title: a toy
targets:
  - normal
  - abnormal:
      - ulcerative: [ulcer, erosion]
      - polyp
datasets:
  fine:
    labels:
      Healthy: normal
      ulcus: ulcer
      erosion: erosion
      polyp: polyp
      aphtha: [ulcer, erosion]
      stool: null
  coarse:
    verified: false
    labels:
      normal: normal
      Crohn lesion: ulcerative
      sick: abnormal
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def rows(*pairs: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "video": [f"{i}.jpg" for i in range(len(pairs))],
            "start_s": 0.0,
            "end_s": 0.0,
            "dataset": [d for d, _ in pairs],
            "label": [label for _, label in pairs],
        }
    )


def test_leaves_and_paths_follow_the_tree(tmp_path: Path) -> None:
    mapping = read_mapping(write(tmp_path, TREE))
    assert mapping.leaves == ("normal", "ulcer", "erosion", "polyp")
    assert mapping.leaves_below("abnormal") == ("ulcer", "erosion", "polyp")
    assert mapping.leaves_below("polyp") == ("polyp",)
    assert mapping.path_to("erosion") == ("abnormal", "ulcerative", "erosion")


def test_every_row_says_which_leaves_it_is_compatible_with(tmp_path: Path) -> None:
    table = rows(
        ("fine", "healthy"), ("fine", "aphtha"), ("coarse", "Crohn-lesion"), ("coarse", "SICK"), ("fine", "stool"),
        ("fine", "never heard of"), ("coarse", "sick|Crohn lesion"), ("fine", "polyp|ulcus"),
    )  # fmt: skip
    mapped = map_labels(table, read_mapping(write(tmp_path, TREE)))
    expected = ["1000", "0110", "0110", "0111", "0000", "0000", "0110", "0000"]
    assert ["".join(str(int(x)) for x in row) for row in mapped.allowed] == expected
    assert mapped.targets.tolist() == [
        "normal", "ulcer|erosion", "ulcerative", "abnormal", "", "", "abnormal|ulcerative", "",
    ]  # fmt: skip
    assert mapped.exact.tolist() == [True] + [False] * 7
    assert not mapped.unknown.any()


def test_cutting_the_tree_gives_the_coarser_classes(tmp_path: Path) -> None:
    top = read_mapping(write(tmp_path, TREE)).at_depth(0)
    assert top.leaves == ("normal", "abnormal")
    mapped = map_labels(rows(("fine", "aphtha"), ("coarse", "sick"), ("fine", "healthy")), top)
    assert mapped.allowed.tolist() == [[False, True], [False, True], [True, False]]
    middle = read_mapping(write(tmp_path, TREE)).at_depth(1)
    assert middle.leaves == ("normal", "ulcerative", "polyp")


def test_a_multi_label_row_has_all_its_targets_and_admits_what_its_set_never_looks_for(tmp_path: Path) -> None:
    mapping = read_mapping(write(tmp_path, TREE.replace("targets:", "multi_label: true\ntargets:", 1)))
    mapped = map_labels(rows(("fine", "polyp|ulcus"), ("coarse", "normal"), ("coarse", "sick"), ("fine", "?")), mapping)
    assert mapped.allowed.astype(int).tolist() == [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mapped.unknown.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    only_polyps = TREE.replace("targets:", "multi_label: true\ntargets:", 1).split("  fine:")[0]
    only_polyps += "  p:\n    labels:\n      polyp: polyp\n"
    mapped = map_labels(rows(("p", "polyp")), read_mapping(write(tmp_path, only_polyps)))
    assert mapped.unknown.astype(int).tolist() == [[1, 1, 1, 0]]  # a polyp set does not say there is no ulcer


def test_coverage_names_every_state_every_empty_class_and_every_contradiction(tmp_path: Path) -> None:
    table = rows(
        ("fine", "healthy"), ("fine", "healthy"), ("fine", "aphtha"), ("fine", "stool"), ("fine", "?"),
        ("fine", "polyp|ulcus"), ("coarse", "sick"), ("fine", "polyp"),
    )  # fmt: skip
    table.loc[7, "video"] = "0.jpg"  # the picture of row 0, there called healthy
    report = coverage(table, read_mapping(write(tmp_path, TREE)))
    states = {(r.dataset, r.label): (r.state, r.rows) for r in report.labels.itertuples()}
    assert states == {
        ("fine", "healthy"): ("mapped", 2),
        ("fine", "aphtha"): ("ambiguous", 1),
        ("fine", "stool"): ("left out", 1),
        ("fine", "?"): ("unmapped", 1),
        ("fine", "polyp|ulcus"): ("conflicting", 1),
        ("fine", "polyp"): ("mapped", 1),
        ("coarse", "sick"): ("coarse", 1),
    }
    assert report.empty == ("ulcer", "erosion")
    assert report.conflicts["row"].tolist() == [0, 7]
    assert report.unverified == ("coarse",)
    assert report.classes.loc["fine"].tolist() == [2, 0, 0, 1]
    text = report.text()
    assert "Empty classes: ulcer, erosion" in text and "coarse (label names unverified)" in text


def test_the_command_prints_the_coverage_of_several_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, pairs in (("a", [("fine", "healthy")]), ("b", [("fine", "stool"), ("coarse", "sick")])):
        (tmp_path / name).mkdir()
        write_manifest(rows(*pairs).assign(patient="", split=""), tmp_path / name / "m.csv")
    paths = [str(tmp_path / name / "m.csv") for name in "ab"]
    mapping = str(write(tmp_path, TREE))
    assert main(["data", "coverage", *paths, "--mapping", mapping]) == 0
    text = capsys.readouterr().out
    assert "fine: 2 labels, mapped 1 rows, left out 1 rows" in text and "Pictures with contradicting entries: 0" in text
    assert main(["data", "coverage", *paths, "--mapping", mapping, "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"mapped", "left out", "coarse"}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("ulcus: ulcer", "ulcus: ulcr", 11, "did you mean 'ulcer'"),
        ("      erosion: erosion", "      ulcus: erosion", 12, "stands twice"),
        ("      polyp\n", "      ulcer\n", 6, "stands twice in the tree"),
        ("title: a toy\n", "title: a toy\ncolour: red\n", 2, "'colour' is not a part"),
        ("    verified: false", "    verified: maybe", 17, "'true' or 'false'"),
        ("  coarse:\n    verified: false\n    labels:", "  coarse:\n    label:", 17, "'label' is not a part"),
        ("aphtha: [ulcer, erosion]", "aphtha: [ulcer, erosion", 15, "Not YAML"),
        ("      - polyp\n", "      - a|b\n", 6, "separates labels"),
        ("title: a toy\n", "", 1, "'title' is missing"),
    ],
)
def test_a_wrong_mapping_is_an_error_that_names_the_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    text = TREE.replace(old, new, 1) if old in TREE else TREE.replace("      - polyp", "      - ulcer", 1)
    with pytest.raises(MappingError, match=words) as error:
        read_mapping(write(tmp_path, text))
    assert error.value.line == line
    assert f"toy.yaml, line {line}:" in str(error.value)


def test_an_unknown_mapping_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="normal-abnormal"):
        read_mapping("no-such-mapping")


@pytest.mark.parametrize("name", ["capsule-vision-2024", "findings-mst", "normal-abnormal", "organ", "polyp"])
def test_every_shipped_mapping_reads_and_uses_all_its_leaves_or_says_so(name: str) -> None:
    assert name in list_mappings()
    mapping = read_mapping(name)
    reached = np.zeros(len(mapping.leaves), bool)
    for dataset in mapping.rules:
        reached |= mapping.reach(dataset)
    assert reached.all(), [leaf for leaf, hit in zip(mapping.leaves, reached, strict=True) if not hit]


def test_the_challenge_keeps_the_order_of_its_ten_classes() -> None:
    assert read_mapping("capsule-vision-2024").leaves == (
        "Angioectasia", "Bleeding", "Erosion", "Erythema", "Foreign Body", "Lymphangiectasia", "Normal", "Polyp",
        "Ulcer", "Worms",
    )  # fmt: skip


def official_lists(root: Path) -> pd.DataFrame:
    hyper = pd.read_csv(root / "hyper-kvasir" / "5_fold_split.csv", sep=";")
    capsule = pd.concat(pd.read_csv(root / "kvasir-capsule" / f"split_{i}.csv") for i in (0, 1))
    gastro = pd.read_csv(root / "gastrovision" / "GastroVision_metadata.csv")
    paths = pd.concat(pd.read_csv(root / "capsule-vision-2024" / f"{s}_image_list.csv") for s in ("train", "val"))
    challenge = paths["image_path"].str.split("/")
    return pd.concat(
        [
            pd.DataFrame({"video": hyper["file-name"], "label": hyper["class-name"], "dataset": "hyper-kvasir"}),
            pd.DataFrame({"video": capsule["filename"], "label": capsule["label"], "dataset": "kvasir-capsule"}),
            pd.DataFrame(
                # File names repeat between the class folders (100H0003.jpg stands in seven of them).
                {
                    "video": gastro["Class"] + "/" + gastro["Filename"],
                    "label": gastro["Class"],
                    "dataset": "gastrovision",
                }
            ),
            pd.DataFrame({"video": paths["image_path"], "label": challenge.str[1], "dataset": "capsule-vision-2024"}),
        ],
        ignore_index=True,
    ).assign(start_s=0.0, end_s=0.0)


@pytest.mark.real_data
def test_the_official_label_lists_are_covered_by_the_shipped_mappings() -> None:
    if "ENDOFM_LAB_DATA" not in os.environ:
        pytest.skip("ENDOFM_LAB_DATA is not set: the official label lists are not here.")
    table = official_lists(Path(os.environ["ENDOFM_LAB_DATA"]) / "label-lists")
    assert table.groupby("dataset").size().to_dict() == {
        "hyper-kvasir": 10662, "kvasir-capsule": 47161, "gastrovision": 8000, "capsule-vision-2024": 53739,
    }  # fmt: skip
    for name in ("findings-mst", "normal-abnormal", "polyp", "organ"):
        report = coverage(table, read_mapping(name))
        print(report.text())
        missing = report.labels[report.labels["state"].isin(["unmapped", "conflicting"])]
        assert missing.empty, missing
        labels = report.labels.groupby("dataset").size().to_dict()
        assert labels["hyper-kvasir"] == 23 and labels["gastrovision"] == 27 and labels["capsule-vision-2024"] == 10
    # Eight pictures of Kvasir-Capsule are listed both as Erosion and as Pylorus.
    conflicts = coverage(table, read_mapping("findings-mst")).conflicts
    assert conflicts["item"].nunique() == 8
    assert set(conflicts["dataset"]) == {"kvasir-capsule"} and set(conflicts["label"]) == {"Erosion", "Pylorus"}
    # The challenge took these classes of Kvasir-Capsule whole; its count per class is the archive's.
    challenge = read_mapping("capsule-vision-2024")
    capsule = table[(table["dataset"] == "kvasir-capsule") & (table["label"] != "Blood")]
    counts = pd.Series(map_labels(capsule, challenge).targets).value_counts()
    paths = table[(table["dataset"] == "capsule-vision-2024") & table["video"].str.contains("/KVASIR/")]
    expected = paths["label"].value_counts()
    for label in ("Normal", "Angioectasia", "Erosion", "Erythema", "Foreign Body", "Lymphangiectasia", "Ulcer"):
        assert counts[label] == expected[label], label
