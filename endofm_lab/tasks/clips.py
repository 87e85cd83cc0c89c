"""Clips of a manifest's rows as batches: random views for training, fixed clips for validation and test."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from endofm_lab.brief import Brief
from endofm_lab.data.rows import Timeline
from endofm_lab.tasks.examples import Example
from endofm_lab.video.augment import SCALES, View, augmented, draw_scale_jitter, draw_view, squares, whole
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import VideoInfo, VideoReader
from endofm_lab.video.transforms import InputSpec, to_input

if TYPE_CHECKING:
    from endofm_lab.tasks.task import Task

Augmentation = Literal["none", "light", "strong", "scale jitter"]
# Training frames stay in memory after they are read, reduced to MARGIN times the model's size and up to MEMORY bytes. A
# random view shows at least 71 % of a frame's side, so most views still have a pixel for each pixel of the model.
MARGIN, MEMORY = 1.25, 2 * 2**30
WIDE_MARGIN = SCALES[1] * 16 / 9  # for scale jitter, which cuts squares out of wide pictures
ROW_BYTES = 2**28  # the frames of a row up to this size are decoded once for all clips that cover the row


@dataclass(frozen=True, eq=False, repr=False)
class TrainingClip(Brief):
    """The part of a row that a training clip shows, for a task that looks up the truth of the clip.

    Attributes:
        indices: (T,) numbers of its frames.
        view: the random view of the frames.
        shrunk: factors by which width and height of the frames were reduced before the view was cropped.
        size_px: side of the model's input.
        memory: the frames and other pictures that were read before.
    """

    indices: np.ndarray
    view: View
    shrunk: tuple[float, float]
    size_px: int
    memory: "Memory"

    def pictures(self, path: Path, read: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        """(T, ...) pictures of the frames from another file or folder; ``read`` returns those of the given numbers."""
        return self.memory.pictures(path, self.indices, read)

    def reduced(self, pictures: Tensor) -> Tensor:
        """(T, C, H, W) reduced like the frames, so that the same view can be cropped."""
        return self.memory.reduced(pictures)


@dataclass
class ClipData:
    """The rows of a split as training data (``training.draws.Data``): one random view of a clip at a random instant.

    A batch holds ``clip`` (B, 3, T, S, S) and the truth from the task's ``sample`` and ``collate``. The strong
    augmentation is `video.augment.augmented`, which cannot be applied to masks and boxes.
    """

    examples: list[Example]
    clip: ClipSpec
    input: InputSpec
    task: "Task"
    augmentation: Augmentation = "light"
    n_files: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_files = len({example.video for example in self.examples})
        margin = WIDE_MARGIN if self.augmentation == "scale jitter" else MARGIN
        self._memory = Memory(math.ceil(margin * self.input.size_px))

    def __len__(self) -> int:
        return len(self.examples)

    def name(self, index: int) -> str:
        """The video of a row, by its name in the manifest."""
        return self.examples[index].name

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        """One clip of a row and its truth; all random draws follow from ``seed``."""
        random = np.random.default_rng(seed)
        example = self.examples[index]
        timeline = self._memory.timeline(example)
        earliest, latest = example.starts(timeline, self.clip)
        indices = example.clip_at(timeline, self.clip, float(random.uniform(earliest, latest)))
        frames = self._memory.frames(example, indices)
        info, (height, width) = timeline.info, frames.shape[1:3]
        view = whole(height, width)
        if self.augmentation == "light":
            view = draw_view(random, height, width)
        elif self.augmentation == "scale jitter":
            view = draw_scale_jitter(random, height, width, info.width_px / info.height_px)
        shrunk = width / info.width_px, height / info.height_px
        clip = TrainingClip(indices, view, shrunk, self.input.size_px, self._memory)
        pixels = augmented(frames, self.input.size_px, seed) if self.augmentation == "strong" else view.frames(frames)
        return {"clip": to_input(pixels, self.input)[0], **self.task.sample(example, clip)}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch, as the task collates it."""
        return self.task.collate(samples)


@dataclass(frozen=True, eq=False, repr=False)
class EvaluationClip(Brief):
    """A clip for validation or test: its example, the numbers of its frames (T,), its pixels, and the frames' size."""

    example: Example
    indices: np.ndarray
    clip: Tensor  # (3, T, S, S)
    frame_hw: tuple[int, int]

    @property
    def name(self) -> str:
        """The frames and the video of the clip, for messages."""
        return f"frames {self.indices[0]} to {self.indices[-1]} of {self.example.video}"


