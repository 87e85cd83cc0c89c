"""Tracks: one identity for each finding with boxes through a video, bridged where it leaves for a moment.

A box continues the track of its head and label whose expected place it overlaps most. The expected place is the last
box moved on at the speed of the last two; boxes and tracks are paired so that the sum of their overlaps is largest
(Kuhn 1955; the tracker of Bewley et al. 2016, "SORT", without its filter).
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.prediction import VideoPrediction

_XYXY = ["x1", "y1", "x2", "y2"]


@dataclass(eq=False, repr=False)
class _Track(Brief):
    number: int
    box: NDArray[np.float64]  # (4,) the last box
    time_s: float
    speed: NDArray[np.float64]  # (2,) of its centre, per second

    def expected(self, time_s: float) -> NDArray[np.float64]:
        """The last box, moved on to another time."""
        return self.box + np.tile(self.speed * (time_s - self.time_s), 2)

    def take(self, box: NDArray[np.float64], time_s: float) -> None:
        """Go on with a box."""
        moved = (box.reshape(2, 2).mean(0) - self.box.reshape(2, 2).mean(0)) / max(time_s - self.time_s, 1e-9)
        self.box, self.time_s, self.speed = box, time_s, moved


def tracked(
    prediction: VideoPrediction, min_score: float = 0.5, min_overlap: float = 0.3, bridge_s: float = 1.0
) -> pd.DataFrame:
    """The boxes of a prediction that score at least ``min_score``, with the column ``track`` (1, 2, ...).

    Args:
        prediction: a prediction with boxes; without boxes the table is empty.
        min_score: boxes below this score belong to no track and are left out.
        min_overlap: least intersection over union of a box with the expected place of its track, above 0 up to 1.
        bridge_s: a track ends when it has no box for longer than this.

    Raises:
        UserError: an argument is out of range.
    """
    if not 0 < min_overlap <= 1 or not bridge_s >= 0:
        raise UserError(
            f"The overlap is {min_overlap} and the bridge {bridge_s} s; give an overlap above 0 up to 1, and seconds "
            "from 0."
        )
    boxes = prediction.boxes_xyxy[prediction.boxes_xyxy["score"] >= min_score]
    boxes = boxes.sort_values(["frame", "score"], ascending=[True, False], kind="stable").reset_index(drop=True)
    return boxes.assign(track=track_numbers(boxes, min_overlap, bridge_s))


def track_numbers(boxes: pd.DataFrame, min_overlap: float, bridge_s: float) -> NDArray[np.int64]:
    """The track (N,) of every box; ``boxes`` has the columns frame, time_s, head, label, x1, y1, x2 and y2.

    Tracks are numbered from 1 in the order of their first boxes in the table, which must be sorted by frame.
    """
    numbers = np.zeros(len(boxes), np.int64)
    live: dict[Hashable, list[_Track]] = {}
    n_tracks = 0
    for _, rows in boxes.groupby("frame", sort=True):
        time_s = float(rows["time_s"].iloc[0])
        for kind, group in rows.groupby(["head", "label"], sort=False):
            tracks = [track for track in live.get(kind, []) if time_s - track.time_s <= bridge_s + 1e-9]
            places = group.index.to_numpy()
            xyxy = group[_XYXY].to_numpy(np.float64)
            overlap = _overlaps(np.array([track.expected(time_s) for track in tracks]).reshape(-1, 4), xyxy)
            for at, box in zip(*linear_sum_assignment(np.where(overlap >= min_overlap, overlap, 0), True), strict=True):
                if overlap[at, box] >= min_overlap:
                    tracks[at].take(xyxy[box], time_s)
                    numbers[places[box]] = tracks[at].number
            for box in np.flatnonzero(numbers[places] == 0):
                n_tracks += 1
                numbers[places[box]] = n_tracks
                tracks.append(_Track(n_tracks, xyxy[box], time_s, np.zeros(2)))
            live[kind] = tracks
    return numbers


def track_table(boxes: pd.DataFrame) -> pd.DataFrame:
    """One row per track of `tracked`: track, head, label, start_s, end_s, n_boxes, and the frame and score of its best
    box.
    """
    rows = []
    for number, group in boxes.groupby("track", sort=True):
        best = group.nlargest(1, "score").to_dict("records")[0]
        times_s = group["time_s"]
        facts = (number, best["head"], best["label"], times_s.min(), times_s.max(), len(group))
        rows.append((*facts, best["frame"], best["score"]))
    columns = ["track", "head", "label", "start_s", "end_s", "n_boxes", "frame", "score"]
    return pd.DataFrame(rows, columns=columns)


def _overlaps(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes (N, 4) and (M, 4), as (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
