"""Confidence intervals by resampling units, and the paired difference between two models on the same units.

Frames and clips of one patient resemble each other, so units of independence are resampled (see `data.units`: the
patient, or the sequence or the video if the patient is unknown). As many units as there are get drawn with replacement,
each with all its rows. Intervals are percentiles (Efron and Tibshirani 1993, chapter 13).

A resample in which the metric is not defined (an AUC without both classes, for instance) is left out and counted in
``undefined``: the interval then describes only the resamples in which the metric exists.

Percentile intervals from few units are too narrow: of a mean of normal values, one of nominal 95 % covers the truth in
81 % of cases with 4 units, 85 % with 5, 90 % with 10 and 93 % with 20. Below ``MIN_UNITS_FOR_INTERVAL`` units there is
no interval (NaN), below ``MIN_UNITS_FOR_RANK`` there is no p-value and no rank.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from endofm_lab.brief import Brief
from endofm_lab.data.units import MIN_UNITS_FOR_INTERVAL, MIN_UNITS_FOR_RANK
from endofm_lab.metrics.classification import MetricError, Values

Metric = Callable[..., Values]
MetricSet = Callable[[NDArray[np.float64]], Mapping[str, Values]]

_CELLS = 1 << 22  # rows times resamples in memory at once: 32 MB of weights


@dataclass(frozen=True)
class Interval:
    """A value with its interval: ``n`` resamples of ``units`` units, ``undefined`` of them left out.

    ``low`` and ``high`` are NaN below ``MIN_UNITS_FOR_INTERVAL`` units.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    units: int
    undefined: int

    def __str__(self) -> str:
        """The value with its interval, or with the reason why it has none if that is the number of units."""
        return value_with_interval(self.value, self.low, self.high, self.units)


@dataclass(frozen=True)
class Difference(Interval):
    """Second minus first, with its interval and two-sided bootstrap p-value.

    The p-value is NaN below ``MIN_UNITS_FOR_RANK`` units.
    """

    p_value: float


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Brief):
    """Metrics on all rows and on every resample of the units, by name; ``samples`` are (n,), NaN where undefined.

    Samples of the same units and seed hold the same draws in the same order, so their difference is paired.
    """

    values: dict[str, float]
    samples: dict[str, NDArray[np.float64]]
    units: tuple[Any, ...]
    seed: int

    def interval(self, name: str, level: float = 0.95) -> Interval:
        """The value of one metric with its percentile interval."""
        samples, defined = self.samples[name], _defined(self.samples[name])
        low, high = self._percentiles(defined, level)
        undefined = len(samples) - len(defined)
        return Interval(self.values[name], low, high, level, len(samples), len(self.units), undefined)

    def minus(self, other: "Samples", name: str, level: float = 0.95) -> Difference:
        """This metric minus that of ``other``, with the interval and the p-value of the paired difference.

        The p-value is two-sided: twice the smaller share of resamples on either side of zero (ties on both), with one
        added to numerator and denominator so that it is never 0 (Davison and Hinkley 1997, section 4.2).
        """
        draws, other_draws = ((s.units, s.seed, len(s.samples[name])) for s in (self, other))
        if draws != other_draws:
            raise MetricError("The samples differ in units or draws; resample the same units with the same seed and n.")
        samples = self.samples[name] - other.samples[name]
        defined = _defined(samples)
        low, high = self._percentiles(defined, level)
        p_value = float("nan")
        if not np.isnan(low) and len(self.units) >= MIN_UNITS_FOR_RANK:
            side = min((defined <= 0).sum(), (defined >= 0).sum())
            p_value = float(min(1.0, 2 * (side + 1) / (len(defined) + 1)))
        value = self.values[name] - other.values[name]
        undefined = len(samples) - len(defined)
        return Difference(value, low, high, level, len(samples), len(self.units), undefined, p_value)

    def _percentiles(self, defined: NDArray[np.float64], level: float) -> tuple[float, float]:
        if not 0 < level < 1:
            raise MetricError(f"level is {level}; give a number between 0 and 1, such as 0.95.")
        if len(defined) == 0 or len(self.units) < MIN_UNITS_FOR_INTERVAL:
            return float("nan"), float("nan")
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def bootstrap_samples(metrics: MetricSet, groups: ArrayLike, n: int = 1000, seed: int = 0) -> Samples:
    """Several metrics on the same ``n`` resamples of the units.

    Args:
        metrics: takes weights (R, N) and gives (R,) values by name.
        groups: (N,) unit of every row.
        n: number of resamples.
        seed: of the draw; the same seed and units draw the same resamples, whatever the metrics.
    """
    groups = np.asarray(groups)
    if len(groups) == 0:
        raise MetricError("The test set is empty; give at least one row to resample.")
    if n < 1:
        raise MetricError(f"n is {n}; give at least 1 resample (1000 is usual).")
    values_on_all = {name: float(np.ravel(value)[0]) for name, value in metrics(np.ones((1, len(groups)))).items()}
    blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in values_on_all}
    for weights in unit_weights(groups, n, seed):
        different, places = _different_rows(weights)  # few units are often drawn alike
        for name, values in metrics(different).items():
            blocks[name].append(np.asarray(values)[places])
    samples = {name: np.concatenate(parts) for name, parts in blocks.items()}
    return Samples(values_on_all, samples, tuple(np.unique(groups).tolist()), seed)


