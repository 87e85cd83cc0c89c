"""What a manifest says about its clips, ready for a task: labels, masks and boxes, checked before anything is trained.

Everything that would make a number wrong is refused here, by name and with the count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from endofm_lab.data.manifest import Manifest, folder_fps, read_manifest
from endofm_lab.data.splits import class_matrix, named_split
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.model.card import HeadSpec
from endofm_lab.video.reader import VideoInfo, VideoReader, open_video

Task = Literal["classification", "segmentation", "detection", "phases"]
TASKS: tuple[str, ...] = get_args(Task)
SPLITS = ("train", "val", "test")
CORNERS = ["x1_px", "y1_px", "x2_px", "y2_px"]


class Timeline(Protocol):
    """What is asked of a video before its frames are read; an opened video has it."""

    @property
    def info(self) -> VideoInfo: ...  # noqa: D102
    @property
    def times_s(self) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True)
class Example:
    """One row of a manifest.

    Attributes:
        row: its number in its split, from 0: the id of a test item.
        video: file, folder of frames or image.
        start_s: where the row starts.
        end_s: where it ends; infinity stands for the video's end.
        patient: data set and patient; the video's name where the manifest does not say.
        fps: frame rate of a folder of frames; None where the video brings its own.
        target: class number, or (K,) of 0 and 1 for several labels; None for masks and boxes.
        masks: folder of frames or image.
        boxes: frame number -> boxes (n, 4) in pixels and class numbers (n,).
    """

    row: int
    video: Path
    name: str
    start_s: float
    end_s: float
    patient: str
    fps: Fraction | None
    target: int | tuple[int, ...] | None = None
    masks: Path | None = None
    boxes: dict[int, tuple[np.ndarray, np.ndarray]] | None = None

    def open(self) -> VideoReader:
        """The row's video; images of a folder are looked at when they are read."""
        return open_video(self.video, fps=self.fps, check=False)

    def frame_range(self, reader: Timeline) -> tuple[int, int]:
        """First frame of the row and the one after its last; at least one frame."""
        times_s = reader.times_s
        first = min(int(np.searchsorted(times_s, self.start_s - 1e-6)), len(times_s) - 1)
        after = int(np.searchsorted(times_s, self.end_s - 1e-6))
        return first, max(after, first + 1)

    def read_masks(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Bool (T, H, W) of the frames with these numbers."""
        assert self.masks is not None
        with open_video(self.masks, check=False) as reader:
            return reader.read(indices)[..., 0] > 127


def read_split(path: str | Path, name: str = "manifest") -> Manifest:
    """A manifest with the split that its column ``split`` holds ("manifest"), or a further one by its name.

    Raises:
        UserError: the manifest cannot be read, or carries no split of that name.
    """
    manifest = read_manifest(path)
    return manifest if name == "manifest" else replace(manifest, table=named_split(manifest.table, name))


def head_of(manifest: Manifest, task: Task, column: str = "label", several: bool = False) -> HeadSpec:
    """The head that answers a task, with the classes that occur in training.

    Args:
        manifest: with the splits train, val and test.
        task: what is asked.
        column: that holds the class; not used by masks and boxes.
        several: cells hold any number of labels, joined by ``|``.

    Raises:
        UserError: unknown task, a column or label is missing, or fewer than two classes.
    """
    if task not in TASKS:
        raise UserError(f"The task is {task!r}; choose one of {', '.join(TASKS)}.")
    train = manifest.rows("train")
    if task == "segmentation":
        return HeadSpec("mask", ("lesion",))
    if task == "detection":
        labels = sorted(set(_boxes(manifest, train)["label"]))
        if not labels:
            raise ManifestError("The training rows have no boxes; a detector cannot be trained on them.")
        return HeadSpec("box", tuple(labels))
    classes = class_matrix(_labelled(manifest, column, several).query("split == 'train'"))[1]
    if len(classes) < 2 and not several:
        raise ManifestError(f"Training has the classes {classes} in the column {column!r}; at least two are needed.")
    return HeadSpec("multilabel" if several else "multiclass", tuple(classes))


def read_examples(manifest: Manifest, split: str, head: HeadSpec, column: str = "label") -> list[Example]:
    """The rows of a split with what ``head`` has to answer, checked.

    Raises:
        ManifestError: a class that the head does not know, masks that are missing, not binary or of another size than
            their video, boxes outside their picture or without area; each with the count.
    """
    rows = manifest.rows(split)
    examples = []
    targets = masks = boxes = None
    if head.kind in ("multiclass", "multilabel"):
        targets = _class_targets(manifest, split, head, column)
    elif head.kind == "mask":
        masks = _checked_masks(manifest, rows, split)
    else:
        boxes = _checked_boxes(manifest, rows, split, head)
    for number, row in enumerate(rows.to_dict("records")):
        examples.append(
            Example(
                row=number,
                video=manifest.resolve(row["video"]),
                name=row["video"],
                start_s=row["start_s"],
                end_s=np.inf if np.isnan(row["end_s"]) else row["end_s"],
                patient=f"{row['dataset']}/{row['patient'] or row['video']}",  # patient 1 of two data sets are two
                fps=folder_fps(manifest.resolve(row["video"]), row),
                target=targets[number] if targets else None,
                masks=masks[number] if masks else None,
                boxes=boxes[number] if boxes else None,
            )
        )
    return examples


def targets_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Class numbers (N,), or (N, K) of 0 and 1."""
    return np.array([example.target for example in examples], dtype=np.int64)


def shared_patients(manifest: Manifest) -> list[str]:
    """Patients (with their data set) that are in more than one of the splits, sorted."""
    rows = manifest.table[(manifest.table["patient"] != "") & manifest.table["split"].isin(SPLITS)]
    splits = rows.groupby(["dataset", "patient"])["split"].nunique()
    return sorted(f"{dataset}/{patient}" for dataset, patient in splits[splits > 1].index)


def refuse_shared_patients(manifest: Manifest) -> None:
    """Raise a ManifestError that counts and names the patients of more than one split, if there are any."""
    if shared := shared_patients(manifest):
        raise ManifestError(
            f"{len(shared)} patients are in two splits or more: {_named(shared)}. Split by patient, or accept it by "
            "name (shared_patients='accept'); the run then says so."
        )


def _labelled(manifest: Manifest, column: str, several: bool) -> pd.DataFrame:
    """The manifest's table with the asked column as ``label``; every row of the splits has one."""
    if column not in manifest.table:
        raise ManifestError(f"There is no column {column!r}; there are {', '.join(map(str, manifest.table))}.")
    table = manifest.table.assign(label=manifest.table[column].astype(str))
    table = table[table["split"].isin(SPLITS)]
    if not several:
        if empty := int((table["label"] == "").sum()):
            raise ManifestError(f"{empty} rows have nothing in the column {column!r}; label them or take them out.")
        if joined := int(table["label"].str.contains("|", regex=False).sum()):
            raise ManifestError(f"{joined} rows have several labels in the column {column!r}; say several_labels.")
    return table


def _class_targets(manifest: Manifest, split: str, head: HeadSpec, column: str) -> list[int] | list[tuple[int, ...]]:
    several = head.kind == "multilabel"
    table = _labelled(manifest, column, several)
    table = table[table["split"] == split]
    cells = [[label for label in cell.split("|") if label] for cell in table["label"]]
    unknown = sorted({label for cell in cells for label in cell} - set(head.classes))
    if unknown:
        count = sum(bool(set(cell) & set(unknown)) for cell in cells)
        raise ManifestError(
            f"{count} rows of {split} have a class that training never saw: {_named(unknown)}. Training has "
            f"{_named(head.classes)}; move such rows to training or take them out."
        )
    if several:
        return [tuple(int(name in cell) for name in head.classes) for cell in cells]
    return [head.classes.index(cell[0]) for cell in cells]


def _checked_masks(manifest: Manifest, rows: pd.DataFrame, split: str) -> list[Path]:
    """The masks of every row; sizes, number of frames and values are looked at."""
    if "masks" not in rows:
        raise ManifestError("The manifest has no column 'masks'; segmentation needs one.")
    if missing := int((rows["masks"] == "").sum()):
        raise ManifestError(
            f"{missing} rows of {split} have no masks; take them out, or give empty masks to frames without a finding."
        )
    sizes, values = [], []
    paths: list[Path] = []
    seen: set[Path] = set()
    for row in rows.to_dict("records"):
        path = manifest.resolve(row["masks"])
        paths.append(path)
        if path in seen:
            continue
        seen.add(path)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        with open_video(manifest.resolve(row["video"]), check=False) as reader:
            info = reader.info
        if len(files) != info.n_frames:
            raise ManifestError(f"{row['masks']}: {len(files)} masks for {info.n_frames} frames; give one per frame.")
        for file in files:
            with Image.open(file) as image:
                if image.size != (info.width_px, info.height_px):
                    sizes.append(f"{file.name} of {row['masks']} ({image.size[0]} x {image.size[1]} px)")
                if image.mode != "1" and not np.isin(np.asarray(image.convert("L")), (0, 255)).all():
                    values.append(f"{file.name} of {row['masks']}")
    if sizes:
        raise ManifestError(f"{len(sizes)} masks of {split} are of another size than their frame: {_named(sizes)}.")
    if values:
        raise ManifestError(
            f"{len(values)} masks of {split} are not binary (0 and 255): {_named(values)}. Prepare the data by a "
            "recipe that thresholds them."
        )
    return paths


def _boxes(manifest: Manifest, rows: pd.DataFrame) -> pd.DataFrame:
    """The boxes of some rows' videos: ``video``, ``frame``, ``label`` and corners in pixels."""
    if "boxes" not in rows:
        raise ManifestError("The manifest has no column 'boxes'; detection needs one.")
    tables = []
    for cell in sorted(set(rows["boxes"]) - {""}):
        path = manifest.resolve(cell)
        if not path.is_file():
            raise ManifestError(f"{path}: there is no such file of boxes.")
        table = pd.read_csv(path, dtype={"video": str, "label": str}, keep_default_na=False)
        if missing := [c for c in ("video", "frame", "label", *CORNERS) if c not in table]:
            raise ManifestError(f"{path}: the column {', '.join(missing)} is missing.")
        tables.append(table[table["video"].isin(set(rows.loc[rows["boxes"] == cell, "video"]))])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["video", "frame", "label"])


