"""Phase recognition in long videos, one row per video: accuracy and Jaccard of time steps, F1 and order of segments.

Means are taken over videos, so that a long operation does not count more than a short one.
"""

from itertools import groupby

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from endofm_lab.metrics.classification import MetricError, accuracy, balanced_accuracy, nan_mean, ratio


def phase_metrics(videos: ArrayLike, target: ArrayLike, predicted: ArrayLike) -> pd.DataFrame:
    """The metrics of every video, indexed by video in order of appearance.

    ``accuracy``, ``balanced_accuracy`` (mean recall of the phases that occur) and ``jaccard`` of time steps;
    ``segment_f1`` at an overlap of one half, ``segment_f1_25`` and ``segment_f1_10`` at a quarter and a tenth; and
    ``edit_score``. Publications write F1@50, F1@25, F1@10 and Edit.

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
            "balanced_accuracy": balanced_accuracy(truth, guess),
            "jaccard": jaccard(truth, guess),
            "segment_f1": segment_f1(truth, guess),
            "segment_f1_25": segment_f1(truth, guess, overlap=0.25),
            "segment_f1_10": segment_f1(truth, guess, overlap=0.10),
            "edit_score": edit_score(truth, guess),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


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


def edit_score(target: ArrayLike, predicted: ArrayLike) -> float:
    """Agreement in the order of segments of one video, in [0, 1], whatever their lengths. NaN without time steps.

    1 minus the Levenshtein distance of the two sequences of segments over the length of the longer one.

    Source: Lea et al. 2016 (arXiv 1602.02995), section 5; publications multiply it by 100.
    """
    target, predicted = _steps(target, predicted)
    truth, guess = ([phase for phase, _, _ in segments(steps)] for steps in (target, predicted))
    if not truth:
        return float("nan")
    costs = np.arange(len(guess) + 1)
    for phase in truth:
        above, costs = costs, np.full(len(guess) + 1, costs[0] + 1)
        for n, other in enumerate(guess, 1):
            costs[n] = min(above[n] + 1, costs[n - 1] + 1, above[n - 1] + (phase != other))
    return float(1 - costs[-1] / max(len(truth), len(guess)))


def cholec80_relaxed(target: ArrayLike, predicted: ArrayLike, boundary_steps: int = 10) -> dict[str, float]:
    """The relaxed metrics of Cholec80 for one video, all in [0, 1]; results with and without them are not comparable.

    Within ``boundary_steps`` after the start of a true segment, the previous phase counts as correct; within as many
    before its end, the next phase does. From phase 4 on phases may be skipped: the last steps of phases 4 to 7 may be
    two phases ahead, and the first steps of phases 6 and 7 two phases behind (counted from 1). Jaccard, precision and
    recall are means over the phases that occur.

    The released Matlab script applies the rule for the end of a segment to its beginning, and counts relaxed steps as
    hits of a phase that was neither true nor predicted there, so that precision may exceed 1 and is cut at 1. Here the
    rule for the end applies to the end; counting and cutting are those of the script.

    Args:
        target: (T,) true phase from 0 to 6, in the order of Cholec80.
        predicted: (T,) predicted phase.
        boundary_steps: steps in 10 seconds, which is 10 at one step per second.

    Returns:
        "cholec80_relaxed_" followed by accuracy, jaccard, precision and recall.

    Source: the evaluation of the M2CAI 2016 workflow challenge; Funke et al. 2023 (arXiv 2305.13961), section 3.
    """
    target, predicted = _steps(target, predicted)
    early = {3: (1, 2), 4: (1, 2), 5: (1, 2), 6: (1, 2)}
    late = {5: (-1, -2), 6: (-1, -2)}
    correct = target == predicted
    for phase, start, stop in segments(target):
        t, ahead = min(boundary_steps, stop - start), predicted[start:stop] - phase
        correct[start : start + t] |= np.isin(ahead[:t], late.get(phase, (-1,)))
        correct[stop - t : stop] |= np.isin(ahead[len(ahead) - t :], early.get(phase, (1,)))
    truth, guess = (steps[:, None] == np.unique(target) for steps in (target, predicted))
    hits = (correct[:, None] & (truth | guess)).sum(0)
    shares = {"jaccard": (truth | guess).sum(0), "precision": guess.sum(0), "recall": truth.sum(0)}
    values = {name: float(nan_mean(np.minimum(ratio(hits, sizes), 1))) for name, sizes in shares.items()}
    values = {"accuracy": float(ratio(correct.sum(), len(target))), **values}
    return {f"cholec80_relaxed_{name}": value for name, value in values.items()}


def segments(phases: ArrayLike) -> list[tuple[int, int, int]]:
    """Runs of equal phase as (phase, start, stop), in time steps, ``stop`` excluded."""
    runs, start = [], 0
    for phase, steps in groupby(np.asarray(phases).tolist()):
        stop = start + len(list(steps))
        runs.append((phase, start, stop))
        start = stop
    return runs


def true_runs(inside: ArrayLike) -> list[tuple[int, int]]:
    """Runs of true values (T,) as (start, stop), ``stop`` excluded."""
    return [(start, stop) for value, start, stop in segments(inside) if value]


def _steps(target: ArrayLike, predicted: ArrayLike) -> tuple[NDArray, NDArray]:
    target, predicted = np.asarray(target), np.asarray(predicted)
    if target.shape != predicted.shape or target.ndim != 1:
        raise MetricError(f"True phases have shape {target.shape}, predicted {predicted.shape}; give both as (T,).")
    return target, predicted
