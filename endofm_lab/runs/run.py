"""A finished run: a folder with ``report.json`` and ``predictions.parquet``, which runs are compared by.

``report.json`` (written last, so that its presence means that the run is finished) has exactly these keys, the two of
classes only where there are any:

| key | content |
|---|---|
| run | name, unique among the runs that are compared |
| task | name of a task: a key of ``tasks.TASKS`` |
| method | "linear probe", "full fine-tuning", "ST-Adapter", ... |
| initialisation | the true initialisation in words, e.g. "Endo-FM teacher, 176 of 176 tensors" |
| seeds | list of integers, one for every training that was repeated |
| protocol | everything that must be equal for a ranking, as JSON: always ``dataset`` and ``chosen_on`` ("validation"), and what else the task fixes: training manifest's fingerprint, budget, threshold, clips per video, ... |
| test | ``fingerprint`` (of the manifest's test rows) and ``split`` (the split's name, e.g. "released" or "patient-wise") |
| unit | of independence, of the test rows: ``kind`` ("patient", "sequence", "video", "image"), ``n``, ``words`` ("16 patients"); a report without it speaks of patients |
| metrics | by name: value, low, high, level, n, units, undefined, seed_std; computed here from the predictions |
| audit | ``findings``: a list of sentences, empty when the leakage audit found nothing |
| task_class | of a task from outside the library: its importable name |
| measures | of metrics from outside the library: their importable names |
| provenance | version, device, packages, command and time (`endofm_lab.folders.provenance`); empty in older reports |

Settings that may differ between compared runs (learning rate, epochs of a method, ...) do not belong in ``protocol``.

``predictions.parquet`` has one row per test item and seed: ``seed``, ``row`` (id of the item, unique within the seed),
``unit`` (of independence, that the item belongs to, see `data.units`) and ``unit_kind`` ("patient", "sequence", ...: that
of the report), and the columns of its task. In `Run.predictions`, as in a task's table of answers and in files of older
versions, the unit stands in a column ``patient`` whatever its kind.

| task | one row is | columns |
|---|---|---|
| classification | a video or a frame | ``target`` (class number) and ``score_<class>`` in class order, summing to one |
| classification, several labels | the same | ``target_<class>`` (0 or 1) and ``score_<class>``, each in [0, 1] |
| segmentation | a frame | ``lesion``, ``dice``, ``iou``, ``hd95_px``, ``false_positive``: ``metrics_masks.mask_metrics`` |
| detection | a frame | ``true_boxes``, ``boxes`` (lists of [x1, y1, x2, y2] px), ``scores``, ``true_labels``, ``labels`` (lists) |
| phases | a time step | ``video``, ``target``, ``predicted`` (after smoothing), in temporal order within a video |

A clip that could not be read has no row; the writer reports it in ``audit``.
"""  # noqa: E501  (a Markdown table cannot be wrapped)

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from endofm_lab.brief import Brief, html_of
from endofm_lab.errors import UserError, shortened
from endofm_lab.files import fits, read_json, read_parquet, reading, write_json, write_parquet
from endofm_lab.folders.hashes import HASHES, refuse_changed
from endofm_lab.metrics.classification import Values
from endofm_lab.metrics.intervals import MetricSet, Samples, bootstrap_samples
from endofm_lab.metrics.measure import Measure, with_measures
from endofm_lab.model.card import SCRATCH
from endofm_lab.outside import Allowed, allowing, class_named, name_of
from endofm_lab.tasks import TASKS, Task

REPORT, PREDICTIONS = "report.json", "predictions.parquet"


class RunError(UserError):
    """A run folder that is unfinished or lacks entries that a comparison needs."""


