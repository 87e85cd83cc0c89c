"""Assignment of locations to boxes, and the five losses of the detector."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from endofm_lab.model.paper.stft import LevelOutput, locations_px

BACKGROUND = -1  # classes count from 0
CENTRE_RADIUS = 1.5  # strides around a box centre in which FCOS locations are candidates
STFT_MIN_IOU = 0.1
DELTA_SCALE = 0.5  # a correction of 1 moves a side by half the box's width or height
SMOOTH_L1_BETA = 0.11


class Targets(NamedTuple):
    """The targets of every location of one image, all levels concatenated (N locations)."""

    labels: Tensor  # (N,) int64 from 0, -1 = background
    ltrb_px: Tensor  # (N, 4) px where labels >= 0, else meaningless
    centerness: Tensor  # (N,) in [0, 1], 0 on background
    stft_labels: Tensor  # (N,) int64, likewise
    stft_deltas: Tensor  # (N, 4) where stft_labels >= 0, else meaningless


def encode_deltas(boxes_xyxy: Tensor, prior_xyxy: Tensor) -> Tensor:
    """Corrections (N, 4) that ``decode_deltas`` converts to ``boxes_xyxy``; not finite for a prior without area."""
    return (boxes_xyxy - prior_xyxy) / (_sides(prior_xyxy) * DELTA_SCALE)


def decode_deltas(deltas: Tensor, prior_xyxy: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy px from corrections in half widths and half heights of the prior boxes."""
    return prior_xyxy + deltas * DELTA_SCALE * _sides(prior_xyxy)


def _sides(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).repeat(1, 2)


def assign(boxes_xyxy: Tensor, labels: Tensor, outputs: list[LevelOutput], strides_px: tuple[int, ...]) -> Targets:
    """Targets of one image from true boxes (G, 4) px and labels (G,) from 0; with G = 0 every location is background.

    For FCOS a location belongs to the smallest box that contains the location in its centre region and whose longest
    distance from there fits the level (4 to 8 strides; the ends are open). For STFT a location belongs to the box that
    overlaps most with its predicted prior box (from the raw ``outputs`` of the image), if the IoU is at least 0.1.

    Source: FCOS (arXiv 1904.01355) with centre sampling; STFT (MICCAI 2021). IoU and area count pixels inclusively
    (width = x2 - x1 + 1) as the released code does. Unlike in the released code, a prior box thinner than one pixel is
    never foreground, because its corrections would be infinite.
    """
    priors = torch.cat([x.prior_xyxy for x in outputs])
    if not len(boxes_xyxy):
        background = torch.full((len(priors),), BACKGROUND, device=priors.device)
        zeros = torch.zeros_like(priors)
        return Targets(background, zeros, zeros[:, 0], background, zeros)

    boxes_xyxy, labels = boxes_xyxy.to(priors), labels.to(priors.device)
    per_level = [
        _fcos_cost(boxes_xyxy, locations_px(x.logits, stride), stride, level, len(strides_px))
        for level, (x, stride) in enumerate(zip(outputs, strides_px, strict=True))
    ]
    ltrb_px, cost = (torch.cat(parts) for parts in zip(*per_level, strict=True))  # (N, G, 4), (N, G)
    smallest, chosen = cost.min(dim=1)
    foreground = smallest.isfinite()
    ltrb_px = ltrb_px[torch.arange(len(chosen), device=chosen.device), chosen]  # (N, 4)

    inclusive = torch.tensor([0, 0, 1, 1]).to(priors)
    iou, best = box_iou(priors + inclusive, boxes_xyxy + inclusive).max(dim=1)
    stft_foreground = (iou >= STFT_MIN_IOU) & (_sides(priors) >= 1).all(dim=1)
    return Targets(
        labels=torch.where(foreground, labels[chosen], BACKGROUND),
        ltrb_px=ltrb_px,
        centerness=torch.where(foreground, _centerness(ltrb_px), 0.0),
        stft_labels=torch.where(stft_foreground, labels[best], BACKGROUND),
        stft_deltas=encode_deltas(boxes_xyxy[best], priors),
    )


