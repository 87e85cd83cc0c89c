"""Cut long videos into clips: as time windows of the original files, or as new files of the published kind.

Endo-FM was pre-trained on clips of 5 s at 30 frames per second with a short side of 256 px (arXiv 2306.16741); as in
its released preparation, the last clip of a video is longer, so that no frames are left over.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from endofm_lab.data.prepare.names import normal
from endofm_lab.video.reader import open_video, write_video


@dataclass(frozen=True)
class ClipKind:
    """Length, size and rate of clips."""

    length_s: float = 5.0
    short_side_px: int = 256
    fps: int = 30


@dataclass(frozen=True)
class Run:
    """Consecutive frames without a gap: indices into a list of frame files, first to last inclusive."""

    first: int
    last: int


def windows(start_s: float, end_s: float, kind: ClipKind) -> list[tuple[float, float]]:
    """(start, end) in seconds of the clips of a stretch; the last clip takes the rest, a short stretch is one clip."""
    n = max(1, int((end_s - start_s) / kind.length_s + 1e-6))
    starts = [start_s + i * kind.length_s for i in range(n)]
    return list(pairwise([*starts, end_s]))


def runs(places: Sequence[int], numbers: Sequence[str]) -> list[Run]:
    """Runs of consecutive frames: without another file between them in the folder, and without a gap in their numbers.

    Args:
        places: Position of each frame among the pictures of its folder, ascending.
        numbers: Frame numbers as in the names; if one of them is not a number, only the places count. The usual step
            between two numbers (1, or more in sets that keep every n-th frame) is not a gap.
    """
    place_steps = np.diff(np.asarray(places, dtype=int))
    breaks = place_steps != 1
    if len(numbers) > 1 and all(number.isdigit() for number in numbers):
        steps = np.diff([int(number) for number in numbers])
        usual, _ = min(Counter(steps.tolist()).most_common(), key=lambda item: (-item[1], item[0]))
        breaks |= steps != usual
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(places)]
    return [Run(first, last - 1) for first, last in pairwise(edges)]


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sorting key in which ``frame 9`` comes before ``frame 10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", normal(name)) if part]


def clip_file(out: Path, source: str, start_s: float) -> Path:
    """Where the clip of ``source`` that begins at ``start_s`` is written: a folder per source, milliseconds as name."""
    folder = Path(source.replace(".", "_").lstrip("/"))  # a.avi and a.mp4 are two sources; .. must not leave the folder
    return out / "clips" / folder / f"{folder.name}_{round(start_s * 1000):08d}.mp4"


def cut_video(source: Path, target: Path, start_s: float, end_s: float, kind: ClipKind) -> int:
    """Write the part of a video from ``start_s`` to ``end_s`` as a clip of this kind; returns its number of frames.

    Each frame of the clip is the frame that the video shows at that moment: frames repeat or are dropped, never
    blended.
    """
    with open_video(source) as video:
        times_s = video.times_s
        chosen = np.searchsorted(times_s, _ticks(start_s, end_s, kind.fps) + 1e-6, side="right") - 1
        chosen = chosen.clip(0, len(times_s) - 1)
        repeats = Counter(chosen.tolist())

        def frames() -> Iterator[np.ndarray]:
            for index, frame in video.stream(int(chosen[0]), int(chosen[-1]) + 1):
                if repeats[index]:
                    small = resized(frame, kind.short_side_px)
                    yield from (small for _ in range(repeats[index]))

        write_video(target, frames(), Fraction(kind.fps))
    return len(chosen)


def cut_frames(files: Sequence[Path], target: Path, fps: float, start_s: float, end_s: float, kind: ClipKind) -> int:
    """Write such a clip from consecutive frame files at ``fps``, the first of which is at 0 s."""
    chosen = ((_ticks(start_s, end_s, kind.fps) + 1e-6) * fps).astype(int).clip(0, len(files) - 1)

    def frames() -> Iterator[np.ndarray]:
        last, small = -1, None
        for index in chosen.tolist():
            if index != last or small is None:
                with Image.open(files[index]) as image:
                    small = resized(np.asarray(image.convert("RGB")), kind.short_side_px)
                last = index
            yield small

    write_video(target, frames(), Fraction(kind.fps))
    return len(chosen)


def resized(frame: np.ndarray, short_side_px: int) -> np.ndarray:
    """A frame uint8 (H, W, 3) with a short side of this length; both sides are even, as H.264 in 4:2:0 colour needs."""
    height, width = frame.shape[:2]
    scale = short_side_px / min(height, width)
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    if size == (width, height):
        return frame
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _ticks(start_s: float, end_s: float, fps: int) -> np.ndarray:
    """Times of the clip's frames in seconds, float64 (n,)."""
    return start_s + np.arange(max(1, round((end_s - start_s) * fps))) / fps
