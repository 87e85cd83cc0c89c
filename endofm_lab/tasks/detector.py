"""The video detector: backbone, pyramid, FCOS with STFT. Losses for training, boxes for use."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from endofm_lab.errors import UserError
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.tasks.detection_loss import assign, decode_deltas, detection_losses
from endofm_lab.tasks.pyramid import TokenPyramid
from endofm_lab.tasks.stft import LevelOutput, StftHead, one_image

MIN_SCORE = 0.05  # of FCOS alone, sqrt(class * centerness)
MAX_PER_LEVEL = 1000
MAX_PER_FRAME = 300
NMS_IOU = 0.6
SUPPORT_REACH = 9  # frames before and after the target from which supports are drawn


@dataclass(frozen=True)
class Detections:
    """Boxes found in one frame, best first."""

    boxes_xyxy: Tensor  # (N, 4) px of the model's input
    scores: Tensor  # (N,) in [0, 1]
    labels: Tensor  # (N,) int64, class indices from 0


class VideoDetector(nn.Module):
    """Boxes for the first frame of a clip, with the other frames as its supports.

    Args:
        backbone: any ``VideoTransformer``.
        n_classes: classes without background.
        width: channels of pyramid and head, a multiple of 8. The paper's detector has 256.
        n_convs: convolutions per tower, 4 in the paper's detector.

    A light detector for a laptop is ``VideoDetector(build_backbone("tiny"), n_classes=1, width=64, n_convs=2)``.
    A clip of one frame has no supports: STFT then refines boxes from the frame itself, so still images can train it.
    """

    def __init__(self, backbone: VideoTransformer, n_classes: int, width: int = 256, n_convs: int = 4) -> None:
        super().__init__()
        self.pyramid = TokenPyramid(backbone, width)
        self.head = StftHead(n_classes, width, n_convs, self.pyramid.strides_px)

    def forward(self, clip: Tensor, per_frame: bool = False) -> list[LevelOutput]:
        """Raw outputs per pyramid level for frame 0 of ``clip`` (B, 3, T, H, W).

        The released code trains on clips seen jointly and tests on frames seen alone (``per_frame``).
        """
        return self.head(self.pyramid(clip, per_frame))

    def losses(self, clip: Tensor, boxes_xyxy: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        """Five scalar losses to be summed; B true boxes (G, 4) px and labels (G,) from 0, for frame 0 of each clip."""
        outputs = self(clip)
        targets = [
            assign(true_boxes, true_labels, one_image(outputs, i), self.pyramid.strides_px)
            for i, (true_boxes, true_labels) in enumerate(zip(boxes_xyxy, labels, strict=True))
        ]
        return detection_losses(outputs, targets)

    @torch.no_grad()
    def detect(self, clip: Tensor, per_frame: bool = False) -> list[Detections]:
        """Boxes in frame 0 of each of the B clips (B, 3, T, H, W)."""
        H, W = clip.shape[-2:]
        return detections(self(clip, per_frame), H, W)

    @torch.no_grad()
    def detect_video(self, frames: Tensor, n_supports: int = 10, seed: int = 0) -> list[Detections]:
        """Boxes in every frame of ``frames`` (3, T, H, W), the released test procedure made repeatable.

        Each frame goes through the backbone alone and once; its supports are drawn from the frames around it.
        Pyramid maps of at most 19 frames are held at a time.
        """
        T, H, W = frames.shape[1:]
        generator = np.random.default_rng(seed)
        kept: dict[int, list[Tensor]] = {}
        found = []
        for key in range(T):
            indices = [key, *draw_supports(key, T, n_supports, generator)]
            for index in indices:
                if index not in kept:
                    kept[index] = self.pyramid(frames[None, :, index : index + 1])
            clip_levels = [torch.cat([kept[i][level] for i in indices], dim=1) for level in range(len(kept[key]))]
            found += detections(self.head(clip_levels), H, W)
            kept = {i: maps for i, maps in kept.items() if i >= key + 1 - SUPPORT_REACH}
        return found


def draw_supports(key: int, n_frames: int, n_supports: int, generator: np.random.Generator) -> list[int]:
    """Indices of supports for frame ``key``: half from the nine frames before, half from the nine after.

    No place is drawn twice; at a video's ends the first or last frame stands in for those that are missing.
    """
    half = n_supports // 2
    if n_supports % 2 or not 0 <= half <= SUPPORT_REACH:
        raise UserError(f"n_supports is {n_supports}; choose an even number from 0 to {2 * SUPPORT_REACH}")
    steps = np.arange(1, SUPPORT_REACH + 1)
    before = generator.choice(steps, half, replace=False)
    after = generator.choice(steps, half, replace=False)
    return np.clip(np.concatenate([key - before, key + after]), 0, n_frames - 1).tolist()


def detections(outputs: list[LevelOutput], H: int, W: int) -> list[Detections]:
    """Scored boxes per image from raw outputs: threshold, decode, per-class suppression, the best 300, clipped.

    score = sqrt(sqrt(class * centerness) * STFT class), all after a sigmoid. Clipping, to (W - 1, H - 1), comes last,
    and boxes turned inside out by their corrections go after it: fewer than 300 may remain.
    """
    return [_detections(one_image(outputs, i), H, W) for i in range(len(outputs[0].logits))]


def _detections(outputs: list[LevelOutput], H: int, W: int) -> Detections:
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*map(_candidates, outputs), strict=True))
    keep = batched_nms(boxes, scores, labels, NMS_IOU)  # best first
    if len(keep) > MAX_PER_FRAME:
        keep = keep[scores[keep] >= scores[keep[MAX_PER_FRAME - 1]]]  # equal scores stay together
    boxes, scores, labels = clip_boxes_to_image(boxes[keep], (H - 1, W - 1)), scores[keep], labels[keep]
    upright = (boxes[:, 2:] - boxes[:, :2] + 1 >= 0).all(dim=1)
    return Detections(boxes[upright], scores[upright], labels[upright])


def _candidates(output: LevelOutput) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4), scores (n,) and labels (n,) of one image at one level, n <= 1000."""
    fcos, stft = output.logits.flatten(1).sigmoid(), output.stft_logits.flatten(1).sigmoid()  # (K, HW)
    fcos = (fcos * output.centerness.flatten(1).sigmoid()).sqrt()
    label, location = (fcos > MIN_SCORE).nonzero(as_tuple=True)  # one location may stand for several classes
    confidence, best = (fcos * stft)[label, location].sort(descending=True)
    label, location = label[best[:MAX_PER_LEVEL]], location[best[:MAX_PER_LEVEL]]
    deltas = output.stft_deltas.flatten(1).T[location]
    boxes = decode_deltas(deltas, output.prior_xyxy[location])
    return boxes, confidence[:MAX_PER_LEVEL].sqrt(), label
