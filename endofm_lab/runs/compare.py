"""Finished runs in one table: values with intervals over units, ranked only if a ranking is meaningful.

Runs are ranked by one metric if they were tested on the same items by the same protocol, and on enough units (patients,
where they are known); otherwise the table keeps the given order, has no ranks and no tests, and says why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from endofm_lab.brief import Brief, html_of
from endofm_lab.data.units import MIN_UNITS_FOR_INTERVAL
from endofm_lab.files import formulas_as_text
from endofm_lab.metrics.intervals import Difference, Interval, caution
from endofm_lab.runs.run import Run, RunError
from endofm_lab.runs.tables import TableFormat, latex_comments, latex_table, markdown, markdown_table


@dataclass(frozen=True, eq=False, repr=False)
class Line(Brief):
    """A run in a comparison; ``to_best`` is the paired difference to the first rank, if there is one."""

    run: Run
    rank: int | None
    metrics: dict[str, Interval]
    seed_std: dict[str, float]
    to_best: dict[str, Difference] | None


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Brief):
    """The lines, best first if ``reasons`` against a ranking is empty; ``by`` is the ranking metric."""

    task: str
    by: str
    lines: tuple[Line, ...]
    reasons: tuple[str, ...]

    def _repr_html_(self) -> str:
        return html_of(self, self.table())

    @property
    def ranked(self) -> bool:
        """Whether ranks and paired tests are given."""
        return not self.reasons

    def table(self) -> pd.DataFrame:
        """One row per run with numbers: ``<metric>``, ``_low``, ``_high``, ``_seed_std``, ``_to_best...``."""
        rows = []
        for line in self.lines:
            row: dict[str, Any] = {
                "rank": line.rank,
                "run": line.run.run,
                "method": line.run.method,
                "initialisation": line.run.initialisation,
                "seeds": len(line.run.seeds),
                "units": line.metrics[self.by].units,
                "unit": line.run.units_in_words,
            }
            for name, interval in line.metrics.items():
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
                row[f"{name}_seed_std"] = line.seed_std[name]
                if line.to_best is not None:
                    gap = line.to_best[name]
                    row |= {f"{name}_to_best": gap.value, f"{name}_to_best_low": gap.low}
                    row |= {f"{name}_to_best_high": gap.high, f"{name}_to_best_p": gap.p_value}
            rows.append(row)
        return pd.DataFrame(rows).astype({"rank": "Int64"})

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Heading and rows of the table as text: ``value [low, high]``, and the standard deviation over seeds."""
        names = list(self.lines[0].metrics)
        names.sort(key=lambda name: name != self.by)  # the ranking metric first, the others in their order
        head = ["run", "method", "initialisation", "tested on", *names]
        if self.ranked:
            head = ["rank", *head[:5], "difference to the first", "p", *head[5:]]
        rows = []
        for line in self.lines:
            values = [_cell(line.metrics[name], line.seed_std[name]) for name in names]
            row = [line.run.run, line.run.method, line.run.start, line.run.units_in_words]
            if self.ranked:
                gap = None if line.to_best is None else line.to_best[self.by]
                test = ["", ""] if gap is None else [_signed(gap), _p(gap.p_value)]
                rows.append([str(line.rank), *row, values[0], *test, *values[1:]])
            else:
                rows.append([*row, *values])
        return head, rows

    def notes(self) -> list[str]:
        """Notes that are needed to read the table, a sentence each; reasons against a ranking come first."""
        interval = self.lines[0].metrics[self.by]
        notes = [f"Not ranked: {reason}" for reason in self.reasons]
        percent = f"{100 * interval.level:g}"
        resampled = [line for line in self.lines if line.metrics[self.by].units >= MIN_UNITS_FOR_INTERVAL]
        if resampled:
            notes.append(
                f"Brackets: {percent} % intervals from {interval.n} resamples of the units "
                f"({', '.join(f'{line.run.run}: {line.run.units_in_words}' for line in resampled)})."
            )
        if self.ranked and len(self.lines) > 1:
            notes.append(
                f"Differences and p-values (two-sided) compare {self.by} on the same resamples with the first rank; "
                f"they are not corrected for {len(self.lines) - 1} comparisons. An interval with 0 shows no difference."
            )
        if any(len(line.run.seeds) > 1 for line in self.lines):
            notes.append("Values are means over training seeds; ±: standard deviation over them.")
        if "ece" in self.lines[0].metrics:
            notes.append("Resampling adds noise to the bins of ece: its intervals lean upwards and can miss the value.")
        if lower := sorted(self.lines[0].run.lower_is_better & set(self.lines[0].metrics)):
            notes.append(f"Lower is better: {', '.join(lower)}.")
        for line in self.lines:
            notes += [f"{line.run.run}, audit: {finding}" for finding in line.run.audit["findings"]]
            for name, metric in line.metrics.items():
                if math.isnan(metric.value):
                    notes.append(f"{line.run.run}: {name} is not defined on this test set.")
                elif metric.undefined:
                    notes.append(
                        f"{line.run.run}: {name} is not defined in {metric.undefined} of {metric.n} resamples, "
                        "which are left out of its interval."
                    )
        return notes

    def to_markdown(self) -> str:
        """The table and its notes as Markdown."""
        return markdown_table(*self.cells()) + "\n\n" + "\n".join(f"- {markdown(note)}" for note in self.notes()) + "\n"

    def to_latex(self) -> str:
        """The table as LaTeX with the rules of booktabs, and its notes as comments below."""
        return f"{latex_table(*self.cells())}\n{latex_comments(self.notes())}\n"

    def to_csv(self) -> str:
        """The numbers as CSV; names that a spreadsheet would execute as a formula are marked as text."""
        return formulas_as_text(self.table()).to_csv(index=False)

    def text(self, table_format: TableFormat) -> str:
        """The comparison in one of the three formats."""
        return {"markdown": self.to_markdown, "csv": self.to_csv, "latex": self.to_latex}[table_format]()


