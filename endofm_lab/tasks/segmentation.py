"""Segmentation: a mask for every frame, compared with the true one in the frame's own size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import ManifestError
from endofm_lab.files import reading
from endofm_lab.metrics.classification import weighted_mean
from endofm_lab.metrics.intervals import MetricSet
from endofm_lab.metrics.masks import mask_metrics
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import TrainingClip, covering_clips, in_batches
from endofm_lab.tasks.examples import Example, named
from endofm_lab.tasks.scoring import BATCH, answers
from endofm_lab.tasks.task import Task
from endofm_lab.video.masks import check_masks
from endofm_lab.video.reader import VideoReader, open_video
from endofm_lab.video.transforms import masks_to_frame

MASK_THRESHOLD = 0.5
METRICS = {"dice": "dice", "iou": "iou", "hd95_px": "hd95_px", "false_positive_frame_rate": "false_positive"}


@dataclass(frozen=True)
class Segmentation(Task):
    """Masks of frames. An example's target is the path of its masks: a folder of frames, or an image."""

    name = "segmentation"
    head_name = "mask"
    kinds = ("mask",)
    forms = ("transunet",)
    files = ("masks",)
    columns = ("lesion", "dice", "iou", "hd95_px", "false_positive")
    truth = ("lesion",)
    primary = "dice"
    chosen_by = "dice"
    lower_is_better = frozenset({"hd95_px", "false_positive_frame_rate"})

    def head(self, manifest: Manifest) -> HeadSpec:
        """The head of the one class that masks have."""
        return HeadSpec("mask", ("lesion",))

    def targets(self, manifest: Manifest, split: str, head: HeadSpec) -> Sequence[Path]:
        """The masks of every row, after a check of their sizes, number and values."""
        rows = manifest.rows(split)
        if "masks" not in rows:
            raise ManifestError("The manifest has no column 'masks'. Segmentation needs this column: add it.")
        if missing := int((rows["masks"] == "").sum()):
            raise ManifestError(
                f"{missing} rows of {split} have no masks. Remove these rows, or give empty masks to frames without a "
                "finding."
            )
        sizes, values = [], []
        for video, masks in dict.fromkeys(zip(rows["video"], rows["masks"], strict=True)):
            other_size, not_binary = _faults(manifest, video, masks)
            sizes += other_size
            values += not_binary
        if sizes:
            raise ManifestError(
                f"{len(sizes)} masks of {split} differ in size from their frame: {named(sizes)}. Resize them."
            )
        if values:
            raise ManifestError(
                f"{len(values)} masks of {split} are not binary (0 and 255): {named(values)}. Prepare the data by a "
                "recipe that thresholds them."
            )
        return [manifest.resolve(masks) for masks in rows["masks"]]

    def sample(self, example: Example, clip: TrainingClip) -> dict[str, Any]:
        """``mask`` (1, T, S, S) in 0..1: the share of each pixel that is covered."""

        def read(numbers: list[int]) -> np.ndarray:
            shares = clip.reduced(torch.from_numpy(read_masks(example.target, numbers))[:, None].float())
            return (shares[:, 0] > 0.5).numpy()

        return {"mask": clip.view.masks(clip.pictures(example.target, read), clip.size_px)[None]}

    def table(
        self, model: VideoModel, head: str, examples: Sequence[Example], training: Sequence[Example]
    ) -> pd.DataFrame:
        """One row per frame of every example: overlap of the thresholded mask, in the frame's own size."""
        size = model.card.input.size_px
        opened = lru_cache(BATCH)(lambda masks: open_video(masks, check=False))  # a folder of masks is listed once
        tables = []
        for batch in in_batches(covering_clips(examples, model.card.clip, model.card.input), BATCH):
            probabilities = answers(model, head, batch)[:, 0]  # (B, T, 4h, 4w)
            probabilities = F.interpolate(probabilities, size=(size, size), mode="bilinear")
            for clip, probability in zip(batch, probabilities, strict=True):
                numbers, first = np.unique(clip.indices, return_index=True)
                predicted = masks_to_frame(probability[first], clip.frame_hw, model.card.input) > MASK_THRESHOLD
                table = mask_metrics(_foreground(opened(clip.example.target), numbers), predicted)
                table.insert(0, "row", [f"{clip.example.row}:{number}" for number in numbers])
                table.insert(1, "patient", clip.example.patient)
                tables.append(table)
        return pd.concat(tables, ignore_index=True)

    @classmethod
    def measured(cls, rows: pd.DataFrame) -> tuple[NDArray, MetricSet]:
        """Units are frames; metrics are means over them."""
        columns = {name: rows[column].to_numpy(np.float64) for name, column in METRICS.items()}
        return rows["patient"].to_numpy(), lambda weights: {
            name: weighted_mean(values, weights) for name, values in columns.items()
        }


def read_masks(masks: Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Bool (T, H, W) of the frames with these numbers."""
    with open_video(masks, check=False) as reader:
        return _foreground(reader, indices)


def _foreground(masks: VideoReader, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    return masks.read(indices)[..., 0] > 127


def _faults(manifest: Manifest, video: str, masks: str) -> tuple[list[str], list[str]]:
    """Names of the masks of one video that differ in size from their frame, and of those that are not binary.

    Raises:
        VideoError: the names of the masks do not match the frames one to one.
    """
    path = manifest.resolve(masks)
    with open_video(manifest.resolve(video), check=False) as frames, open_video(path, check=False) as pictures:
        check_masks(frames, pictures)
        info, files = frames.info, pictures.files
    sizes, values = [], []
    for file in files:
        with reading(file, "Copy the mask again.", ManifestError), Image.open(file) as image:
            if image.size != (info.width_px, info.height_px):
                sizes.append(f"{file.name} of {masks} ({image.size[0]} x {image.size[1]} px)")
            if image.mode != "1" and not np.isin(np.asarray(image.convert("L")), (0, 255)).all():
                values.append(f"{file.name} of {masks}")
    return sizes, values