@dataclass(frozen=True, eq=False, repr=False)
class Run(Brief):
    """A finished run; the fields are the keys of ``report.json``, and the predictions. Metrics follow from those.

    ``outside_task`` and ``measures`` are classes from outside the library.
    """

    run: str
    task: str
    method: str
    initialisation: str
    seeds: tuple[int, ...]
    protocol: dict[str, Any]
    test: dict[str, str]
    audit: dict[str, Any]
    predictions: pd.DataFrame
    unit: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    outside_task: type[Task] | None = None
    measures: tuple[type[Measure], ...] = ()

    def _repr_html_(self) -> str:
        return html_of(self, self.values())

    def values(self) -> pd.DataFrame:
        """The metrics on all units, mean over training seeds, as columns ``metric`` and ``value``; no intervals."""
        return pd.DataFrame(self.samples(n=1).values.items(), columns=["metric", "value"])

    @property
    def task_class(self) -> type[Task]:
        """The class of the task."""
        return self.outside_task or TASKS[self.task]

    @property
    def lower_is_better(self) -> frozenset[str]:
        """The metrics of which the lowest value is the best."""
        return self.task_class.lower_is_better | {measure.name for measure in self.measures if measure.lower_is_better}

    @property
    def n_units(self) -> int:
        """Number of units of independence among the test items."""
        return int(self.predictions["patient"].nunique())

    @property
    def start(self) -> str:
        """A short form of `initialisation` for tables, such as "endo_fm.pth, 150/150 tensors"."""
        return short_start(self.initialisation)

    @property
    def units_in_words(self) -> str:
        """The resampled units in words: "16 patients", "4 videos; patients unknown"."""
        return str(self.unit.get("words") or f"{self.n_units:,} patient{'' if self.n_units == 1 else 's'}")

    def samples(self, n: int = 1000, seed: int = 0) -> Samples:
        """The task's metrics, mean over training seeds, on all units and on ``n`` resamples of them."""
        units, seeds = self._measured()

        def mean_over_seeds(weights: NDArray[np.float64]) -> dict[str, Values]:
            values = [metrics(weights) for metrics in seeds]
            return {name: np.mean(np.array([value[name] for value in values]), axis=0) for name in values[0]}

        return bootstrap_samples(mean_over_seeds, units, n, seed)

    def seed_std(self) -> dict[str, float]:
        """Standard deviation of every metric over training seeds (n - 1 in the denominator); NaN for a single seed."""
        units, seeds = self._measured()
        values = pd.DataFrame([metrics(np.ones(len(units))) for metrics in seeds])
        return {str(name): float(std) for name, std in values.std().items()}

    def _measured(self) -> tuple[NDArray, list[MetricSet]]:
        """The unit of every measured item and, for each training seed, the metrics of these items in the same order."""
        parts = [self.predictions[self.predictions["seed"] == seed].set_index("row") for seed in self.seeds]
        parts = [part.loc[parts[0].index] for part in parts]
        pairs = [self.task_class.measured(part) for part in parts]
        together = [
            with_measures(metrics, self.measures, part) for (_, metrics), part in zip(pairs, parts, strict=True)
        ]
        return pairs[0][0], together

    def truth(self) -> pd.DataFrame:
        """What was to be found, one line per test item in order of ``row``: equal for runs on the same test set."""
        columns = self.task_class.truth_columns(self.predictions)
        first = self.predictions[self.predictions["seed"] == self.seeds[0]]
        return first.set_index("row")[["patient", *columns]].sort_index()


def write_run(folder: str | Path, run: Run) -> None:
    """Write ``predictions.parquet`` and then ``report.json`` with the metrics and their intervals, each atomically.

    Raises:
        RunError: the run violates the contract at the top of ``runs.run``.
    """
    folder = Path(folder)
    _check(run, folder)
    samples, seed_std = run.samples(), run.seed_std()
    metrics = {name: {**asdict(samples.interval(name)), "seed_std": seed_std[name]} for name in samples.values}
    unit = run.unit or {"kind": "patient", "n": run.n_units, "words": run.units_in_words}
    report: dict[str, Any] = {
        "run": run.run,
        "task": run.task,
        "method": run.method,
        "initialisation": run.initialisation,
        "seeds": list(run.seeds),
        "protocol": run.protocol,
        "test": run.test,
        "unit": unit,
        "metrics": {name: {key: _json(value) for key, value in row.items()} for name, row in metrics.items()},
        "audit": run.audit,
        "provenance": run.provenance,
    }
    if run.outside_task is not None:
        report["task_class"] = name_of(run.outside_task)
    if run.measures:
        report["measures"] = [name_of(measure) for measure in run.measures]
    (folder / HASHES).unlink(missing_ok=True)
    write_predictions(folder / PREDICTIONS, run.predictions, unit["kind"])
    write_json(folder / REPORT, report)


