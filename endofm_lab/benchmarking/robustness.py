"""Tests of finished runs on degraded videos: the made faults of `familiarity.degradations` in the test rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from endofm_lab.data.manifest import Manifest
from endofm_lab.familiarity.degradations import DEGRADATIONS
from endofm_lab.files import sha256_of
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import claim
from endofm_lab.model.loading.load import load_model
from endofm_lab.outside import Allowed
from endofm_lab.runs.run import REPORT, read_run, write_run
from endofm_lab.tasks import Task
from endofm_lab.tasks.examples import Example
from endofm_lab.video.reader import VideoReader


@dataclass(frozen=True, kw_only=True)
class DegradedExample(Example):
    """A row whose frames are degraded when they are read; the strength of the fault is drawn once per video."""

    fault: str

    def open(self) -> VideoReader:
        """The row's video, opened."""
        return cast(VideoReader, _DegradedReader(super().open(), self.fault, self.name))


class _DegradedReader:
    """A reader that draws a fault into every frame it reads; the same frame is always degraded in the same way."""

    def __init__(self, reader: VideoReader, fault: str, name: str) -> None:
        self._reader, self._fault = reader, DEGRADATIONS[fault]
        self._seed = [ord(letter) for letter in f"{fault}/{name}"]

    def __enter__(self) -> "_DegradedReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self._reader.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 degraded frames."""
        frames = self._reader.read(indices)
        return np.stack([self._fault(frame, np.random.default_rng(self._seed)) for frame in frames])


def tested_degraded(
    run: Path, task: Task, manifest: Manifest, within: Manifest, fault: str, out: Path, device: str, allow: Allowed = ()
) -> None:
    """Test the models of a finished run of `finetune` on degraded test rows, and write a run.

    Args:
        run: folder of the run, with a model for every seed.
        task: its task with the options of the run.
        manifest: its manifest.
        within: the manifest with the training rows that the run learned from.
        fault: a key of ``DEGRADATIONS``.
        out: folder of the new run.
        device: where the models compute.
        allow: classes from outside the library that run and models name.

    Raises:
        UserError: a folder cannot be read, or ``out`` holds something else.
    """
    with claim(out, {"run_sha256": sha256_of(run / REPORT), "fault": fault}, "a run"):
        if (out / REPORT).is_file():
            return
        trained, tables = read_run(run, allow), []
        for seed in trained.seeds:
            model = load_model(run / f"seed-{seed}" / "model", allow, device)
            head = model.card.heads[task.head_name]
            rows = [_degraded(example, fault) for example in task.examples(manifest, "test", head)]
            table = task.table(model, task.head_name, rows, task.examples(within, "train", head))
            table.insert(0, "seed", seed)
            tables.append(table)
        degraded = replace(
            trained,
            run=f"{trained.run}, {fault}",
            test={**trained.test, "split": f"{trained.test['split']}, {fault}"},
            predictions=pd.concat(tables, ignore_index=True),
            provenance=provenance(next(model.parameters()).device),
        )
        write_run(out, degraded)


def _degraded(example: Example, fault: str) -> DegradedExample:
    return DegradedExample(**vars(example), fault=fault)
