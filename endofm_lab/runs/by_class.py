"""A finished run class by class: which findings, phases or boxes a mean hides, with patient-level intervals."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from endofm_lab.metrics.boxes import FrameBoxes, average_precision_50, match_boxes
from endofm_lab.metrics.classification import Values, ratio
from endofm_lab.metrics.intervals import bootstrap_samples
from endofm_lab.runs.run import Run, boxes_of

ClassMetrics = Callable[[NDArray[np.float64]], dict[str, Values]]


def by_class(run: Run, n: int = 1000, seed: int = 0, level: float = 0.95) -> pd.DataFrame:
    """One row per class and metric: ``class``, ``items``, ``metric``, ``value``, ``low``, ``high``.

    Classes and phases: ``recall`` (sensitivity: found among those that are there) and ``precision`` (right among those
    that were said), over all rows or time steps. Boxes: ``ap50``. Masks have one class: no rows. ``items`` counts the
    class in the truth: rows, time steps, boxes. Without a true item recall and AP are NaN, without an answer precision.
    Several training seeds: of the first.

    Args:
        run: a finished run.
        n: resamples of the patients.
        seed: of the resamples.
        level: of confidence.
    """
    rows = run.predictions[run.predictions["seed"] == run.seeds[0]]
    found = []
    for name, items, metrics in _classes(run, rows):
        samples = bootstrap_samples(metrics, rows["patient"].to_numpy(), n, seed)
        for metric in samples.values:
            interval = samples.interval(metric, level)
            found.append((name, items, metric, interval.value, interval.low, interval.high))
    return pd.DataFrame(found, columns=["class", "items", "metric", "value", "low", "high"])


def _classes(run: Run, rows: pd.DataFrame) -> list[tuple[str, int, ClassMetrics]]:
    """Name, true items and metrics of every class."""
    names = [str(name).removeprefix("score_") for name in rows if str(name).startswith("score_")]
    if run.task == "segmentation":
        return []
    if run.task == "detection":
        frames = boxes_of(rows)
        labels = np.unique(np.concatenate([frame.true_labels for frame in frames])).tolist()
        listed = str(run.protocol.get("classes", "")).split(", ")
        titles = {k: listed[k] if k < len(listed) and listed[k] else f"class {k}" for k in labels}
        return [(titles[k], *_of_boxes(frames, k)) for k in labels]
    if "target" not in rows:  # several labels per row
        truth = rows[[f"target_{name}" for name in names]].to_numpy(bool)
        said = rows[[f"score_{name}" for name in names]].to_numpy() >= 0.5
    else:
        target = rows["target"].to_numpy()
        scores = rows[[f"score_{name}" for name in names]].to_numpy()
        predicted = rows["predicted"].to_numpy() if run.task == "phases" else scores.argmax(1)
        names = names or [f"class {k}" for k in range(int(max(target.max(), predicted.max())) + 1)]
        truth, said = (v[:, None] == np.arange(len(names)) for v in (target, predicted))
    return [(name, int(truth[:, k].sum()), _of_answers(truth[:, k], said[:, k])) for k, name in enumerate(names)]


def _of_answers(truth: NDArray[np.bool_], said: NDArray[np.bool_]) -> ClassMetrics:
    return lambda weights: {
        "recall": ratio(weights @ (truth & said), weights @ truth),
        "precision": ratio(weights @ (truth & said), weights @ said),
    }


def _of_boxes(frames: list[FrameBoxes], label: int) -> tuple[int, ClassMetrics]:
    """True boxes of one class, and its AP: the boxes of other classes are left out."""
    own = []
    for frame in frames:
        true, mine = frame.true_labels == label, frame.labels == label
        own.append(
            FrameBoxes(
                frame.true_xyxy[true], frame.true_labels[true], frame.xyxy[mine], frame.scores[mine], frame.labels[mine]
            )
        )
    matches = match_boxes(own)
    return sum(len(frame.true_xyxy) for frame in own), lambda weights: {"ap50": average_precision_50(matches, weights)}