def _checked_boxes(
    manifest: Manifest, rows: pd.DataFrame, split: str, head: HeadSpec
) -> list[dict[int, tuple[np.ndarray, np.ndarray]]]:
    table = _boxes(manifest, rows)
    if unknown := sorted(set(table["label"]) - set(head.classes)):
        count = int(table["label"].isin(unknown).sum())
        raise ManifestError(
            f"{count} boxes of {split} have a class that training never saw: {_named(unknown)}. Training has "
            f"{_named(head.classes)}."
        )
    flat: list[str] = []
    outside: list[str] = []
    found: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for video, of_video in table.groupby("video"):
        with open_video(manifest.resolve(str(video)), check=False) as reader:
            info = reader.info
        limit = np.array([info.width_px, info.height_px] * 2) + 0.001  # the files have three decimals
        corners = of_video[CORNERS].to_numpy(np.float64)
        x1, y1, x2, y2 = corners.T
        names = [f"{video} frame {frame}" for frame in of_video["frame"]]
        flat += [name for name, bad in zip(names, ~((x2 > x1) & (y2 > y1)), strict=True) if bad]
        frames = of_video["frame"].to_numpy(np.int64)
        out = (corners < -0.001).any(axis=1) | (corners > limit).any(axis=1) | (frames < 0) | (frames >= info.n_frames)
        outside += [name for name, bad in zip(names, out, strict=True) if bad]
        numbers = of_video["label"].map(head.classes.index).to_numpy(np.int64)
        found[str(video)] = {int(f): (corners[frames == f], numbers[frames == f]) for f in np.unique(frames)}
    if flat:
        raise ManifestError(f"{len(flat)} boxes of {split} have no area: {_named(flat)}.")
    if outside:
        raise ManifestError(f"{len(outside)} boxes of {split} lie outside their picture: {_named(outside)}.")
    return [found.get(video, {}) for video in rows["video"]]


def _named(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more
