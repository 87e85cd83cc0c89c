"""Detection: boxes with classes in every frame, in pixels of the video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import ManifestError
from endofm_lab.files import reading
from endofm_lab.metrics.boxes import FrameBoxes, average_precision_50, detection_metrics, frame_boxes, match_boxes
from endofm_lab.metrics.intervals import MetricSet
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import TrainingClip, covering_clips, in_batches
from endofm_lab.tasks.examples import Example, named
from endofm_lab.tasks.scoring import BATCH, answers
from endofm_lab.tasks.task import ClassMetrics, Task
from endofm_lab.video.reader import open_video

CORNERS = ["x1_px", "y1_px", "x2_px", "y2_px"]
MIN_SCORE, MAX_BOXES = 0.05, 20  # limits for detections; average precision also needs boxes with low scores
Boxes = dict[int, tuple[np.ndarray, np.ndarray]]  # frame number -> boxes (n, 4) in pixels and class numbers (n,)
NONE = (np.zeros((0, 4)), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Detection(Task):
    """Boxes of frames. An example's target holds the boxes of its video by frame (`Boxes`)."""

    name = "detection"
    head_name = "box"
    kinds = ("box",)
    forms = ("stft", "iou")
    files = ("boxes",)
    columns = ("true_boxes", "true_labels", "boxes", "scores", "labels")
    truth = ("true_boxes", "true_labels")
    primary = "ap50"
    chosen_by = "ap50"

    def head(self, manifest: Manifest) -> HeadSpec:
        """The head for the classes of the boxes of training rows."""
        labels = sorted(set(_boxes(manifest, manifest.rows("train"))["label"]))
        if not labels:
            raise ManifestError("The training rows have no boxes. Name a file of boxes in the column 'boxes'.")
        return HeadSpec("box", tuple(labels))

    def targets(self, manifest: Manifest, split: str, head: HeadSpec) -> Sequence[Boxes]:
        """The boxes of every row's video, after a check of their classes, areas and borders."""
        return _checked_boxes(manifest, manifest.rows(split), split, head)

    def sample(self, example: Example, clip: TrainingClip) -> dict[str, Any]:
        """``boxes`` and ``labels``, one array per frame: boxes (n, 4) in fractions of the view, and classes (n,)."""
        truths = [example.target.get(int(frame), NONE) for frame in clip.indices]
        cropped = [clip.view.boxes(boxes * [*clip.shrunk, *clip.shrunk]) for boxes, _ in truths]
        return {
            "boxes": [boxes for boxes, _ in cropped],
            "labels": [labels[visible] for (_, labels), (_, visible) in zip(truths, cropped, strict=True)],
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``boxes`` (B, T, M, 4) and ``labels`` (B, T, M); frames with fewer than M boxes get rows of NaN."""
        most = max(1, *(len(boxes) for sample in samples for boxes in sample["boxes"]))
        shape = (len(samples), len(samples[0]["boxes"]), most)
        all_boxes, all_labels = torch.full((*shape, 4), torch.nan), torch.zeros(shape, dtype=torch.long)
        for b, sample in enumerate(samples):
            for t, (boxes, labels) in enumerate(zip(sample["boxes"], sample["labels"], strict=True)):
                all_boxes[b, t, : len(boxes)] = torch.from_numpy(boxes).float()
                all_labels[b, t, : len(boxes)] = torch.from_numpy(labels)
        clips = torch.stack([sample["clip"] for sample in samples])
        return {"clip": clips, "boxes": all_boxes, "labels": all_labels}

    def table(
        self, model: VideoModel, head: str, examples: Sequence[Example], training: Sequence[Example]
    ) -> pd.DataFrame:
        """One row per frame of every example: true boxes and detected boxes, in pixels of the frame."""
        rows = []
        for batch in in_batches(covering_clips(examples, model.card.clip, model.card.input), BATCH):
            raw = answers(model, head, batch)
            for clip, frames in zip(batch, model.head(head).decode(raw, MIN_SCORE, MAX_BOXES), strict=True):
                height, width = clip.frame_hw
                numbers, first = np.unique(clip.indices, return_index=True)
                for number, position in zip(numbers.tolist(), first.tolist(), strict=True):
                    boxes, scores, labels = frames[position]
                    true_boxes, true_labels = clip.example.target.get(number, NONE)
                    rows.append(
                        {
                            "row": f"{clip.example.row}:{number}",
                            "patient": clip.example.patient,
                            "true_boxes": true_boxes.tolist(),
                            "true_labels": true_labels.tolist(),
                            "boxes": (boxes * torch.tensor([width, height, width, height])).tolist(),
                            "scores": scores.tolist(),
                            "labels": labels.tolist(),
                        }
                    )
        return pd.DataFrame(rows)

    @classmethod
    def measured(cls, rows: pd.DataFrame) -> tuple[NDArray, MetricSet]:
        """Units are frames."""
        return rows["patient"].to_numpy(), detection_metrics(boxes_of(rows))

    @classmethod
    def by_class(cls, rows: pd.DataFrame, protocol: Mapping[str, Any]) -> list[tuple[str, int, ClassMetrics]]:
        """``ap50`` of every class with a true box; ``protocol`` lists the names of the classes."""
        frames = boxes_of(rows)
        labels = np.unique(np.concatenate([frame.true_labels for frame in frames])).tolist()
        names = str(protocol.get("classes", "")).split(", ")
        titles = {k: names[k] if k < len(names) and names[k] else f"class {k}" for k in labels}
        return [(titles[k], *_of_class(frames, k)) for k in labels]


def boxes_of(rows: pd.DataFrame) -> list[FrameBoxes]:
    """Truth and detections of every row of a table, whose boxes may be arrays of arrays, as Parquet returns them."""
    boxes = ([np.array([list(box) for box in cell]) for cell in rows[name]] for name in ("true_boxes", "boxes"))
    columns = zip(*boxes, *(rows[name] for name in ("scores", "true_labels", "labels")), strict=True)
    return [frame_boxes(*row) for row in columns]


def _of_class(frames: list[FrameBoxes], label: int) -> tuple[int, ClassMetrics]:
    """True boxes of one class, and its AP: the boxes of other classes are left out."""
    selection = []
    for frame in frames:
        true, predicted = frame.true_labels == label, frame.labels == label
        selection.append(
            FrameBoxes(
                frame.true_xyxy[true],
                frame.true_labels[true],
                frame.xyxy[predicted],
                frame.scores[predicted],
                frame.labels[predicted],
            )
        )
    matches = match_boxes(selection)
    count = sum(len(frame.true_xyxy) for frame in selection)
    return count, lambda weights: {"ap50": average_precision_50(matches, weights)}


def _boxes(manifest: Manifest, rows: pd.DataFrame) -> pd.DataFrame:
    """The boxes of some rows' videos: ``video``, ``frame``, ``label`` and corners in pixels."""
    if "boxes" not in rows:
        raise ManifestError("The manifest has no column 'boxes'. Detection needs this column: add it.")
    tables = []
    for cell in sorted(set(rows["boxes"]) - {""}):
        path = manifest.resolve(cell)
        if not path.is_file():
            raise ManifestError(f"The file of boxes {path} does not exist. Check the column 'boxes'.")
        with reading(path, "Give a CSV file of boxes.", ManifestError):
            table = pd.read_csv(path, dtype={"video": str, "label": str}, keep_default_na=False)
        if missing := [c for c in ("video", "frame", "label", *CORNERS) if c not in table]:
            raise ManifestError(f"{path} lacks the column {', '.join(missing)}. Add it to the file of boxes.")
        for column in ("frame", *CORNERS):
            numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
            if not np.isfinite(numbers).all():
                line = int(np.flatnonzero(~np.isfinite(numbers))[0])
                raise ManifestError(
                    f"{path}: Row {line + 1}, column {column} is {table[column][line]!r}; give a number."
                )
            table[column] = pd.to_numeric(table[column])
        tables.append(table[table["video"].isin(set(rows.loc[rows["boxes"] == cell, "video"]))])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["video", "frame", "label"])


