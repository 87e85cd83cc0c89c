"""The parts of an unfinished prediction, which are saved as they are finished so that it can be resumed."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, reading
from endofm_lab.prediction import BOX_COLUMNS, VideoPrediction
from endofm_lab.video.reader import VideoInfo


@dataclass(frozen=True, eq=False, repr=False)
class PredictionPart(Brief):
    """The results of the clips ``start_clip`` to ``stop_clip`` of a prediction, and the sums that the next part needs.

    Attributes:
        scores: head -> (n, K).
        distance: (n,) float64, as `VideoPrediction.distance`; (0,) for a model without statistics.
        frames: (m,) indices of the frames that no later clip shows.
        maps: mask head -> (m, K, h, w) uint8; empty if m is 0.
        boxes: box head -> (n, 7) float32: frame, label, score, x1, y1, x2, y2 in fractions of the frame.
        quality: (m, 4) float32, as `VideoPrediction.quality`.
        carry: sums over clips of the dense outputs of frames that later clips may still show: head -> (c, K, h, w).
        carry_frames: (c,) indices of these frames.
        carry_counts: (c,) number of clips so far that showed these frames.
    """

    start_clip: int
    stop_clip: int
    scores: dict[str, np.ndarray]
    distance: np.ndarray
    frames: np.ndarray
    maps: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]
    quality: np.ndarray
    carry: dict[str, np.ndarray]
    carry_frames: np.ndarray
    carry_counts: np.ndarray

    def save(self, folder: Path) -> Path:
        """Write the part as an uncompressed ``.npz`` whose name sorts by clip."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        for group in _GROUPS:
            arrays |= {f"{group}/{head}": value for head, value in getattr(self, group).items()}
        path = folder / f"part_{self.start_clip:08d}.npz"
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, clips=np.array([self.start_clip, self.stop_clip]), **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def read(cls, path: Path) -> "PredictionPart":
        """The part that `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        with reading(path, "Delete the file and predict again, which computes its clips again."):
            return cls._stored(path)

    @classmethod
    def _stored(cls, path: Path) -> "PredictionPart":
        with np.load(path, allow_pickle=False) as stored:
            start, stop = stored["clips"].tolist()
            grouped: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
            for name in stored.files:
                group, _, head = name.partition("/")
                if head:
                    grouped[group][head] = stored[name]
            plain = {name: stored[name] for name in ("distance", "quality", "frames", "carry_frames", "carry_counts")}
        return cls(start, stop, **grouped, **plain)  # type: ignore[arg-type]


_GROUPS = ("scores", "maps", "boxes", "carry")  # the fields of a part that hold arrays by head


def joined_parts(folder: Path) -> list[Path]:
    """The readable parts that follow each other without a gap from the first clip on; all other parts are removed."""
    joined: list[Path] = []
    clip = 0
    stored_paths = sorted(folder.glob("part_*.npz"))
    for path in stored_paths:
        try:
            part = PredictionPart.read(path)
        except UserError:
            break
        if part.start_clip != clip or part.stop_clip <= clip:
            break
        joined.append(path)
        clip = part.stop_clip
    for path in stored_paths[len(joined) :]:
        path.unlink()
    return joined


def box_table(
    boxes: dict[str, np.ndarray], classes: dict[str, list[str]], frame_times_s: np.ndarray, video: VideoInfo
) -> pd.DataFrame:
    """`VideoPrediction.boxes_xyxy` from every head's boxes as a `PredictionPart` holds them, in the order of frames."""
    scale = np.array([video.width_px, video.height_px] * 2, dtype=np.float32)
    tables = []
    for head, rows in {"": np.zeros((0, 7), np.float32), **boxes}.items():
        frames = rows[:, 0].astype(np.int64)
        columns: dict[str, Any] = {"frame": frames, "time_s": frame_times_s[frames], "head": [head] * len(rows)}
        columns |= {"label": [classes[head][int(label)] for label in rows[:, 1]], "score": rows[:, 2]}
        columns |= dict(zip(BOX_COLUMNS[5:], (rows[:, 3:] * scale).T, strict=True))
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables[1:] or tables, ignore_index=True).sort_values("frame", kind="stable", ignore_index=True)


