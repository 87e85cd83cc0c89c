"""Run a benchmark: shared features, one run per cell, tests under degradations, and the table of all of them.

The folder of a benchmark holds ``runs/<task>/<budget>/<encoder>-<method>/``, ordinary runs that `compare`, `check` and
`evaluate` read; ``features/``, ``degraded/`` and ``added/``; and, written last, ``benchmark.json`` and its tables.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from endofm_lab.benchmarking.added import RESULT, add_folders, added_rows
from endofm_lab.benchmarking.config import TEMPORAL, read_benchmark, temporal_parts
from endofm_lab.benchmarking.cost import Costs, trained_parameters
from endofm_lab.benchmarking.page import sections
from endofm_lab.benchmarking.plan import (
    ADDED,
    DEGRADED,
    FEATURES,
    RUNS,
    Cell,
    Plan,
    encoder_model,
    instants_key,
    largest_budget,
    rows_to_embed,
    used_rows,
)
from endofm_lab.benchmarking.robustness import tested_degraded
from endofm_lab.benchmarking.table import Row, flat_table, table_of
from endofm_lab.explain.embeddings import STORE, embedding_steps
from endofm_lab.explain.instants import instants_of, spread_rows
from endofm_lab.files import atomic_path, formulas_as_text, read_json, write_json
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import claim, unseal
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.loading.load import model_at, without_heads
from endofm_lab.model.precision import resolve_device
from endofm_lab.model.video_model import VideoModel
from endofm_lab.outside import name_of
from endofm_lab.reports.html import write_report
from endofm_lab.runs.run import REPORT, Run, read_run
from endofm_lab.tasks import Task
from endofm_lab.tasks.budgets import within_budget
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.phases import Phases
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.fit import fit_temporal
from endofm_lab.training.loop import Record

_KEPT = (RUNS, FEATURES, DEGRADED, ADDED)  # folders with hashes of their own


def benchmark(
    source: str | Path | Mapping[str, Any],
    out: str | Path,
    encoders: Mapping[str, VideoModel | Encoder] | None = None,
    tasks: Mapping[str, Task] | None = None,
    add: Sequence[str | Path] = (),
    device: str = "auto",
    workers: int = 0,
) -> Iterator[Record]:
    """Compare encoders on tasks with methods within label budgets, and write one table with a report.

    A benchmark that was stopped continues when called again with the same file: finished cells stay as they are, and on
    CPU in float32 the numbers are bit for bit those of a benchmark that was never stopped.

    Args:
        source: a YAML file (see ``docs/benchmark.md``), or its content as nested dictionaries.
        out: folder of the benchmark.
        encoders: further encoders in memory, by name.
        tasks: tasks of your own, by the names of tasks in the file, whose ``task`` they replace.
        add: folders of finished runs or of other benchmarks, whose runs join the table.
        device: where models compute, as in `finetune`.
        workers: number of processes that load data.

    Yields:
        One record with "plan" (facts about tasks and cells); then "features" (encoder), "done" and "rows" while
        features are computed; "cell" (its name) with the records of its training; "degraded" (its name) after each test
        under degradations; and a last record with "result", the content of ``benchmark.json``.

    Raises:
        UserError: the file or the data are bad, a split leaks, an encoder lacks what a method needs, ``out`` holds
            another benchmark (the message names the differences), another process works there, or an added run was
            tested on other rows.
    """
    plan = Plan.of(read_benchmark(source, encoders, tasks))
    out = Path(out)
    with claim(out, plan.request, "a benchmark", allowed_files=_KEPT):
        yield {"plan": plan_facts(plan, out)}
        job = _Job(plan, out, device, workers)
        yield from job.cells()
        yield from job.degraded()
        if add or not (out / RESULT).is_file():
            rows = job.rows(add)
            unseal(out, out)
            job.write(rows)
        yield {"result": job.result()}


def plan_facts(plan: Plan, out: Path | None = None) -> dict[str, Any]:
    """Tasks with their audit, units and training rows, and the cells with those that are done, as JSON."""
    return {
        "tasks": {
            name: {"audit": facts.verdict, "leaks": list(facts.leaks), "test": facts.units, "training": facts.training}
            for name, facts in plan.tasks.items()
        },
        "cells": [cell.key for cell in plan.cells],
        "done": [cell.key for cell in plan.cells if out is not None and (out / RUNS / cell.key / REPORT).is_file()],
    }


class _Job:
    """A benchmark under way."""

    def __init__(self, plan: Plan, out: Path, device: str, workers: int) -> None:
        self.plan, self.out, self.device, self.workers = plan, out, device, workers
        self.costs = Costs(out)
        kinds: list[Any] = [type(without_heads(e.model).backbone) for e in plan.config.encoders if e.model is not None]
        kinds += [type(entry.task) for entry in plan.config.tasks]
        kinds += [facts.head.by for facts in plan.tasks.values() if isinstance(facts.head.by, type)]
        self.allowed = [kind for kind in kinds if name_of(kind)]

    def folder(self, cell: Cell) -> Path:
        return self.out / RUNS / cell.key

    def cells(self) -> Iterator[Record]:
        """Compute what is not finished, one encoder after the other, so that only one is in memory."""
        for encoder in self.plan.config.encoders:
            missing = [
                cell
                for cell in self.plan.cells
                if cell.encoder is encoder and not (self.folder(cell) / REPORT).is_file()
            ]
            if not missing:
                continue
            model = model_at(encoder_model(encoder), self.device)
            size = sum(parameter.numel() for parameter in model.backbone.parameters())
            words = model.card.initialisation["words"]
            self.costs.note(f"encoders/{encoder.name}", parameters=size, initialisation=words)
            for cell in missing:
                features = yield from self.features(cell, model)
                if features is not None:
                    self.costs.note(cell.key, features=features.relative_to(self.out).as_posix())
                with self.costs.measured(cell.key):
                    for record in self.training(cell, model, features):
                        yield {"cell": cell.key, **record}

    def features(self, cell: Cell, model: VideoModel) -> Generator[Record, None, Path | None]:
        """Compute the features that a cell reads, unless they are stored, and end with their folder or None."""
        folder, task = self.out / FEATURES / cell.encoder.name, cell.task.task
        if cell.is_shared and isinstance(task, Classification):
            store = folder / f"clips-{task.clips}"
            settings: dict[str, Any] = {"clips": task.clips}
        elif cell.method.method == TEMPORAL and isinstance(task, Phases):
            manifest, tokens = self.plan.tasks[cell.task.name].manifest, temporal_parts(cell.method.settings)[0]
            store = folder / instants_key(manifest, task.step_s, tokens)
            settings = {"step_s": task.step_s, "tokens": tokens}
        else:
            return None
        if not (store / STORE).is_file():
            if "clips" in settings:
                rows = spread_rows(rows_to_embed(self.plan, cell.encoder)[settings["clips"]], settings["clips"])
            else:
                rows = instants_of(used_rows(manifest), settings["step_s"])
            with self.costs.measured(store.relative_to(self.out).as_posix()):
                for done in embedding_steps(rows, model, store, **settings):
                    yield {"features": cell.encoder.name, "done": done, "rows": len(rows)}
        return store

    def training(self, cell: Cell, model: VideoModel, features: Path | None) -> Iterator[Record]:
        """The run of a cell by `finetune` or `fit_temporal`."""
        settings = self.plan.settings(cell, self.folder(cell), features, self.device, self.workers)
        if isinstance(settings, TemporalConfig):
            yield from fit_temporal(settings)
        else:
            own_task = cell.task.task if name_of(type(cell.task.task)) else None
            yield from finetune(settings, task=own_task, start=model)

    def degraded(self) -> Iterator[Record]:
        """Test the models of the largest budget under each degradation."""
        budget = largest_budget(self.plan.config)
        for cell in self.plan.cells:
            if cell.budget != budget or cell.method.method in ("knn", TEMPORAL):  # these save no model of videos
                continue
            facts, label = self.plan.tasks[cell.task.name], getattr(cell.task.task, "label", "label")
            for fault in self.plan.config.degradations:
                out = self.out / DEGRADED / cell.key / fault
                if (out / REPORT).is_file():
                    continue
                within = within_budget(facts.manifest, budget, label)
                folder, task = self.folder(cell), cell.task.task
                tested_degraded(folder, task, facts.manifest, within, fault, out, self.device, self.allowed)
                yield {"degraded": f"{cell.key}/{fault}"}

    def rows(self, add: Sequence[str | Path]) -> list[Row]:
        """The rows of the table, task by task: those of this benchmark, those that were added before, and new ones."""
        rows = self.own_rows()
        tests: dict[str, dict[str, Run]] = {}
        for row in rows:
            tests.setdefault(row.task, {}).setdefault(row.budget, row.run)
        add_folders(add, self.out, tests, self.allowed)
        order = {name: number for number, name in enumerate(tests)}
        return sorted([*rows, *added_rows(self.out, tests, self.allowed)], key=lambda row: order[row.task])

    def own_rows(self) -> list[Row]:
        """The rows of the table that are runs of this benchmark."""
        rows = []
        for cell in self.plan.cells:
            folder = self.folder(cell)
            run, cost = read_run(folder, self.allowed), self.costs.of(cell.key)
            store = self.costs.parts.get(cell.key, {}).get("features", "")
            facts = {
                "parameters": self.costs.parts.get(f"encoders/{cell.encoder.name}", {}).get("parameters"),
                "trained": trained_parameters(run, folder),
                **cost,
                "features_s": self.costs.of(store)["seconds"] if store else None,
                "training_units": self.plan.tasks[cell.task.name].training[cell.budget]["units"],
                "folder": folder.relative_to(self.out).as_posix(),
            }
            folders = {name: self.out / DEGRADED / cell.key / name for name in self.plan.config.degradations}
            degraded = {name: read_run(path, self.allowed) for name, path in folders.items() if path.is_dir()}
            rows.append(Row(cell.task.name, cell.budget, cell.encoder.name, cell.method.name, "", run, facts, degraded))
        return rows

    def write(self, rows: Sequence[Row]) -> None:
        """Write ``benchmark.json``, ``benchmark.csv`` and ``benchmark.html``."""
        table, reasons = table_of(rows)
        facts = plan_facts(self.plan)["tasks"]
        encoders = {e.name: self.costs.parts.get(f"encoders/{e.name}", {}) for e in self.plan.config.encoders}
        result: dict[str, Any] = {
            "tasks": {name: {**facts[name], "not_ranked": reasons.get(name, {})} for name in facts},
            "encoders": encoders,
            "budgets": list(self.plan.config.budgets),
            "degradations": list(self.plan.config.degradations),
            "rows": table,
            "provenance": provenance(resolve_device(self.device)),
        }
        with atomic_path(self.out / "benchmark.csv") as temporary:
            formulas_as_text(flat_table(table)).to_csv(temporary, index=False, encoding="utf-8")
        write_report(self.out / "benchmark.html", f"Benchmark: {self.out.name}", sections(result), result["provenance"])
        write_json(self.out / RESULT, result)

    def result(self) -> dict[str, Any]:
        """The content of ``benchmark.json``."""
        return read_json(self.out / RESULT)
