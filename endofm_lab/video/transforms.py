"""Turn uint8 pictures into model input and back. This is the only place in the project where pixels are normalised."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from endofm_lab.errors import UserError

Fit = Literal["stretch", "centre_crop"]
MOST_PX = 4096  # side of a model's pictures


@dataclass(frozen=True)
class InputSpec:
    """What a model expects: square pictures, normalised as ``(x / 255 - mean) / std`` per RGB channel.

    Attributes:
        size_px: side of the picture.
        mean: per channel, red first.
        std: per channel, red first.
        own_range: first stretch every frame from its own smallest and largest value to 0..255.
    """

    size_px: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    own_range: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size_px <= MOST_PX or int(self.size_px) != self.size_px:
            raise UserError(f"size_px is {self.size_px}; it must be a whole number from 1 to {MOST_PX}.")
        if len(self.mean) != 3 or not all(-1 <= value <= 2 for value in self.mean):
            raise UserError(f"mean is {self.mean}; it must be one number per channel, for pixels from 0 to 1.")
        if len(self.std) != 3 or not all(1e-3 <= value <= 10 for value in self.std):
            raise UserError(
                f"std is {self.std}; it must be one number above 0 per channel, from 0.001 to 10, for pixels from 0 "
                "to 1."
            )


IMAGENET = InputSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # Endo-FM's pretraining, DINO, timm
HALF = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # ViT, Dosovitskiy et al. 2021
TIMESFORMER = InputSpec(
    mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)
)  # Endo-FM's classifier, Bertasius et al. 2021


def to_input(frames: np.ndarray | torch.Tensor, spec: InputSpec, fit: Fit = "stretch") -> torch.Tensor:
    """Frames as a model takes them: float32 ``(B, 3, T, size, size)``, on the device of ``frames``.

    Resized bilinearly with antialiasing; frames that already have the model's size are not resampled.

    Args:
        frames: uint8 ``(T, H, W, 3)`` or ``(B, T, H, W, 3)`` RGB.
        spec: Size and normalisation.
        fit: ``stretch`` shows the whole frame and changes its aspect ratio; ``centre_crop`` keeps the ratio and shows
            the largest centred square.

    Raises:
        UserError: Another dtype or shape.
    """
    return normalise(resize(frames, spec, fit), spec)


def resize(frames: np.ndarray | torch.Tensor, spec: InputSpec, fit: Fit = "stretch") -> torch.Tensor:
    """The first half of `to_input`: uint8 ``(B, 3, T, size, size)``, a quarter of the memory; the same errors."""
    pixels = _tensor(frames)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (4, 5) or pixels.shape[-1] != 3 or not pixels.numel():
        raise UserError(
            f"Frames are {pixels.dtype} of shape {tuple(pixels.shape)}; a model's input is made from uint8 RGB frames "
            "(T, H, W, 3) or (B, T, H, W, 3)."
        )
    if pixels.ndim == 4:
        pixels = pixels[None]
    B, T, H, W, _ = pixels.shape
    top, left, height, width = _window((H, W), fit)
    pixels = pixels[:, :, top : top + height, left : left + width].flatten(0, 1).permute(0, 3, 1, 2)  # (B T, 3, h, w)
    pixels = tv.resize(pixels, [spec.size_px, spec.size_px], antialias=True)
    return pixels.unflatten(0, (B, T)).transpose(1, 2)


def normalise(pixels: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """The second half of `to_input`: 0..255 of any dtype ``(B, 3, T, size, size)`` to float32 of the same shape."""
    mean, std = _channels(spec.mean, pixels.device), _channels(spec.std, pixels.device)
    pixels = pixels.float()
    if spec.own_range:
        low, high = pixels.amin((1, 3, 4), keepdim=True), pixels.amax((1, 3, 4), keepdim=True)
        pixels = 255 * (pixels - low) / (high - low).clamp(min=1)  # a frame of one colour becomes 0
    return torch.addcmul(-mean / std, pixels, 1 / (255 * std)).contiguous()


def from_input(x: torch.Tensor, spec: InputSpec) -> np.ndarray:
    """The pictures a model saw, uint8 ``(B, T, H, W, 3)`` RGB, from its input ``(B, 3, T, H, W)``."""
    pixels = (x.detach().float() * _channels(spec.std, x.device) + _channels(spec.mean, x.device)) * 255
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).cpu().numpy()


def boxes_to_frame(
    boxes_xyxy: np.ndarray | torch.Tensor, frame_hw: tuple[int, int], spec: InputSpec, fit: Fit = "stretch"
) -> np.ndarray:
    """Boxes in the model's picture, converted to pixels of the frame.

    Args:
        boxes_xyxy: ``(..., 4)`` corners in pixels of the ``size x size`` model picture; NaN means no box.
        frame_hw: Height and width of the frame in pixels.
        spec: The model's size.
        fit: As given to :func:`to_input`.

    Returns:
        float32 ``(..., 4)`` corners in frame pixels, cut at the frame's edges; NaN stays NaN.
    """
    top, left, height, width = _window(frame_hw, fit)
    boxes = np.asarray(_tensor(boxes_xyxy).detach().cpu(), dtype=np.float64) / spec.size_px
    boxes = boxes * [width, height, width, height] + [left, top, left, top]
    frame_h, frame_w = frame_hw
    return np.clip(boxes, 0, [frame_w, frame_h, frame_w, frame_h]).astype(np.float32)


def masks_to_frame(
    masks: np.ndarray | torch.Tensor, frame_hw: tuple[int, int], spec: InputSpec, fit: Fit = "stretch"
) -> np.ndarray:
    """Masks or score maps of the model's picture, resized to the frame; outside a centre crop they are 0.

    Args:
        masks: bool or floating point ``(..., size, size)``.
        frame_hw: Height and width of the frame in pixels.
        spec: The model's size.
        fit: As given to :func:`to_input`.

    Returns:
        ``(..., H, W)``: bool for bool masks (bilinear, cut at one half), float32 for scores (bilinear).

    Raises:
        UserError: Masks of another size than the model's picture.
    """
    source = _tensor(masks).detach().cpu()
    if source.ndim < 2 or source.shape[-2:] != (spec.size_px, spec.size_px):
        raise UserError(f"Masks have shape {tuple(source.shape)}; they must end in {spec.size_px} x {spec.size_px}.")
    top, left, height, width = _window(frame_hw, fit)
    scores = tv.resize(source.float().reshape(-1, 1, *source.shape[-2:]), [height, width], antialias=True)
    canvas = torch.zeros(len(scores), *frame_hw)
    canvas[:, top : top + height, left : left + width] = scores[:, 0]
    canvas = canvas.reshape(*source.shape[:-2], *frame_hw)
    return (canvas > 0.5 if source.dtype == torch.bool else canvas).numpy()


def _window(frame_hw: tuple[int, int], fit: Fit) -> tuple[int, int, int, int]:
    """Top, left, height and width, in frame pixels, of the part of a frame that the model sees."""
    height, width = frame_hw
    if fit == "stretch":
        return 0, 0, height, width
    if fit != "centre_crop":
        raise UserError(f"fit is {fit!r}; choose stretch or centre_crop.")
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _channels(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    """Three numbers that broadcast over ``(B, 3, T, H, W)``."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1, 1)


def _tensor(values: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The values as a tensor, copied only if torch cannot share the array (mirrored or read-only)."""
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.require(values, requirements=("C", "W")))