def compare(
    runs: Sequence[Run], by: str | None = None, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """Compare finished runs of one task.

    Args:
        runs: at least one run; no two may have the same name.
        by: metric to rank by; None takes the primary metric of the task.
        n: number of resamples of the units, the same for every run.
        seed: seed of the resamples.
        level: confidence level.

    Raises:
        RunError: there are no runs, their tasks differ, two have the same name, or ``by`` is unknown.
    """
    if not runs:
        raise RunError("There are no runs to compare. Name at least one folder.")
    names = [run.run for run in runs]
    if repeats := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"Several runs are called {', '.join(repeats)}. Give each run a different name.")
    if len(tasks := {run.task for run in runs}) > 1:
        raise RunError(f"The runs are of different tasks ({', '.join(sorted(tasks))}); compare one task at a time.")
    if len({run.task_class for run in runs}) > 1:
        raise RunError(f"The runs have different tasks of the name {runs[0].task}; compare one task at a time.")
    samples = [run.samples(n, seed) for run in runs]
    every = [set(sample.values) for sample in samples]
    if missing := set().union(*every) - every[0].intersection(*every[1:]):
        raise RunError(
            f"Not every run has the metric {', '.join(sorted(missing))}: evaluate all with the same metrics."
        )
    by = by or runs[0].task_class.primary
    if by not in samples[0].values:
        raise RunError(f"There is no metric '{by}'; choose one of {', '.join(samples[0].values)}.")
    reasons = why_not_ranked(runs)
    order = list(range(len(runs)))
    if not reasons:
        sign = 1 if by in runs[0].lower_is_better else -1
        order.sort(key=lambda k: (math.isnan(samples[k].values[by]), sign * samples[k].values[by]))
    best = samples[order[0]]
    lines = []
    for rank, k in enumerate(order, start=1):
        metrics = {name: samples[k].interval(name, level) for name in samples[k].values}
        gaps = {name: samples[k].minus(best, name, level) for name in metrics} if rank > 1 and not reasons else None
        lines.append(Line(runs[k], None if reasons else rank, metrics, runs[k].seed_std(), gaps))
    return Comparison(runs[0].task, by, tuple(lines), tuple(reasons))


def why_not_ranked(runs: Sequence[Run]) -> list[str]:
    """The reasons why runs of one task cannot be ranked: too few units, or differences from the first run."""
    first = runs[0]
    reasons = list(dict.fromkeys(filter(None, (caution(run.n_units, run.units_in_words) for run in runs))))
    for run in runs[1:]:
        for key in ("fingerprint", "split"):
            if run.test[key] != first.test[key]:
                reasons.append(_differs(f"test {key}", first, first.test[key], run, run.test[key]))
        first_truth, truth = first.truth(), run.truth()
        if not first_truth.index.equals(truth.index):
            counts = f"test items differ: {first.run} has {len(first_truth)}, {run.run} has {len(truth)}"
            if run.test["fingerprint"] == first.test["fingerprint"]:  # otherwise equal ids are not equal items
                counts += f", {len(first_truth.index.intersection(truth.index))} are common"
            reasons.append(f"{counts}.")
        elif not _same(first_truth, truth):
            reasons.append(f"the same test items have other patients or truths in {first.run} than in {run.run}.")
        left, right = _flat(first.protocol), _flat(run.protocol)
        for key in sorted({*left, *right}):
            if left.get(key, "not given") != right.get(key, "not given"):
                reasons.append(
                    _differs(f"protocol '{key}'", first, left.get(key, "not given"), run, right.get(key, "not given"))
                )
    return reasons


def same_test_items(first: Run, second: Run) -> bool:
    """Whether two runs of one task were tested on the same items, with the same units and truths."""
    truths = first.truth(), second.truth()
    return bool(truths[0].index.equals(truths[1].index)) and _same(*truths)


def _differs(name: str, first: Run, first_value: Any, run: Run, value: Any) -> str:
    return f"{name} differs: {first.run} has {first_value}, {run.run} has {value}."


def _same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    if list(first.columns) != list(second.columns):
        return False
    return all(_plain(a) == _plain(b) for a, b in zip(first.to_numpy().ravel(), second.to_numpy().ravel(), strict=True))


def _plain(value: Any) -> Any:
    """Nested arrays as nested lists, so that == compares content."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _flat(protocol: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in protocol.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _cell(interval: Interval, seed_std: float) -> str:
    if math.isnan(interval.value):
        return "not defined"
    spread = "" if math.isnan(seed_std) else f" ±{seed_std:.3f}"
    return (f"{interval.value:.3f}" if math.isnan(interval.low) else str(interval)) + spread


def _signed(gap: Difference) -> str:
    if math.isnan(gap.value):
        return "not defined"
    return f"{gap.value:+.3f}" if math.isnan(gap.low) else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def _p(p_value: float) -> str:
    return "" if math.isnan(p_value) else f"{p_value:.3f}"
