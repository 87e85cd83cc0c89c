"""What a prediction is, in memory and on disk."""

import shutil
from collections.abc import Collection, Iterable
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
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, read_object, read_parquet, reading, write_json, write_parquet
from endofm_lab.folders.hashes import HASHES, refuse_changed
from endofm_lab.parts import Part
from endofm_lab.video.reader import VideoInfo

BOX_COLUMNS = ["frame", "time_s", "head", "label", "score", "x1", "y1", "x2", "y2"]
BOUNDS = ("lowest", "highest")  # of a score over the clips between
NORMAL = frozenset({"normal", "normal clean mucosa", "background"})  # classes that are no finding


@dataclass(frozen=True, eq=False, repr=False)
class VideoPrediction(Brief):
    """Scores of every clip of a video, and masks and boxes of the frames that the model saw.

    Attributes:
        times_s: (N, 2) float64, start and end of each clip in seconds, sorted by start.
        scores: classification head -> (N, K) float32 in 0..1; rows sum to one for a multi-class head.
        classes: head -> its K class names; for mask and box heads too.
        frames: (M,) int64, indices of the frames that some clip showed, ascending.
        frame_times_s: (M,) float64, their presentation times.
        maps: mask head -> (M, K, h, w) uint8, probability x 255 on the head's grid.
        boxes_xyxy: one row per box: frame, time_s, head, label, score in 0..1, x1, y1, x2, y2 in the video's pixels.
        video: what was read.
        provenance: fingerprints of video and model, options, initialisation, versions.
        score_spread: classification head -> (N, K, 2) float32, the lowest and the highest score of each clip and of the
            clips between this one and the next; empty where no clips between were run.
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

    def _repr_html_(self) -> str:
        return html_of(self, self.table())

    @property
    def masks(self) -> np.ndarray | None:
        """The maps of the only mask head, or None without one.

        Raises:
            UserError: there are several mask heads.
        """
        return self.maps[self._map_head(None)] if self.maps else None

    @property
    def box_heads(self) -> list[str]:
        """The heads that answer with boxes, whether they found any or not."""
        return [head for head in self.classes if head not in self.scores and head not in self.maps]

    def table(self) -> pd.DataFrame:
        """One row per clip: clip, start_s, end_s, one column ``head.class`` per score, and the bounds of its spread."""
        columns: dict[str, Any] = {"clip": np.arange(len(self.times_s))}
        columns["start_s"], columns["end_s"] = self.times_s.T
        for head, values in self.scores.items():
            columns |= {f"{head}.{name}": values[:, k] for k, name in enumerate(self.classes[head])}
        for head, values in self.score_spread.items():
            for k, name in enumerate(self.classes[head]):
                columns |= {f"{bound} {head}.{name}": values[:, k, at] for at, bound in enumerate(BOUNDS)}
        return pd.DataFrame(columns)

    def clip_at(self, time_s: float) -> int:
        """The clip whose middle is nearest to a moment."""
        return int(np.abs(self.times_s.mean(axis=1) - time_s).argmin())

    def seen_frame(self, frame: int) -> int:
        """The frame nearest to ``frame`` that the model saw: its own masks and boxes are those to show."""
        return int(self.frames[np.abs(self.frames - frame).argmin()])

    def opening_frame(self) -> int:
        """The frame to show first, the one with most evidence: see `telling_frames`."""
        return self.telling_frames(1)[0]

    def telling_frames(self, n: int) -> list[int]:
        """At most ``n`` frames, each the one with most evidence in its clip.

        The clips are those that score highest for a finding and do not overlap, best first. Where no head tells
        findings from what is normal, the whole video is searched for one frame.
        """
        scores = {head: values for head, values in self.scores.items() if NORMAL & set(self.classes[head])}
        if not scores:
            return [self._most_evidence(self.times_s.min(), self.times_s.max())]
        of_finding = [
            values[:, [name not in NORMAL for name in self.classes[head]]].max(axis=1, initial=0.0)
            for head, values in scores.items()
        ]
        chosen: list[np.ndarray] = []
        for start_s, end_s in self.times_s[np.argsort(-np.max(of_finding, axis=0), kind="stable")]:
            if len(chosen) < n and all(end_s <= other[0] or start_s >= other[1] for other in chosen):
                chosen.append(np.array([start_s, end_s]))
        return list(dict.fromkeys(self._most_evidence(*one) for one in chosen))

    def _most_evidence(self, start_s: float, end_s: float) -> int:
        """Of the frames between two moments, the one with the largest mask, or without a mask the surest box.

        Without either, the frame in the middle.
        """
        inside = np.flatnonzero((self.frame_times_s >= start_s) & (self.frame_times_s <= end_s))
        if self.maps:
            covered = [(np.asarray(values[inside]) >= 128).any(axis=1) for values in self.maps.values()]
            area = np.sum([places.sum(axis=(1, 2)) for places in covered], axis=0)
            if area.max(initial=0) > 0:
                return int(self.frames[inside[area.argmax()]])
        boxes = self.boxes_xyxy[self.boxes_xyxy["frame"].isin(self.frames[inside])]
        if len(boxes):
            return int(boxes["frame"].to_numpy()[boxes["score"].to_numpy().argmax()])
        return int(self.frames[np.abs(self.frame_times_s - (start_s + end_s) / 2).argmin()])

    def mask(self, frame: int, threshold: float = 0.5, head: str | None = None) -> np.ndarray:
        """Bool (K, H, W) in the video's own size: where the mask probability reaches ``threshold``.

        ``head`` must be named where the model has several mask heads.

        Raises:
            UserError: the model saw no such frame, has no mask head or no such one, or has several and none is named.
        """
        values = self.maps[self._map_head(head)]
        at = int(np.searchsorted(self.frames, frame))
        if at == len(self.frames) or self.frames[at] != frame:
            raise UserError(
                f"Frame {frame} was in no clip; the nearest that was is {self.seen_frame(frame)}. "
                "Predict with every_frame=True to have a mask for every frame."
            )
        grid = torch.from_numpy(np.array(values[at], dtype=np.float32))[None] / 255
        size = (self.video.height_px, self.video.width_px)
        return (F.interpolate(grid, size=size, mode="bilinear")[0] >= threshold).numpy()

    def boxes(self, frame: int, head: str | None = None) -> pd.DataFrame:
        """The boxes of one frame, of one head or of all box heads."""
        own = self.boxes_xyxy["frame"] == frame
        return self.boxes_xyxy[own if head is None else own & (self.boxes_xyxy["head"] == head)]

    def overlay(self, frame: int, heads: Collection[str] | None = None) -> tuple[np.ndarray | None, pd.DataFrame]:
        """What to draw on a frame: where any mask of some heads is, bool (H, W) or None, and their boxes.

        ``heads`` None: of all heads.
        """
        shown = [head for head in self.maps if heads is None or head in heads]
        mask = np.any([self.mask(frame, head=head).any(axis=0) for head in shown], axis=0) if shown else None
        boxes = self.boxes(frame)
        return mask, boxes if heads is None else boxes[boxes["head"].isin(heads)]

    def _map_head(self, head: str | None) -> str:
        name = self.provenance.get("model_name")
        if not self.maps:
            raise UserError(f"The model {name} has no mask head, so there is no mask.")
        if head is None and len(self.maps) == 1:
            return next(iter(self.maps))
        if head not in self.maps:
            raise UserError(f"The model {name} has the mask heads {', '.join(self.maps)}; name one, not {head!r}.")
        return head

    def save(self, folder: str | Path) -> Path:
        """Write ``clips.parquet``, ``boxes.parquet``, ``masks.npy``, ``masks/<frame>.png`` (1-bit) and, last, JSON.

        Several mask heads have ``masks_<head>.npy`` and ``masks_<head>/`` each. ``prediction.json`` comes last: a
        folder that holds it is whole. `load_prediction` reads it back.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HASHES).unlink(missing_ok=True)
        write_parquet(folder / "clips.parquet", self.table())
        write_parquet(folder / "boxes.parquet", self.boxes_xyxy)
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
                "provenance": self.provenance,
            },
        )
        return folder


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def load_prediction(folder: str | Path) -> VideoPrediction:
    """The prediction that was saved in a folder; masks stay on disk until they are asked for.

    Raises:
        UserError: the folder holds no finished prediction, or one of an older version that cannot be told apart.
    """
    folder = Path(folder)
    if not (folder / "prediction.json").exists():
        raise UserError(
            f"{folder} holds no finished prediction: run `endofm-lab predict VIDEO --out {folder}` (again)."
        )
    refuse_changed(folder, "prediction.json", "clips.parquet", "boxes.parquet", *_names(folder, "masks*.npy"))
    about = read_object(folder / "prediction.json", _ABOUT, _REMEDY)
    with reading(folder, _REMEDY):
        found = _stored(folder, about)
        _check_sizes(found)
    return found


