"""Choose the frames of a clip: a single clip, or clips that slide over the whole video."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.video.reader import VideoInfo, open_video

_MOST = {"n_frames": 10_000, "stride": 1_000_000, "fps": 1_000_000, "duration_s": 1_000_000}
_ROUNDING_S = 1e-6  # instants closer than this count as equal


@dataclass(frozen=True)
class ClipSpec:
    """How a clip samples its video; exactly one of ``stride``, ``fps`` and ``duration_s`` is given.

    Attributes:
        n_frames: Number of frames T.
        stride: Every ``stride``-th frame, whatever the frame rate.
        fps: Frames per second of the clip: the frames nearest to ``start_s + k / fps``.
        duration_s: Seconds the clip covers: the same as ``fps = n_frames / duration_s``.

    Raises:
        UserError: None or several of the three are given, or a value is not above 0.
    """

    n_frames: int = 8
    stride: int | None = None
    fps: float | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        options = {name: getattr(self, name) for name in ("stride", "fps", "duration_s")}
        options = {name: value for name, value in options.items() if value is not None}
        if len(options) != 1:
            values = " and ".join(f"{name}={value}" for name, value in options.items()) or "none"
            raise UserError(f"A clip needs exactly one of stride, fps and duration_s, got {values}.")
        for name, value in {"n_frames": self.n_frames, **options}.items():
            integral = name in ("n_frames", "stride")
            if not (value > 0 and math.isfinite(value)) or (integral and value != int(value)):
                raise UserError(f"{name} is {value}; it must be a {'whole ' if integral else ''}number above 0.")
            if value > _MOST[name]:
                raise UserError(f"{name} is {value}; it must be at most {_MOST[name]:,}.")

    def span_s(self, info: VideoInfo) -> float:
        """Seconds of a video that such a clip covers; the last frame counts until the next frame would follow."""
        if self.stride is not None:
            return float(self.n_frames * self.stride / info.fps)
        return self.duration_s if self.duration_s is not None else self.n_frames / float(self.fps or 1)


@dataclass(frozen=True, eq=False, repr=False)
class Clip(Brief):
    """Frames taken from a video.

    Attributes:
        frames: uint8 ``(T, H, W, 3)`` RGB.
        times_s: Their presentation times in seconds ``(T,)`` float64.
        indices: Their numbers in the video ``(T,)`` int64.
    """

    frames: np.ndarray
    times_s: np.ndarray
    indices: np.ndarray


def clip_indices(
    spec: ClipSpec, info: VideoInfo, start_s: float | Literal["centre"] = 0.0, times_s: np.ndarray | None = None
) -> np.ndarray:
    """Numbers of the frames of one clip, ``(T,)`` int64 in ascending order.

    With ``stride`` the clip starts at the frame nearest to ``start_s`` and counts frames from there. With ``fps`` and
    ``duration_s`` each frame is the nearest in presentation time to its instant, or the earlier of two equally near.
    A clip that reaches past the end repeats the last frame.

    Args:
        spec: What to sample.
        info: The video.
        start_s: Where the clip starts, or ``"centre"`` for the clip in the middle of the video.
        times_s: Presentation times ``(n_frames,)`` of a video with variable frame rate; without them frame ``i`` is
            taken to lie at ``i / info.fps``.

    Raises:
        UserError: The start lies outside the video.
    """
    times_s = _times(info, times_s)
    first_s = max(0.0, (info.duration_s - spec.span_s(info)) / 2) if start_s == "centre" else float(start_s)
    if not 0 <= first_s < info.duration_s:
        raise UserError(
            f"{info.path}: A clip cannot start at {first_s} s; the video lasts from 0 to {info.duration_s:.3f} s."
        )
    steps = np.arange(spec.n_frames)
    if spec.stride is not None:
        return np.minimum(_nearest(times_s, np.array([first_s])) + steps * spec.stride, info.n_frames - 1)
    return _nearest(times_s, first_s + steps * (spec.span_s(info) / spec.n_frames))


def sliding_clips(
    spec: ClipSpec, info: VideoInfo, step_s: float, times_s: np.ndarray | None = None
) -> list[tuple[float, float, np.ndarray]]:
    """Clips every ``step_s`` seconds that together cover the whole video.

    The last clip ends with the video, so it may start less than ``step_s`` after the one before it. A video shorter
    than a clip gives one clip that repeats the last frame.

    Args:
        spec: What to sample.
        info: The video.
        step_s: Seconds from one clip's start to the next; at most the clip's length, so that no instant is left out.
            With ``stride`` it is rounded to whole frames, at least one.
        times_s: As in :func:`clip_indices`.

    Returns:
        ``(start_s, end_s, indices (T,) int64)`` per clip, in order.

    Raises:
        UserError: The step is not above 0, or it is longer than the clip.
    """
    times_s = _times(info, times_s)
    span_s = spec.span_s(info)
    if not 0 < step_s <= span_s + _ROUNDING_S:
        raise UserError(
            f"The step between clips is {step_s} s; it must be above 0 and at most the clip's length of "
            f"{span_s:.3f} s, so that every part of the video is in a clip."
        )
    if spec.stride is not None:  # in whole frames, so that no frame is left out if the frame rate varies
        span = spec.n_frames * spec.stride
        edges_s = np.append(times_s, info.duration_s)
        return [
            (
                float(edges_s[first]),
                float(edges_s[min(first + span, info.n_frames)]),
                np.minimum(first + np.arange(0, span, spec.stride), info.n_frames - 1),
            )
            for first in _starts(info.n_frames, span, min(span, max(1, round(step_s * info.fps))))
        ]
    return [
        (
            float(start_s),
            min(float(start_s) + span_s, info.duration_s),
            clip_indices(spec, info, float(start_s), times_s),
        )
        for start_s in _starts(info.duration_s, span_s, step_s)
    ]


def read_clip(path: str | Path, spec: ClipSpec, start_s: float | Literal["centre"] = 0.0) -> Clip:
    """Open a video, read one clip chosen as in :func:`clip_indices`, and close it.

    Raises:
        VideoError: The video cannot be read.
        UserError: The start lies outside the video.
    """
    with open_video(path) as video:
        times_s = video.times_s
        indices = clip_indices(spec, video.info, start_s, times_s)
        return Clip(frames=video.read(indices), times_s=times_s[indices], indices=indices)


def _times(info: VideoInfo, times_s: np.ndarray | None) -> np.ndarray:
    if times_s is None:
        return np.arange(info.n_frames) * info.fps.denominator / info.fps.numerator
    if len(times_s) != info.n_frames:
        raise UserError(f"{info.path}: {len(times_s)} presentation times were given for {info.n_frames} frames.")
    return times_s


def _nearest(times_s: np.ndarray, instants_s: np.ndarray) -> np.ndarray:
    """Number of the frame nearest to each instant, or the earlier of two equally near frames."""
    later = np.clip(np.searchsorted(times_s, instants_s), min(1, len(times_s) - 1), len(times_s) - 1)
    earlier = np.maximum(later - 1, 0)
    take_later = instants_s - times_s[earlier] > times_s[later] - instants_s + _ROUNDING_S
    return np.where(take_later, later, earlier).astype(np.int64)


def _starts(length: float, span: float, step: float) -> np.ndarray:
    """0, step, 2 step, ... while clips end before the video, then the start of the clip that ends with the video."""
    last = max(length - span, type(length)(0))
    n_before = max(0, math.ceil((last - _ROUNDING_S) / step))
    return np.append(np.arange(n_before) * step, last)
