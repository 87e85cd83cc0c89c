"""Draw random crops, flips and colours for training, and apply them. All random augmentation is in this module.

Four recipes use it. Each draws its random numbers in its own fixed order, so that results depend on the seed alone:
a view for fine-tuning, with its masks and boxes (`draw_view`); the views of pre-training (`draw_crop`, `draw_colour`);
a strongly augmented clip for classification (`augmented`); and a square clip of the demo (`square_view`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, used for grey and contrast
# Fine-tuning crops to this share of the frame's area, and changes brightness, contrast and saturation by this factor.
AREA = (0.5, 1.0)
ASPECT = (3 / 4, 4 / 3)
COLOUR = 0.25
# A box is dropped from the target if less than this share of its area remains in the crop.
VISIBLE = 0.25


@dataclass(frozen=True)
class View:
    """A window in pixels of the frame, how it is mirrored, and factors of brightness, contrast and saturation."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False  # left to right
    overturned: bool = False  # top to bottom; plausible because an endoscope rotates about its axis
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def frames(self, frames: np.ndarray) -> Tensor:
        """The view of frames (T, H, W, 3) uint8: (T, height, width, 3) uint8."""
        pixels = torch.from_numpy(np.ascontiguousarray(self._cut(frames))).permute(0, 3, 1, 2)
        brightness, contrast, saturation = self.colour
        if self.colour != (1.0, 1.0, 1.0):
            pixels = tv.adjust_saturation(
                tv.adjust_contrast(tv.adjust_brightness(pixels, brightness), contrast), saturation
            )
        return pixels.permute(0, 2, 3, 1)

    def masks(self, masks: np.ndarray, size_px: int) -> Tensor:
        """The same view of masks (T, H, W) bool, at the model's size: float32 (T, size, size), shares of 0..1."""
        cut = torch.from_numpy(np.ascontiguousarray(self._cut(masks))).float()
        return F.interpolate(cut[:, None], size=(size_px, size_px), mode="bilinear", antialias=True)[:, 0]

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same view of boxes (n, 4) in pixels: visible boxes (m, 4) in fractions of the view, and a bool mask (n,).

        Boxes are cut at the window. The mask says which boxes are visible: at least a quarter of their area remains.
        """
        x = np.clip(boxes[:, [0, 2]] - self.left, 0, self.width) / self.width
        y = np.clip(boxes[:, [1, 3]] - self.top, 0, self.height) / self.height
        if self.mirrored:
            x = 1 - x[:, ::-1]
        if self.overturned:
            y = 1 - y[:, ::-1]
        left_over = (x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0]) * self.width * self.height
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        visible = left_over >= VISIBLE * area
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)[visible], visible

    def _cut(self, pictures: np.ndarray) -> np.ndarray:
        cut = pictures[:, self.top : self.top + self.height, self.left : self.left + self.width]
        cut = cut[:, :, ::-1] if self.mirrored else cut
        return cut[:, ::-1] if self.overturned else cut


def whole(height: int, width: int) -> View:
    """The view that changes nothing."""
    return View(0, 0, height, width)


def draw_view(random: np.random.Generator, height: int, width: int) -> View:
    """A random view of frames of this size: at least half of the area, randomly mirrored, overturned and recoloured."""
    area = random.uniform(*AREA) * height * width
    aspect = np.exp(random.uniform(*np.log(ASPECT))) * width / height
    h = int(np.clip(round(np.sqrt(area / aspect)), 1, height))
    w = int(np.clip(round(np.sqrt(area * aspect)), 1, width))
    top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
    brightness, contrast, saturation = random.uniform(1 - COLOUR, 1 + COLOUR, size=3).tolist()
    mirrored, overturned = (random.random(2) < 0.5).tolist()
    return View(top, left, h, w, mirrored, overturned, (brightness, contrast, saturation))


# The released fine-tuning of Endo-FM resizes the short side to one of these multiples of the crop that it cuts.
SCALES = (256 / 224, 320 / 224)


def draw_scale_jitter(random: np.random.Generator, height: int, width: int, aspect: float) -> View:
    """A square of the picture whose side is 224/320 to 224/256 of the short side, mirrored or not; nothing else.

    Args:
        random: drawn from four times.
        height: of the frames, which may have been reduced.
        width: likewise.
        aspect: width over height of the picture before it was reduced.

    Source:
        The scale jitter of Endo-FM's released fine-tuning (short side 256 to 320 px, crop 224 px).
    """
    side = 1 / random.uniform(*SCALES)  # of the short side
    h = min(height, round(side * height * min(1.0, aspect)))
    w = min(width, round(side * width * min(1.0, 1 / aspect)))
    top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
    return View(top, left, h, w, mirrored=bool(random.random() < 0.5))


def squares(height: int, width: int, n: int) -> list[View]:
    """``n`` squares as large as the short side, evenly spread along the long side; the whole picture for one."""
    if n == 1:
        return [whole(height, width)]
    side = min(height, width)
    tops, lefts = (np.linspace(0, length - side, n).round().astype(int).tolist() for length in (height, width))
    return [View(top, left, side, side) for top, left in zip(tops, lefts, strict=True)]


@dataclass(frozen=True)
class Colour:
    """How the colours of a view are changed; the defaults change nothing.

    Attributes:
        brightness: factor.
        contrast: factor.
        saturation: factor.
        grey: without colour.
        blur_sigma_px: standard deviation of the blur, 0 for none.
        solarise: bright pixels inverted.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    grey: bool = False
    blur_sigma_px: float = 0.0
    solarise: bool = False


