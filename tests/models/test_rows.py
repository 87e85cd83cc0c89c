import pandas as pd
from PIL import Image

from endofm_lab.models.rows import class_names, stretches


def test_frames_with_the_same_label_become_one_row_per_stretch(tmp_path):
    rows = []
    for recording, labels in {"VID1": "aabbba", "VID2": "ab"}.items():
        (tmp_path / recording).mkdir()
        for second, label in enumerate(labels):
            path = tmp_path / recording / f"{second:06d}.jpg"
            Image.new("RGB", (8, 8)).save(path)
            rows.append({"video": str(path), "frame": f"{second:06d}", "label": label, "sequence": recording})
    table = pd.DataFrame(rows).assign(patient="", split="", masks="", boxes="", sha256="0", recipe="made@1")
    result = stretches(table.sample(frac=1, random_state=0), fps=1.0)
    shown = [(r.sequence, r.label, r.start_s, r.end_s) for r in result.sort_values(["video", "start_s"]).itertuples()]
    first = [("VID1", "a", 0, 2), ("VID1", "b", 2, 5), ("VID1", "a", 5, 6)]
    assert shown == [*first, ("VID2", "a", 0, 1), ("VID2", "b", 1, 2)]
    assert set(result["video"]) == {(tmp_path / name).as_posix() for name in ("VID1", "VID2")}


def test_classes_of_cells_with_several_labels_are_counted_one_by_one():
    assert class_names(pd.DataFrame({"tools": ["hook|grasper", "", "hook"]}), "tools") == {"hook", "grasper"}
