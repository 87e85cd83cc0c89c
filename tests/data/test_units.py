"""Units of independence: patient, else sequence, else video; named as they are and never finer than a recording."""

import numpy as np
import pandas as pd
import pytest

from endofm_lab.data.splits import holdout
from endofm_lab.data.units import group_ids, units


def frames(n: int = 120, **columns: str) -> pd.DataFrame:
    """Rows of single frames in one folder whose names tell nothing."""
    table = pd.DataFrame({"video": [f"frames/{k:06d}.png" for k in range(n)], "dataset": "d", "patient": ""})
    return table.assign(**columns)


def test_120_frames_of_one_operation_are_one_sequence_and_not_120_patients() -> None:
    result = units(frames(sequence="VID75"))
    assert result.n == 1 and result.words == "1 sequence; patients unknown" and result.repeat


def test_frames_whose_names_give_the_video_are_one_sequence_although_the_manifest_names_none() -> None:
    names = [f"images/04a78ef00c5245e0_{k}.jpg" for k in range(60)] + [f"case12/frame_{k:04d}.png" for k in range(60)]
    result = units(frames().assign(video=names))
    assert result.n == 2 and result.words == "2 sequences (read from the file names); patients unknown"


def test_images_of_which_nothing_is_known_are_units_of_their_own_and_the_words_say_so() -> None:
    result = units(frames(800))
    assert result.n == 800 and result.words == "800 images; patients unknown" and not result.repeat


def test_a_folder_of_frames_addressed_by_many_rows_is_one_video() -> None:
    result = units(frames(4).assign(video="operation"))
    assert result.words == "1 video; patients unknown" and result.kind == "video"


def test_patients_come_before_sequences_and_sequences_before_videos() -> None:
    table = pd.DataFrame(
        {
            "video": ["a.mp4", "b.mp4", "c.mp4", "c.mp4", "d.mp4"],
            "patient": ["1", "1", "", "", ""],
            "sequence": ["x", "y", "z", "", ""],
            "dataset": "d",
        }
    )
    result = units(table)
    assert result.ids.tolist() == ["d/1", "d/1", "d/sequence z", "d/sequence z", "d/video d.mp4"]
    assert result.words == "1 patient and 1 sequence and 1 video of unknown patients"


def test_a_unit_is_never_finer_than_what_was_recorded_together() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = pd.DataFrame(
            {
                "patient": rng.choice(["", "", "1", "2", "3"], 30),
                "video": rng.choice([f"v{k}.mp4" for k in range(20)], 30),
                "sequence": rng.choice(["", "", "a", "b"], 30),
                "dataset": rng.choice(["x", "y"], 30),
            }
        )
        ids, groups = units(table).ids, group_ids(table)
        assert ((ids[:, None] == ids) == (groups[:, None] == groups)).all()
        shuffled = table.sample(frac=1, random_state=1)
        assert sorted(zip(shuffled.index, units(shuffled).ids, strict=True)) == sorted(
            zip(table.index, ids, strict=True)
        ), "the names do not depend on the order of the rows"


def test_a_patient_and_a_sequence_of_one_name_are_two_units() -> None:
    table = pd.DataFrame(
        {"video": ["a.mp4", "b.mp4"], "patient": ["1", ""], "sequence": ["", "1"], "dataset": ["d", "d"]}
    )
    assert units(table).n == 2


def test_where_one_data_set_of_several_has_no_patients_the_kind_is_named_for_each() -> None:
    patients = pd.DataFrame({"video": [f"{k}.mp4" for k in range(6)], "patient": list("112233"), "dataset": "a"})
    result = units(pd.concat([patients, frames(sequence="VID75")], ignore_index=True))
    assert result.words == "a: 3 patients; d: 1 sequence, patients unknown"
    assert result.kind == "a: patient, d: sequence" and not result.patients_known
    assert result.take(np.arange(6)).words == "3 patients" and result.take(np.arange(6)).patients_known


def test_a_split_by_videos_warns_that_patients_are_unknown_and_how_many_groups_there_are() -> None:
    table = pd.DataFrame({"video": [f"{k}.mp4" for k in range(40)], "label": ["a", "b"] * 20, "dataset": "d"})
    text = holdout(table.assign(patient="")).text()
    assert "40 groups (40 videos; patients unknown)" in text and "WARNING: patients are not known" in text
    report = holdout(table.assign(patient=[f"p{k % 10}" for k in range(40)])).text()
    assert "10 groups (10 patients)" in report and "WARNING" not in report


@pytest.mark.parametrize("column", ["patient", "sequence"])
def test_a_missing_column_counts_as_unknown(column: str) -> None:
    table = frames(3).assign(sequence="s").drop(columns=column)
    assert units(table).n == (1 if column == "patient" else 3)
