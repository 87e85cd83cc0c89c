"""Dense detection: FCOS on every frame, refined by the other frames of its clip (STFT)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.model.paper.pyramid import N_LEVELS

PRIOR_PROBABILITY = 0.01  # of an object at a location before training: keeps the first focal losses small
DEFORMABLE_GROUPS = 4
GROUP_CHANNELS = 8  # per group of the group norms: 32 groups of 256 channels


class LevelOutput(NamedTuple):
    """Raw predictions for B target frames at one pyramid level."""

    logits: Tensor  # (B, K, H, W) FCOS classes
    ltrb_px: Tensor  # (B, 4, H, W) distances from the location to left, top, right, bottom, >= 0
    centerness: Tensor  # (B, 1, H, W) logits
    prior_xyxy: Tensor  # (B, HW, 4) px, the FCOS boxes that STFT refines, not clipped, no gradient
    stft_logits: Tensor  # (B, K, H, W)
    stft_deltas: Tensor  # (B, 4, H, W) corrections of the prior box, see ``decode_deltas``


def one_image(outputs: list[LevelOutput], index: int) -> list[LevelOutput]:
    """The outputs of one image of the batch, without the batch axis."""
    return [LevelOutput(*(values[index] for values in level)) for level in outputs]


class StftLayers(nn.Module):
    """Predictions of FCOS and STFT for the frames of a clip, each with the others as its supports.

    FCOS predicts classes, centerness and box distances at every location. STFT shifts the sampling points of a
    deformable convolution by the predicted boxes (for a support: by how the target's box differs from its own), so that
    features are aligned across frames, adds to every target channel a mean of the supports weighted by similarity, and
    predicts classes and box corrections from the sum. The offsets carry no gradient, so ``offset`` layers always keep
    their initial random values; they belong to the checkpoint nevertheless.

    Source: Wu et al., *Multi-frame collaboration for effective endoscopic video polyp detection via spatial-temporal
    feature transformation*, MICCAI 2021; Tian et al., *FCOS*, arXiv 1904.01355.
    """

    def __init__(self, n_classes: int, width: int, n_convs: int, strides_px: tuple[int, ...]) -> None:
        super().__init__()
        assert len(strides_px) == N_LEVELS and width % GROUP_CHANNELS == 0
        self.strides_px = strides_px
        self.cls_tower = _tower(width, n_convs)
        self.bbox_tower = _tower(width, n_convs)
        self.cls_logits = nn.Conv2d(width, n_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(width, 4, 3, padding=1)
        self.centerness = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in strides_px)
        self.cls_align = BoxAlignedConv(width)
        self.bbox_align = BoxAlignedConv(width)
        self.stft_cls = nn.Conv2d(width, n_classes, 3, padding=1)
        self.stft_bbox = nn.Conv2d(width, 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for classifier in (self.cls_logits, self.stft_cls):
            assert classifier.bias is not None
            nn.init.constant_(classifier.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, levels: list[Tensor], targets: Sequence[int]) -> list[LevelOutput]:
        """One output per level from P3..P7, each (B, T, C, H, W); for the frames with these indices, B clips in turn.

        Outputs hold B * len(targets) pictures: clip 0's targets, then clip 1's, ...
        """
        return [
            self._level(x, scale, stride, targets)
            for x, scale, stride in zip(levels, self.scales, self.strides_px, strict=True)
        ]

    def _level(self, x: Tensor, scale: Tensor, stride_px: int, targets: Sequence[int]) -> LevelOutput:
        B, T = x.shape[:2]
        x = rearrange(x, "b t c h w -> (b t) c h w")
        cls_features, bbox_features = self.cls_tower(x), self.bbox_tower(x)
        exact = torch.promote_types(x.dtype, torch.float32)  # half precision is too coarse for pixel coordinates
        ltrb_px = F.relu(scale * self.bbox_pred(bbox_features)).to(exact) * stride_px  # (B*T, 4, H, W)
        with torch.no_grad():
            xy = locations_px(ltrb_px, stride_px)
            prior_xyxy = prior_boxes(ltrb_px, xy)  # (B*T, HW, 4)

        def by_clip(y: Tensor) -> Tensor:
            return y.unflatten(0, (B, T))

        def of_targets(y: Tensor) -> Tensor:
            return by_clip(y)[:, list(targets)].flatten(0, 1)

        refined = []
        for target in targets:
            order = [target, *(t for t in range(T) if t != target)]
            with torch.no_grad():
                guide = box_guide(by_clip(prior_xyxy)[:, order], xy, stride_px)  # (B, T, HW, 4)
                guide = rearrange(guide, "b t (h w) c -> (b t) c h w", h=x.shape[2]).to(x.dtype)
            aligned = (
                attend_to_supports(by_clip(align(by_clip(features)[:, order].flatten(0, 1), guide)))  # (B, C, H, W)
                for align, features in ((self.cls_align, cls_features), (self.bbox_align, bbox_features))
            )
            refined.append([layer(y) for layer, y in zip((self.stft_cls, self.stft_bbox), aligned, strict=True)])
        stft_logits, stft_deltas = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*refined, strict=True))
        return LevelOutput(
            logits=self.cls_logits(of_targets(cls_features)),
            ltrb_px=of_targets(ltrb_px),
            centerness=self.centerness(of_targets(bbox_features)),
            prior_xyxy=of_targets(prior_xyxy),
            stft_logits=stft_logits,
            stft_deltas=stft_deltas,
        )


class BoxAlignedConv(nn.Module):
    """A 3x3 deformable convolution whose sampling points follow predicted boxes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(4, DEFORMABLE_GROUPS * 9 * 2, 1, bias=False)  # 9 taps of (dy, dx) per group
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Aligned features (N, C, H, W) >= 0 from ``x`` of that shape and ``guide`` (N, 4, H, W) in cells."""
        return F.relu(deformable_conv(x, self.offsets(guide), self.conv.weight))

    @torch.no_grad()
    def offsets(self, guide: Tensor) -> Tensor:
        """Offsets (N, 72, H, W) in cells."""
        return self.offset(guide)


def deformable_conv(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution (N, C, H, W) -> (N, C', H, W) whose nine taps are moved by offsets (N, groups * 18, H, W).

    Source: Dai et al., *Deformable convolutional networks*, arXiv 1703.06211. Equal to torchvision's ``deform_conv2d``
    with padding 1. Written with ``grid_sample`` because the offsets need no gradient: on a CPU, forward and backward
    together are seven times faster than with the general operator.
    """
    N, C, H, W = x.shape
    groups = offsets.shape[1] // 18
    exact = torch.promote_types(x.dtype, torch.float32)
    dy, dx = offsets.to(exact).reshape(N * groups, 9, 2, H, W).unbind(2)
    tap = torch.arange(9, device=x.device).view(9, 1, 1)
    rows = dy + (tap // 3 - 1) + torch.arange(H, device=x.device).view(H, 1)  # (N * groups, 9, H, W) in cells
    columns = dx + (tap % 3 - 1) + torch.arange(W, device=x.device)
    grid = torch.stack([(2 * columns + 1) / W - 1, (2 * rows + 1) / H - 1], dim=-1)  # -1..1 from border to border
    maps = x.to(exact).reshape(N * groups, -1, H, W)
    sampled = F.grid_sample(maps, grid.flatten(1, 2), align_corners=False)  # zero outside
    sampled = sampled.view(N, C * 9, H * W).to(weight.dtype)
    return (weight.flatten(1) @ sampled).view(N, -1, H, W)


def locations_px(level: Tensor, stride_px: int) -> Tensor:
    """Centres (HW, 2) as x, y in input pixels, row by row, of the cells of a map (..., H, W); its device and type."""
    H, W = level.shape[-2:]
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return (torch.stack([x, y], -1).flatten(0, 1) * stride_px + stride_px // 2).to(level)


def prior_boxes(ltrb_px: Tensor, xy: Tensor) -> Tensor:
    """Boxes (N, HW, 4) xyxy px from distances (N, 4, H, W) px to their locations (HW, 2) px."""
    left_top, right_bottom = rearrange(ltrb_px, "n c h w -> n (h w) c").split(2, dim=-1)
    return torch.cat([xy - left_top, xy + right_bottom], -1)


def box_guide(prior_xyxy: Tensor, xy: Tensor, stride_px: int) -> Tensor:
    """Shifts of the sampling points, (B, T, HW, 4) in cells, signed, from boxes of this shape and locations in px.

    The target (T = 0) has its own box relative to the location, (x1 - cx, y1 - cy, x2 - cx, y2 - cy); a support has the
    target's values minus the support's. Boxes and locations are first clipped to the map: 0..W-1 and 0..H-1.
    """
    last = (xy[-1] / stride_px).floor()  # (W - 1, H - 1)
    centre = (xy / stride_px).minimum(last)  # (HW, 2), never below 0
    boxes = (prior_xyxy / stride_px).clamp(min=0).minimum(last.repeat(2))
    guide = boxes - centre.repeat(1, 2)
    return torch.cat([guide[:, :1], guide[:, :1] - guide[:, 1:]], dim=1)


def attend_to_supports(x: Tensor) -> Tensor:
    """Target plus, per channel, a mean of its supports weighted by similarity: (B, T, C, H, W) -> (B, C, H, W).

    For a channel with target map q and support maps k_s: q + sum_s softmax_s(<q, k_s> / sqrt(HW)) k_s.
    Without supports (T = 1) the result is the target itself.
    """
    target, supports = x[:, 0], x[:, 1:]
    similarity = torch.einsum("bchw, bschw -> bsc", target, supports) / math.sqrt(x.shape[-2] * x.shape[-1])
    return target + torch.einsum("bsc, bschw -> bchw", similarity.softmax(dim=1), supports)


def _tower(width: int, n_convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(n_convs):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(width // GROUP_CHANNELS, width), nn.ReLU()]
    return nn.Sequential(*layers)
