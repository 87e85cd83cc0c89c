"""The published results on PolypDiag, CVC-12k and KUMC beside the runs at hand, differences of protocol marked.

Published numbers are percentages without intervals. They are quoted for orientation: a row with marks was measured in
another way than the published rows, so it cannot be compared with them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from endofm_lab.files import formulas_as_text
from endofm_lab.metrics.intervals import Interval
from endofm_lab.runs.run import Run
from endofm_lab.runs.tables import TableFormat, latex_comments, latex_table, markdown, markdown_table
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.detection import Detection
from endofm_lab.tasks.segmentation import Segmentation

# Endo-FM (arXiv 2306.16741), table 2, and the tables of the later papers: F1 / Dice / F1.
PUBLISHED = (
    ("scratch", 83.5, 53.2, 73.5),
    ("ST-Adapter", 84.8, 64.3, 74.2),
    ("VCL", 87.6, 69.1, 78.6),
    ("Endo-FM", 90.7, 73.9, 84.1),
    ("Endo-FM, released weights", 91.5, 76.6, 84.0),
    ("M2CRL", 94.2, 81.4, 86.3),
    ("EndoMamba", 94.5, 84.5, 88.8),
    ("FPRL", 95.2, 86.1, 89.8),
    ("STOMP", 96.5, 84.0, 86.1),
)


@dataclass(frozen=True)
class Benchmark:
    """A published column; ``metric_differs`` describes how the metric of this library differs, '' if it is the same."""

    dataset: str
    task: str
    metric: str  # the metric of this library in the column
    metric_differs: str
    split: str
    chosen_on: str
    caveat: str


BENCHMARKS = (
    Benchmark(
        "PolypDiag",
        Classification.name,
        "f1",
        "",
        "released",
        "test",
        "its videos are cut from LDPolypVideo and HyperKvasir, which Endo-FM was pre-trained on",
    ),
    Benchmark(
        "CVC-12k",
        Segmentation.name,
        "dice",
        "Dice over frames with a lesion (published: a frame without one scores 1 if anything is predicted, else 0)",
        "released",
        "test",
        "7 of the 9 test sequences (121 of 171 frames) are also in the training list",
    ),
    Benchmark(
        "KUMC", Detection.name, "frame_presence_f1", "", "released", "test", "frame presence at score 0.5, without IoU"
    ),
)

_REMARKS = (
    *(f"{b.dataset}, published: {b.caveat}." for b in BENCHMARKS),
    "Endo-FM's released code chooses the epoch on the test set; published numbers are without intervals.",
    "scratch, published: started from Kinetics weights.",
)
_LOCAL = "Local runs on other data, not comparable with the columns above:"


def paper_table(runs: Sequence[Run], table_format: TableFormat = "markdown") -> str:
    """Published rows, local runs in the same columns, notes, and local runs on other data, as text.

    A run belongs to a column by its ``protocol["dataset"]`` and its task. Its cell is the percentage with its interval
    over units; marks lead to the notes that say how its protocol differs.

    Args:
        runs: finished runs.
        table_format: "markdown"; "latex", with the notes as comments; or "csv", with one row per value.
    """
    if table_format == "csv":
        return formulas_as_text(paper_values(runs)).to_csv(index=False)
    head = ["", *(f"{b.dataset} ({b.metric})" for b in BENCHMARKS)]
    rows = [[f"{name} (published)", *(f"{value:.1f}" for value in values)] for name, *values in PUBLISHED]
    notes: list[str] = []
    local_rows = []
    for run in runs:
        benchmark, name, interval = _measured(run)
        if benchmark is None:
            local_rows.append([_title(run), str(run.protocol["dataset"]), run.task, name, _percent(interval)])
            continue
        marks = [_mark(note, notes) for note in protocol_differences(run, benchmark)]
        cells = [" ".join([_percent(interval), *marks]) if b is benchmark else "" for b in BENCHMARKS]
        rows.append([_title(run), *cells])
    remarks = [*_REMARKS, *(f"({k}) {note}" for k, note in enumerate(notes, start=1))]
    second = (["run", "data set", "task", "metric", "value"], local_rows)
    if table_format == "latex":
        parts = [latex_table(head, rows), latex_comments(remarks)]
        parts += [latex_comments([_LOCAL]), latex_table(*second)] if local_rows else []
    else:
        parts = [markdown_table(head, rows), "\n".join(f"- {markdown(note)}" for note in remarks)]
        parts += [_LOCAL, markdown_table(*second)] if local_rows else []
        parts += [] if runs else ["There are no local runs yet."]
    return "\n\n".join(parts) + "\n"


def paper_values(runs: Sequence[Run]) -> pd.DataFrame:
    """The same numbers as a data frame with one row per value, in percent, with the limits of the interval.

    ``differs`` says how the protocol differs from the published one; for local runs on other data it is "other data".
    """
    rows: list[tuple[object, ...]] = []
    for name, *values in PUBLISHED:
        for b, value in zip(BENCHMARKS, values, strict=True):
            rows.append((f"{name} (published)", b.dataset, b.task, b.metric, value, math.nan, math.nan, ""))
    for run in runs:
        benchmark, name, interval = _measured(run)
        differs = "other data" if benchmark is None else "; ".join(protocol_differences(run, benchmark))
        numbers = [round(100 * number, 2) for number in (interval.value, interval.low, interval.high)]
        rows.append((_title(run), str(run.protocol["dataset"]), run.task, name, *numbers, differs))
    return pd.DataFrame(rows, columns=["run", "data set", "task", "metric", "percent", "low", "high", "differs"])


def _measured(run: Run) -> tuple[Benchmark | None, str, Interval]:
    """The column of a run, or None; the metric that stands there, or else the task's own; and its value."""
    benchmark = next((b for b in BENCHMARKS if (b.dataset, b.task) == (run.protocol["dataset"], run.task)), None)
    name = run.task_class.primary if benchmark is None else benchmark.metric
    return benchmark, name, run.samples().interval(name)


def _title(run: Run) -> str:
    return f"{run.run} ({run.method}; {run.start})"


def protocol_differences(run: Run, benchmark: Benchmark) -> list[str]:
    """The differences between the protocols of a run and of the published numbers, a phrase each."""
    differences = []
    if run.test["split"] != benchmark.split:
        differences.append(f"split '{run.test['split']}' (published: '{benchmark.split}')")
    if run.protocol["chosen_on"] != benchmark.chosen_on:
        differences.append(f"epoch chosen on {run.protocol['chosen_on']} (published: {benchmark.chosen_on})")
    if benchmark.metric_differs:
        differences.append(benchmark.metric_differs)
    return differences


def _mark(note: str, notes: list[str]) -> str:
    """``(k)``, the number of ``note`` among the notes; a new note is appended."""
    if note not in notes:
        notes.append(note)
    return f"({notes.index(note) + 1})"


def _percent(interval: Interval) -> str:
    if interval.value != interval.value:
        return "not defined"
    value = f"{100 * interval.value:.1f}"
    return value if interval.low != interval.low else f"{value} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
