"""A finished run class by class: which findings, phases or boxes a mean hides, with intervals over units."""

import math

import pandas as pd

from endofm_lab.data.units import MIN_UNITS_FOR_INTERVAL
from endofm_lab.metrics.intervals import bootstrap_samples, defined_units
from endofm_lab.runs.run import Run


def by_class(run: Run, n: int = 1000, seed: int = 0, level: float = 0.95) -> pd.DataFrame:
    """One row per class and metric: ``class``, ``items``, ``metric``, ``value``, ``low``, ``high``, ``units``.

    Classes and phases: ``recall`` (sensitivity: found among those that are there) and ``precision`` (right among those
    that were said), over all rows or time steps. Boxes: ``ap50``. Masks have one class: no rows. ``items`` counts the
    class in the truth: rows, time steps, boxes. Without a true item recall and AP are NaN, without an answer precision.
    Several training seeds: of the first. ``units`` counts those in which the metric is defined, such as the patients
    who show the class; below ``MIN_UNITS_FOR_INTERVAL`` of these there is no interval, however many others there are.

    Args:
        run: a finished run.
        n: resamples of the units.
        seed: of the resamples.
        level: of confidence.
    """
    rows = run.predictions[run.predictions["seed"] == run.seeds[0]]
    of_row = rows["patient"].to_numpy()
    found = []
    for name, items, metrics in run.asked.by_class(rows, run.protocol):
        samples, counted = bootstrap_samples(metrics, of_row, n, seed), defined_units(metrics, of_row)
        for metric, units in counted.items():
            interval = samples.interval(metric, level)
            low, high = (interval.low, interval.high) if units >= MIN_UNITS_FOR_INTERVAL else (math.nan, math.nan)
            found.append((name, items, metric, interval.value, low, high, units))
    return pd.DataFrame(found, columns=["class", "items", "metric", "value", "low", "high", "units"])
