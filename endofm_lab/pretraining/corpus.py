"""The videos of one or several manifests as samples of the training loop."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from endofm_lab.data.manifest import Manifest
from endofm_lab.data.rows import Row
from endofm_lab.errors import ManifestError
from endofm_lab.pretraining.views import MultiView
from endofm_lab.training.draws import MixedDraws

TRAINING_SPLITS = ("pretrain", "train", "")  # the default: held-out rows are never used for training


@dataclass
class Corpus:
    """Rows of a manifest, each a stretch of video, as views. Labels are not read.

    Attributes:
        manifest: the table.
        views: draws the views of a row.
        split: split to learn from; None takes the rows whose split is "pretrain", "train" or empty.

    Raises:
        ManifestError: the split has no rows, or files are missing; the message lists the first of them.
    """

    manifest: Manifest
    views: MultiView
    split: str | None = None

    def __post_init__(self) -> None:
        table = self.manifest.rows(self.split)
        if self.split is None:
            table = table[table["split"].isin(TRAINING_SPLITS)]
        self.rows = [Row.of(self.manifest, cells) for cells in table.to_dict("records")]
        if not self.rows:
            words = "the split 'pretrain' or 'train'" if self.split is None else f"the split {self.split!r}"
            raise ManifestError(f"{self.manifest.path} has no rows of {words}. Name a split that has rows.")
        paths = {row.name: row.video for row in self.rows}
        self.n_files = len(paths)
        if missing := [name for name, path in paths.items() if not path.exists()]:
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise ManifestError(
                f"{self.manifest.path}: {len(missing)} of {self.n_files} files are missing: {names}. "
                "Restore the files or remove their rows."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def contents(self) -> dict[str, str]:
        """Name of every file in the training rows -> its `endofm_lab.files.fingerprint_of`."""
        used = {row.name for row in self.rows}
        table = self.manifest.table
        return Manifest(table[table["video"].isin(used)], self.manifest.root).contents()

    def name(self, index: int) -> str:
        """The manifest's name of the row's file."""
        return self.rows[index].name

    def sample(self, index: int, seed: int) -> list[Tensor]:
        """The views of a row, (3, T, px, px) each."""
        return self.views.of_row(self.rows[index], seed).tensors

    def collate(self, samples: list[list[Tensor]]) -> list[Tensor]:
        """Views (B, 3, T, px, px), global ones first."""
        return [torch.stack(view) for view in zip(*samples, strict=True)]


@dataclass
class Mixture:
    """Several corpora as one corpus; each keeps its share throughout the training.

    Attributes:
        corpora: the rows of one manifest each.
        weights: numbers above 0, one for each corpus: 3 and 1 take three clips of the first for each of the second.
    """

    corpora: list[Corpus]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        self.n_files = sum(corpus.n_files for corpus in self.corpora)
        self.sizes = tuple(len(corpus) for corpus in self.corpora)

    def __len__(self) -> int:
        return sum(self.sizes)

    def draws(self, seed: int) -> MixedDraws:
        """The order of the samples of a run."""
        return MixedDraws(self.sizes, self.weights, seed)

    def contents(self) -> dict[str, str]:
        """As `Corpus.contents`; the number of the manifest precedes each name, because names can repeat."""
        return {
            f"manifest {number}: {name}": content
            for number, corpus in enumerate(self.corpora, 1)
            for name, content in corpus.contents().items()
        }

    def name(self, index: int) -> str:
        """Manifest and name of the row's file."""
        corpus, row = self._of(index)
        return f"{corpus.manifest.path}: {corpus.name(row)}"

    def sample(self, index: int, seed: int) -> list[Tensor]:
        """The views of a row, (3, T, px, px) each."""
        corpus, row = self._of(index)
        return corpus.sample(row, seed)

    def collate(self, samples: list[list[Tensor]]) -> list[Tensor]:
        """Views (B, 3, T, px, px), global ones first."""
        return self.corpora[0].collate(samples)

    def described(self) -> list[dict[str, Any]]:
        """Manifest, clips and share of every corpus."""
        total = sum(self.weights)
        return [
            {"manifest": str(corpus.manifest.path), "n_clips": len(corpus), "share": weight / total}
            for corpus, weight in zip(self.corpora, self.weights, strict=True)
        ]

    def _of(self, index: int) -> tuple[Corpus, int]:
        for corpus in self.corpora:
            if index < len(corpus):
                return corpus, index
            index -= len(corpus)
        raise IndexError(index)


def mixed(corpora: list[Corpus], weights: tuple[float, ...]) -> Corpus | Mixture:
    """A single corpus unchanged, or a mixture of several; by default the weights are the numbers of clips."""
    if len(corpora) == 1:
        return corpora[0]
    return Mixture(corpora, weights or tuple(float(len(corpus)) for corpus in corpora))
