"""Single frames of a manifest as samples of the training loop: classes by mapping, balanced draws, augmentation."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from endofm_lab.data.labels import LabelMapping, map_labels
from endofm_lab.data.manifest import Manifest
from endofm_lab.data.rows import Row
from endofm_lab.errors import ManifestError
from endofm_lab.video.augment import augmented
from endofm_lab.video.reader import VideoReader, open_video
from endofm_lab.video.transforms import InputSpec, to_input


@dataclass
class FrameCorpus:
    """Rows of one split, each shown as one frame of its stretch of video.

    Attributes:
        manifest: the table.
        split: whose rows.
        input: size and normalisation.
        mapping: original labels to common classes; rows that do not stand for exactly one class are left out. None
            takes the labels as they are.
        classes: the order of the classes; by default the mapping's leaves that occur, or the manifest's labels.
        augment: turn, crop, distort, blur and recolour the frames, and choose them at random in their stretch; without
            it, the middle frame as it is.
        balanced: repeat rows so that every class is drawn equally often: inverse-frequency sampling without chance.

    Raises:
        ManifestError: no row is left, or a label is not among ``classes``.
    """

    manifest: Manifest
    split: str
    input: InputSpec
    mapping: LabelMapping | None = None
    classes: tuple[str, ...] = ()
    augment: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        table = self.manifest.rows(self.split)
        if self.mapping is None:
            labels = table["label"].to_numpy(str)
            usable = labels != ""
            names = self.classes or tuple(self.manifest.classes)
        else:
            mapped = map_labels(table, self.mapping)
            usable = mapped.exact
            labels = np.array(mapped.leaves)[mapped.allowed.argmax(1)]
            names = self.classes or tuple(name for name in mapped.leaves if name in set(labels[usable]))
        self.left_out = int((~usable).sum())
        table, labels = table[usable].reset_index(drop=True), labels[usable]
        if table.empty:
            raise ManifestError(
                f"The split {self.split!r} has no row with exactly one class; check labels and mapping."
            )
        if unknown := sorted(set(labels) - set(names)):
            raise ManifestError(
                f"The split {self.split!r} has the class {str(unknown[0])!r}; known are {', '.join(names)}."
            )
        self.classes = names
        self.table = table
        self.rows = [Row.of(self.manifest, cells) for cells in table.to_dict("records")]
        self.targets = np.array([names.index(label) for label in labels])
        self.counts = np.bincount(self.targets, minlength=len(names))
        self.n_files = len({row.name for row in self.rows})
        self.order = balanced_order(self.targets) if self.balanced else np.arange(len(self.rows))

    def __len__(self) -> int:
        return len(self.order)

    def name(self, index: int) -> str:
        """The manifest's name of the row's file."""
        return self.rows[self.order[index]].name

    def sample(self, index: int, seed: int) -> tuple[Tensor, int]:
        """Frame (3, 1, S, S) and class of a draw."""
        row = int(self.order[index])
        return self.frame(row, seed), int(self.targets[row])

    def frame(self, row: int, seed: int) -> Tensor:
        """The frame of a row as model input (3, 1, S, S)."""
        reader = _opened(self.rows[row].video, self.rows[row].fps)
        inside = np.arange(*self.rows[row].frame_range(reader))
        at = len(inside) // 2
        if self.augment:
            at = int(torch.randint(len(inside), (), generator=torch.Generator().manual_seed(seed)))
        picture = reader.read([inside[at]])[0]
        if self.augment:
            picture = augmented(picture[None], self.input.size_px, seed)[0]
        return to_input(picture[None], self.input)[0]

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Frames (B, 3, 1, S, S) and classes (B,) int64."""
        return torch.stack([frame for frame, _ in samples]), torch.tensor([target for _, target in samples])


@lru_cache(maxsize=32)
def _opened(path: Path, fps: Fraction | None) -> VideoReader:
    """Readers of the files drawn last: indexing a video takes longer than reading one frame of it."""
    return open_video(path, fps=fps)


def balanced_order(targets: np.ndarray) -> np.ndarray:
    """Row numbers in which every class that occurs is as frequent as the most frequent one; rows repeat in turn."""
    counts = np.bincount(targets)
    rows = [np.resize(np.flatnonzero(targets == k), counts.max()) for k in np.flatnonzero(counts)]
    return np.concatenate(rows)
