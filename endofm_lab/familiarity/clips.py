"""Distances of the clips of a video: which frames they mark as unfamiliar, and what they mean in words."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDING_S = 1e-6  # instants closer than this count as equal
UNKNOWN = (
    "Familiarity unknown: the model has no statistics of its training features, so nothing tells whether the video "
    "looks like what it learned."
)


def unfamiliar_frames(
    distance: NDArray[np.float64] | None, times_s: NDArray[np.float64], frame_times_s: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Bool (M,), frames whose clips are farther than 1 on average; all False if the distances are unknown.

    A frame that is in no clip counts with the clip whose middle is nearest.

    Args:
        distance: (N,) of every clip, or None.
        times_s: (N, 2) start and end of every clip.
        frame_times_s: (M,) ascending.
    """
    if distance is None:
        return np.zeros(len(frame_times_s), bool)
    first, after = np.searchsorted(frame_times_s, times_s - _ROUNDING_S).T
    sums, counts = np.zeros(len(frame_times_s) + 1), np.zeros(len(frame_times_s) + 1)
    for into, values in ((sums, distance), (counts, np.ones(len(distance)))):
        np.add.at(into, first, values)
        np.subtract.at(into, after, values)
    n = counts.cumsum()[:-1].round()
    means = sums.cumsum()[:-1] / np.maximum(n, 1)
    middle = times_s.mean(axis=1)
    means[n == 0] = [distance[np.abs(middle - time_s).argmin()] for time_s in frame_times_s[n == 0]]
    return means > 1 + 1e-9


def text_of(distance: NDArray[np.float64] | None, unit: str = "clip") -> str:
    """A sentence on how many clips or frames look unlike what the model learned; ``distance`` (N,) or None."""
    if distance is None or not len(distance):
        return UNKNOWN
    n, far = len(distance), int((distance > 1).sum())
    limit = f"distance {np.median(distance):.2f}; up to 1 is familiar"
    answers = "scores, masks and boxes" if unit == "clip" else "scores"
    if n == 1:
        if far:
            return f"The {unit} looks unlike what the model learned; do not believe its {answers} ({limit})."
        return f"The {unit} looks like what the model learned ({limit})."
    if not far:
        return f"All {n} {unit}s look like what the model learned (median {limit})."
    verb = "looks" if far == 1 else "look"
    return (
        f"{far} of {n} {unit}s {verb} unlike what the model learned; do not believe their {answers} (median {limit})."
    )


def summary_of(distance: NDArray[np.float64] | None, n: int, unit: str = "clip") -> dict[str, Any]:
    """The counts of `text_of` as plain values; those that are unknown are None."""
    values = None if distance is None or not len(distance) else distance
    return {
        f"{unit}s": n,
        f"unfamiliar_{unit}s": None if values is None else int((values > 1).sum()),
        "median_distance": None if values is None else float(np.median(values)),
        "text": text_of(values, unit),
    }
