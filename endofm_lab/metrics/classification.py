"""Classification metrics, each of which can be computed for many resamples of the same rows at once.

A resample is a weight per row (how often the row was drawn), so a bootstrap of R resamples is one call with ``weights``
of shape (R, N) and returns (R,) values; without weights the value is a float. Undefined values are NaN, never 0 or 1.
The tests compare every function with scikit-learn's, whose functions take one weighting at a time.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from endofm_lab.errors import UserError

Values = float | NDArray[np.float64]


class MetricError(UserError):
    """Targets and scores that cannot be compared with each other."""


def accuracy(target: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Share of rows whose predicted class is the true one, in [0, 1]; both (N,) integers. NaN without rows."""
    target, predicted = _same_length(target, predicted)
    rows = resample_rows(weights, len(target))
    return shaped(ratio(rows @ (target == predicted), rows.sum(1)), weights)


def f1(target: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Binary F1 = 2 TP / (2 TP + FP + FN), in [0, 1]; both (N,) bool. NaN without a true or predicted positive row."""
    target, predicted = _same_length(target, predicted)
    return shaped(_f1(target.astype(bool), predicted.astype(bool), resample_rows(weights, len(target))), weights)


def macro_f1(target: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean of the classes' F1, in [0, 1]; (N,) classes or (N, K) bool for several labels per row.

    A class that is neither in the truth nor predicted is left out of the mean; NaN if no class is left.
    """
    target, predicted = _same_length(target, predicted)
    rows = resample_rows(weights, len(target))
    truth, guess = _columns(target, predicted)
    return shaped(nan_mean(_f1(truth, guess, rows).T), weights)  # (R, K) F1 of every class


def balanced_accuracy(target: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean recall over the classes with true rows, in [0, 1]; both (N,) classes. NaN without rows."""
    target, predicted = _same_length(target, predicted)
    rows = resample_rows(weights, len(target))
    truth, guess = _columns(target, predicted)
    hits = rows @ (truth & guess)  # (R, K)
    return shaped(nan_mean(ratio(hits, rows @ truth).T), weights)


def auc(target: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Area under the ROC curve: the probability that a positive row scores above a negative one; ties count half.

    ``target`` (N,) bool, ``score`` (N,) on any real scale. NaN if only one class is present.

    Source: Hanley and McNeil 1982 (the Mann-Whitney form).
    """
    target, score = _scored(target, score)
    return shaped(_auc(target.astype(bool), score, resample_rows(weights, len(target))), weights)


def average_precision(target: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Sum of precision times the step in recall, from the highest threshold down, without interpolation, in [0, 1].

    ``target`` (N,) bool, ``score`` (N,). NaN without a positive row. Chance level is the share of positives, not 0.5.
    """
    target, score = _scored(target, score)
    return shaped(_average_precision(target.astype(bool), score, resample_rows(weights, len(target))), weights)


def macro_auc(target: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean over classes of one-against-rest ROC AUC; ``target`` (N,) classes or (N, K) bool, ``scores`` (N, K).

    Classes that lack positives or negatives are left out of the mean; NaN if no class is left.
    """
    target, scores = _scored(target, scores)
    rows = resample_rows(weights, len(target))
    truth = one_against_rest(target, scores.shape[1])
    return shaped(nan_mean([_auc(t, s, rows) for t, s in zip(truth.T, scores.T, strict=True)]), weights)


def macro_average_precision(target: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean over classes of :func:`average_precision`, one against the rest; shapes as in :func:`macro_auc`.

    Classes without a positive row are left out of the mean; NaN if no class is left.
    """
    target, scores = _scored(target, scores)
    rows = resample_rows(weights, len(target))
    truth = one_against_rest(target, scores.shape[1])
    return shaped(nan_mean([_average_precision(t, s, rows) for t, s in zip(truth.T, scores.T, strict=True)]), weights)


def classification_metrics(target: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> dict[str, Values]:
    """F1, AUC, average precision, balanced accuracy and accuracy of one model on one test set.

    Two classes: ``target`` (N,) in {0, 1}, ``scores`` (N, 2); F1, AUC and AP are those of class 1, the positive one.
    K classes: ``target`` (N,), ``scores`` (N, K); F1, AUC and AP are means over classes; predictions are the argmax.
    Several labels per row: ``target`` (N, K) bool; predictions are scores of at least 0.5; accuracy is the share of
    correct label decisions, and balanced accuracy the mean over labels of (sensitivity + specificity) / 2.
    """
    target, scores = _scored(target, scores)
    if scores.ndim != 2 or (scores.shape[1] < 2 and target.ndim == 1):
        raise MetricError(f"Scores have shape {scores.shape}; give one column per class, two for a binary task.")
    if target.ndim == 2:
        guess = scores >= 0.5
        labels = list(zip(target.T.astype(bool), guess.T, strict=True))
        return {
            "f1": macro_f1(target.astype(bool), guess, weights),
            "auc": macro_auc(target, scores, weights),
            "average_precision": macro_average_precision(target, scores, weights),
            "balanced_accuracy": _mean_of([balanced_accuracy(t, p, weights) for t, p in labels]),
            "accuracy": _mean_of([accuracy(t, p, weights) for t, p in labels]),
        }
    guess = scores.argmax(1)
    common = {
        "balanced_accuracy": balanced_accuracy(target, guess, weights),
        "accuracy": accuracy(target, guess, weights),
    }
    if scores.shape[1] == 2:
        one_against_rest(target, 2)  # refuses a class outside {0, 1}
        return {
            "f1": f1(target == 1, guess == 1, weights),
            "auc": auc(target == 1, scores[:, 1], weights),
            "average_precision": average_precision(target == 1, scores[:, 1], weights),
            **common,
        }
    return {
        "f1": macro_f1(target, guess, weights),
        "auc": macro_auc(target, scores, weights),
        "average_precision": macro_average_precision(target, scores, weights),
        **common,
    }


# ---- helpers of all metrics


def resample_rows(weights: ArrayLike | None, n_rows: int) -> NDArray[np.float64]:
    """Weights as (R, N); one resample of ones if no weights are given."""
    if weights is None:
        return np.ones((1, n_rows))
    rows = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    if rows.shape[1] != n_rows:
        raise MetricError(f"There are weights for {rows.shape[1]} rows, but {n_rows} targets; give one weight per row.")
    return rows


def shaped(values: NDArray[np.float64], weights: ArrayLike | None) -> Values:
    """(R,) values for (R, N) weights, a float otherwise."""
    return values if weights is not None and np.ndim(weights) == 2 else float(values[0])


def ratio(top: ArrayLike, bottom: ArrayLike) -> NDArray[np.float64]:
    """``top / bottom``; NaN where ``bottom`` is 0, because the metric is not defined there."""
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom != 0)


def nan_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Mean over the first axis of the entries that are not NaN; NaN where all entries are."""
    values = np.asarray(values, dtype=np.float64)
    return ratio(np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0))


def weighted_mean(values: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean of per-row values (N,) without the rows that are NaN (not defined there); NaN if no row is left."""
    values = np.asarray(values, dtype=np.float64)
    rows = resample_rows(weights, len(values))
    defined = ~np.isnan(values)
    return shaped(ratio(rows @ np.where(defined, values, 0.0), rows @ defined), weights)


def one_against_rest(target: ArrayLike, n_classes: int) -> NDArray[np.bool_]:
    """(N, K) bool: whether a row belongs to class k. (N,) classes become one-hot; (N, K) labels stay as they are."""
    target = np.asarray(target)
    if target.ndim == 2:
        if target.shape[1] != n_classes:
            raise MetricError(f"Targets have {target.shape[1]} labels, but scores {n_classes}; give as many of both.")
        return target.astype(bool)
    if len(target) and (target.min() < 0 or target.max() >= n_classes):
        raise MetricError(
            f"Targets run from {target.min()} to {target.max()}, but scores have {n_classes} columns; "
            "give one column for every class."
        )
    return target[:, None] == np.arange(n_classes)


def _f1(target: NDArray, predicted: NDArray, rows: NDArray) -> NDArray[np.float64]:
    """(R,) for (N,) bool, (R, K) for (N, K)."""
    return ratio(2 * (rows @ (target & predicted)), rows @ target + rows @ predicted)


def _auc(target: NDArray, score: NDArray, rows: NDArray) -> NDArray[np.float64]:
    positive, negative = _per_score(target, score, rows)  # (R, U), lowest score first
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    return ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1))


def _average_precision(target: NDArray, score: NDArray, rows: NDArray) -> NDArray[np.float64]:
    positive, negative = _per_score(target, -score, rows)  # highest score first
    hits = np.cumsum(positive, axis=1)
    precision = np.nan_to_num(ratio(hits, hits + np.cumsum(negative, axis=1)))
    return ratio((positive * precision).sum(1), positive.sum(1))


def _per_score(target: NDArray, score: NDArray, rows: NDArray) -> tuple[NDArray, NDArray]:
    """Weight of positives and of negatives at each of the U distinct scores, lowest first: two (R, U)."""
    if len(score) == 0:
        return np.zeros((len(rows), 1)), np.zeros((len(rows), 1))
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    weights, positive = rows[:, order], target[order]
    return (
        np.add.reduceat(weights * positive, starts, axis=1),
        np.add.reduceat(weights * ~positive, starts, axis=1),
    )


def _columns(target: NDArray, predicted: NDArray) -> tuple[NDArray, NDArray]:
    """Truth and prediction as (N, K) bool; (N,) classes of any kind get a column each."""
    if target.ndim == 2:
        return target.astype(bool), predicted.astype(bool)
    classes = np.union1d(target, predicted)
    return target[:, None] == classes, predicted[:, None] == classes


def _same_length(target: ArrayLike, predicted: ArrayLike) -> tuple[NDArray, NDArray]:
    target, predicted = np.asarray(target), np.asarray(predicted)
    if len(target) != len(predicted):
        raise MetricError(
            f"There are {len(target)} targets but {len(predicted)} predictions; give one of each per row."
        )
    return target, predicted


def _scored(target: ArrayLike, score: ArrayLike) -> tuple[NDArray, NDArray]:
    target, score = _same_length(target, np.asarray(score, dtype=np.float64))
    if bad := int(np.isnan(score).sum()):
        raise MetricError(f"{bad} of {score.size} scores are NaN. Leave those rows out and report how many there are.")
    return target, score


def _mean_of(values: list[Values]) -> Values:
    mean = nan_mean(np.array(values))
    return float(mean) if mean.ndim == 0 else mean
