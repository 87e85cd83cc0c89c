"""Detection metrics: average precision by COCO's rule, localisation by centres, and presence per frame.

A frame's detections meet its truth once; then every metric is asked for any number of resamples of the frames, as in
``metrics.classification``: ``weights`` (R, N) gives (R,).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torchvision.ops import box_iou

from endofm_lab.metrics.classification import MetricError, Values, f1, nan_mean, ratio, resample_rows, shaped

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # per frame and class, the most certain first, as COCO has it


@dataclass(frozen=True)
class FrameBoxes:
    """Truth and detections of one frame: boxes (n, 4) as x1, y1, x2, y2 in pixels, scores (D,), integer labels (n,)."""

    true_xyxy: NDArray[np.float64]
    true_labels: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


def frame_boxes(
    true_xyxy: ArrayLike,
    xyxy: ArrayLike,
    scores: ArrayLike,
    true_labels: ArrayLike | None = None,
    labels: ArrayLike | None = None,
) -> FrameBoxes:
    """A checked :class:`FrameBoxes`; without labels everything is one class, 0.

    Raises:
        MetricError: NaN, a box without area, or not one score (and label) per box.
    """
    truth, boxes = (np.asarray(b, dtype=np.float64).reshape(-1, 4) for b in (true_xyxy, xyxy))
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    classes = [
        np.zeros(len(b), np.int64) if c is None else np.asarray(c, dtype=np.int64).reshape(-1)
        for b, c in ((truth, true_labels), (boxes, labels))
    ]
    if not len(values) == len(classes[1]) == len(boxes) or len(classes[0]) != len(truth):
        raise MetricError(
            f"{len(boxes)} boxes with {len(values)} scores and {len(classes[1])} labels, {len(truth)} true boxes with "
            f"{len(classes[0])} labels; give one of each per box."
        )
    if np.isnan(boxes).any() or np.isnan(values).any():
        raise MetricError("A detection holds NaN; leave it out.")
    for box in truth:
        if not (box[2] > box[0] and box[3] > box[1]):
            raise MetricError(f"The true box {box.tolist()} has no area; x2 > x1 and y2 > y1 are needed.")
    return FrameBoxes(truth, classes[0], boxes, values, classes[1])


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class over all frames, falling score: which frame, and a hit or not at every IoU threshold."""

    frame: NDArray[np.int64]  # (D,)
    hit: NDArray[np.bool_]  # (10, D)
    truths: NDArray[np.int64]  # (N,) true boxes per frame


@dataclass(frozen=True)
class BoxMatches:
    """Matches of all classes that have a true box somewhere, and the number of frames."""

    classes: tuple[ClassMatches, ...]
    n_frames: int


def match_boxes(frames: Sequence[FrameBoxes]) -> BoxMatches:
    """Detections against truth, per frame and class, at the ten ``IOU_THRESHOLDS``.

    Detections choose in falling score the free true box they overlap most, if by at least the threshold; a true box is
    found once, further detections of it are false. Only the 100 most certain of a frame and class take part.

    Source: Lin et al. 2014 (COCO), its evaluation without crowds and area ranges.
    """
    classes = np.unique(np.concatenate([np.zeros(0, np.int64), *(frame.true_labels for frame in frames)]))
    return BoxMatches(tuple(_match_class(frames, int(label)) for label in classes), len(frames))


def average_precision_50(matches: BoxMatches, weights: ArrayLike | None = None) -> Values:
    """AP at IoU 0.5: mean of the precision at 101 recalls 0, 0.01, ... 1, then mean over classes, in [0, 1].

    The precision at a recall is the largest one at that recall or a higher one, 0 where the recall is not reached.
    Classes without a true box are left out; no true box at all: NaN.
    """
    rows = resample_rows(weights, matches.n_frames)
    return shaped(_mean_ap(matches, rows, [0]), weights)


def average_precision_50_95(matches: BoxMatches, weights: ArrayLike | None = None) -> Values:
    """Mean of the AP at the ten IoU thresholds 0.5, 0.55, ... 0.95; rule and empty cases as at 0.5."""
    rows = resample_rows(weights, matches.n_frames)
    return shaped(_mean_ap(matches, rows, range(len(IOU_THRESHOLDS))), weights)


def centre_counts(frames: Sequence[FrameBoxes], threshold: float = 0.5) -> NDArray[np.int64]:
    """True positives, false positives and false negatives per frame (N, 3) of localisation by centres.

    Detections with a score of at least ``threshold`` choose in falling score, among the free true boxes of their class
    that contain their centre, the one with the nearest centre. A true box is found once; every other detection is a
    false positive, on frames without a lesion too. The released rule (``metrics.released``) differs in all three.
    """
    counts = [_centre_counts(frame, threshold) for frame in frames]
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def centre_metrics(counts: NDArray[np.int64], weights: ArrayLike | None = None) -> dict[str, Values]:
    """``centre_precision``, ``centre_recall``, ``centre_f1``, ``centre_f2`` from summed counts (N, 3), in [0, 1].

    F-beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP). Nothing detected: precision is NaN; nothing to find: recall is
    NaN; neither: all are NaN.
    """
    rows = resample_rows(weights, len(counts))
    tp, fp, fn = (rows @ counts).T
    values = {
        "centre_precision": ratio(tp, tp + fp),
        "centre_recall": ratio(tp, tp + fn),
        "centre_f1": ratio(2 * tp, 2 * tp + fn + fp),
        "centre_f2": ratio(5 * tp, 5 * tp + 4 * fn + fp),
    }
    return {name: shaped(value, weights) for name, value in values.items()}


