"""Tracks of hand-made boxes: crossings, gaps, several findings, and the table of a prediction."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from endofm_lab.errors import UserError
from endofm_lab.study.tracks import track_numbers, track_table, tracked


def boxes(rows):
    """Boxes of 20 x 20 px from rows (frame, centre x, centre y, label), ten frames per second."""
    columns = ["frame", "x", "y", "label"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(time_s=table["frame"] / 10, head="box", score=0.9)
    for name, side in (("x1", -10), ("x2", 10)):
        table[name] = table["x"] + side
    for name, side in (("y1", -10), ("y2", 10)):
        table[name] = table["y"] + side
    return table


def test_two_findings_that_move_past_each_other_keep_their_identities():
    rows = [row for n in range(20) for row in ((n, 20 + 5 * n, 50, "polyp"), (n, 115 - 5 * n, 62, "polyp"))]
    assert track_numbers(boxes(rows), 0.3, 1.0).tolist() == [1, 2] * 20


def test_a_finding_that_leaves_for_a_moment_stays_the_same_and_one_that_stays_away_does_not():
    rows = [(n, 20 + 3 * n, 50, "polyp") for n in (0, 1, 2, 8, 9, 30)]
    assert track_numbers(boxes(rows), 0.3, 1.0).tolist() == [1, 1, 1, 1, 1, 2]
    assert track_numbers(boxes(rows), 0.3, 0.3).tolist() == [1, 1, 1, 2, 2, 3]


def test_boxes_of_one_frame_and_boxes_of_other_labels_are_never_one_track():
    rows = [(0, 50, 50, "polyp"), (0, 52, 50, "polyp"), (1, 50, 50, "ulcer"), (2, 52, 50, "polyp")]
    assert track_numbers(boxes(rows), 0.3, 1.0).tolist() == [1, 2, 3, 2]
    assert track_numbers(boxes([(0, 50, 50, "polyp"), (1, 65, 50, "polyp")]), 0.3, 1.0).tolist() == [1, 2]


def test_the_boxes_of_a_prediction_get_tracks_and_a_table_and_low_scores_are_left_out():
    table = boxes([(n, 50, 50, "polyp") for n in range(4)])
    table.loc[[0, 3], "score"] = [0.95, 0.2]
    rows = tracked(SimpleNamespace(boxes_xyxy=table))
    assert rows["frame"].tolist() == [0, 1, 2] and set(rows["track"]) == {1}
    (track,) = track_table(rows).to_dict("records")
    assert (track["label"], track["start_s"], track["end_s"], track["n_boxes"]) == ("polyp", 0.0, 0.2, 3)
    assert track["frame"] == 0 and track["score"] == pytest.approx(0.95)
    empty = tracked(SimpleNamespace(boxes_xyxy=table[:0]))
    assert len(empty) == len(track_table(empty)) == 0 and np.array_equal(empty["track"], [])
    with pytest.raises(UserError, match=r"overlap is 0 and the bridge 1\.0 s"):
        tracked(SimpleNamespace(boxes_xyxy=table), min_overlap=0)
