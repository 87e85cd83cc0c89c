"""Calibration: is a confidence of 0.9 right nine times in ten? Errors, scaling on validation, and abstention.

All functions take probabilities (N, K) that sum to one per row; a binary score p is the two columns (1 - p, p).
The *confidence* of a row is its largest probability. Scalings are fitted on validation patients and must be evaluated
on other patients.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax

from endofm_lab.metrics.classification import (
    MetricError,
    Values,
    one_against_rest,
    ratio,
    resample_rows,
    shaped,
    weighted_mean,
)

# Without an error on validation, the likelihood has no maximum; these bounds then stop the optimiser.
TEMPERATURE_RANGE = (0.05, 20.0)
BIAS_LIMIT = 10.0
_TINY = 1e-12


def ece(target: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None, n_bins: int = 15) -> Values:
    """Expected calibration error, in [0, 1]: mean gap between confidence and accuracy over equal-width bins.

    Rows are put in bins (0, 1/n], (1/n, 2/n], ... by confidence. Each bin's gap is weighted by its share of rows, so
    empty bins do not count. Without rows, the result is NaN. ``target`` (N,), ``probabilities`` (N, K), ``weights`` as
    in ``metrics.classification``. With few rows per bin the error is biased upwards, and even more in resamples, so its
    bootstrap interval is shifted upwards.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    target, probabilities = _checked(target, probabilities)
    rows = resample_rows(weights, len(target))
    confidence = probabilities.max(axis=1, initial=0.0)
    gap = (probabilities.argmax(1) == target) - confidence
    bins = _bins(confidence, n_bins)[:, None] == np.arange(n_bins)
    return shaped(ratio(np.abs(rows @ (bins * gap[:, None])).sum(1), rows.sum(1)), weights)


def brier(target: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean squared distance between probabilities and truth, summed over classes: 0 if perfect, 2 if surely wrong.

    For two classes this is twice the one-column form (scikit-learn's ``scale_by_half``). NaN without rows.

    Source: Brier 1950.
    """
    target, probabilities = _checked(target, probabilities)
    truth = one_against_rest(target, probabilities.shape[1])
    return weighted_mean(((probabilities - truth) ** 2).sum(1), weights)


def negative_log_likelihood(target: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean of -ln p(true class), in nats; probabilities below 1e-12 count as 1e-12. NaN without rows."""
    target, probabilities = _checked(target, probabilities)
    return weighted_mean(-np.log(np.maximum(probabilities[np.arange(len(target)), target], _TINY)), weights)


def reliability_curve(target: ArrayLike, probabilities: ArrayLike, n_bins: int = 15) -> pd.DataFrame:
    """One row per bin: ``low``, ``high``, ``n``, mean ``confidence`` and ``accuracy`` (NaN in empty bins).

    The bins are those of :func:`ece`, which is the mean of ``|accuracy - confidence|`` weighted by ``n``.
    """
    target, probabilities = _checked(target, probabilities)
    confidence = probabilities.max(axis=1, initial=0.0)
    bins = _bins(confidence, n_bins)
    n = np.bincount(bins, minlength=n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "n": n,
            "confidence": ratio(np.bincount(bins, confidence, n_bins), n),
            "accuracy": ratio(np.bincount(bins, probabilities.argmax(1) == target, n_bins), n),
        }
    )


@dataclass(frozen=True)
class Scaling:
    """A calibration to softmax(weight * logits + bias); ``weight`` and ``bias`` are (K,) floats.

    Temperature scaling has one common weight 1 / T and no bias, so it never changes the predicted class.
    """

    weight: tuple[float, ...]
    bias: tuple[float, ...]

    @property
    def temperature(self) -> float:
        """1 / mean weight: the temperature of temperature scaling, which is above 1 for an overconfident model."""
        return float(1 / np.mean(self.weight))

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Probabilities (N, K) float64 from logits (N, K)."""
        return softmax(np.asarray(logits, dtype=np.float64) * self.weight + np.asarray(self.bias), axis=1)


def fit_temperature(target: ArrayLike, logits: ArrayLike) -> Scaling:
    """Temperature that maximises the likelihood of validation rows; ``target`` (N,), ``logits`` (N, K).

    L-BFGS fits 1 / T, because the problem is convex in it. T stays within ``TEMPERATURE_RANGE`` and is at its lower end
    if validation holds no error at all.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2.
    """
    target, logits = _checked(target, logits, sums_to_one=False)
    truth = _some_truth(target, logits.shape[1])

    def loss(inverse: NDArray) -> tuple[float, NDArray]:
        value, residual = _loss_and_residual(logits * inverse, truth)
        return value, np.array([(residual * logits).sum()])

    low, high = TEMPERATURE_RANGE
    inverse = _fit(loss, np.ones(1), [(1 / high, 1 / low)])[0]
    n_classes = logits.shape[1]
    return Scaling(weight=(float(inverse),) * n_classes, bias=(0.0,) * n_classes)


def fit_vector_scaling(target: ArrayLike, logits: ArrayLike) -> Scaling:
    """A weight and a bias per class that maximise the likelihood of validation rows; shapes as in `fit_temperature`.

    Every class must occur in validation, because an absent class would get a probability near 0. Weights stay within
    1 / ``TEMPERATURE_RANGE`` and biases within +-``BIAS_LIMIT``.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2.
    """
    target, logits = _checked(target, logits, sums_to_one=False)
    truth = _some_truth(target, logits.shape[1])
    if missing := np.flatnonzero(~truth.any(0)).tolist():
        raise MetricError(
            f"Classes {missing} have no validation row, so vector scaling would give them a probability near 0. Use "
            "fit_temperature, or add validation patients."
        )
    n_classes = logits.shape[1]

    def loss(parameters: NDArray) -> tuple[float, NDArray]:
        weight, bias = np.split(parameters, 2)
        value, residual = _loss_and_residual(logits * weight + bias, truth)
        return value, np.concatenate([(residual * logits).sum(0), residual.sum(0)])

    low, high = TEMPERATURE_RANGE
    bounds = [(1 / high, 1 / low)] * n_classes + [(-BIAS_LIMIT, BIAS_LIMIT)] * n_classes
    weight, bias = np.split(_fit(loss, np.repeat([1.0, 0.0], n_classes), bounds), 2)
    return Scaling(weight=tuple(weight.tolist()), bias=tuple((bias - bias.mean()).tolist()))


def logits_of(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Logits whose softmax is ``probabilities`` (N, K), for scores without saved logits; zeros count as 1e-12."""
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _TINY))


