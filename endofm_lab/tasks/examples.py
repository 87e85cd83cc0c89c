"""The rows of a manifest's splits as examples, each with the target that its task found for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from endofm_lab.data.manifest import Manifest, folder_fps, read_manifest
from endofm_lab.data.splits import named_split
from endofm_lab.errors import ManifestError
from endofm_lab.video.reader import VideoInfo, VideoReader, open_video

SPLITS = ("train", "val", "test")


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
        target: what is to be found in it, in the form that its task gives it.
    """

    row: int
    video: Path
    name: str
    start_s: float
    end_s: float
    patient: str
    fps: Fraction | None
    target: Any

    def open(self) -> VideoReader:
        """The row's video; images of a folder are looked at when they are read."""
        return open_video(self.video, fps=self.fps, check=False)

    def frame_range(self, reader: Timeline) -> tuple[int, int]:
        """First frame of the row and the one after its last; at least one frame."""
        times_s = reader.times_s
        first = min(int(np.searchsorted(times_s, self.start_s - 1e-6)), len(times_s) - 1)
        after = int(np.searchsorted(times_s, self.end_s - 1e-6))
        return first, max(after, first + 1)


def read_split(path: str | Path, name: str = "manifest") -> Manifest:
    """A manifest with the split that its column ``split`` holds ("manifest"), or a further one by its name.

    Raises:
        UserError: the manifest cannot be read, or carries no split of that name.
    """
    manifest = read_manifest(path)
    return manifest if name == "manifest" else replace(manifest, table=named_split(manifest.table, name))


def examples_of(manifest: Manifest, split: str, targets: Sequence[Any]) -> list[Example]:
    """The rows of a split, each with its target."""
    return [
        Example(
            row=number,
            video=manifest.resolve(row["video"]),
            name=row["video"],
            start_s=row["start_s"],
            end_s=np.inf if np.isnan(row["end_s"]) else row["end_s"],
            patient=f"{row['dataset']}/{row['patient'] or row['video']}",  # patient 1 of two data sets are two
            fps=folder_fps(manifest.resolve(row["video"]), row),
            target=target,
        )
        for number, (row, target) in enumerate(zip(manifest.rows(split).to_dict("records"), targets, strict=True))
    ]


def shared_patients(manifest: Manifest) -> list[str]:
    """Patients (with their data set) that are in more than one of the splits, sorted."""
    rows = manifest.table[(manifest.table["patient"] != "") & manifest.table["split"].isin(SPLITS)]
    splits = rows.groupby(["dataset", "patient"])["split"].nunique()
    return sorted(f"{dataset}/{patient}" for dataset, patient in splits[splits > 1].index)


def refuse_shared_patients(manifest: Manifest) -> None:
    """Raise a ManifestError that counts and names the patients of more than one split, if there are any."""
    if shared := shared_patients(manifest):
        raise ManifestError(
            f"{len(shared)} patients are in two splits or more: {named(shared)}. Split by patient, or accept it by "
            "name (shared_patients='accept'); the run then says so."
        )


def named(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more
