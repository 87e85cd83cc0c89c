"""The table of a benchmark: values with intervals, ranks where a difference holds, costs, and tests under degradations.

Within a task and a budget, a run's rank is one more than the number of runs that are better by a paired interval that
excludes 0. There are no ranks where `runs.compare` gives none: below the number of patients that it asks for, or if
runs were tested or trained on different rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from endofm_lab.brief import Brief
from endofm_lab.metrics.intervals import Difference, Samples
from endofm_lab.runs.compare import why_not_ranked
from endofm_lab.runs.run import Run

OTHER = "other training rows"  # in place of a budget: a run that was added and was trained on other rows


@dataclass(frozen=True, eq=False, repr=False)
class Row(Brief):
    """A run in the table of a benchmark.

    Attributes:
        task: name of the task in the benchmark.
        budget: label budget, or `OTHER`.
        encoder: name of the encoder, or the start of a run that was added.
        method: name of the method, or that of a run that was added.
        source: "" for a run of the benchmark, otherwise the folder that it was added from.
        run: the run.
        facts: costs and other entries that are shown beside the result.
        degraded: fault -> the run on degraded test rows.
    """

    task: str
    budget: str
    encoder: str
    method: str
    source: str
    run: Run
    facts: Mapping[str, Any]
    degraded: Mapping[str, Run]


def table_of(rows: Sequence[Row], n: int = 1000) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[str]]]]:
    """Every row as JSON, and the reasons against ranks: task -> budget -> sentences.

    Args:
        rows: in the order of the table.
        n: resamples of the units.
    """
    table: list[dict[str, Any]] = []
    reasons: dict[str, dict[str, list[str]]] = {}
    for task, budget in dict.fromkeys((row.task, row.budget) for row in rows):
        group = [row for row in rows if (row.task, row.budget) == (task, budget)]
        samples = [row.run.samples(n) for row in group]
        metric = group[0].run.task_class.primary
        lower = metric in group[0].run.lower_is_better
        sentences = why_not_ranked([row.run for row in group])
        if budget == OTHER:
            sentences = ["These runs were trained on other rows than this benchmark's.", *sentences]
        reasons.setdefault(task, {})[budget] = sentences
        ranks = [None] * len(group) if sentences else _ranks(samples, metric, lower)
        gaps = [None] * len(group) if sentences else _to_best(samples, metric, lower)
        for row, sample, rank, gap in zip(group, samples, ranks, gaps, strict=True):
            table.append(_entry(row, sample, metric, rank, gap))
    return table, reasons


def _ranks(samples: Sequence[Samples], metric: str, lower: bool) -> list[int | None]:
    """One more than the number of runs that are better by a paired interval without 0."""

    def is_better(a: Samples, b: Samples) -> bool:
        gap = a.minus(b, metric)
        return gap.high < 0 if lower else gap.low > 0

    return [
        None if math.isnan(sample.values[metric]) else 1 + sum(is_better(other, sample) for other in samples)
        for sample in samples
    ]


def _to_best(samples: Sequence[Samples], metric: str, lower: bool) -> list[Difference | None]:
    """The paired difference to the run with the best value; None for that run."""
    sign = 1 if lower else -1
    order = sorted(
        range(len(samples)), key=lambda k: (math.isnan(samples[k].values[metric]), sign * samples[k].values[metric])
    )
    best = order[0]
    return [None if k == best else sample.minus(samples[best], metric) for k, sample in enumerate(samples)]


def _entry(row: Row, sample: Samples, metric: str, rank: int | None, gap: Difference | None) -> dict[str, Any]:
    interval, std = sample.interval(metric), row.run.seed_std()[metric]
    entry: dict[str, Any] = {
        "task": row.task,
        "budget": row.budget,
        "encoder": row.encoder,
        "method": row.method,
        "source": row.source,
        "metric": metric,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "units": interval.units,
        "unit": row.run.units_in_words,
        "seeds": len(row.run.seeds),
        "seed_std": std,
        "rank": rank,
        "to_best": gap and gap.value,
        "to_best_low": gap and gap.low,
        "to_best_high": gap and gap.high,
        "audit": str(row.run.audit.get("verdict", "")),
        "leaks": len(row.run.audit["findings"]),
        **row.facts,
        "metrics": dict(sample.values),
        "degraded": {fault: _under(run, sample, metric) for fault, run in row.degraded.items()},
    }
    return _plain(entry)


def _under(run: Run, clean: Samples, metric: str) -> dict[str, float]:
    """The value under a degradation, and its paired difference from the clean value."""
    sample = run.samples(len(clean.samples[metric]))
    gap = sample.minus(clean, metric)
    return {"value": sample.values[metric], "change": gap.value, "low": gap.low, "high": gap.high}


def _plain(value: Any) -> Any:
    """The same values with None in place of NaN, which is no JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of `table_of` as one table for spreadsheets: a column per metric and per degradation."""
    flat = []
    for row in rows:
        line = {key: value for key, value in row.items() if not isinstance(value, Mapping)}
        line |= {f"metric {name}": value for name, value in row["metrics"].items()}
        for fault, facts in row["degraded"].items():
            line |= {f"{fault} {name}": value for name, value in facts.items()}
        flat.append(line)
    return pd.DataFrame(flat)