def draw_colour(
    random: np.random.Generator,
    jitter: float,
    limits: tuple[float, float, float],
    grey: float,
    blur: float,
    blur_sigma_px: tuple[float, float],
    solarise: float,
) -> Colour:
    """A random change of colours.

    Args:
        random: generator; the number of draws is the same for every outcome.
        jitter: probability that brightness, contrast and saturation change.
        limits: their largest relative changes.
        grey: probability of grey.
        blur: probability of a blur.
        blur_sigma_px: its smallest and largest standard deviation.
        solarise: probability of inverting bright pixels.
    """
    jittered = random.random() < jitter
    factors = 1 + np.array(limits) * random.uniform(-1, 1, size=3) * jittered
    is_grey = bool(random.random() < grey)
    blurred = random.random() < blur
    sigma = random.uniform(*blur_sigma_px) * blurred
    brightness, contrast, saturation = factors.tolist()
    return Colour(brightness, contrast, saturation, is_grey, float(sigma), bool(random.random() < solarise))


def recoloured(x: Tensor, colour: Colour) -> Tensor:
    """Frames of a view in other colours: uint8 (T, 3, h, w) to float32 in 0..1.

    Brightness, contrast and saturation are affine maps of RGB that commute, because grey keeps the luma around which
    contrast scales. They are therefore one 3 x 3 matrix and an offset, and values are clipped to 0..1 once, at the end.
    Contrast scales around the mean luma of the whole view, so that all frames of a view are changed alike.
    """
    x = x.float().mul_(1 / 255)
    luma = torch.tensor(LUMA)
    saturation = 0.0 if colour.grey else colour.saturation
    if (colour.brightness, colour.contrast, saturation) != (1.0, 1.0, 1.0):
        mean = colour.brightness * float(x.mean(dim=(0, 2, 3)) @ luma)
        matrix = (
            colour.brightness * colour.contrast * (saturation * torch.eye(3) + (1 - saturation) * luma.expand(3, 3))
        )
        T, _, h, w = x.shape
        offset = torch.full((T, 3, 1), (1 - colour.contrast) * mean)
        x = torch.baddbmm(offset, matrix.expand(T, 3, 3), x.reshape(T, 3, h * w)).clamp_(0, 1).view(T, 3, h, w)
    if colour.blur_sigma_px:
        reach = 2 * math.ceil(3 * colour.blur_sigma_px) + 1
        reach = min(reach, 2 * ((min(x.shape[-2:]) - 1) // 2) + 1)
        x = tv.gaussian_blur(x, [reach, reach], [colour.blur_sigma_px, colour.blur_sigma_px])
    return torch.where(x >= 0.5, 1 - x, x) if colour.solarise else x


def draw_crop(
    random: np.random.Generator, size_hw: tuple[int, int], scale: Sequence[float]
) -> tuple[int, int, int, int]:
    """Corners of a box with a uniform share of the area and a log-uniform ratio of sides from 3:4 to 4:3.

    Like torchvision's RandomResizedCrop (Szegedy et al. 2015): ten tries, then the largest centred box of such a ratio.
    """
    H, W = size_hw
    for _ in range(10):
        area = H * W * random.uniform(scale[0], scale[1])
        ratio = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= W and 0 < h <= H:
            top, left = int(random.integers(0, H - h + 1)), int(random.integers(0, W - w + 1))
            return left, top, left + w, top + h
    w, h = min(W, round(H * ASPECT[1])), min(H, round(W * ASPECT[1]))
    left, top = (W - w) // 2, (H - h) // 2
    return left, top, left + w, top + h


def augmented(frames: np.ndarray, size_px: int, seed: int) -> np.ndarray:
    """Strongly augmented frames of a clip, uint8 (T, H, W, 3) to uint8 (T, size, size, 3), a function of the seed.

    Random resized crop (0.5 to 1 of the area), flips, quarter turns, blur (kernel 3 to 7), grid distortion (0.09),
    colour jitter (0.2, hue 0.05); all frames are changed alike. Masks and boxes cannot be augmented in this way.

    Source:
        Roth et al., arXiv 2410.21302.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        x = v2.RandomResizedCrop(size_px, scale=AREA, antialias=True)(x)
        x = v2.RandomVerticalFlip()(v2.RandomHorizontalFlip()(x))
        x = x.rot90(int(torch.randint(4, ())), (2, 3))
        if torch.rand(()) < 0.5:
            x = v2.GaussianBlur(3 + 2 * int(torch.randint(3, ())))(x)
        if torch.rand(()) < 0.5:
            x = grid_distorted(x, 0.09)
        x = v2.ColorJitter(0.2, 0.2, 0.2, 0.05)(x)
        return x.permute(0, 2, 3, 1).contiguous().numpy()


def grid_distorted(x: Tensor, limit: float, cells: int = 5) -> Tensor:
    """Frames (T, 3, S, S) uint8 with their ``cells`` x ``cells`` grid stretched by up to ``limit`` of a cell's side."""
    edges = []
    for _ in range(2):
        steps = 1 + limit * (2 * torch.rand(cells) - 1)
        nodes = torch.cat([torch.zeros(1), steps.cumsum(0) / steps.sum()]) * 2 - 1  # (cells + 1,) in -1..1
        edges.append(F.interpolate(nodes[None, None], size=x.shape[-1], mode="linear", align_corners=True)[0, 0])
    y, x_at = torch.meshgrid(edges[0], edges[1], indexing="ij")
    grid = torch.stack([x_at, y], dim=-1).expand(len(x), -1, -1, -1)
    moved = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return moved.round().clamp(0, 255).byte()


def square_view(clip: Tensor, mask: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random view of a square clip (T, 3, S, S) in 0..1 and of its mask (T, 1, S, S), in the same shapes.

    Mirrored, rotated by quarter turns, zoomed (0.75 to 1 of the side), with a random gain for every channel.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random)

    if torch.rand((), generator=random) < 0.5:
        clip, mask = clip.flip(-1), mask.flip(-1)
    turns = int(torch.randint(4, (1,), generator=random))
    clip, mask = clip.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
    size = clip.shape[-1]
    side = int(uniform(0.75, 1.0, 1) * size)
    top, left = (int(v) for v in torch.randint(size - side + 1, (2,), generator=random))
    window = (..., slice(top, top + side), slice(left, left + side))
    clip = F.interpolate(clip[window], size=(size, size), mode="bilinear")
    mask = F.interpolate(mask[window], size=(size, size), mode="bilinear")
    gain, bias = uniform(0.75, 1.25, 1, 3, 1, 1), uniform(-0.06, 0.06, 1, 1, 1, 1)
    return (clip * gain + bias).clamp(0, 1), mask