def uncalibrated(probabilities: ArrayLike, temperature: float, exclusive: bool = True) -> NDArray[np.float64]:
    """The probabilities before their logits were divided by a temperature; the shape stays.

    Args:
        probabilities: softmax along the last axis if ``exclusive``, otherwise sigmoids; 0 and 1 count as 1e-12 and
            1 - 1e-12.
        temperature: of the calibration that is undone.
        exclusive: whether the classes exclude each other.
    """
    if exclusive:
        return softmax(temperature * logits_of(probabilities), axis=-1)
    inner = np.clip(np.asarray(probabilities, dtype=np.float64), _TINY, 1 - _TINY)
    return expit(temperature * logit(inner))


def selective_curve(target: ArrayLike, probabilities: ArrayLike) -> pd.DataFrame:
    """Accuracy on the confident rows alone: ``threshold``, ``coverage``, ``accuracy``, highest threshold first.

    The table has one row per distinct confidence, at which all rows with that confidence or more are answered. Without
    rows it is empty.

    Source: El-Yaniv and Wiener 2010.
    """
    target, probabilities = _checked(target, probabilities)
    confidence = probabilities.max(axis=1, initial=0.0)
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    right = np.cumsum((probabilities.argmax(1) == target)[order])
    last = np.flatnonzero(np.diff(confidence[order], append=-np.inf) != 0)
    return pd.DataFrame(
        {
            "threshold": confidence[order][last],
            "coverage": answered[last] / max(1, len(order)),
            "accuracy": right[last] / answered[last],
        }
    )


def confident_errors(target: ArrayLike, probabilities: ArrayLike, above: float = 0.9) -> NDArray[np.int64]:
    """(M,) numbers of the rows that are wrong with a confidence over ``above``, the most confident first."""
    target, probabilities = _checked(target, probabilities)
    confidence = probabilities.max(axis=1, initial=0.0)
    wrong = np.flatnonzero((probabilities.argmax(1) != target) & (confidence > above))
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


def _bins(confidence: NDArray, n_bins: int) -> NDArray[np.int64]:
    """Bin of each confidence; bins are closed on the right, and 0 belongs to the first bin."""
    inner = np.linspace(0, 1, n_bins + 1)[1:-1]
    return np.searchsorted(inner, confidence, side="left")


def _some_truth(target: NDArray, n_classes: int) -> NDArray[np.bool_]:
    if len(target) == 0:
        raise MetricError("The validation set is empty; give at least one row to fit a scaling on.")
    return one_against_rest(target, n_classes)


def _loss_and_residual(logits: NDArray, truth: NDArray) -> tuple[float, NDArray]:
    """Mean cross-entropy, and its derivative with respect to the logits (N, K)."""
    logs = log_softmax(logits, axis=1)
    return float(-logs[truth].mean()), (np.exp(logs) - truth) / len(logits)


def _fit(
    loss: Callable[[NDArray], tuple[float, NDArray]], start: NDArray, bounds: list[tuple[float, float]]
) -> NDArray[np.float64]:
    """The parameters within ``bounds`` that minimise ``loss``, which also returns its gradient."""
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-10}
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def _checked(target: ArrayLike, values: ArrayLike, sums_to_one: bool = True) -> tuple[NDArray, NDArray]:
    target, values = np.asarray(target), np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or len(values) != len(target):
        raise MetricError(
            f"{len(target)} targets have scores of shape {values.shape}; give one row per target and one "
            "column per class (a binary score p is the two columns 1 - p and p)."
        )
    if bad := int((~np.isfinite(values)).any(1).sum()):
        raise MetricError(f"{bad} of {len(values)} rows hold NaN or infinity. Leave them out and report how many.")
    if sums_to_one and (bad := int((np.abs(values.sum(1) - 1) > 1e-3).sum())):
        raise MetricError(f"{bad} of {len(values)} rows do not sum to one. Apply softmax to logits first.")
    one_against_rest(target, values.shape[1])  # refuses a class without a column
    return target.astype(np.int64), values
