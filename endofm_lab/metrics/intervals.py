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

from endofm_lab.metrics.classification import MetricError, Values

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


@dataclass(frozen=True)
class Samples:
    """Metrics on all rows and on every resample of the patients, by name; ``samples`` are (n,), NaN where undefined.

    Two of them from the same patients and seed hold the same draws, in the same order: their difference is paired.
    """

    values: dict[str, float]
    samples: dict[str, NDArray[np.float64]]
    patients: tuple[Any, ...]
    seed: int

    def interval(self, name: str, level: float = 0.95) -> Interval:
        """The value of one metric with its percentile interval."""
        samples, defined = self.samples[name], _defined(self.samples[name])
        low, high = self._percentiles(defined, level)
        undefined = len(samples) - len(defined)
        return Interval(self.values[name], low, high, level, len(samples), len(self.patients), undefined)

    def minus(self, other: "Samples", name: str, level: float = 0.95) -> Difference:
        """This metric less that of ``other``, with the interval and the p-value of the paired difference.

        The p-value is two-sided: twice the smaller share of resamples on either side of zero (ties on both), with one
        added to numerator and denominator so that it is never 0 (Davison and Hinkley 1997, section 4.2).
        """
        draws, other_draws = ((s.patients, s.seed, len(s.samples[name])) for s in (self, other))
        if draws != other_draws:
            raise MetricError("the two hold different patients or draws; there is no paired difference.")
        samples = self.samples[name] - other.samples[name]
        defined = _defined(samples)
        low, high = self._percentiles(defined, level)
        p_value = float("nan")
        if not np.isnan(low):
            side = min((defined <= 0).sum(), (defined >= 0).sum())
            p_value = float(min(1.0, 2 * (side + 1) / (len(defined) + 1)))
        value = self.values[name] - other.values[name]
        undefined = len(samples) - len(defined)
        return Difference(value, low, high, level, len(samples), len(self.patients), undefined, p_value)

    def _percentiles(self, defined: NDArray[np.float64], level: float) -> tuple[float, float]:
        if not 0 < level < 1:
            raise MetricError(f"level is {level}; it must lie between 0 and 1, for instance 0.95.")
        if len(defined) == 0 or len(self.patients) < 2:
            return float("nan"), float("nan")
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def bootstrap_samples(metrics: MetricSet, groups: ArrayLike, n: int = 1000, seed: int = 0) -> Samples:
    """Several metrics on the same ``n`` resamples of the patients.

    Args:
        metrics: takes weights (R, N) and gives (R,) values by name.
        groups: (N,) patient of every row.
        n: number of resamples.
        seed: of the draw; the same seed and patients draw the same resamples, whatever the metrics.
    """
    groups = np.asarray(groups)
    if len(groups) == 0:
        raise MetricError("there are no rows to resample; the test set is empty.")
    if n < 1:
        raise MetricError(f"{n} resamples were asked for; at least 1 is needed, 1000 is usual.")
    whole = {name: float(np.ravel(value)[0]) for name, value in metrics(np.ones((1, len(groups)))).items()}
    blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in whole}
    for weights in patient_weights(groups, n, seed):
        for name, values in metrics(weights).items():
            blocks[name].append(np.asarray(values))
    samples = {name: np.concatenate(parts) for name, parts in blocks.items()}
    return Samples(whole, samples, tuple(np.unique(groups).tolist()), seed)


def bootstrap_interval(
    metric: Metric, groups: ArrayLike, *arrays: Any, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Value of ``metric(*arrays)`` and its interval over resampled patients.

    Args:
        metric: called as ``metric(*arrays, weights=(R, N))`` and returns (R,), like all of ``metrics.classification``;
            any other function of the rows becomes one by :func:`on_repeated_rows`.
        groups: (N,) patient of every row.
        arrays: what the metric takes, usually targets and scores, N rows each.
        n: number of resamples.
        seed: of the draw.
        level: of confidence, in (0, 1).
    """
    return _of_one(metric, groups, arrays, n, seed).interval("value", level)


def bootstrap_difference(
    metric: Metric,
    groups: ArrayLike,
    first: tuple[Any, ...],
    second: tuple[Any, ...],
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """``metric(*second) - metric(*first)`` on the same resamples, with interval and p-value (see ``Samples.minus``)."""
    samples = _of_one(metric, groups, second, n, seed)
    return samples.minus(_of_one(metric, groups, first, n, seed), "value", level)


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


def _of_one(metric: Metric, groups: ArrayLike, arrays: tuple[Any, ...], n: int, seed: int) -> Samples:
    return bootstrap_samples(lambda weights: {"value": metric(*arrays, weights=weights)}, groups, n, seed)


def _defined(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return samples[~np.isnan(samples)]
