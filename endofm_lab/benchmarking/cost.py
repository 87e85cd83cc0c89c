"""The cost of a benchmark's parts: seconds, peak memory and parameters."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from endofm_lab.files import read_json, write_json
from endofm_lab.runs.run import Run
from endofm_lab.temporal.model import CARD, load_temporal

COSTS = "costs.json"
_PERIOD_S = 0.05


class Costs:
    """The cost of every part of a benchmark by its name, kept in ``costs.json``.

    Seconds add up over the calls of a part that was stopped and continued; a part whose process was killed lacks those
    of the killed call, and ``interrupted`` says so. ``peak_mb`` is the largest memory of the process (on a GPU, of its
    tensors there) while the part was computed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / COSTS
        self.parts: dict[str, dict[str, Any]] = read_json(self.path) if self.path.is_file() else {}

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Measure a part, also if the block ends by an error or is stopped."""
        before = {"seconds": 0.0, "peak_mb": 0.0, **self.parts.get(part, {})}
        killed = before.get("running", False)
        self.parts[part] = {**before, "running": True, "interrupted": killed or before.get("interrupted", False)}
        write_json(self.path, self.parts)
        start = time.perf_counter()
        with _Peak() as peak:
            try:
                yield
            finally:
                self.parts[part] |= {
                    "seconds": before["seconds"] + time.perf_counter() - start,
                    "peak_mb": max(before["peak_mb"], peak.reached_mb()),
                    "running": False,
                }
                write_json(self.path, self.parts)

    def note(self, part: str, **facts: Any) -> None:
        """Keep further facts about a part."""
        self.parts[part] = {**self.parts.get(part, {}), **facts}
        write_json(self.path, self.parts)

    def of(self, part: str) -> dict[str, Any]:
        """Seconds and peak memory of a part; None where they are not known."""
        entry = self.parts.get(part, {})
        return {name: entry.get(name) for name in ("seconds", "peak_mb", "interrupted")}


class _Peak:
    """The peak memory of this process while a block runs, in MB; a thread looks at it."""

    def __init__(self) -> None:
        self._process, self._rss, self._end = psutil.Process(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Peak":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def reached_mb(self) -> float:
        self._look()
        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return torch.cuda.max_memory_allocated() / 2**20
        return self._rss / 2**20

    def _look(self) -> None:
        self._rss = max(self._rss, self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._end.wait(_PERIOD_S):
            self._look()


def trained_parameters(run: Run, folder: Path) -> int | None:
    """The number of values that a run has learned: as the run says it, or those of its model of time; None if neither.

    Nearest neighbours learn none.
    """
    if trained := re.match(r"([\d,]+) of ", str(run.provenance.get("trained", ""))):
        return int(trained[1].replace(",", ""))
    model = folder / f"seed-{run.seeds[0]}" / "model"
    return sum(p.numel() for p in load_temporal(model).parameters()) if (model / CARD).is_file() else None