def write_predictions(path: str | Path, table: pd.DataFrame, kind: str) -> None:
    """Write a task's table of answers with its units named as what they are; atomic."""
    units = table.rename(columns={"patient": "unit"})
    units.insert(units.columns.tolist().index("unit") + 1, "unit_kind", kind)
    write_parquet(path, units)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """The table that `write_predictions` wrote, with the column ``patient`` that tasks know; also of older versions.

    Raises:
        ValueError: the file is damaged, or no Parquet table.
    """
    table = read_parquet(path)
    if "unit" not in table:
        return table
    return table.drop(columns=["patient", "unit_kind"], errors="ignore").rename(columns={"unit": "patient"})


def pooled_predictions(out: Path, seeds: Sequence[int]) -> pd.DataFrame:
    """The test predictions of all seeds of a run in progress, from ``seed-<n>/``, with the column ``seed``.

    Raises:
        ValueError: a file is damaged, or no Parquet table.
    """
    tables = [read_predictions(out / f"seed-{seed}" / PREDICTIONS) for seed in seeds]
    for seed, table in zip(seeds, tables, strict=True):
        table.insert(0, "seed", seed)
    return pd.concat(tables, ignore_index=True)


def read_run(folder: str | Path, allow: Allowed = ()) -> Run:
    """The finished run in ``folder``.

    Args:
        folder: of the run.
        allow: code from outside the library that the run may name: its task and its metrics, as in `load_model`.

    Raises:
        RunError: a file is missing or does not keep the contract, or the run needs code that is not allowed; the
            sentence names it.
    """
    folder = Path(folder)
    for name in (REPORT, PREDICTIONS):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no {name}; give the folder of a finished run.")
    try:
        refuse_changed(folder, REPORT, PREDICTIONS)
        report = read_json(folder / REPORT)
    except UserError as error:
        raise RunError(f"{folder} cannot be read ({error}). Copy the run again, or evaluate again.") from error
    with reading(folder / PREDICTIONS, "It is not a Parquet table that can be read: copy the run again.", RunError):
        predictions = read_predictions(folder / PREDICTIONS)
    keys = ["run", "task", "method", "initialisation", "seeds", "protocol", "test", "metrics", "audit"]
    missing = [key for key in keys if not isinstance(report, dict) or key not in report]
    if missing:
        raise RunError(f"{folder / REPORT} lacks {', '.join(missing)}. Copy the run again, or evaluate again.")
    for name, kind in _TYPES.items():
        if not fits(report[name], kind):
            raise RunError(
                f"{folder / REPORT}: {name} has the wrong value {shortened(repr(report[name]), 60)}. "
                "Copy the run again, or evaluate again."
            )
    with reading(folder, "Copy the run again, or evaluate again.", RunError):
        values = {key: report[key] for key in keys if key != "metrics"} | {"unit": unit_of(report)}
        values["provenance"] = report.get("provenance", {})
        run = Run(**{**values, "seeds": tuple(report["seeds"])}, predictions=predictions)
        with allowing(allow):
            run = replace(run, **_classes(report, str(folder)))
        _check(run, folder)
    return run