def _stored(folder: Path, about: dict[str, Any]) -> VideoPrediction:
    """The prediction of a folder and what its ``prediction.json`` says."""
    table = read_parquet(folder / "clips.parquet")
    classes = about["classes"]
    spread = {
        head: np.stack([table[[f"{bound} {head}.{name}" for name in classes[head]]] for bound in BOUNDS], axis=-1)
        for head in about["heads"]
        if f"{BOUNDS[0]} {head}.{classes[head][0]}" in table
    }
    maps, boxes = _stored_maps(folder, about), read_parquet(folder / "boxes.parquet")
    if "head" not in boxes:  # written when a model had one box head at most
        others = [head for head in classes if head not in about["heads"] and head not in maps]
        boxes.insert(BOX_COLUMNS.index("head"), "head", others[0] if others else "")
    return VideoPrediction(
        times_s=table[["start_s", "end_s"]].to_numpy(),
        scores={
            head: table[[f"{head}.{name}" for name in classes[head]]].to_numpy(np.float32) for head in about["heads"]
        },
        classes=classes,
        frames=np.array(about["frames"], dtype=np.int64),
        frame_times_s=np.array(about["frame_times_s"], dtype=np.float64),
        maps=maps,
        boxes_xyxy=boxes,
        video=VideoInfo(
            **{**about["video"], "fps": Fraction(about["video"]["fps"]), "path": Path(about["video"]["path"])}
        ),
        provenance=about["provenance"],
        score_spread=spread,
    )


