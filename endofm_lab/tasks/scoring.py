"""A model's answers on the rows of a split, as the tables that a finished run keeps (see ``runs.run``)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from endofm_lab.metrics.masks import mask_metrics
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import covering_clips, in_batches, spread_clips
from endofm_lab.tasks.examples import Example, targets_of
from endofm_lab.video.transforms import masks_to_frame

BATCH = 8  # clips that go through the model together
MASK_THRESHOLD = 0.5
MIN_SCORE, MAX_BOXES = 0.05, 20  # of the boxes that are kept; average precision needs the unsure ones too


def answers(model: VideoModel, head: str, examples: Sequence[Example], n_clips: int) -> pd.DataFrame:
    """Truth and answers of one head on some rows: the table of its kind, see below. ``n_clips`` counts for classes."""
    spec = model.card.heads[head]
    if spec.kind == "mask":
        return mask_table(model, head, examples)
    if spec.kind == "box":
        return box_table(model, head, examples)
    return class_table(examples, class_scores(model, head, examples, n_clips), spec)


def class_scores(model: VideoModel, head: str, examples: Sequence[Example], n_clips: int) -> NDArray[np.float64]:
    """Scores (N, K) of every row, means over ``n_clips`` clips."""
    return clip_scores(model, head, examples, n_clips).mean(1)


def clip_scores(model: VideoModel, head: str, examples: Sequence[Example], n_clips: int) -> NDArray[np.float64]:
    """Scores (N, n_clips, K) of evenly spread clips of every row."""
    clips = spread_clips(examples, model.card.clip, model.card.input, n_clips)
    parts = [model.predict(torch.stack([seen.clip for seen in some]))[head] for some in in_batches(clips, BATCH)]
    return torch.cat(parts).double().unflatten(0, (len(examples), n_clips)).numpy()


@torch.inference_mode()
def clip_features(model: VideoModel, examples: Sequence[Example], n_clips: int, batch: int = 8) -> Tensor:
    """Pooled features (N, n_clips, D) float32 of evenly spread clips of every row; ``model`` is in evaluation mode."""
    device = next(model.parameters()).device
    clips = spread_clips(examples, model.card.clip, model.card.input, n_clips)
    parts = [
        model.backbone(torch.stack([seen.clip for seen in some]).to(device)).pooled().float().cpu()
        for some in in_batches(clips, batch)
    ]
    return torch.cat(parts).unflatten(0, (len(examples), n_clips))


def class_table(examples: Sequence[Example], scores: NDArray[np.float64], head: HeadSpec) -> pd.DataFrame:
    """One row per example: ``row``, ``patient``, ``target`` (or ``target_<class>``) and ``score_<class>``."""
    table = pd.DataFrame({"row": [e.row for e in examples], "patient": [e.patient for e in examples]})
    targets = targets_of(examples)
    if targets.ndim == 1:
        table["target"] = targets
    else:
        table[[f"target_{name}" for name in head.classes]] = targets
    table[[f"score_{name}" for name in head.classes]] = scores
    return table


def mask_table(model: VideoModel, head: str, examples: Sequence[Example]) -> pd.DataFrame:
    """One row per frame of every example: overlap of the thresholded mask, in the frame's own size."""
    size = model.card.input.size_px
    parts = []
    for some in in_batches(covering_clips(examples, model.card.clip, model.card.input), BATCH):
        chances = model.predict(torch.stack([seen.clip for seen in some]))[head][:, 0]  # (B, T, 4h, 4w)
        chances = F.interpolate(chances, size=(size, size), mode="bilinear")
        for seen, chance in zip(some, chances, strict=True):
            numbers, first = np.unique(seen.indices, return_index=True)
            found = masks_to_frame(chance[first], seen.frame_hw, model.card.input) > MASK_THRESHOLD
            table = mask_metrics(seen.example.read_masks(numbers), found)
            table.insert(0, "row", [f"{seen.example.row}:{number}" for number in numbers])
            table.insert(1, "patient", seen.example.patient)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def box_table(model: VideoModel, head: str, examples: Sequence[Example]) -> pd.DataFrame:
    """One row per frame of every example: true boxes and found ones, in pixels of the frame."""
    none = (np.zeros((0, 4)), np.zeros(0, np.int64))
    rows = []
    for some in in_batches(covering_clips(examples, model.card.clip, model.card.input), BATCH):
        raw = model.predict(torch.stack([seen.clip for seen in some]))[head]
        for seen, frames in zip(some, model.head(head).decode(raw, MIN_SCORE, MAX_BOXES), strict=True):
            assert seen.example.boxes is not None
            height, width = seen.frame_hw
            numbers, first = np.unique(seen.indices, return_index=True)
            for number, at in zip(numbers.tolist(), first.tolist(), strict=True):
                boxes, scores, labels = frames[at]
                true_boxes, true_labels = seen.example.boxes.get(number, none)
                rows.append(
                    {
                        "row": f"{seen.example.row}:{number}",
                        "patient": seen.example.patient,
                        "true_boxes": true_boxes.tolist(),
                        "true_labels": true_labels.tolist(),
                        "boxes": (boxes * torch.tensor([width, height, width, height])).tolist(),
                        "scores": scores.tolist(),
                        "labels": labels.tolist(),
                    }
                )
    return pd.DataFrame(rows)
