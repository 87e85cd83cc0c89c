"""Confidence intervals by resampling patients, and the paired difference between two models on the same patients.

Frames and clips of one patient resemble each other, so the patient is what is drawn: with replacement, as many as there
are, every row of a drawn patient together. Intervals are percentiles (Efron and Tibshirani 1993, chapter 13).

A resample in which the metric is not defined (an AUC without both classes, for instance) is left out, and
``undefined`` says how many were: the interval then speaks of the resamples in which the metric exists. Percentile
intervals from fewer than about ten patients are too narrow; from one patient there is none (NaN).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from endofm_lab.tasks.metrics import MetricError, Values

Metric = Callable[..., Values]
MetricSet = Callable[[NDArray[np.float64]], Mapping[str, Values]]

_CELLS = 1 << 22  # rows times resamples in memory at once: 32 MB of weights


@dataclass(frozen=True)
class Interval:
    """A value with its interval: ``n`` resamples of ``patients`` patients, ``undefined`` of them left out."""

    value: float
    low: float
    high: float
    level: float
    n: int
    patients: int
    undefined: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Difference(Interval):
    """Second minus first, with its interval and two-sided bootstrap p-value (NaN when nothing can be resampled)."""

    p_value: float


def bootstrap_interval(
    metric: Metric, groups: ArrayLike, *arrays: Any, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Value of ``metric(*arrays)`` and its interval over resampled patients.

    Args:
        metric: called as ``metric(*arrays, weights=(R, N))`` and returns (R,), like all of ``tasks.metrics``;
            any other function of the rows becomes one by :func:`on_repeated_rows`.
        groups: (N,) patient of every row.
        arrays: what the metric takes, usually targets and scores, N rows each.
        n: number of resamples.
        seed: of the draw; the same seed and groups draw the same patients, whatever the metric.
        level: of confidence, in (0, 1).
    """

    def named(weights: NDArray[np.float64]) -> dict[str, Values]:
        return {"value": metric(*arrays, weights=weights)}

    return bootstrap_intervals(named, groups, n, seed, level)["value"]


def bootstrap_intervals(
    metrics: MetricSet, groups: ArrayLike, n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Intervals of several metrics from the same resamples; ``metrics`` takes (R, N) weights and gives (R,) by name."""
    values, samples, patients = _resample(metrics, groups, n, seed, level)
    return {name: Interval(values[name], *_percentiles(samples[name], patients, level)) for name in values}


def bootstrap_difference(
    metric: Metric,
    groups: ArrayLike,
    first: tuple[Any, ...],
    second: tuple[Any, ...],
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """``metric(*second) - metric(*first)`` with interval and p-value; both models are measured on the same resamples.

    The p-value is twice the smaller share of resamples on either side of zero (ties on both), with one added to
    numerator and denominator, so that it is never 0 (Davison and Hinkley 1997, section 4.2).
    """
    return bootstrap_differences(
        lambda weights: {"value": metric(*first, weights=weights)},
        lambda weights: {"value": metric(*second, weights=weights)},
        groups,
        n,
        seed,
        level,
    )["value"]


def bootstrap_differences(
    first: MetricSet, second: MetricSet, groups: ArrayLike, n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Difference]:
    """:func:`bootstrap_difference` for several metrics at once; names that only one side has are left out."""

    def difference(weights: NDArray[np.float64]) -> dict[str, Values]:
        before, after = first(weights), second(weights)
        return {name: after[name] - before[name] for name in before if name in after}

    values, samples, patients = _resample(difference, groups, n, seed, level)
    return {
        name: Difference(values[name], *_percentiles(samples[name], patients, level), _p_value(samples[name], patients))
        for name in values
    }


def on_repeated_rows(metric: Callable[..., float]) -> Metric:
    """A metric for the bootstrap from any function of the rows: drawn rows are repeated as often as they were drawn.

    Slower than a metric that takes weights, and right for everything whose value depends only on the rows.
    """

    def weighted(*arrays: Any, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = []
        for drawn in np.asarray(weights):
            rows = np.repeat(np.arange(len(drawn)), drawn.astype(np.int64))
            values.append(float(metric(*(np.asarray(array)[rows] for array in arrays))))
        return np.array(values)

    return weighted


def patient_weights(groups: ArrayLike, n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Weights of ``n`` resamples of the patients in ``groups`` (N,), in blocks (R, N) of bounded memory."""
    patients, rows = np.unique(np.asarray(groups), return_inverse=True)
    draw = np.random.default_rng(seed)
    block = max(1, _CELLS // max(1, len(rows)))
    for start in range(0, n, block):
        counts = draw.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), min(block, n - start))
        yield counts[:, rows].astype(np.float64)


def _resample(
    metrics: MetricSet, groups: ArrayLike, n: int, seed: int, level: float
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]], int]:
    """Values on all rows, (n,) samples by name, and the number of patients."""
    groups = np.asarray(groups)
    if not 0 < level < 1:
        raise MetricError(f"level is {level}; it must lie between 0 and 1, for instance 0.95.")
    if len(groups) == 0:
        raise MetricError("there are no rows to resample; the test set is empty.")
    if n < 1:
        raise MetricError(f"{n} resamples were asked for; at least 1 is needed, 1000 is usual.")
    whole = {name: float(np.ravel(value)[0]) for name, value in metrics(np.ones((1, len(groups)))).items()}
    blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in whole}
    for weights in patient_weights(groups, n, seed):
        for name, values in metrics(weights).items():
            blocks[name].append(np.asarray(values))
    return whole, {name: np.concatenate(parts) for name, parts in blocks.items()}, len(np.unique(groups))


def _percentiles(samples: NDArray, patients: int, level: float) -> tuple[float, float, float, int, int, int]:
    """The fields of an Interval after its value."""
    defined = samples[~np.isnan(samples)]
    low, high = (np.nan, np.nan)
    if len(defined) and patients > 1:
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), level, len(samples), patients, len(samples) - len(defined)


def _p_value(samples: NDArray[np.float64], patients: int) -> float:
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0 or patients < 2:
        return float("nan")
    side = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (side + 1) / (len(defined) + 1)))