def _checked_boxes(manifest: Manifest, rows: pd.DataFrame, split: str, head: HeadSpec) -> list[Boxes]:
    table = _boxes(manifest, rows)
    if unknown := sorted(set(table["label"]) - set(head.classes)):
        count = int(table["label"].isin(unknown).sum())
        raise ManifestError(
            f"{count} boxes of {split} have a class without training boxes: {named(unknown)}. Training has "
            f"{named(head.classes)}; move such rows to training or remove them."
        )
    flat: list[str] = []
    outside: list[str] = []
    boxes_of_video: dict[str, Boxes] = {}
    for video, of_video in table.groupby("video"):
        with open_video(manifest.resolve(str(video)), check=False) as reader:
            info = reader.info
        limit = np.array([info.width_px, info.height_px] * 2) + 0.001  # files of boxes have three decimals
        corners = of_video[CORNERS].to_numpy(np.float64)
        x1, y1, x2, y2 = corners.T
        names = [f"{video} frame {frame}" for frame in of_video["frame"]]
        flat += [name for name, bad in zip(names, ~((x2 > x1) & (y2 > y1)), strict=True) if bad]
        frames = of_video["frame"].to_numpy(np.int64)
        out = (corners < -0.001).any(axis=1) | (corners > limit).any(axis=1) | (frames < 0) | (frames >= info.n_frames)
        outside += [name for name, bad in zip(names, out, strict=True) if bad]
        numbers = of_video["label"].map(head.classes.index).to_numpy(np.int64)
        boxes_of_video[str(video)] = {int(f): (corners[frames == f], numbers[frames == f]) for f in np.unique(frames)}
    if flat:
        raise ManifestError(f"{len(flat)} boxes of {split} have no area: {named(flat)}. Correct or remove them.")
    if outside:
        raise ManifestError(
            f"{len(outside)} boxes of {split} reach outside their frame: {named(outside)}. Correct them."
        )
    return [boxes_of_video.get(video, {}) for video in rows["video"]]
