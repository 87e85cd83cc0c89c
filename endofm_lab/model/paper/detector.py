"""The box head of the paper: a feature pyramid on patch tokens, FCOS and STFT, supported by the clip's other frames."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from endofm_lab.brief import Brief
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.head import Batch, BoxesHead, FrameBoxes
from endofm_lab.model.paper.detection_loss import assign, decode_deltas, detection_losses
from endofm_lab.model.paper.pyramid import TokenPyramid
from endofm_lab.model.paper.stft import LevelOutput, StftLayers, one_image

if TYPE_CHECKING:
    from endofm_lab.model.card import HeadSpec

MIN_SCORE = 0.05  # of FCOS alone, sqrt(class * centerness)
MAX_PER_LEVEL = 1000
MAX_PER_FRAME = 300
NMS_IOU = 0.6


@dataclass(frozen=True, eq=False, repr=False)
class Detections(Brief):
    """Boxes found in one frame, best first."""

    boxes_xyxy: Tensor  # (N, 4) px of the model's input
    scores: Tensor  # (N,) in [0, 1]
    labels: Tensor  # (N,) int64, class indices from 0


class StftBoxHead(BoxesHead):
    """Boxes for every frame of a clip, with the clip's other frames as its supports.

    A clip of one frame has no supports: STFT then refines boxes from the frame itself, so still images can train it.

    Output (B, 2 K + 13, T, N, 1), one column for each of the N locations of the five levels: the fields of
    `LevelOutput` (class logits, distances, centerness, prior box, STFT class logits, corrections).

    Args:
        width: of the tokens.
        n_classes: K, without background.
        patch_px: side of a patch.
        image_px: side of the (square) pictures.
        channels: of pyramid and towers, a multiple of 8. The paper's detector has 256.
        n_convs: convolutions per tower, 4 in the paper's detector.
    """

    options = frozenset({"channels"})

    def __init__(
        self, width: int, n_classes: int, patch_px: int, image_px: int, channels: int = 256, n_convs: int = 4
    ) -> None:
        super().__init__()
        self.n_classes, self.image_px = n_classes, image_px
        self.strides_px = (patch_px // 2, patch_px, 2 * patch_px, 4 * patch_px, 8 * patch_px)
        side = image_px // patch_px
        self.sides = (2 * side, side, side // 2, -(-(side // 2) // 2), -(-(side // 2) // 4))  # P6 and P7 round up
        self.pyramid = TokenPyramid(width, channels)
        self.layers = StftLayers(n_classes, channels, n_convs, self.strides_px)

    @classmethod
    def build(cls, spec: "HeadSpec", backbone: Encoder, image_px: int) -> "StftBoxHead":
        """The head on a video transformer."""
        if not backbone.takes_video:
            raise CheckpointError("An stft head needs a video transformer, but this is a model of single frames.")
        return cls(backbone.width, len(spec.classes), backbone.patch_px, image_px, spec.channels or 256)

    def forward(self, tokens: VideoTokens) -> Tensor:
        """Raw outputs (B, 2 K + 13, T, N, 1), at least float32.

        Raises:
            UserError: frames of another size than ``image_px``.
        """
        patches = tokens.per_frame()
        B, T, h, w, _ = patches.shape
        if {h, w} != {self.sides[1]}:
            raise UserError(f"The frames have {h} x {w} patches, but this head takes pictures of {self.image_px} px.")
        outputs = self.layers(self.pyramid(patches), range(T))
        raw = torch.cat([_packed(level) for level in outputs], dim=2)  # (B*T, C, N)
        return rearrange(raw, "(b t) c n -> b c t n 1", b=B)

    def outputs(self, raw: Tensor) -> list[LevelOutput]:
        """The result of ``forward``, level by level, as B * T pictures."""
        K = self.n_classes
        columns = rearrange(raw, "b c t n 1 -> (b t) c n").split([side * side for side in self.sides], dim=2)
        levels = []
        for side, x in zip(self.sides, columns, strict=True):
            maps = [part.unflatten(2, (side, side)) for part in x.split([K, 4, 1, 4, K, 4], dim=1)]
            maps[3] = x[:, K + 5 : K + 9].transpose(1, 2).detach()
            levels.append(LevelOutput(*maps))
        return levels

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sum of the detector's five losses, with every frame as a target; ``batch`` as for `BoxHead.loss`."""
        outputs, boxes, labels = self.outputs(logits), batch["boxes"], batch["labels"]
        targets = []
        for i, (xyxy, label) in enumerate(zip(boxes.flatten(0, 1), labels.flatten(0, 1), strict=True)):
            real = xyxy.isfinite().all(dim=1)
            image = one_image(outputs, i)
            targets.append(assign(xyxy[real] * self.image_px, label[real], image, self.strides_px))
        return torch.stack(list(detection_losses(outputs, targets).values())).sum()

    def decode(self, raw: Tensor, min_score: float = 0.3, max_boxes: int = 10) -> list[list[FrameBoxes]]:
        """As `BoxHead.decode`: per clip and frame boxes (n, 4) in fractions within 0..1, scores (n,), classes (n,)."""
        decoded = []
        for result in detections(self.outputs(raw), self.image_px, self.image_px):
            kept = (result.scores >= min_score).nonzero()[:max_boxes, 0]
            decoded.append((result.boxes_xyxy[kept] / self.image_px, result.scores[kept], result.labels[kept]))
        T = raw.shape[2]
        return [decoded[i : i + T] for i in range(0, len(decoded), T)]


def _packed(level: LevelOutput) -> Tensor:
    """One level as columns (B*T, C, HW), at least float32."""
    x = level._replace(prior_xyxy=level.prior_xyxy.transpose(1, 2))
    return torch.cat([part.flatten(2).to(level.ltrb_px.dtype) for part in x], dim=1)


def detections(outputs: list[LevelOutput], H: int, W: int) -> list[Detections]:
    """Scored boxes per image from raw outputs: threshold, decode, per-class suppression, the best 300, clipped.

    score = sqrt(sqrt(class * centerness) * STFT class), all after a sigmoid. Clipping, to (W - 1, H - 1), comes last.
    Boxes that their corrections turned inside out are removed after it, so that fewer than 300 may remain.
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
    label, location = (fcos > MIN_SCORE).nonzero(as_tuple=True)  # a location may have several classes
    confidence, best = (fcos * stft)[label, location].sort(descending=True)
    label, location = label[best[:MAX_PER_LEVEL]], location[best[:MAX_PER_LEVEL]]
    deltas = output.stft_deltas.flatten(1).T[location]
    boxes = decode_deltas(deltas, output.prior_xyxy[location])
    return boxes, confidence[:MAX_PER_LEVEL].sqrt(), label
