"""A finished run class by class: which findings, phases or boxes a mean hides, with patient-level intervals."""

import pandas as pd

from endofm_lab.metrics.intervals import bootstrap_samples
from endofm_lab.runs.run import Run
from endofm_lab.tasks import TASKS


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
    for name, items, metrics in TASKS[run.task].by_class(rows, run.protocol):
        samples = bootstrap_samples(metrics, rows["patient"].to_numpy(), n, seed)
        for metric in samples.values:
            interval = samples.interval(metric, level)
            found.append((name, items, metric, interval.value, interval.low, interval.high))
    return pd.DataFrame(found, columns=["class", "items", "metric", "value", "low", "high"])
