"""Phase recognition in long videos: frame-wise accuracy and Jaccard, and F1 of whole segments, one row per video.

Means are taken over videos, so that a long operation does not count more than a short one.
"""

from itertools import groupby

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from endofm_lab.metrics.classification import MetricError, accuracy, nan_mean, ratio


def phase_metrics(videos: ArrayLike, target: ArrayLike, predicted: ArrayLike) -> pd.DataFrame:
    """``accuracy``, ``jaccard`` and ``segment_f1`` of every video, indexed by video in order of appearance.

    Args:
        videos: (N,) name of the video of every time step; the steps of a video are in temporal order.
        target: (N,) true phase, an integer.
        predicted: (N,) predicted phase.
    """
    table = pd.DataFrame(
        {"video": np.asarray(videos), "target": np.asarray(target), "predicted": np.asarray(predicted)}
    )
    rows = {}
    for video, part in table.groupby("video", sort=False):
        truth, guess = part["target"].to_numpy(), part["predicted"].to_numpy()
        rows[video] = {
            "accuracy": accuracy(truth, guess),
            "jaccard": jaccard(truth, guess),
            "segment_f1": segment_f1(truth, guess),
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "jaccard", "segment_f1"])


def jaccard(target: ArrayLike, predicted: ArrayLike) -> float:
    """Mean over phases of TP / (TP + FP + FN) in time steps of one video, in [0, 1].

    A phase that is neither true nor predicted anywhere in the video is left out; a phase that is predicted but not true
    counts with 0. NaN without time steps. Publications differ in this rule, which changes results by several points.

    Source: Funke et al. 2023, *Metrics matter in surgical phase recognition* (arXiv 2305.13961).
    """
    target, predicted = _steps(target, predicted)
    phases = np.union1d(target, predicted)
    truth, guess = target[:, None] == phases, predicted[:, None] == phases
    return float(nan_mean(ratio((truth & guess).sum(0), (truth | guess).sum(0))))


def segment_f1(target: ArrayLike, predicted: ArrayLike, overlap: float = 0.5) -> float:
    """F1 of whole segments of one video, in [0, 1], which penalises fragmented predictions but not shifted borders.

    In temporal order, each predicted segment takes the true segment of its phase with the largest intersection over
    union. It is a true positive if that is at least ``overlap`` and the true segment is still free. NaN without time
    steps.

    Source: Lea et al. 2017 (arXiv 1611.05267), section 4.
    """
    target, predicted = _steps(target, predicted)
    truth, guess = segments(target), segments(predicted)
    free = [True] * len(truth)
    hits = 0
    for phase, start, stop in guess:
        shared = [max(0, min(stop, e) - max(start, s)) if p == phase else 0 for p, s, e in truth]
        unions = [(stop - start) + (e - s) - common for (_, s, e), common in zip(truth, shared, strict=True)]
        best = int(np.argmax(np.divide(shared, unions)))
        if shared[best] >= overlap * unions[best] and free[best]:
            free[best] = False
            hits += 1
    return float(ratio(2 * hits, len(truth) + len(guess)))


def segments(phases: ArrayLike) -> list[tuple[int, int, int]]:
    """Runs of equal phase as (phase, start, stop), in time steps, ``stop`` excluded."""
    runs, start = [], 0
    for phase, steps in groupby(np.asarray(phases).tolist()):
        stop = start + len(list(steps))
        runs.append((phase, start, stop))
        start = stop
    return runs


def _steps(target: ArrayLike, predicted: ArrayLike) -> tuple[NDArray, NDArray]:
    target, predicted = np.asarray(target), np.asarray(predicted)
    if target.shape != predicted.shape or target.ndim != 1:
        raise MetricError(f"True phases have shape {target.shape}, predicted {predicted.shape}; give both as (T,).")
    return target, predicted
