"""Detection metrics: average precision by COCO's rule, localisation by centres, and presence per frame.

The detections of a frame are matched to its truth once. Every metric can then be computed for any number of resamples
of the frames, as in ``metrics.classification``: ``weights`` (R, N) give (R,).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torchvision.ops import box_iou

from endofm_lab.brief import Brief
from endofm_lab.metrics.classification import MetricError, Values, f1, nan_mean, ratio, resample_rows, shaped

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # per frame and class, the highest scores first, as in COCO


@dataclass(frozen=True, eq=False, repr=False)
class FrameBoxes(Brief):
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
    """A checked :class:`FrameBoxes`; without labels, all boxes are of class 0.

    Raises:
        MetricError: a value is NaN, a true box has no area, or there is not one score (and label) per box.
    """
    truth, boxes = (np.asarray(b, dtype=np.float64).reshape(-1, 4) for b in (true_xyxy, xyxy))
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    classes = [
        np.zeros(len(b), np.int64) if c is None else np.asarray(c, dtype=np.int64).reshape(-1)
        for b, c in ((truth, true_labels), (boxes, labels))
    ]
    if not len(values) == len(classes[1]) == len(boxes) or len(classes[0]) != len(truth):
        raise MetricError(
            f"{len(boxes)} boxes have {len(values)} scores and {len(classes[1])} labels, and {len(truth)} true "
            f"boxes with {len(classes[0])} labels; give one score and one label per box."
        )
    if np.isnan(boxes).any() or np.isnan(values).any():
        raise MetricError("A detection holds NaN. Leave it out.")
    for box in truth:
        if not (box[2] > box[0] and box[3] > box[1]):
            raise MetricError(f"The true box {box.tolist()} has no area; x2 > x1 and y2 > y1 are needed.")
    return FrameBoxes(truth, classes[0], boxes, values, classes[1])


@dataclass(frozen=True, eq=False, repr=False)
class ClassMatches(Brief):
    """Detections of one class over all frames, highest score first: frames, and hits at every IoU threshold."""

    frame: NDArray[np.int64]  # (D,)
    hit: NDArray[np.bool_]  # (10, D)
    truths: NDArray[np.int64]  # (N,) true boxes per frame


@dataclass(frozen=True)
class BoxMatches:
    """Matches of all classes that have a true box in any frame, and the number of frames."""

    classes: tuple[ClassMatches, ...]
    n_frames: int


def match_boxes(frames: Sequence[FrameBoxes]) -> BoxMatches:
    """Match detections to true boxes, per frame and class, at the ten ``IOU_THRESHOLDS``.

    From the highest score down, each detection takes the free true box that it overlaps most, if the overlap reaches
    the threshold. A true box is matched once; further detections of it are false. Only the 100 highest scores of a
    frame and class take part.

    Source: Lin et al. 2014 (COCO), the evaluation without crowds and area ranges.
    """
    classes = np.unique(np.concatenate([np.zeros(0, np.int64), *(frame.true_labels for frame in frames)]))
    return BoxMatches(tuple(_match_class(frames, int(label)) for label in classes), len(frames))


def average_precision_50(matches: BoxMatches, weights: ArrayLike | None = None) -> Values:
    """AP at IoU 0.5: mean of the precision at 101 recalls 0, 0.01, ... 1, then mean over classes, in [0, 1].

    The precision at a recall is the largest precision at that recall or a higher one, and 0 if the recall is not
    reached. Classes without a true box are left out; without any true box, the result is NaN.
    """
    rows = resample_rows(weights, matches.n_frames)
    return shaped(_mean_ap(matches, rows, [0]), weights)


def average_precision_50_95(matches: BoxMatches, weights: ArrayLike | None = None) -> Values:
    """Mean of the AP at the ten IoU thresholds 0.5, 0.55, ... 0.95, with the rule and the empty cases of AP at 0.5."""
    rows = resample_rows(weights, matches.n_frames)
    return shaped(_mean_ap(matches, rows, range(len(IOU_THRESHOLDS))), weights)


def centre_counts(frames: Sequence[FrameBoxes], threshold: float = 0.5) -> NDArray[np.int64]:
    """True positives, false positives and false negatives per frame (N, 3) of localisation by centres.

    From the highest score down to ``threshold``, each detection takes the true box with the nearest centre among the
    free ones of its class that contain the detection's centre. A true box is matched once. Every other detection is a
    false positive, also on frames without a lesion. The released rule (``metrics.released``) differs in all three.
    """
    counts = [_centre_counts(frame, threshold) for frame in frames]
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def centre_metrics(counts: NDArray[np.int64], weights: ArrayLike | None = None) -> dict[str, Values]:
    """``centre_precision``, ``centre_recall``, ``centre_f1``, ``centre_f2`` from summed counts (N, 3), in [0, 1].

    F-beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP). Precision is NaN without detections, recall is NaN without
    true boxes, and all four are NaN without both.
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

    For ``metrics.classification.f1`` and similar metrics. The position is ignored: a box in the wrong corner counts.
    """
    truth = np.array([len(frame.true_xyxy) > 0 for frame in frames], dtype=bool)
    return truth, np.array([(frame.scores >= threshold).any() for frame in frames], dtype=bool)


def detection_metrics(
    frames: Sequence[FrameBoxes], threshold: float = 0.5
) -> Callable[[ArrayLike | None], dict[str, Values]]:
    """A function of ``weights`` that returns ``ap50``, ``ap50_95``, the centre metrics and ``frame_presence_f1``.

    Boxes are matched only once, here; the function can then be called for any number of resamples.
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
        indices = np.flatnonzero(frame.labels == label)
        indices = indices[np.argsort(-frame.scores[indices], kind="stable")][:MAX_DETECTIONS]
        truth = frame.true_xyxy[frame.true_labels == label]
        numbers.append(np.full(len(indices), number))
        scores.append(frame.scores[indices])
        hits.append(_hits(frame.xyxy[indices], truth))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    truths = np.array([(frame.true_labels == label).sum() for frame in frames])
    return ClassMatches(np.concatenate(numbers)[order], np.concatenate(hits, axis=1)[:, order], truths)


def _hits(boxes: NDArray, truth: NDArray) -> NDArray[np.bool_]:
    """(10, D): whether each box (D, 4), highest score first, matches a free true box (G, 4) at each threshold."""
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
            counts = frames[match.frame]  # (D,)
            true_positives = np.cumsum(counts * hit)
            precision = np.nan_to_num(ratio(true_positives, np.cumsum(counts)))
            highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # at this recall or a higher one
            values[r] = highest[np.searchsorted(true_positives / truths, RECALL_POINTS)].mean()
    return values


def _centre_counts(frame: FrameBoxes, threshold: float) -> tuple[int, int, int]:
    detections = np.flatnonzero(frame.scores >= threshold)
    detections = detections[np.argsort(-frame.scores[detections], kind="stable")]
    true_centres = (frame.true_xyxy[:, :2] + frame.true_xyxy[:, 2:]) / 2
    free = np.ones(len(true_centres), dtype=bool)
    for d in detections:
        centre = (frame.xyxy[d, :2] + frame.xyxy[d, 2:]) / 2
        contains = ((frame.true_xyxy[:, :2] < centre) & (centre < frame.true_xyxy[:, 2:])).all(1)
        candidates = np.flatnonzero(free & contains & (frame.true_labels == frame.labels[d]))
        if len(candidates):
            distance = np.linalg.norm(true_centres[candidates] - centre, axis=1)
            free[candidates[distance.argmin()]] = False
    true_positives = int((~free).sum())
    return true_positives, len(detections) - true_positives, len(free) - true_positives
