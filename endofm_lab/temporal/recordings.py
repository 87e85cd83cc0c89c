"""Recordings: the stored vectors of a video's instants, in temporal order, with the labels of a manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from endofm_lab.brief import Brief
from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import EmbeddingStore
from endofm_lab.tasks.examples import Example
from endofm_lab.video.images import IMAGE_SUFFIXES

IMAGES_PER_SECOND = 1.0  # of images with numbers in the column ``frame``, if the manifest has no ``fps``
_ROUNDING_S = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Recording(Brief):
    """The instants of one video, or of the images of one sequence, in temporal order.

    Attributes:
        name: the video or sequence.
        patient: the unit of independence.
        store: holds the vectors.
        rows: (T,) rows of the store.
        times_s: (T,) seconds from the start of the video; the numbers of images over their rate.
        target: (T,) class numbers, or (T, K) of 0 and 1 for several labels; -1 at instants without a label.
    """

    name: str
    patient: str
    store: EmbeddingStore
    rows: NDArray[np.int64]
    times_s: NDArray[np.float64]
    target: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def vectors(self) -> NDArray[np.float32]:
        """(T, D) vectors, read from disk; NaN at instants that could not be read."""
        return np.array(self.store.vectors[self.rows])

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(T,) whether an instant has a label."""
        return (self.target if self.target.ndim == 1 else self.target[:, 0]) >= 0


def recordings_of(store: EmbeddingStore) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Name -> rows of a store and their times, for every recording in it.

    Images that belong to a sequence are one recording, in the order of their numbers.

    Raises:
        UserError: the store has a vector per row of a manifest instead of one per instant.
    """
    if "step_s" not in store.about:
        raise UserError(
            f"{store.path} has a vector per row of a manifest, and a model of time needs one per instant. Run "
            "`endofm-lab embed MANIFEST --step-s 1 --out` with a new folder."
        )
    table = store.rows
    images = table["video"].map(lambda name: Path(name).suffix.lower() in IMAGE_SUFFIXES).to_numpy(bool)
    sequence = table["sequence"].fillna("").astype(str) if "sequence" in table else pd.Series("", index=table.index)
    name = table["video"].where(~images | (sequence == ""), sequence)
    times = table["start_s"].to_numpy(float).copy()
    if images.any() and "frame" in table:
        rate = pd.to_numeric(table.get("fps", np.nan), errors="coerce") if "fps" in table else IMAGES_PER_SECOND
        seconds = pd.to_numeric(table["frame"], errors="coerce") / pd.Series(rate, index=table.index).fillna(1.0)
        times = np.where(images & seconds.notna(), seconds, times)
    recordings = {}
    for key, rows in name.groupby(name, sort=False).groups.items():
        numbers = np.asarray(rows, dtype=np.int64)
        numbers = numbers[np.argsort(times[numbers], kind="stable")]
        recordings[str(key)] = (numbers, times[numbers])
    return recordings


def labelled_recordings(
    manifest: Manifest, store: EmbeddingStore, examples: Sequence[Example], n_labels: int | None = None
) -> list[Recording]:
    """The recordings in which examples lie, with the target of the example that covers an instant, or -1.

    Args:
        manifest: the manifest of the examples.
        store: vectors of instants; it may have further videos.
        examples: rows of a manifest with their targets.
        n_labels: K for targets with several labels.

    Raises:
        UserError: the store lacks a video, or has none per instant.
    """
    content = manifest.contents()
    kept: dict[str, str] = {}
    for cell, fingerprint in store.about.get("videos", {}).items():
        kept.setdefault(fingerprint, cell)
    recordings = recordings_of(store)
    names = dict.fromkeys(example.name for example in examples)
    if missing := [name for name in names if content.get(name, "") not in kept]:
        raise UserError(
            f"{store.path} has no vectors of {len(missing)} videos, for example {missing[0]}: they are not in it or "
            "have changed. Run `endofm-lab embed` on this manifest into a new folder."
        )
    by_cell: dict[str, list[Example]] = {}
    for example in examples:
        by_cell.setdefault(kept[content[example.name]], []).append(example)
    cells, starts = store.rows["video"].to_numpy(), store.rows["start_s"].to_numpy(float)
    labelled = []
    for name, (rows, times) in recordings.items():
        target, owner = _targets(cells[rows], starts[rows], by_cell, n_labels)
        if owner is not None:
            labelled.append(Recording(name, owner.patient, store, rows, times, target))
    return labelled


def _targets(
    cells: NDArray[Any], starts: NDArray[np.float64], by_cell: dict[str, list[Example]], n_labels: int | None
) -> tuple[NDArray[np.int64], Example | None]:
    """The target of every instant, and one of the examples; None if there is none."""
    target = np.full(len(cells) if n_labels is None else (len(cells), n_labels), -1, dtype=np.int64)
    owner = None
    for cell in dict.fromkeys(cells.tolist()):
        for example in by_cell.get(cell, ()):
            owner = owner or example
            end_s = max(example.end_s, example.start_s + 2 * _ROUNDING_S)  # an image is at 0 and lasts from 0 to 0
            inside = (starts >= example.start_s - _ROUNDING_S) & (starts < end_s - _ROUNDING_S) & (cells == cell)
            target[inside] = example.target
    return target, owner
