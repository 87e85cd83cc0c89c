"""The results of a finished run class by class, which a mean hides, with intervals over units."""

import math

import pandas as pd

from endofm_lab.data.units import MIN_UNITS_FOR_INTERVAL
from endofm_lab.metrics.intervals import bootstrap_samples, defined_units
from endofm_lab.runs.run import Run


def by_class(run: Run, n: int = 1000, seed: int = 0, level: float = 0.95) -> pd.DataFrame:
    """One row per class and metric: ``class``, ``items``, ``metric``, ``value``, ``low``, ``high``, ``units``.

    Classes and phases have ``recall`` (sensitivity) and ``precision`` over all rows or time steps, and boxes ``ap50``;
    masks have only one class and therefore no rows. ``items`` is the number of true items of the class: rows, time
    steps or boxes. Recall and AP are NaN without true items, and precision is NaN without predicted ones. Of several
    training seeds, the first is used. ``units`` is the number of units in which the metric is defined, such as the
    patients who show the class; with fewer than ``MIN_UNITS_FOR_INTERVAL`` of these, there is no interval.

    Args:
        run: a finished run.
        n: number of resamples of the units.
        seed: seed of the resamples.
        level: confidence level.
    """
    rows = run.predictions[run.predictions["seed"] == run.seeds[0]]
    of_row = rows["patient"].to_numpy()
    records = []
    for name, items, metrics in run.task_class.by_class(rows, run.protocol):
        samples, counted = bootstrap_samples(metrics, of_row, n, seed), defined_units(metrics, of_row)
        for metric, units in counted.items():
            interval = samples.interval(metric, level)
            low, high = (interval.low, interval.high) if units >= MIN_UNITS_FOR_INTERVAL else (math.nan, math.nan)
            records.append((name, items, metric, interval.value, low, high, units))
    return pd.DataFrame(records, columns=["class", "items", "metric", "value", "low", "high", "units"])
