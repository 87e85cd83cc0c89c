"""A row of a manifest as a stretch of video: the frames in it, and the frames that a clip of it shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from endofm_lab.data.manifest import Manifest, folder_fps
from endofm_lab.errors import VideoError
from endofm_lab.video.clips import ClipSpec, clip_indices
from endofm_lab.video.reader import VideoInfo, VideoReader, open_video

_ROUNDING_S = 1e-6  # instants closer than this count as equal


class Timeline(Protocol):
    """The properties of a video that are needed before its frames are read; an opened video has them."""

    @property
    def info(self) -> VideoInfo:
        """What the video holds."""
        ...

    @property
    def times_s(self) -> np.ndarray:
        """Presentation time of every frame in seconds (n_frames,) float64."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stretch of a video from ``start_s`` up to, and without, ``end_s``; it has at least one frame.

    If no frame begins in the stretch, for example between two frames or from 0 to 0 in an image, the stretch has the
    frame that is shown at its start. No clip of a row shows a frame outside the row.

    Attributes:
        video: file, folder of frames or image.
        name: its name in the manifest.
        start_s: where the row starts, in seconds.
        end_s: where the row ends, in seconds; infinity stands for the video's end.
        fps: frame rate of a folder of frames; None if the video has its own.
    """

    video: Path
    name: str
    start_s: float = 0.0
    end_s: float = inf
    fps: Fraction | None = None

    @classmethod
    def of(cls, manifest: Manifest, cells: Mapping[Any, Any] | pd.Series) -> "Row":
        """The row with these cells of a manifest."""
        return cls(**stretch(manifest, cells))

    def open(self) -> VideoReader:
        """The row's video, opened; images of a folder are checked when they are read.

        Raises:
            VideoError: it cannot be read.
        """
        return open_video(self.video, fps=self.fps, check=False)

    def end_in(self, timeline: Timeline) -> float:
        """The end of the row in seconds, which is at most the end of its video."""
        return min(self.end_s, timeline.info.duration_s)

    def frame_range(self, timeline: Timeline) -> tuple[int, int]:
        """Number of the first frame of the row, and of the frame after its last.

        Raises:
            VideoError: the row starts after the end of its video.
        """
        duration_s = timeline.info.duration_s
        if self.start_s >= duration_s:
            raise VideoError(self.name, f"The row starts at {self.start_s} s, but the video ends at {duration_s} s.")
        first, end = np.searchsorted(timeline.times_s, [self.start_s - _ROUNDING_S, self.end_s - _ROUNDING_S])
        if end <= first:  # no frame begins in it
            first = max(int(np.searchsorted(timeline.times_s, self.start_s + _ROUNDING_S)) - 1, 0)
            end = first + 1
        return int(first), int(end)

    def starts(self, timeline: Timeline, clip: ClipSpec) -> tuple[float, float]:
        """The earliest and the latest instant, in seconds, at which a clip of the row may start."""
        times_s = timeline.times_s
        first, end = self.frame_range(timeline)
        end_s = times_s[end] if end < len(times_s) else timeline.info.duration_s
        return float(times_s[first]), float(max(times_s[first], end_s - clip.span_s(timeline.info)))

    def clip_at(self, timeline: Timeline, clip: ClipSpec, start_s: float) -> np.ndarray:
        """Frames (T,) of a clip from ``start_s`` on; a row that is too short repeats its last frame."""
        first, end = self.frame_range(timeline)
        return np.clip(clip_indices(clip, timeline.info, start_s, timeline.times_s), first, end - 1)

    def middle(self, timeline: Timeline, clip: ClipSpec) -> np.ndarray:
        """Frames (T,) of the clip in the middle of the row."""
        earliest, latest = self.starts(timeline, clip)
        return self.clip_at(timeline, clip, earliest + 0.5 * (latest - earliest))

    def whole(self, timeline: Timeline, n_frames: int) -> np.ndarray:
        """``n_frames`` frames that are evenly spread over the row."""
        length_s = max(self.end_in(timeline) - self.start_s, 1e-3)
        return self.clip_at(timeline, ClipSpec(n_frames, duration_s=length_s), self.start_s)


def stretch(manifest: Manifest, cells: Mapping[Any, Any] | pd.Series) -> dict[str, Any]:
    """The fields of a `Row` with these cells of a manifest."""
    video = manifest.resolve(cells["video"])
    end_s = float(cells["end_s"])
    return {
        "video": video,
        "name": str(cells["video"]),
        "start_s": float(cells["start_s"]),
        "end_s": inf if np.isnan(end_s) else end_s,
        "fps": folder_fps(video, cells),
    }