def _check_sizes(found: VideoPrediction) -> None:
    """Make sure that the parts of a prediction belong together, with errors for `reading`."""
    N, M = len(found.times_s), len(found.frames)
    if not N or not np.isfinite(found.times_s).all():
        raise ValueError("the clips have no times")
    for head, scores in found.scores.items():
        if not np.isfinite(scores).all():
            raise ValueError(f"the scores of {head} hold NaN")
    if len(found.frame_times_s) != M or (np.diff(found.frames) <= 0).any() or (M and found.frames[0] < 0):
        raise ValueError("the frames are not in order")
    for head, values in found.maps.items():
        if values.ndim != 4 or values.shape[:2] != (M, len(found.classes[head])) or values.dtype != np.uint8:
            raise ValueError(f"the masks of {head} are of shape {values.shape} and type {values.dtype}")
    boxes = found.boxes_xyxy
    numbers = [boxes[name].dtype.kind in "iuf" for name in BOX_COLUMNS if name not in ("head", "label")]
    if not all(numbers):
        raise ValueError("the boxes hold no numbers")


_REMEDY = "Predict again into another folder, or copy this one again."
_ABOUT = {  # of prediction.json
    "video": dict[str, str | int | float | bool | None],
    "classes": dict[str, list[str]],
    "heads": list[str],
    "frames": list[int],
    "frame_times_s": list[float],
    "provenance": dict[str, Any],
}


def _stem(head: str, n_heads: int) -> str:
    """The name of the files with one head's masks."""
    if not head.isidentifier():
        raise UserError(f"A mask head is called {head!r}; a name of letters, digits and underscores names its files.")
    return "masks" if n_heads == 1 else f"masks_{head}"