def assemble(
    parts: Iterable[PredictionPart | Path],
    times_s: np.ndarray,
    grid_clip: np.ndarray,
    between: np.ndarray,
    frame_times_s: np.ndarray,
    video: VideoInfo,
    classes: dict[str, list[str]],
    provenance: dict[str, Any],
    folder: Path | None,
) -> VideoPrediction:
    """Join the parts of a finished run; with a folder, save the result there and remove the parts.

    Args:
        parts: the parts or their files, in order.
        times_s: (n, 2) start and end of every clip that was run.
        grid_clip: int (n,), the clip of the prediction that each of these clips belongs to.
        between: bool (n,), true for clips that were run for their masks and boxes only.
        frame_times_s: the times of all frames of the video.
        video: facts about the video.
        classes: head -> its class names.
        provenance: entries of the result's provenance.
        folder: where to save the result; None keeps it in memory.

    Raises:
        UserError: a part is missing.
    """
    joined = _joined(parts, len(times_s))
    scores, index, distance = joined.scores, joined.frames, joined.distance
    prediction = VideoPrediction(
        times_s=times_s[~between],
        scores={head: values[~between] for head, values in scores.items()},
        classes=classes,
        frames=index,
        frame_times_s=frame_times_s[index],
        maps=joined.maps,
        boxes_xyxy=box_table(joined.boxes, classes, frame_times_s, video),
        video=video,
        provenance=provenance,
        score_spread={head: _spread(values, grid_clip) for head, values in scores.items() if between.any()},
        distance=distance[~between] if len(distance) else None,
        quality=joined.quality,
    )
    if folder is not None:
        prediction.save(folder)
        shutil.rmtree(folder / "parts")
    return prediction


def _joined(parts: Iterable[PredictionPart | Path], n_clips: int) -> PredictionPart:
    """One part with the results of all parts, which must hold ``n_clips`` clips; it carries nothing.

    Raises:
        UserError: a part is missing.
    """
    gathered: dict[str, dict[str, list[np.ndarray]]] = {group: {} for group in _GROUPS}
    frames, distances, quality, clip = [], [], [], 0
    for part in parts:
        part = PredictionPart.read(part) if isinstance(part, Path) else part
        if part.start_clip != clip:
            raise UserError(f"The part with clip {clip} is missing. Predict again to compute the missing clips.")
        clip = part.stop_clip
        for group, into in gathered.items():
            for head, values in getattr(part, group).items():
                into.setdefault(head, []).append(values)
        frames.append(part.frames)
        distances.append(part.distance)
        quality.append(part.quality)
    if clip != n_clips:
        raise UserError(f"{clip} of {n_clips} clips were predicted. Predict again to compute the missing clips.")
    gathered["carry"] = {}
    none = np.empty(0, np.int64)
    return PredictionPart(
        start_clip=0,
        stop_clip=clip,
        distance=np.concatenate(distances),
        frames=np.concatenate(frames),
        quality=np.concatenate(quality),
        carry_frames=none,
        carry_counts=none,
        **{group: {head: np.concatenate(v) for head, v in heads.items()} for group, heads in gathered.items()},
    )


def _spread(scores: np.ndarray, grid_clip: np.ndarray) -> np.ndarray:
    """(N, K, 2): lowest and highest score over the clips that belong to each clip of the grid; scores (n, K)."""
    low = np.full((grid_clip.max() + 1, scores.shape[1]), np.inf, dtype=np.float32)
    high = -low
    np.minimum.at(low, grid_clip, scores)
    np.maximum.at(high, grid_clip, scores)
    return np.stack([low, high], axis=-1)
