"""A prediction, in memory and on disk."""

from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from endofm_lab import NOTICE
from endofm_lab.brief import Brief, html_of
from endofm_lab.data.labels import is_finding
from endofm_lab.errors import UserError
from endofm_lab.familiarity.clips import summary_of, text_of, unfamiliar_frames
from endofm_lab.familiarity.quality import FAULTS, fault_counts, fault_text
from endofm_lab.files import atomic_path, read_object, read_parquet, reading, write_json, write_parquet
from endofm_lab.folders.hashes import HASHES, refuse_changed
from endofm_lab.metrics.phases import true_runs
from endofm_lab.video.reader import VideoInfo

BOX_COLUMNS = ["frame", "time_s", "head", "label", "score", "x1", "y1", "x2", "y2"]
BOUNDS = ("lowest", "highest")  # of a score over a clip and the clips up to the next one


@dataclass(frozen=True, eq=False, repr=False)
class VideoPrediction(Brief):
    """Scores of every clip of a video, and masks and boxes of the frames in the clips.

    Attributes:
        times_s: (N, 2) float64, start and end of each clip in seconds, sorted by start.
        scores: classification head -> (N, K) float32 in 0..1; rows sum to one for a multi-class head.
        classes: head -> its K class names, also for mask and box heads.
        frames: (M,) int64, indices of the frames in the clips, ascending.
        frame_times_s: (M,) float64, presentation times of these frames.
        maps: mask head -> (M, K, h, w) uint8, probability times 255 on the head's grid.
        boxes_xyxy: one row per box: frame, time_s, head, label, score in 0..1, x1, y1, x2, y2 in the video's pixels.
        video: facts about the video.
        provenance: fingerprints of video and model, options, initialisation, versions.
        score_spread: classification head -> (N, K, 2) float32, the lowest and the highest score over each clip and the
            clips between it and the next one; empty if no clips in between were run.
        distance: (N,) float64, how far each clip is from what the model learned; beyond 1, it is unlike that. None if
            the model has no statistics of its training features (see `endofm_lab.familiarity`).
        quality: (M, 4) float32 in 0..1, the probability of each of `familiarity.quality.FAULTS` in each frame; None for
            a prediction that an older version saved.
    """

    times_s: np.ndarray
    scores: dict[str, np.ndarray]
    classes: dict[str, list[str]]
    frames: np.ndarray
    frame_times_s: np.ndarray
    maps: dict[str, np.ndarray]
    boxes_xyxy: pd.DataFrame
    video: VideoInfo
    provenance: dict[str, Any] = field(default_factory=dict)
    score_spread: dict[str, np.ndarray] = field(default_factory=dict)
    distance: np.ndarray | None = None
    quality: np.ndarray | None = None

    def _repr_html_(self) -> str:
        return html_of(self, self.table())

    @property
    def masks(self) -> np.ndarray | None:
        """The maps of the only mask head; None without a mask head.

        Raises:
            UserError: there are several mask heads.
        """
        return self.maps[self._map_head(None)] if self.maps else None

    @property
    def box_heads(self) -> list[str]:
        """The names of the box heads, also of those that found no box."""
        return [head for head in self.classes if head not in self.scores and head not in self.maps]

    @property
    def familiar(self) -> np.ndarray | None:
        """(N,) bool, whether each clip looks like what the model learned; None if that is unknown."""
        return None if self.distance is None else self.distance <= 1

    def unfamiliar_frames(self) -> np.ndarray:
        """(M,) bool, frames whose clips look unlike what the model learned; all False if that is unknown."""
        return unfamiliar_frames(self.distance, self.times_s, self.frame_times_s)

    def unfamiliar_stretches(self) -> list[tuple[int, int]]:
        """First and last row of ``frames`` of every stretch that looks unlike what the model learned."""
        return [(start, stop - 1) for start, stop in true_runs(self.unfamiliar_frames())]

    def quality_text(self) -> str:
        """A sentence on how many frames are blurred, dark, covered by foam or out of the body."""
        return fault_text(self.quality)

    def familiarity_text(self) -> str:
        """A sentence on how many clips look unlike what the model learned."""
        return text_of(self.distance)

    def table(self) -> pd.DataFrame:
        """One row per clip: clip, start_s, end_s, one column ``head.class`` per score, and the bounds of its spread.

        If familiarity is known, also the distance of the clip, and whether the clip is familiar.
        """
        columns: dict[str, Any] = {"clip": np.arange(len(self.times_s))}
        columns["start_s"], columns["end_s"] = self.times_s.T
        for head, values in self.scores.items():
            columns |= {f"{head}.{name}": values[:, k] for k, name in enumerate(self.classes[head])}
        for head, values in self.score_spread.items():
            for k, name in enumerate(self.classes[head]):
                columns |= {f"{bound} {head}.{name}": values[:, k, index] for index, bound in enumerate(BOUNDS)}
        if self.distance is not None:
            columns |= {"distance": self.distance, "familiar": self.familiar}
        return pd.DataFrame(columns)

    def clip_at(self, time_s: float) -> int:
        """The number of the clip whose middle is nearest to a time."""
        return int(np.abs(self.times_s.mean(axis=1) - time_s).argmin())

    def seen_frame(self, frame: int) -> int:
        """The frame nearest to ``frame`` that was in a clip, and so has masks and boxes of its own."""
        return int(self.frames[np.abs(self.frames - frame).argmin()])

    def opening_frame(self) -> int:
        """The frame with most evidence, which is to be shown first; see `telling_frames`."""
        return self.telling_frames(1)[0]

    def telling_frames(self, n: int) -> list[int]:
        """At most ``n`` frames, each with the most evidence in its clip.

        The clips are those with the highest scores for a finding that do not overlap, best first, those that look
        unlike what the model learned last. If no head distinguishes findings from normal, the whole video is searched
        for one frame.
        """
        scores = {head: values for head, values in self.scores.items() if not all(map(is_finding, self.classes[head]))}
        if not scores:
            return [self.most_evidence(self.times_s.min(), self.times_s.max())]
        of_finding = [
            values[:, list(map(is_finding, self.classes[head]))].max(axis=1, initial=0.0)
            for head, values in scores.items()
        ]
        chosen: list[np.ndarray] = []
        middle = np.searchsorted(self.frame_times_s, self.times_s.mean(axis=1)).clip(max=len(self.frames) - 1)
        strange = self.unfamiliar_frames()[middle]
        for start_s, end_s in self.times_s[np.lexsort((-np.max(of_finding, axis=0), strange))]:
            if len(chosen) < n and all(end_s <= span[0] or start_s >= span[1] for span in chosen):
                chosen.append(np.array([start_s, end_s]))
        return list(dict.fromkeys(self.most_evidence(*span) for span in chosen))

    def most_evidence(self, start_s: float, end_s: float) -> int:
        """The frame between two times with the largest mask; without masks, the one with the most confident box.

        Without masks and boxes, it is the frame in the middle.
        """
        rows = np.flatnonzero((self.frame_times_s >= start_s) & (self.frame_times_s <= end_s))
        if self.maps:
            covered = [(np.asarray(values[rows]) >= 128).any(axis=1) for values in self.maps.values()]
            area = np.sum([places.sum(axis=(1, 2)) for places in covered], axis=0)
            if area.max(initial=0) > 0:
                return int(self.frames[rows[area.argmax()]])
        boxes = self.boxes_xyxy[self.boxes_xyxy["frame"].isin(self.frames[rows])]
        if len(boxes):
            return int(boxes["frame"].to_numpy()[boxes["score"].to_numpy().argmax()])
        return int(self.frames[np.abs(self.frame_times_s - (start_s + end_s) / 2).argmin()])

    def mask(self, frame: int, threshold: float = 0.5, head: str | None = None) -> np.ndarray:
        """Bool (K, H, W) in the video's own size, true where the mask probability reaches ``threshold``.

        ``head`` must be named where the model has several mask heads.

        Raises:
            UserError: the frame was in no clip, or the model has no such mask head, or several and none is named.
        """
        values = self.maps[self._map_head(head)]
        row = int(np.searchsorted(self.frames, frame))
        if row == len(self.frames) or self.frames[row] != frame:
            raise UserError(
                f"Frame {frame} was in no clip; the nearest frame that was is {self.seen_frame(frame)}. "
                "Predict with every_frame=True to get a mask for every frame."
            )
        grid = torch.from_numpy(np.array(values[row], dtype=np.float32))[None] / 255
        size = (self.video.height_px, self.video.width_px)
        return (F.interpolate(grid, size=size, mode="bilinear")[0] >= threshold).numpy()

    def boxes(self, frame: int, head: str | None = None) -> pd.DataFrame:
        """The boxes of one frame, of one head or of all box heads."""
        rows = self.boxes_xyxy["frame"] == frame
        return self.boxes_xyxy[rows if head is None else rows & (self.boxes_xyxy["head"] == head)]

    def overlay(
        self, frame: int, heads: Collection[str] | None = None, unfamiliar: bool = False
    ) -> tuple[np.ndarray | None, pd.DataFrame]:
        """The union of the heads' masks on a frame, bool (H, W) or None, and the heads' boxes, for drawing.

        Args:
            frame: a frame in a clip.
            heads: the heads to draw; None stands for all heads.
            unfamiliar: also draw on a frame that looks unlike what the model learned.
        """
        if not unfamiliar and frame in self.frames[self.unfamiliar_frames()]:
            return None, self.boxes_xyxy[:0]
        mask_heads = [head for head in self.maps if heads is None or head in heads]
        masks = [self.mask(frame, head=head).any(axis=0) for head in mask_heads]
        mask = np.any(masks, axis=0) if masks else None
        boxes = self.boxes(frame)
        return mask, boxes if heads is None else boxes[boxes["head"].isin(heads)]

    def _map_head(self, head: str | None) -> str:
        name = self.provenance.get("model_name")
        if not self.maps:
            raise UserError(f"The model {name} has no mask head. Choose a model with one to get masks.")
        if head is None and len(self.maps) == 1:
            return next(iter(self.maps))
        if head not in self.maps:
            raise UserError(f"head is {head!r}; name one of the mask heads {', '.join(self.maps)} of the model {name}.")
        return head

    def save(self, folder: str | Path) -> Path:
        """Write ``clips``, ``boxes`` and ``quality.parquet``, ``masks.npy``, ``masks/<frame>.png`` and, last, JSON.

        With several mask heads, each has a ``masks_<head>.npy`` and a ``masks_<head>/``. ``prediction.json`` is written
        last, so a folder that contains it is complete. `load_prediction` reads it back.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HASHES).unlink(missing_ok=True)
        write_parquet(folder / "clips.parquet", self.table())
        write_parquet(folder / "boxes.parquet", self.boxes_xyxy)
        if self.quality is not None:
            columns = dict(zip(FAULTS, self.quality.T, strict=True))
            write_parquet(folder / "quality.parquet", pd.DataFrame({"frame": self.frames, **columns}))
        for head, values in self.maps.items():
            stem = _stem(head, len(self.maps))
            if not isinstance(values, np.memmap):
                with atomic_path(folder / f"{stem}.npy") as temporary, temporary.open("wb") as file:
                    np.save(file, values)
            with atomic_path(folder / stem) as temporary:
                temporary.mkdir()
                for frame in self.frames.tolist():
                    for k, mask in enumerate(self.mask(frame, head=head)):
                        name = f"{frame:06d}.png" if values.shape[1] == 1 else f"{frame:06d}_{k}.png"
                        Image.fromarray(mask).save(temporary / name)
        video = {**vars(self.video), "fps": str(self.video.fps), "path": str(self.video.path)}
        write_json(
            folder / "prediction.json",
            {
                "notice": NOTICE,
                "video": video,
                "classes": self.classes,
                "heads": list(self.scores),
                "maps": list(self.maps),
                "frames": self.frames.tolist(),
                "frame_times_s": self.frame_times_s.tolist(),
                "familiarity": summary_of(self.distance, len(self.times_s)),
                "quality": fault_counts(self.quality),
                "provenance": self.provenance,
            },
        )
        return folder


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def load_prediction(folder: str | Path) -> VideoPrediction:
    """The prediction that was saved in a folder; masks stay on disk until they are used.

    Raises:
        UserError: the folder holds no finished prediction, or one that an older version wrote with mixed mask heads.
    """
    folder = Path(folder)
    if not (folder / "prediction.json").exists():
        raise UserError(
            f"{folder} holds no finished prediction. Run `endofm-lab predict VIDEO --out {folder}` to complete it."
        )
    refuse_changed(
        folder,
        "prediction.json",
        "clips.parquet",
        "boxes.parquet",
        *_names(folder, "masks*.npy"),
        *_names(folder, "quality.parquet"),
    )
    description = read_object(folder / "prediction.json", _FIELDS, _REMEDY)
    with reading(folder, _REMEDY):
        prediction = _stored(folder, description)
        _check_sizes(prediction)
    return prediction


def _stored(folder: Path, description: dict[str, Any]) -> VideoPrediction:
    """The prediction in a folder whose ``prediction.json`` holds ``description``."""
    table = read_parquet(folder / "clips.parquet")
    classes = description["classes"]
    spread = {
        head: np.stack([table[[f"{bound} {head}.{name}" for name in classes[head]]] for bound in BOUNDS], axis=-1)
        for head in description["heads"]
        if f"{BOUNDS[0]} {head}.{classes[head][0]}" in table
    }
    maps, boxes = _stored_maps(folder, description), read_parquet(folder / "boxes.parquet")
    if "head" not in boxes:  # written by a version in which a model had at most one box head
        box_heads = [head for head in classes if head not in description["heads"] and head not in maps]
        boxes.insert(BOX_COLUMNS.index("head"), "head", box_heads[0] if box_heads else "")
    return VideoPrediction(
        times_s=table[["start_s", "end_s"]].to_numpy(),
        scores={
            head: table[[f"{head}.{name}" for name in classes[head]]].to_numpy(np.float32)
            for head in description["heads"]
        },
        classes=classes,
        frames=np.array(description["frames"], dtype=np.int64),
        frame_times_s=np.array(description["frame_times_s"], dtype=np.float64),
        maps=maps,
        boxes_xyxy=boxes,
        video=VideoInfo(
            **{
                **description["video"],
                "fps": Fraction(description["video"]["fps"]),
                "path": Path(description["video"]["path"]),
            }
        ),
        provenance=description["provenance"],
        score_spread=spread,
        distance=table["distance"].to_numpy(np.float64) if "distance" in table else None,
        quality=_stored_quality(folder) if description.get("quality") is not None else None,
    )


def _stored_quality(folder: Path) -> np.ndarray:
    """The faults of frames (M, 4) in a folder; predictions of older versions have none."""
    return read_parquet(folder / "quality.parquet")[list(FAULTS)].to_numpy(np.float32)


def _check_sizes(prediction: VideoPrediction) -> None:
    """Make sure that the arrays of a prediction belong together, with errors for `reading`."""
    N, M = len(prediction.times_s), len(prediction.frames)
    if not N or not np.isfinite(prediction.times_s).all():
        raise ValueError("the clips have no times")
    if prediction.quality is not None and (
        prediction.quality.shape[0] != M or not np.isfinite(prediction.quality).all()
    ):
        raise ValueError("the faults of the frames hold NaN or are not one per frame")
    if prediction.distance is not None and not (prediction.distance >= 0).all():
        raise ValueError("the distances of the clips hold NaN or negative numbers")
    for head, scores in prediction.scores.items():
        if not np.isfinite(scores).all():
            raise ValueError(f"the scores of {head} hold NaN")
    if (
        len(prediction.frame_times_s) != M
        or (np.diff(prediction.frames) <= 0).any()
        or (M and prediction.frames[0] < 0)
    ):
        raise ValueError("the frames are not in order")
    for head, values in prediction.maps.items():
        if values.ndim != 4 or values.shape[:2] != (M, len(prediction.classes[head])) or values.dtype != np.uint8:
            raise ValueError(f"the masks of {head} are of shape {values.shape} and type {values.dtype}")
    boxes = prediction.boxes_xyxy
    numbers = [boxes[name].dtype.kind in "iuf" for name in BOX_COLUMNS if name not in ("head", "label")]
    if not all(numbers):
        raise ValueError("the boxes do not hold numbers")


_REMEDY = "Predict again into another folder, or copy this one again."
_FIELDS = {  # of prediction.json
    "video": dict[str, str | int | float | bool | None],
    "classes": dict[str, list[str]],
    "heads": list[str],
    "frames": list[int],
    "frame_times_s": list[float],
    "provenance": dict[str, Any],
}


def _stem(head: str, n_heads: int) -> str:
    """The stem of the names of the files with a head's masks."""
    if not head.isidentifier():
        raise UserError(
            f"A mask head is called {head!r}. Use letters, digits and underscores, since files are named by it."
        )
    return "masks" if n_heads == 1 else f"masks_{head}"


def _stored_maps(folder: Path, description: dict[str, Any]) -> dict[str, np.ndarray]:
    """The maps in a folder by head, left on disk until they are used; ``description`` is its ``prediction.json``."""
    if "maps" in description:
        paths = {head: folder / f"{_stem(head, len(description['maps']))}.npy" for head in description["maps"]}
        return {head: np.load(path, mmap_mode="r", allow_pickle=False) for head, path in paths.items()}
    if not (folder / "masks.npy").exists():
        return {}
    masks = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False)
    classes = description["classes"]
    fitting = [head for head in classes if head not in description["heads"] and len(classes[head]) == masks.shape[1]]
    if len(masks) != len(description["frames"]) or not fitting:
        raise UserError(f"{folder} was written by an older version that mixed masks of several heads. Predict again.")
    return {"mask" if "mask" in fitting else fitting[0]: masks}