def _fcos_cost(boxes_xyxy: Tensor, xy: Tensor, stride_px: int, level: int, n_levels: int) -> tuple[Tensor, Tensor]:
    """Distances (n, G, 4) from every location to every box's sides and the cost (n, G): the box's area or infinity."""
    ltrb_px = _distances(boxes_xyxy, xy)
    centre = box_convert(boxes_xyxy, "xyxy", "cxcywh")[:, :2].repeat(1, 2)
    reach = torch.tensor([-1, -1, 1, 1]).to(xy) * CENTRE_RADIUS * stride_px
    region = centre + reach
    region = torch.cat([region[:, :2].maximum(boxes_xyxy[:, :2]), region[:, 2:].minimum(boxes_xyxy[:, 2:])], dim=1)
    inside = _distances(region, xy).amin(dim=2) > 0
    longest = ltrb_px.amax(dim=2)
    lower = -1 if level == 0 else 4 * stride_px
    upper = 1e8 if level == n_levels - 1 else 8 * stride_px
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + 1).prod(dim=1)  # (G,)
    return ltrb_px, torch.where(inside & (longest >= lower) & (longest <= upper), area, torch.inf)


def _distances(boxes_xyxy: Tensor, xy: Tensor) -> Tensor:
    """Distances l, t, r, b (n, G, 4) from locations (n, 2) to the sides of boxes (G, 4), negative outside."""
    return torch.cat([xy[:, None] - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - xy[:, None]], dim=2)


def _centerness(ltrb_px: Tensor) -> Tensor:
    """1 at a box's centre, 0 at its border: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)); (N, 4) -> (N,)."""
    pairs = ltrb_px.unflatten(1, (2, 2))  # ((l, t), (r, b))
    return (pairs.amin(1) / pairs.amax(1)).prod(1).clamp(min=0).sqrt()


def detection_losses(outputs: list[LevelOutput], targets: list[Targets]) -> dict[str, Tensor]:
    """The five losses, scalars to be summed with weight 1, for one target assignment per image of the batch.

    ``cls`` and ``stft_cls``: focal, per foreground location. ``box``: GIoU weighted by the centerness target.
    ``centerness``: binary cross-entropy. ``stft_box``: smooth L1 over the four corrections. A divisor is never below 1.
    """
    labels, ltrb_px, centerness, stft_labels, stft_deltas = (torch.cat(x) for x in zip(*targets, strict=True))
    fg, stft_fg = labels > BACKGROUND, stft_labels > BACKGROUND
    n, n_stft = fg.sum().clamp(min=1), stft_fg.sum().clamp(min=1)
    weight = centerness[fg]
    boxes = _around_origin(_rows([x.ltrb_px for x in outputs])[fg])
    giou = generalized_box_iou_loss(boxes, _around_origin(ltrb_px[fg]))
    centre_logits = _rows([x.centerness for x in outputs])[fg, 0]
    corrections = _rows([x.stft_deltas for x in outputs])[stft_fg]
    return {
        "cls": _focal(_rows([x.logits for x in outputs]), labels) / n,
        "box": (giou * weight).sum() / weight.sum().clamp(min=1),
        "centerness": F.binary_cross_entropy_with_logits(centre_logits, weight, reduction="sum") / n,
        "stft_cls": _focal(_rows([x.stft_logits for x in outputs]), stft_labels) / n_stft,
        "stft_box": F.smooth_l1_loss(corrections, stft_deltas[stft_fg], beta=SMOOTH_L1_BETA, reduction="sum") / n_stft,
    }


def _rows(levels: list[Tensor]) -> Tensor:
    """Maps (B, C, H_l, W_l) of all levels as rows (B * sum H_l W_l, C), image by image."""
    return torch.cat([rearrange(x, "b c h w -> b (h w) c") for x in levels], dim=1).flatten(0, 1)


def _around_origin(ltrb_px: Tensor) -> Tensor:
    """Distances as boxes relative to their location."""
    return ltrb_px * torch.tensor([-1, -1, 1, 1]).to(ltrb_px)


def _focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the focal loss (arXiv 1708.02002; alpha 0.25, gamma 2) over locations and classes."""
    one_hot = F.one_hot(labels - BACKGROUND, logits.shape[1] + 1)[:, 1:].to(logits)
    return sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2, reduction="sum")
