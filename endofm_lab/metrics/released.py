"""Metrics as the released code computes them, under names that say what they measure.

The detection metrics compare frames or box centres, never the overlap of boxes. All but ``released_dice`` are in
percent. Proper metrics are in ``metrics.classification`` and its neighbours.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from endofm_lab.metrics.boxes import FrameBoxes
from endofm_lab.metrics.classification import MetricError

MIN_SCORE = 0.5
TINY = 1e-7  # added to every denominator, so that a ratio without cases is 0


def released_frame_presence(frames: Sequence[FrameBoxes]) -> dict[str, float]:
    """Endo-FM's F1 for KUMC and related metrics: whether anything was detected anywhere in a frame with a polyp.

    Precision, recall, accuracy, specificity, F1 and F2 over frames. A box in the wrong place is a true positive.
    """
    tp, fp, tn, fn = _total([released_presence_counts(frame) for frame in frames])
    accuracy = {"accuracy": _percent(tp + tn, tp + fp + tn + fn), "specificity": _percent(tn, tn + fp)}
    return _precision_recall(tp, fp, fn) | accuracy


def released_presence_counts(frame: FrameBoxes) -> tuple[int, int, int, int]:
    """One frame as one true positive, false positive, true negative or false negative."""
    positive, detected = len(frame.true_xyxy) > 0, bool((frame.scores >= MIN_SCORE).any())
    return (
        int(positive and detected),
        int(detected and not positive),
        int(not (positive or detected)),
        int(positive and not detected),
    )


def released_centre_localisation(frames: Sequence[FrameBoxes]) -> dict[str, float]:
    """Precision, recall, F1 and F2 of true boxes hit by the centre of a detected box; the released code never calls it.

    Only frames with a true box count: detections on normal frames are not penalised.
    """
    return _precision_recall(*_total([released_centre_counts(frame) for frame in frames]))


def released_centre_counts(frame: FrameBoxes) -> tuple[int, int, int]:
    """True positives, false positives, false negatives of one frame.

    A hit is a centre strictly inside a true box, whatever the class. False positives are the detections in excess of
    the hits, so a detection in two true boxes makes two hits and cancels a false positive.
    """
    boxes, detections = frame.true_xyxy, frame.xyxy[frame.scores >= MIN_SCORE]
    if not len(boxes):
        return 0, 0, 0
    centres = (detections[:, None, :2] + detections[:, None, 2:]) / 2  # (N, 1, 2)
    hits = ((centres > boxes[:, :2]) & (centres < boxes[:, 2:])).all(axis=2)  # (N, G)
    tp = int(hits.any(axis=0).sum())
    return tp, max(len(detections) - int(hits.sum()), 0), len(boxes) - tp


def released_dice(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """Dice of two masks of any shape, in 0..1, with the released rule for an empty truth.

    An empty truth scores **1 if anything is predicted and 0 if nothing is**: reversed, as in TransUNet's evaluation.
    """
    if not truth.any():
        return float(predicted.any())
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


def _precision_recall(tp: int, fp: int, fn: int) -> dict[str, float]:
    precision, recall = _percent(tp, tp + fp), _percent(tp, tp + fn)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall + TINY),
        "f2": 5 * precision * recall / (4 * precision + recall + TINY),
    }


def _percent(part: int, total: int) -> float:
    return 100 * part / (total + TINY)


def _total(counts: Sequence[tuple[int, ...]]) -> list[int]:
    if not counts:
        raise MetricError("There are no frames to score; give at least one frame.")
    return [sum(column) for column in zip(*counts, strict=True)]