def frame_presence(frames: Sequence[FrameBoxes], threshold: float = 0.5) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each frame has a true box, and whether it has a detection of at least ``threshold``: two (N,) bool.

    For ``metrics.classification.f1`` and its like. It says nothing of where: a box in the wrong corner counts as found.
    """
    truth = np.array([len(frame.true_xyxy) > 0 for frame in frames], dtype=bool)
    return truth, np.array([(frame.scores >= threshold).any() for frame in frames], dtype=bool)


def detection_metrics(
    frames: Sequence[FrameBoxes], threshold: float = 0.5
) -> Callable[[ArrayLike | None], dict[str, Values]]:
    """A function of ``weights`` that gives ``ap50``, ``ap50_95``, the centre metrics and ``frame_presence_f1``.

    Boxes are matched here, once; the function can then be asked for any number of resamples.
    """
    matches, counts = match_boxes(frames), centre_counts(frames, threshold)
    truth, presence = frame_presence(frames, threshold)

    def measured(weights: ArrayLike | None = None) -> dict[str, Values]:
        return {
            "ap50": average_precision_50(matches, weights),
            "ap50_95": average_precision_50_95(matches, weights),
            **centre_metrics(counts, weights),
            "frame_presence_f1": f1(truth, presence, weights),
        }

    return measured


def _match_class(frames: Sequence[FrameBoxes], label: int) -> ClassMatches:
    numbers, scores, hits = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros((len(IOU_THRESHOLDS), 0), bool)]
    for number, frame in enumerate(frames):
        mine = np.flatnonzero(frame.labels == label)
        mine = mine[np.argsort(-frame.scores[mine], kind="stable")][:MAX_DETECTIONS]
        truth = frame.true_xyxy[frame.true_labels == label]
        numbers.append(np.full(len(mine), number))
        scores.append(frame.scores[mine])
        hits.append(_hits(frame.xyxy[mine], truth))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    truths = np.array([(frame.true_labels == label).sum() for frame in frames])
    return ClassMatches(np.concatenate(numbers)[order], np.concatenate(hits, axis=1)[:, order], truths)


def _hits(boxes: NDArray, truth: NDArray) -> NDArray[np.bool_]:
    """(10, D): whether each box (D, 4), falling score, finds a free one of truth (G, 4) at each threshold."""
    hits = np.zeros((len(IOU_THRESHOLDS), len(boxes)), dtype=bool)
    if not len(boxes) or not len(truth):
        return hits
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(truth)).numpy()  # (D, G)
    for hit, threshold in zip(hits, IOU_THRESHOLDS, strict=True):
        free = np.ones(len(truth), dtype=bool)
        for d in range(len(boxes)):
            candidates = np.where(free, overlap[d], -1)
            best = candidates.argmax()
            if candidates[best] >= threshold:
                hit[d], free[best] = True, False
    return hits


def _mean_ap(matches: BoxMatches, rows: NDArray, thresholds: Iterable[int]) -> NDArray[np.float64]:
    """(R,) mean over thresholds and over the classes that have a true box in the resample."""
    classes = [np.mean([_ap(match, match.hit[t], rows) for t in thresholds], axis=0) for match in matches.classes]
    return nan_mean(np.array(classes).reshape(-1, len(rows)))


def _ap(match: ClassMatches, hit: NDArray[np.bool_], rows: NDArray) -> NDArray[np.float64]:
    """(R,) AP of one class at one threshold; one resample at a time, because detections can far outnumber frames."""
    values = np.full(len(rows), np.nan)
    for r, frames in enumerate(rows):
        if truths := frames @ match.truths:
            drawn = frames[match.frame]  # (D,)
            found = np.cumsum(drawn * hit)
            precision = np.nan_to_num(ratio(found, np.cumsum(drawn)))
            best_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            values[r] = best_from_here[np.searchsorted(found / truths, RECALL_POINTS)].mean()
    return values


def _centre_counts(frame: FrameBoxes, threshold: float) -> tuple[int, int, int]:
    certain = np.flatnonzero(frame.scores >= threshold)
    certain = certain[np.argsort(-frame.scores[certain], kind="stable")]
    true_centres = (frame.true_xyxy[:, :2] + frame.true_xyxy[:, 2:]) / 2
    free = np.ones(len(true_centres), dtype=bool)
    for d in certain:
        centre = (frame.xyxy[d, :2] + frame.xyxy[d, 2:]) / 2
        inside = ((frame.true_xyxy[:, :2] < centre) & (centre < frame.true_xyxy[:, 2:])).all(1)
        candidates = np.flatnonzero(free & inside & (frame.true_labels == frame.labels[d]))
        if len(candidates):
            distance = np.linalg.norm(true_centres[candidates] - centre, axis=1)
            free[candidates[distance.argmin()]] = False
    found = int((~free).sum())
    return found, len(certain) - found, len(free) - found
