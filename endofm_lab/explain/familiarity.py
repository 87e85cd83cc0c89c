"""Fit the statistics by which a model tells familiar clips from others: features of training and validation clips."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
import torch

from endofm_lab.brief import Brief
from endofm_lab.data.manifest import Manifest
from endofm_lab.data.rows import Row
from endofm_lab.data.units import units
from endofm_lab.errors import UserError, VideoError
from endofm_lab.familiarity.statistics import Familiarity, familiarity_of
from endofm_lab.model.encoder import watching
from endofm_lab.model.inference import for_inference
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.transforms import to_input

CLIPS_PER_ROW = 3


@dataclass(frozen=True, eq=False, repr=False)
class Features(Brief):
    """Features of the clips of a split.

    Attributes:
        vectors: (N, D) float32, `endofm_lab.model.encoder.watching` of every clip.
        units: (N,) str, the unit of independence of every clip.
        words: number and kind of the units.
    """

    vectors: np.ndarray
    units: np.ndarray
    words: str


def fit_familiarity(
    model: VideoModel, manifest: Manifest, most_clips: int = 2000, batch_clips: int = 8, seed: int = 0
) -> Familiarity:
    """The statistics of a model's features on the training rows, with a limit from the validation rows.

    They are not attached to the model: set ``model.familiarity`` and save the model. Their size depends on the width of
    the model only.

    Args:
        model: computes on its own device.
        manifest: with the splits "train" and "val".
        most_clips: rows are drawn at random if a split has more clips than this.
        batch_clips: clips that go through the model together.
        seed: seed of that draw.

    Raises:
        UserError: a split has no rows that can be read, or a feature is NaN or infinite.
    """
    train, val = (features_of(model, manifest, split, most_clips, batch_clips, seed) for split in ("train", "val"))
    about = {
        "train_clips": len(train.vectors),
        "train_units": train.words,
        "val_clips": len(val.vectors),
        "val_units": val.words,
    }
    return familiarity_of(train.vectors, val.vectors, val.units, about)


def features_of(
    model: VideoModel, manifest: Manifest, split: str, most_clips: int = 2000, batch_clips: int = 8, seed: int = 0
) -> Features:
    """Features of clips that are spread evenly over the rows of a split; rows that cannot be read are left out.

    Raises:
        UserError: the split has no rows that can be read, or a feature is NaN or infinite.
    """
    rows = manifest.rows(split)
    unit_ids = units(manifest.table).take((manifest.table["split"] == split).to_numpy())
    chosen = np.arange(len(rows))
    if len(rows) * CLIPS_PER_ROW > most_clips:
        sample = np.random.default_rng(seed).choice(len(rows), min(len(rows), most_clips), replace=False)
        chosen = np.sort(sample)
    per_row = max(1, min(CLIPS_PER_ROW, most_clips // max(1, len(chosen))))
    vectors, owners = _computed(model, manifest, rows, chosen, per_row, batch_clips)
    if not owners:
        raise UserError(f"No row of the split {split!r} could be read, so familiarity has nothing to measure.")
    row_units = unit_ids.take(np.array(owners))
    return Features(np.concatenate(vectors), row_units.ids.astype(str), row_units.words)


@torch.inference_mode()
def _computed(
    model: VideoModel, manifest: Manifest, rows: pd.DataFrame, chosen: np.ndarray, per_row: int, batch_clips: int
) -> tuple[list[np.ndarray], list[int]]:
    """Vectors (n, D) of batches of clips, and the row of every clip; clips of several rows are in one batch."""
    first = next(model.parameters())
    backbone = for_inference(model.backbone, first.dtype)
    clips = (
        (row, clip) for row in chosen.tolist() for clip in _clips(Row.of(manifest, rows.iloc[row]), model, per_row)
    )
    vectors, owners = [], []
    while batch := list(islice(clips, batch_clips)):
        x = torch.cat([clip for _, clip in batch]).to(first.device, first.dtype)
        with watching(backbone) as features:
            vectors.append(features(backbone(x)).float().cpu().numpy())
        owners += [row for row, _ in batch]
    return vectors, owners


def _clips(row: Row, model: VideoModel, n: int) -> list[torch.Tensor]:
    """At most ``n`` different clips (1, 3, T, S, S), spread evenly over a row; none if its video cannot be read."""
    spec = model.card.clip
    try:
        with row.open() as reader:
            earliest, latest = row.starts(reader, spec)
            starts = np.linspace(earliest, latest, n) if n > 1 else np.array([(earliest + latest) / 2])
            indices = np.unique([row.clip_at(reader, spec, float(start)) for start in starts], axis=0)
            return [to_input(reader.read(index), model.card.input) for index in indices]
    except VideoError:
        return []
