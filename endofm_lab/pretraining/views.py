"""The views of a clip for student and teacher, which differ in time, space and colour.

The recipe is Endo-FM's (arXiv 2306.16741, section 2 and released code): two global views that span the clip, and eight
local views of short windows and small crops. Every frame is decoded once for all views; each view has one random draw
for all its frames; the same seed gives the same views.
"""

import math
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from endofm_lab.brief import Brief
from endofm_lab.data.rows import Row, Timeline
from endofm_lab.errors import UserError, VideoError
from endofm_lab.video.augment import Colour, draw_colour, draw_crop, recoloured
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET, InputSpec

_MIN_WINDOW = 2  # frames in the window of a view with several frames; a window of one frame would be an image


@dataclass(frozen=True)
class ViewSpec:
    """The distribution of views; the defaults are the published recipe.

    Attributes:
        clip_s: seconds of the clip of all views, a random stretch of the manifest's row; a shorter row is used whole.
        clip_fps: frames per second of the clip; None for all frames of the video.
        short_side_px: short side to which larger frames are resized before cropping.
        global_frames: numbers of frames of the two global views.
        local_frames: number of frames of each local view; empty for no local views.
        global_shift: frames that global view 1 omits at the end of the clip, and global view 2 at its start.
        local_window: length of a local view's time window as a share of the clip.
        global_px: side of a global view.
        local_px: side of a local view.
        global_scale: smallest and largest share of the frame's area that a global view shows.
        local_scale: smallest and largest share of the frame's area that a local view shows.
        flip: probability of mirroring left to right.
        jitter: probability of the colour jitter.
        brightness: largest relative change of brightness.
        contrast: largest relative change of contrast.
        saturation: largest relative change of saturation.
        grey: probability of conversion to grey.
        blur: probabilities of a Gaussian blur in global view 1, global view 2, local views. DINO: 1.0, 0.1, 0.5.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of the view.
        solarise: probabilities of inverting bright pixels, in the same order. DINO: 0, 0.2, 0.
        input: mean and standard deviation of the normalisation (its size is not used).
    """

    clip_s: float = 5.0
    clip_fps: float | None = None
    short_side_px: int = 256
    global_frames: tuple[int, int] = (8, 16)
    local_frames: tuple[int, ...] = (2, 2, 4, 4, 8, 8, 16, 16)
    global_shift: int = 5
    local_window: float = 1 / 8
    global_px: int = 224
    local_px: int = 96
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    grey: float = 0.2
    blur: tuple[float, float, float] = (0.0, 0.0, 0.0)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: tuple[float, float, float] = (0.0, 0.0, 0.0)
    input: InputSpec = IMAGENET

    def __post_init__(self) -> None:
        if len(self.global_frames) != 2:
            raise UserError(f"global_frames is {self.global_frames}; give two numbers, one for each global view.")
        positive = {"clip_s": self.clip_s, "short_side_px": self.short_side_px, "local_window": self.local_window}
        positive |= {"global_px": self.global_px, "local_px": self.local_px, "blur_sigma": min(self.blur_sigma)}
        positive |= {"global_frames": min(self.global_frames), "local_frames": min(self.local_frames, default=1)}
        for name, value in positive.items():
            if not value > 0:
                raise UserError(f"{name} is {value}; give a number above 0.")
        for name in ("flip", "jitter", "grey", "brightness", "contrast", "saturation", "local_window"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")
        for name in ("blur", "solarise"):
            if len(getattr(self, name)) != 3 or not all(0 <= p <= 1 for p in getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}; give three probabilities from 0 to 1.")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise UserError(f"{name} is {low} to {high}; give two shares of the area, 0 < low <= high <= 1.")
        if self.global_shift < 0:
            raise UserError(f"global_shift is {self.global_shift}; give a number of frames, 0 or more.")

    @property
    def min_frames(self) -> int:
        """The fewest frames of a clip: every window has two frames, or one if all views are single frames."""
        window = min(_MIN_WINDOW, max(self.global_frames + self.local_frames))
        local = math.ceil(window / self.local_window) if self.local_frames else 0
        return max(self.global_shift + window, local)


@dataclass(frozen=True, kw_only=True)
class ViewDraw(Colour):
    """The random choices for one view, including its colours.

    Attributes:
        name: "global 1", ..., "local 1", ...
        kind: the teacher sees global views only; the student sees all.
        window: first frame of the time window in the clip, and the frame after the last.
        frames: numbers of the frames in the clip; a window with fewer frames repeats some of them.
        crop_xyxy: corners in pixels of the clip's frames.
        size_px: side that the crop is resized to.
        flip: whether the view is mirrored left to right.
    """

    name: str
    kind: Literal["global", "local"]
    window: tuple[int, int]
    frames: tuple[int, ...]
    crop_xyxy: tuple[int, int, int, int]
    size_px: int
    flip: bool


@dataclass(frozen=True, eq=False, repr=False)
class Views(Brief):
    """The views of a clip, and their origin.

    Attributes:
        tensors: float32 (3, T, px, px) per view, normalised; global views first.
        draws: the random choices for each view.
        frames: uint8 (n, H, W, 3) RGB, the decoded frames.
        frame_numbers: numbers of the decoded frames in the clip (n,).
        times_s: time in the video of every frame of the clip (L,), whether decoded or not.
    """

    tensors: list[Tensor]
    draws: tuple[ViewDraw, ...]
    frames: np.ndarray
    frame_numbers: np.ndarray
    times_s: np.ndarray

    def describe(self) -> list[dict[str, Any]]:
        """The fields of every `ViewDraw`, with the time window ``window_s`` and the times of the frames ``times_s``."""
        step_s = float(np.diff(self.times_s).mean()) if len(self.times_s) > 1 else 0.0
        return [
            asdict(draw)
            | {
                "window_s": (float(self.times_s[draw.window[0]]), float(self.times_s[draw.window[1] - 1]) + step_s),
                "times_s": [float(self.times_s[frame]) for frame in draw.frames],
            }
            for draw in self.draws
        ]


@dataclass(frozen=True)
class MultiView:
    """Draws and renders the views that a specification describes.

    >>> views = MultiView(ViewSpec()).of_video("clip.mp4", seed=7)
    >>> [tuple(v.shape) for v in views.tensors][:2]
    [(3, 8, 224, 224), (3, 16, 224, 224)]
    """

    spec: ViewSpec

    def draw(self, n_frames: int, size_hw: tuple[int, int], seed: int) -> tuple[ViewDraw, ...]:
        """The random choices for a clip of ``n_frames`` frames of a size; the same for the same seed.

        Raises:
            UserError: the clip is shorter than the windows of the views.
        """
        spec = self.spec
        if n_frames < spec.min_frames:
            raise UserError(
                f"The clip has {n_frames} frames, but its windows need {spec.min_frames}: take longer clips, "
                "a larger local_window or a smaller global_shift."
            )
        views = [("global", T) for T in spec.global_frames] + [("local", T) for T in spec.local_frames]
        return tuple(
            self._draw_one(index, kind, T, n_frames, size_hw, np.random.default_rng([seed, index]))
            for index, (kind, T) in enumerate(views)
        )

    def _draw_one(
        self, index: int, kind: Any, T: int, n_frames: int, size_hw: tuple[int, int], random: np.random.Generator
    ) -> ViewDraw:
        spec = self.spec
        if kind == "global":
            window = (0, n_frames - spec.global_shift) if index == 0 else (spec.global_shift, n_frames)
        else:
            length = int(n_frames * spec.local_window)
            first = int(random.integers(0, n_frames - length + 1))
            window = (first, first + length)
        frames = np.linspace(window[0], window[1] - 1, T).round().astype(int)
        crop = draw_crop(random, size_hw, spec.global_scale if kind == "global" else spec.local_scale)
        flip = bool(random.random() < spec.flip)
        kind_index = min(index, 2)
        colour = draw_colour(
            random,
            jitter=spec.jitter,
            limits=(spec.brightness, spec.contrast, spec.saturation),
            grey=spec.grey,
            blur=spec.blur[kind_index],
            blur_sigma_px=spec.blur_sigma,
            solarise=spec.solarise[kind_index],
        )
        return ViewDraw(
            name=f"{kind} {index + 1 if kind == 'global' else index - 1}",
            kind=kind,
            window=window,
            frames=tuple(frames.tolist()),
            crop_xyxy=crop,
            size_px=spec.global_px if kind == "global" else spec.local_px,
            flip=flip,
            **asdict(colour),
        )

    def show(self, frames: Tensor, frame_numbers: np.ndarray, draw: ViewDraw) -> Tensor:
        """One view, float32 (3, T, px, px), from frames uint8 (n, H, W, 3) with these numbers in the clip."""
        left, top, right, bottom = draw.crop_xyxy
        rows = torch.from_numpy(np.searchsorted(frame_numbers, draw.frames))
        x = frames[:, top:bottom, left:right][rows].permute(0, 3, 1, 2)  # (T, 3, h, w), channels last in memory
        x = tv.resize(x, [draw.size_px, draw.size_px], InterpolationMode.BICUBIC, antialias=True)
        x = recoloured(x, draw)
        if draw.flip:
            x = x.flip(-1)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.spec.input.mean, self.spec.input.std))
        return x.sub_(mean).div_(std).transpose(0, 1).contiguous()

    def of_frames(self, frames: np.ndarray, times_s: np.ndarray, seed: int) -> Views:
        """The views of a decoded clip: uint8 (L, H, W, 3) RGB, at times (L,)."""
        pixels = self._sized(frames)
        draws = self.draw(len(pixels), (pixels.shape[1], pixels.shape[2]), seed)
        numbers = np.arange(len(pixels))
        return Views([self.show(pixels, numbers, d) for d in draws], draws, pixels.numpy(), numbers, times_s)

    def of_video(
        self,
        path: str | Path,
        seed: int,
        start_s: float = 0.0,
        end_s: float = math.nan,
        fps: Fraction | None = None,
    ) -> Views:
        """`of_row` for a stretch between two times of a video (NaN for its end).

        A folder of frames has ``fps`` frames per second.
        """
        end_s = math.inf if math.isnan(end_s) else end_s
        return self.of_row(Row(video=Path(path), name=str(path), start_s=start_s, end_s=end_s, fps=fps), seed)

    def of_row(self, row: Row, seed: int) -> Views:
        """The views of a random clip of a stretch of video; its frames are decoded once.

        Raises:
            VideoError: the video cannot be read, or is shorter than the windows of the views.
        """
        spec = self.spec
        with row.open() as video:
            times_s = video.times_s
            indices = self._clip(row, video, seed)
            height, width = _sized_hw((video.info.height_px, video.info.width_px), spec.short_side_px)
            try:
                draws = self.draw(len(indices), (height, width), seed)
            except UserError as error:
                raise VideoError(row.video, str(error)) from error
            numbers = np.unique(np.concatenate([draw.frames for draw in draws]))
            pixels = self._sized(video.read(indices[numbers]))
        return Views([self.show(pixels, numbers, d) for d in draws], draws, pixels.numpy(), numbers, times_s[indices])

    def _clip(self, row: Row, video: Timeline, seed: int) -> np.ndarray:
        """Numbers of the clip's frames in the video (L,)."""
        end_s = row.end_in(video)
        length_s = max(0.0, min(self.spec.clip_s, end_s - row.start_s))  # 0 of an image: its one frame
        free_s = max(0.0, end_s - row.start_s - length_s)
        first_s = row.start_s + np.random.default_rng([seed, 1 << 16]).random() * free_s
        if self.spec.clip_fps is not None:
            n = max(1, round(length_s * self.spec.clip_fps))
            return row.clip_at(video, ClipSpec(n_frames=n, fps=self.spec.clip_fps), first_s)
        return np.arange(*replace(row, start_s=first_s, end_s=first_s + length_s).frame_range(video))

    def _sized(self, frames: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.require(frames, requirements=("C", "W")))
        size_hw = _sized_hw((pixels.shape[1], pixels.shape[2]), self.spec.short_side_px)
        if size_hw == tuple(pixels.shape[1:3]):
            return pixels
        resized = tv.resize(pixels.permute(0, 3, 1, 2), list(size_hw), InterpolationMode.BILINEAR, antialias=True)
        return resized.permute(0, 2, 3, 1).contiguous()


def _sized_hw(size_hw: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    short = min(size_hw)
    if short <= short_side_px:
        return size_hw
    height, width = (round(side * short_side_px / short) for side in size_hw)
    return height, width