def _stored_maps(folder: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """The maps in a folder by head, on disk until they are asked for; ``about`` is its ``prediction.json``."""
    if "maps" in about:
        paths = {head: folder / f"{_stem(head, len(about['maps']))}.npy" for head in about["maps"]}
        return {head: np.load(path, mmap_mode="r", allow_pickle=False) for head, path in paths.items()}
    if not (folder / "masks.npy").exists():
        return {}
    masks = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False)
    classes = about["classes"]
    fitting = [head for head in classes if head not in about["heads"] and len(classes[head]) == masks.shape[1]]
    if len(masks) != len(about["frames"]) or not fitting:
        raise UserError(f"{folder} was written by an older version that mixed masks of several heads: predict again.")
    return {"mask" if "mask" in fitting else fitting[0]: masks}


def assemble(
    parts: Iterable[Part | Path],
    times_s: np.ndarray,
    of: np.ndarray,
    beside: np.ndarray,
    frame_times_s: np.ndarray,
    video: VideoInfo,
    classes: dict[str, list[str]],
    provenance: dict[str, Any],
    folder: Path | None,
) -> VideoPrediction:
    """Join the parts of a finished run; with a folder, save the result there and remove the parts.

    ``classes`` holds every head's names, ``frame_times_s`` the times of all frames. ``beside``, bool (n,), marks clips
    that were run for their masks and boxes alone, ``of``, int (n,), the clip each belongs to in the prediction.

    Raises:
        UserError: a part is missing.
    """
    scores: dict[str, list[np.ndarray]] = {}
    maps: dict[str, list[np.ndarray]] = {}
    boxes: dict[str, list[np.ndarray]] = {}
    frames, clip = [], 0
    for part in parts:
        part = Part.read(part) if isinstance(part, Path) else part
        if part.start_clip != clip:
            raise UserError(f"The part with clip {clip} is missing: predict again, it computes the missing clips.")
        clip = part.stop_clip
        for into, of_part in ((scores, part.scores), (maps, part.maps), (boxes, part.boxes)):
            for head, values in of_part.items():
                into.setdefault(head, []).append(values)
        frames.append(part.frames)
    if clip != len(times_s):
        raise UserError(f"{clip} of {len(times_s)} clips were predicted: predict again, it computes the missing ones.")
    index = np.concatenate(frames)
    prediction = VideoPrediction(
        times_s=times_s[~beside],
        scores={head: np.concatenate(values)[~beside] for head, values in scores.items()},
        classes=classes,
        frames=index,
        frame_times_s=frame_times_s[index],
        maps={head: np.concatenate(values) for head, values in maps.items()},
        boxes_xyxy=_box_table({head: np.concatenate(v) for head, v in boxes.items()}, classes, frame_times_s, video),
        video=video,
        provenance=provenance,
        score_spread={head: _spread(np.concatenate(v), of) for head, v in scores.items()} if beside.any() else {},
    )
    if folder is not None:
        prediction.save(folder)
        shutil.rmtree(folder / "parts")
    return prediction


def _spread(scores: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(N, K, 2): the lowest and the highest of the scores (n, K) of all clips that belong to one, ``of`` (n,)."""
    low = np.full((of.max() + 1, scores.shape[1]), np.inf, dtype=np.float32)
    high = -low
    np.minimum.at(low, of, scores)
    np.maximum.at(high, of, scores)
    return np.stack([low, high], axis=-1)


def _box_table(
    found: dict[str, np.ndarray], classes: dict[str, list[str]], frame_times_s: np.ndarray, video: VideoInfo
) -> pd.DataFrame:
    """`VideoPrediction.boxes_xyxy` from every head's boxes as a `Part` holds them, in order of their frames."""
    scale = np.array([video.width_px, video.height_px] * 2, dtype=np.float32)
    tables = []
    for head, rows in {"": np.zeros((0, 7), np.float32), **found}.items():
        frames = rows[:, 0].astype(np.int64)
        columns: dict[str, Any] = {"frame": frames, "time_s": frame_times_s[frames], "head": [head] * len(rows)}
        columns |= {"label": [classes[head][int(label)] for label in rows[:, 1]], "score": rows[:, 2]}
        columns |= dict(zip(BOX_COLUMNS[5:], (rows[:, 3:] * scale).T, strict=True))
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables[1:] or tables, ignore_index=True).sort_values("frame", kind="stable", ignore_index=True)
