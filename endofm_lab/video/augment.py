"""One random view of a clip for training: crop, flip and colour, the same for all frames, masks and boxes with them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

# Training may show this part of the frame's area, and change brightness, contrast and saturation by this factor.
AREA = (0.5, 1.0)
ASPECT = (3 / 4, 4 / 3)
COLOUR = 0.25
# A box of which the crop leaves less than this is not asked for any more.
VISIBLE = 0.25


@dataclass(frozen=True)
class View:
    """A window in pixels of the frame, how it is mirrored, and factors of brightness, contrast and saturation."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False  # left to right
    overturned: bool = False  # top to bottom: an endoscope turns about its axis
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
        """The same view of boxes (n, 4) in pixels: those still seen, (m, 4) in fractions of the view, and which (n,).

        Cut at the window; a box of whose area less than a quarter is left does not count.
        """
        x = np.clip(boxes[:, [0, 2]] - self.left, 0, self.width) / self.width
        y = np.clip(boxes[:, [1, 3]] - self.top, 0, self.height) / self.height
        if self.mirrored:
            x = 1 - x[:, ::-1]
        if self.overturned:
            y = 1 - y[:, ::-1]
        left_over = (x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0]) * self.width * self.height
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        seen = left_over >= VISIBLE * area
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)[seen], seen

    def _cut(self, pictures: np.ndarray) -> np.ndarray:
        cut = pictures[:, self.top : self.top + self.height, self.left : self.left + self.width]
        cut = cut[:, :, ::-1] if self.mirrored else cut
        return cut[:, ::-1] if self.overturned else cut


def whole(height: int, width: int) -> View:
    """The view that changes nothing."""
    return View(0, 0, height, width)


def draw_view(random: np.random.Generator, height: int, width: int) -> View:
    """A random view of frames of that size: half or more of its area, mirrored, overturned, recoloured."""
    area = random.uniform(*AREA) * height * width
    aspect = np.exp(random.uniform(*np.log(ASPECT))) * width / height
    h = int(np.clip(round(np.sqrt(area / aspect)), 1, height))
    w = int(np.clip(round(np.sqrt(area * aspect)), 1, width))
    top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
    brightness, contrast, saturation = random.uniform(1 - COLOUR, 1 + COLOUR, size=3).tolist()
    mirrored, overturned = (random.random(2) < 0.5).tolist()
    return View(top, left, h, w, mirrored, overturned, (brightness, contrast, saturation))
