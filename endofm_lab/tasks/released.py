"""The released CVC-12k segmenter and KUMC detector: their weights, and the inputs they were trained on.

Both normalise in a way of their own. Models of this project use ``endofm_lab.video.transforms`` instead.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from endofm_lab.errors import CheckpointError
from endofm_lab.model.layouts import load_state
from endofm_lab.model.transformer import build_backbone
from endofm_lab.tasks.detector import VideoDetector
from endofm_lab.tasks.segmenter import VideoSegmenter

CVC12K_PX = 224
KUMC_PX = 640
KUMC_MEAN_BGR = (102.9801, 115.9465, 122.7717)  # of pixel values 0..255; no division by a deviation
KUMC_CLASSES = ("adenomatous", "hyperplastic")

Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
SEGMENTER_NAMES: Renames = (
    (r"^transformer\.embeddings\.hybrid_model\.", "stem."),
    (r"^stem\.root\.conv", "stem.conv"),
    (r"^stem\.root\.gn", "stem.norm"),
    (r"^stem\.body\.block(\d)\.unit(\d)", lambda m: f"stem.stages.{int(m[1]) - 1}.{int(m[2]) - 1}"),
    (r"\.downsample\.", ".shortcut.0."),
    (r"\.gn_proj\.", ".shortcut.1."),
    (r"^transformer\.embeddings\.patch_embeddings\.", "project."),
    (r"^transformer\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^transformer\.encoder\.layer\.", "blocks."),
    (r"^transformer\.encoder\.encoder_norm\.", "norm."),
    (r"^transformer\.encoder\.cls_token$", "cls_token"),
    (r"^decoder\.conv_more\.", "decoder.enter."),
    (r"^decoder\.blocks\.(\d)\.conv(\d)\.", lambda m: f"decoder.steps.{m[1]}.{int(m[2]) - 1}."),
    (r"^segmentation_head\.0\.", "head."),
)
DETECTOR_NAMES: Renames = (
    (r"^backbone\.body\.fpn2\.0\.", "pyramid.upsample."),
    (r"^backbone\.body\.", "pyramid.backbone."),
    (r"^backbone\.fpn\.fpn_inner(\d)\.", lambda m: f"pyramid.lateral.{int(m[1]) - 2}."),
    (r"^backbone\.fpn\.fpn_layer(\d)\.", lambda m: f"pyramid.smooth.{int(m[1]) - 2}."),
    (r"^backbone\.fpn\.top_blocks\.", "pyramid."),
    (r"^rpn\.head\.dcn_(cls|bbox)_subnet\.conv_offset\.", r"head.\1_align.offset."),
    (r"^rpn\.head\.dcn_(cls|bbox)_subnet\.conv_adaption\.", r"head.\1_align.conv."),
    (r"^rpn\.head\.dcn_cls_score\.", "head.stft_cls."),
    (r"^rpn\.head\.dcn_bbox_pred\.", "head.stft_bbox."),
    (r"^rpn\.head\.scales\.(\d)\.scale$", r"head.scales.\1"),
    (r"^rpn\.head\.", "head."),
)
_DETECTOR_UNUSED = "backbone.body.fpn1."  # in the file, never called: an upsampling to stride 4


def load_released_segmenter(path: str | Path) -> VideoSegmenter:
    """The CVC-12k segmenter from a released file, in evaluation mode; feed it with ``cvc12k_input``.

    Raises:
        CheckpointError: not a readable, safe file, not this layout, or a tensor is missing, left over or misshapen.
    """
    return released_segmenter(load_state(path).tensors, str(path))


def load_released_detector(path: str | Path) -> VideoDetector:
    """The KUMC detector from a released file, in evaluation mode; feed it with ``kumc_input``.

    Its classes are ``KUMC_CLASSES``.

    Raises:
        CheckpointError: not a readable, safe file, not this layout, or a tensor is missing, left over or misshapen.
    """
    return released_detector(load_state(path).tensors, str(path))


def released_segmenter(state: dict[str, Tensor], source: str) -> VideoSegmenter:
    """The segmenter with the released tensors ``state``; ``source`` names them in errors."""
    n_classes = _rows(state, "segmentation_head.0.bias", source)
    with torch.device("meta"):
        model = VideoSegmenter(build_backbone("base"), n_classes)
    _fill(model, renamed(state, SEGMENTER_NAMES), source)
    return model


def released_detector(state: dict[str, Tensor], source: str) -> VideoDetector:
    """The detector with the released tensors ``state``; ``source`` names them in errors."""
    n_classes = _rows(state, "rpn.head.cls_logits.bias", source)
    with torch.device("meta"):
        model = VideoDetector(build_backbone("base"), n_classes)
    used = {name: tensor for name, tensor in state.items() if not name.startswith(_DETECTOR_UNUSED)}
    _fill(model, renamed(used, DETECTOR_NAMES), source)
    return model


def cvc12k_input(frames: np.ndarray) -> Tensor:
    """Clip (1, 3, T, 224, 224) in -1..1 from frames uint8 (T, H, W, 3) RGB: every frame stretched to its own range."""
    clip = torch.stack([_resized(frame, CVC12K_PX) for frame in frames], dim=1)[None]  # (1, 3, T, 224, 224), 0..255
    low, high = clip.amin((1, 3, 4), keepdim=True), clip.amax((1, 3, 4), keepdim=True)
    return 2 * (clip - low) / (high - low).clamp(min=1) - 1  # a frame of one colour becomes -1


def kumc_input(frames: np.ndarray, flip: bool = False) -> Tensor:
    """Clip (1, 3, T, 640, 640) from frames uint8 (T, H, W, 3) RGB, aspect ratio given up, ``flip`` left to right.

    Channels become blue, green, red in 0..255 minus ``KUMC_MEAN_BGR``.
    """
    clip = torch.stack([_resized(frame, KUMC_PX) for frame in frames], dim=1)[None].flip(1)
    clip = clip - torch.tensor(KUMC_MEAN_BGR).view(1, 3, 1, 1, 1)
    return clip.flip(-1) if flip else clip


def kumc_boxes(boxes_xyxy: Tensor, H: int, W: int, flip: bool = False) -> Tensor:
    """Boxes (N, 4) in px of the (H, W) frame in px of ``kumc_input``; a flip takes x to 640 - x - 1."""
    x1, y1, x2, y2 = (boxes_xyxy * torch.tensor([KUMC_PX / W, KUMC_PX / H] * 2)).unbind(1)
    if flip:
        x1, x2 = KUMC_PX - x2 - 1, KUMC_PX - x1 - 1
    return torch.stack([x1, y1, x2, y2], dim=1)


def _resized(frame: np.ndarray, side_px: int) -> Tensor:
    """One frame (H, W, 3) uint8 as float32 (3, side, side) in 0..255, rounded to whole values as Pillow does."""
    image = Image.fromarray(frame).resize((side_px, side_px), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def _rows(state: dict[str, Tensor], name: str, source: str) -> int:
    if name not in state:
        raise CheckpointError(f"{source} has no tensor {name}: it is not the released model that was asked for.")
    return len(state[name])


def renamed(state: dict[str, Any], renames: Renames) -> dict[str, Any]:
    """``state`` under this project's names: every pattern of ``SEGMENTER_NAMES`` or ``DETECTOR_NAMES`` in turn."""
    ours = {}
    for name, value in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    return ours


def _fill(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Give ``model``, built without memory, every tensor of ``state`` and nothing else; ends training mode."""
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit the released model: {error}") from error
    model.float().eval()
