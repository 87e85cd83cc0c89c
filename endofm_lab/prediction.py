"""What a prediction is, in memory and on disk."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from endofm_lab import NOTICE
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, read_json, write_json
from endofm_lab.video.reader import VideoInfo

BOX_COLUMNS = ["frame", "time_s", "label", "score", "x1", "y1", "x2", "y2"]
NORMAL = frozenset({"normal", "normal clean mucosa", "background"})  # classes that are no finding


@dataclass(frozen=True)
class VideoPrediction:
    """Scores of every clip of a video, and masks and boxes of the frames that the model saw.

    Attributes:
        times_s: (N, 2) float64, start and end of each clip in seconds, sorted by start.
        scores: classification head -> (N, K) float32 in 0..1; rows sum to one for a multi-class head.
        classes: head -> its K class names; for the mask and box head too.
        frames: (M,) int64, indices of the frames that some clip showed, ascending.
        frame_times_s: (M,) float64, their presentation times.
        masks: (M, K, h, w) uint8, probability x 255 on the mask head's grid, or None without such a head.
        boxes_xyxy: one row per box: frame, time_s, label, score in 0..1, and x1, y1, x2, y2 in pixels of the video.
        video: what was read.
        provenance: fingerprints of video and model, options, initialisation, versions.
    """

    times_s: np.ndarray
    scores: dict[str, np.ndarray]
    classes: dict[str, list[str]]
    frames: np.ndarray
    frame_times_s: np.ndarray
    masks: np.ndarray | None
    boxes_xyxy: pd.DataFrame
    video: VideoInfo
    provenance: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per clip: clip, start_s, end_s, and one column ``head.class`` per score."""
        columns: dict[str, Any] = {"clip": np.arange(len(self.times_s))}
        columns["start_s"], columns["end_s"] = self.times_s.T
        for head, values in self.scores.items():
            columns |= {f"{head}.{name}": values[:, k] for k, name in enumerate(self.classes[head])}
        return pd.DataFrame(columns)

    def clip_at(self, time_s: float) -> int:
        """The clip whose middle is nearest to a moment."""
        return int(np.abs(self.times_s.mean(axis=1) - time_s).argmin())

    def seen_frame(self, frame: int) -> int:
        """The frame nearest to ``frame`` that the model saw: its own masks and boxes are those to show."""
        return int(self.frames[np.abs(self.frames - frame).argmin()])

    def opening_frame(self) -> int:
        """The frame to show first: in the clip that scores highest for a finding, the one with the most evidence.

        Evidence is the area of the mask, or without a mask the score of the surest box; without either, the frame in
        the middle. Where no head tells findings from what is normal, the whole video is searched.
        """
        start_s, end_s = self.times_s.min(), self.times_s.max()
        scores = {head: values for head, values in self.scores.items() if NORMAL & set(self.classes[head])}
        if scores:
            of_finding = [
                values[:, [name not in NORMAL for name in self.classes[head]]].max(axis=1, initial=0.0)
                for head, values in scores.items()
            ]
            start_s, end_s = self.times_s[np.max(of_finding, axis=0).argmax()]
        inside = np.flatnonzero((self.frame_times_s >= start_s) & (self.frame_times_s <= end_s))
        if self.masks is not None:
            area = (np.asarray(self.masks[inside]) >= 128).any(axis=1).sum(axis=(1, 2))
            if area.max(initial=0) > 0:
                return int(self.frames[inside[area.argmax()]])
        boxes = self.boxes_xyxy[self.boxes_xyxy["frame"].isin(self.frames[inside])]
        if len(boxes):
            return int(boxes["frame"].to_numpy()[boxes["score"].to_numpy().argmax()])
        return int(self.frames[np.abs(self.frame_times_s - (start_s + end_s) / 2).argmin()])

    def mask(self, frame: int, threshold: float = 0.5) -> np.ndarray:
        """Bool (K, H, W) in the video's own size: where the mask probability reaches ``threshold``.

        Raises:
            UserError: the model saw no such frame, or has no mask head.
        """
        if self.masks is None:
            raise UserError(f"The model {self.provenance.get('model_name')} has no mask head, so there is no mask.")
        at = int(np.searchsorted(self.frames, frame))
        if at == len(self.frames) or self.frames[at] != frame:
            raise UserError(
                f"Frame {frame} was in no clip; the nearest that was is {self.seen_frame(frame)}. "
                "Predict with every_frame=True to have a mask for every frame."
            )
        grid = torch.from_numpy(np.array(self.masks[at], dtype=np.float32))[None] / 255
        size = (self.video.height_px, self.video.width_px)
        return (F.interpolate(grid, size=size, mode="bilinear")[0] >= threshold).numpy()

    def boxes(self, frame: int) -> pd.DataFrame:
        """The boxes of one frame."""
        return self.boxes_xyxy[self.boxes_xyxy["frame"] == frame]

    def save(self, folder: str | Path) -> Path:
        """Write ``clips.parquet``, ``boxes.parquet``, ``masks.npy``, ``masks/<frame>.png`` (1-bit) and, last, JSON.

        ``prediction.json`` comes last: a folder that holds it is whole. `load_prediction` reads it back.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "clips.parquet") as temporary:
            self.table().to_parquet(temporary, index=False)
        with atomic_path(folder / "boxes.parquet") as temporary:
            self.boxes_xyxy.to_parquet(temporary, index=False)
        if self.masks is not None:
            if not isinstance(self.masks, np.memmap):
                with atomic_path(folder / "masks.npy") as temporary, temporary.open("wb") as file:
                    np.save(file, self.masks)
            with atomic_path(folder / "masks") as temporary:
                temporary.mkdir()
                for frame in self.frames.tolist():
                    for k, mask in enumerate(self.mask(frame)):
                        name = f"{frame:06d}.png" if len(self.masks[0]) == 1 else f"{frame:06d}_{k}.png"
                        Image.fromarray(mask).save(temporary / name)
        video = {**vars(self.video), "fps": str(self.video.fps), "path": str(self.video.path)}
        write_json(
            folder / "prediction.json",
            {
                "notice": NOTICE,
                "video": video,
                "classes": self.classes,
                "heads": list(self.scores),
                "frames": self.frames.tolist(),
                "frame_times_s": self.frame_times_s.tolist(),
                "provenance": self.provenance,
            },
        )
        return folder


def load_prediction(folder: str | Path) -> VideoPrediction:
    """The prediction that was saved in a folder; masks stay on disk until they are asked for.

    Raises:
        UserError: the folder holds no finished prediction.
    """
    folder = Path(folder)
    if not (folder / "prediction.json").exists():
        raise UserError(
            f"{folder} holds no finished prediction: run `endofm-lab predict VIDEO --out {folder}` (again)."
        )
    about = read_json(folder / "prediction.json")
    table = pd.read_parquet(folder / "clips.parquet")
    classes = about["classes"]
    masks = folder / "masks.npy"
    return VideoPrediction(
        times_s=table[["start_s", "end_s"]].to_numpy(),
        scores={
            head: table[[f"{head}.{name}" for name in classes[head]]].to_numpy(np.float32) for head in about["heads"]
        },
        classes=classes,
        frames=np.array(about["frames"], dtype=np.int64),
        frame_times_s=np.array(about["frame_times_s"], dtype=np.float64),
        masks=np.load(masks, mmap_mode="r", allow_pickle=False) if masks.exists() else None,
        boxes_xyxy=pd.read_parquet(folder / "boxes.parquet"),
        video=VideoInfo(
            **{**about["video"], "fps": Fraction(about["video"]["fps"]), "path": Path(about["video"]["path"])}
        ),
        provenance=about["provenance"],
    )


@dataclass(frozen=True)
class Part:
    """The results of clips ``start_clip`` to ``stop_clip`` of a running prediction, and what it carries on.

    Attributes:
        scores: head -> (n, K).
        frames: (m,) frames that no later clip shows.
        masks: (m, K, h, w) uint8, or (m, 0, 0, 0) without a mask head.
        boxes: (n, 7) float32: frame, label, score, x1, y1, x2, y2 in fractions of the frame.
        carry: sums over clips of the dense outputs of frames that a later clip may still show: head -> (c, K, h, w).
        carry_frames: (c,) their indices.
        carry_counts: (c,) in how many clips they were so far.
    """

    start_clip: int
    stop_clip: int
    scores: dict[str, np.ndarray]
    frames: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    carry: dict[str, np.ndarray]
    carry_frames: np.ndarray
    carry_counts: np.ndarray

    def save(self, folder: Path) -> Path:
        """Write the part as an uncompressed ``.npz`` whose name sorts by clip."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        arrays |= {f"scores/{head}": value for head, value in self.scores.items()}
        arrays |= {f"carry/{head}": value for head, value in self.carry.items()}
        path = folder / f"part_{self.start_clip:08d}.npz"
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, span=np.array([self.start_clip, self.stop_clip]), **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def read(cls, path: Path) -> "Part":
        """The part that `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            start, stop = stored["span"].tolist()
            grouped: dict[str, dict[str, np.ndarray]] = {"scores": {}, "carry": {}}
            for name in stored.files:
                group, _, head = name.partition("/")
                if head:
                    grouped[group][head] = stored[name]
            plain = {name: stored[name] for name in ("frames", "masks", "boxes", "carry_frames", "carry_counts")}
        return cls(start, stop, grouped["scores"], carry=grouped["carry"], **plain)


def joined_parts(folder: Path) -> list[Path]:
    """The parts from the first clip on that follow each other and can be read; the others are removed."""
    joined: list[Path] = []
    clip = 0
    found = sorted(folder.glob("part_*.npz"))
    for path in found:
        try:
            with np.load(path, allow_pickle=False) as stored:
                start, stop = stored["span"].tolist()
        except (OSError, ValueError, KeyError, BadZipFile):
            break
        if start != clip:
            break
        joined.append(path)
        clip = stop
    for path in found[len(joined) :]:
        path.unlink()
    return joined


def assemble(
    parts: Iterable[Part | Path],
    times_s: np.ndarray,
    frame_times_s: np.ndarray,
    video: VideoInfo,
    classes: dict[str, list[str]],
    box_head: str | None,
    provenance: dict[str, Any],
    folder: Path | None,
) -> VideoPrediction:
    """Join the parts of a finished run; with a folder, save the result there and remove the parts.

    ``classes`` holds every head's names, ``box_head`` the one that gave the boxes, ``frame_times_s`` all frames' times.

    Raises:
        UserError: a part is missing.
    """
    scores: dict[str, list[np.ndarray]] = {}
    frames, masks, boxes = [], [], []
    clip = 0
    for part in parts:
        part = Part.read(part) if isinstance(part, Path) else part
        if part.start_clip != clip:
            raise UserError(f"The part with clip {clip} is missing: predict again, it computes the missing clips.")
        clip = part.stop_clip
        for head, values in part.scores.items():
            scores.setdefault(head, []).append(values)
        frames.append(part.frames)
        if part.masks.size:
            masks.append(part.masks)
        boxes.append(part.boxes)
    if clip != len(times_s):
        raise UserError(f"{clip} of {len(times_s)} clips were predicted: predict again, it computes the missing ones.")
    index = np.concatenate(frames)
    found = np.concatenate(boxes)
    names = classes[box_head] if box_head else []
    scale = np.array([video.width_px, video.height_px] * 2, dtype=np.float32)
    table = pd.DataFrame(found[:, 3:] * scale, columns=BOX_COLUMNS[4:])
    table.insert(0, "score", found[:, 2])
    table.insert(0, "label", [names[int(label)] for label in found[:, 1]])
    table.insert(0, "time_s", frame_times_s[found[:, 0].astype(np.int64)])
    table.insert(0, "frame", found[:, 0].astype(np.int64))
    prediction = VideoPrediction(
        times_s=times_s,
        scores={head: np.concatenate(values) for head, values in scores.items()},
        classes=classes,
        frames=index,
        frame_times_s=frame_times_s[index],
        masks=np.concatenate(masks) if masks else None,
        boxes_xyxy=table,
        video=video,
        provenance=provenance,
    )
    if folder is not None:
        prediction.save(folder)
        shutil.rmtree(folder / "parts")
    return prediction