def spread_clips(
    examples: Sequence[Example], clip: ClipSpec, spec: InputSpec, n: int, crops: int = 1
) -> Iterator[EvaluationClip]:
    """``n`` clips of every row, evenly spread from its first to its last possible start; a single one in its middle.

    With ``crops`` above 1, each clip is repeated in that many square crops along the long side of the picture.
    """
    for example in examples:
        with example.open() as reader:
            earliest, latest = example.starts(reader, clip)
            for share in shares_of(n):
                indices = example.clip_at(reader, clip, earliest + share * (latest - earliest))
                frames = reader.read(indices)
                for crop in squares(frames.shape[1], frames.shape[2], crops):
                    pixels = to_input(crop.frames(frames), spec)[0]
                    yield EvaluationClip(example, indices, pixels, (frames.shape[1], frames.shape[2]))


def shares_of(n: int) -> list[float]:
    """The places of ``n`` clips between the first and the last possible start; a single one is in the middle."""
    return [0.5] if n == 1 else np.linspace(0, 1, n).tolist()


def covering_clips(examples: Sequence[Example], clip: ClipSpec, spec: InputSpec) -> Iterator[EvaluationClip]:
    """Clips that together show every frame of every row once, with the frame spacing of training.

    If a row has too few frames left, its last frame is repeated to fill the clip.
    """
    for example in examples:
        with example.open() as reader:
            first, end = example.frame_range(reader)
            size_hw_px = reader.info.height_px, reader.info.width_px
            is_small = (end - first) * math.prod(size_hw_px) * 3 <= ROW_BYTES
            frames = reader.read(range(first, end)) if is_small else None
            step = max(1, round(float(reader.info.fps) * clip.span_s(reader.info) / clip.n_frames))
            for phase in range(min(step, end - first)):
                numbers = np.arange(first + phase, end, step)
                for start in range(0, len(numbers), clip.n_frames):
                    indices = numbers[start : start + clip.n_frames]
                    filled = np.pad(indices, (0, clip.n_frames - len(indices)), mode="edge")
                    pixels = reader.read(filled) if frames is None else frames[filled - first]
                    yield EvaluationClip(example, filled, to_input(pixels, spec)[0], size_hw_px)


def in_batches(clips: Iterator[EvaluationClip], size: int) -> Iterator[list[EvaluationClip]]:
    """Lists of up to ``size`` clips."""
    batch: list[EvaluationClip] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_clip(example: Example, reader: VideoReader, indices: np.ndarray, spec: InputSpec) -> EvaluationClip:
    """The clip with the frames ``indices`` (T,) of a row's open video."""
    frames = reader.read(indices)
    return EvaluationClip(example, indices, to_input(frames, spec)[0], (frames.shape[1], frames.shape[2]))


class Memory:
    """Frames and other pictures of training in memory, at most ``side_px`` high and wide.

    A picture from memory equals the one that reading it again would give.
    """

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self._timelines: dict[tuple[Path, Fraction | None], _ClosedVideo] = {}
        self._pictures: dict[tuple[Path, int], np.ndarray] = {}
        self._bytes = 0

    def timeline(self, example: Example) -> Timeline:
        """The facts and the frame times of a row's video."""
        key = (example.video, example.fps)
        if key not in self._timelines:
            with example.open() as reader:
                self._timelines[key] = _ClosedVideo(reader.info, reader.times_s)
        return self._timelines[key]

    def frames(self, example: Example, indices: np.ndarray) -> np.ndarray:
        """uint8 (T, h, w, 3) of the frames with these numbers."""

        def read(numbers: list[int]) -> np.ndarray:
            with example.open() as reader:
                pixels = torch.from_numpy(reader.read(numbers)).permute(0, 3, 1, 2)
            return self.reduced(pixels).permute(0, 2, 3, 1).contiguous().numpy()

        return self.pictures(example.video, indices, read)

    def pictures(self, path: Path, indices: np.ndarray, read: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        """(T, ...) pictures of a file or folder with these numbers; ``read`` returns those that are not in memory."""
        missing = [number for number in np.unique(indices).tolist() if (path, number) not in self._pictures]
        fresh = dict(zip(missing, read(missing), strict=True)) if missing else {}
        pictures = [fresh[i] if i in fresh else self._pictures[path, i] for i in indices.tolist()]
        for number, picture in fresh.items():
            if self._bytes + picture.nbytes <= MEMORY:
                self._bytes += picture.nbytes
                self._pictures[path, number] = picture.copy()
        return np.stack(pictures)

    def reduced(self, pictures: Tensor) -> Tensor:
        """(T, C, H, W) with sides of at most ``side_px``, antialiased."""
        height, width = (min(n, self.side_px) for n in pictures.shape[2:])
        return tv.resize(pictures, [height, width], antialias=True)


@dataclass(frozen=True)
class _ClosedVideo:
    """The facts and the frame times of a video whose file is closed."""

    info: VideoInfo
    times_s: np.ndarray