def bootstrap_interval(
    metric: Metric, groups: ArrayLike, *arrays: Any, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The value of ``metric(*arrays)`` and its interval over resampled units.

    Args:
        metric: called as ``metric(*arrays, weights=(R, N))`` and returns (R,), like all of ``metrics.classification``;
            any other function of the rows becomes one by :func:`on_repeated_rows`.
        groups: (N,) unit of every row.
        arrays: the arguments of the metric, usually targets and scores, N rows each.
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
    """A metric for the bootstrap from any function of the rows: each row is repeated as often as it was drawn.

    It is slower than a metric that takes weights, and correct for every function that depends only on the rows.
    """

    def weighted(*arrays: Any, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = []
        for counts in np.asarray(weights):
            rows = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
            values.append(float(metric(*(np.asarray(array)[rows] for array in arrays))))
        return np.array(values)

    return weighted


def unit_weights(groups: ArrayLike, n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Weights of ``n`` resamples of the units in ``groups`` (N,), in blocks (R, N) of bounded memory."""
    units, rows = np.unique(np.asarray(groups), return_inverse=True)
    draw = np.random.default_rng(seed)
    block = max(1, _CELLS // max(1, len(rows)))
    for start in range(0, n, block):
        counts = draw.multinomial(len(units), np.full(len(units), 1 / len(units)), min(block, n - start))
        yield counts[:, rows].astype(np.float64)


def _different_rows(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The different rows of weights (R, N), and the place (R,) of every row among them."""
    places: dict[bytes, int] = {}
    row_places = np.array([places.setdefault(row.tobytes(), len(places)) for row in weights])
    firsts = np.unique(row_places, return_index=True)[1]
    return weights[firsts], row_places


def defined_units(metrics: MetricSet, groups: ArrayLike) -> dict[str, int]:
    """The number of units in which each metric is defined: for a recall, those in which the class occurs.

    Args:
        metrics: takes weights (R, N) and gives (R,) values by name.
        groups: (N,) unit of every row.
    """
    units, rows = np.unique(np.asarray(groups), return_inverse=True)
    counts: dict[str, int] = {}
    block = max(1, _CELLS // max(1, len(rows)))
    for start in range(0, len(units), block):
        single = (np.arange(start, min(start + block, len(units)))[:, None] == rows).astype(np.float64)
        for name, values in metrics(single).items():
            counts[name] = counts.get(name, 0) + int((~np.isnan(np.asarray(values))).sum())
    return counts


def value_with_interval(value: float, low: float, high: float, units: int) -> str:
    """The text "0.812 [0.744, 0.871]", or "0.812 (no interval: 2 units, at least 5 are needed)"."""
    if not (np.isnan(low) or np.isnan(high)):
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    if np.isnan(value):
        return "not defined"
    if units < MIN_UNITS_FOR_INTERVAL:
        return f"{value:.3f} (no interval: {_count(units)}, at least {MIN_UNITS_FOR_INTERVAL} are needed)"
    return f"{value:.3f} (no interval)"


def caution(units: int, words: str = "") -> str:
    """A sentence on what a small number of units does not allow; empty from ``MIN_UNITS_FOR_RANK`` units on.

    Args:
        units: number of units.
        words: a description of the units, such as "4 videos; patients unknown".
    """
    if units >= MIN_UNITS_FOR_RANK:
        return ""
    head = f"The test set has {words or _count(units)}:"
    if units < MIN_UNITS_FOR_INTERVAL:
        return f"{head} no interval is given below {MIN_UNITS_FOR_INTERVAL} units, no rank and no p-value below " + (
            f"{MIN_UNITS_FOR_RANK}."
        )
    return (
        f"{head} no rank and no p-value is given below {MIN_UNITS_FOR_RANK} units, and intervals from so few units are "
        "too narrow."
    )


def _count(units: int) -> str:
    return f"{units} unit{'' if units == 1 else 's'}"


def _of_one(metric: Metric, groups: ArrayLike, arrays: tuple[Any, ...], n: int, seed: int) -> Samples:
    return bootstrap_samples(lambda weights: {"value": metric(*arrays, weights=weights)}, groups, n, seed)


def _defined(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return samples[~np.isnan(samples)]