def _classes(report: dict[str, Any], source: str) -> dict[str, Any]:
    """The classes from outside the library that a report names."""
    measures = report.get("measures", [])
    if not fits(measures, list[str]):
        raise RunError(f"{source}: measures is {shortened(repr(measures), 60)}; it must be a list of names.")
    task = report.get("task_class")
    return {
        "outside_task": None if task is None else class_named(task, Task, source, RunError),
        "measures": tuple(class_named(name, Measure, source, RunError) for name in measures),
    }


_TYPES = {  # of report.json
    "run": str,
    "task": str,
    "method": str,
    "seeds": list[int],
    "protocol": dict[str, Any],
    "test": dict[str, Any],
    "metrics": dict[str, dict[str, Any]],
    "audit": dict[str, Any],
}


def unit_of(report: dict[str, Any]) -> dict[str, Any]:
    """The entry ``unit`` of a report; in reports from before that entry existed, units are patients."""
    if "unit" in report:
        return report["unit"]
    n = max((metric.get("patients", 0) for metric in report["metrics"].values()), default=0)
    return {"kind": "patient", "n": n, "words": f"{n:,} patient{'' if n == 1 else 's'}"}


def run_folders(folder: str | Path) -> list[Path]:
    """The folders of all finished runs below ``folder``, by path."""
    return sorted(path.parent for path in Path(folder).rglob(PREDICTIONS) if (path.parent / REPORT).is_file())


def find_runs(folder: str | Path) -> tuple[list[Run], list[str]]:
    """All finished runs below ``folder``, by path, and a message for every run that cannot be read."""
    runs, problems = [], []
    for path in run_folders(folder):
        try:
            runs.append(read_run(path))
        except RunError as error:
            problems.append(str(error))
    return runs, problems


def _check(run: Run, folder: Path) -> None:
    def refuse(problem: str) -> None:
        raise RunError(f"{folder}: {problem}")

    if run.outside_task is None and run.task not in TASKS:
        refuse(f"The task is '{run.task}'; it must be one of {', '.join(TASKS)}.")
    for name, holder, keys in [
        ("protocol", run.protocol, ["dataset", "chosen_on"]),
        ("test", run.test, ["fingerprint", "split"]),
        ("audit", run.audit, ["findings"]),
    ]:
        if missing := [key for key in keys if not isinstance(holder, dict) or key not in holder]:
            refuse(f"The entry {name} lacks {', '.join(missing)}.")
    table = run.predictions
    if problem := run.task_class.problem(table):
        refuse(problem)
    if table.empty:
        refuse("The predictions have no rows.")
    if (seeds := sorted(table["seed"].unique().tolist())) != sorted(run.seeds):
        refuse(f"The predictions are of seeds {seeds}, the report says {list(run.seeds)}.")
    if no_patient := int(table["patient"].isna().sum()):
        refuse(
            f"{no_patient} rows have no unit in the column unit; give the sequence or the video where patients "
            "are unknown."
        )
    if repeated := int(table.duplicated(["seed", "row"]).sum()):
        refuse(f"{repeated} rows are repeated within a seed; give each test item its own 'row'.")
    counts = table.groupby("row", sort=False)["seed"].size()
    if uneven := int((counts != len(run.seeds)).sum()):
        refuse(f"{uneven} test items are not predicted by every seed.")


def _json(value: float | int) -> float | int | None:
    return None if isinstance(value, float) and np.isnan(value) else value


def short_start(words: str) -> str:
    """A record of initialisation in a few words: "from scratch", "endo_fm.pth, 150/150 tensors", or its beginning."""
    if words == SCRATCH["words"]:
        return "from scratch"
    if match := re.match(r"(\d+) of the backbone's (\d+) tensors come from (.+?)(?: \(|;|\.$|$)", words):
        return f"{match[3]}, {match[1]}/{match[2]} tensors"
    if match := re.match(r"All (\d+) tensors come from (.+?)(?: \(|;|\.$|$)", words):
        return f"{match[2]}, {match[1]}/{match[1]} tensors"
    return shortened(words.split("; ")[0].rstrip("."), 60)
