"""Light heads on the tokens of a backbone, and the table of all heads.

Clip classes come from CLS, masks and boxes from patches. Each head holds its layers, loss and decoding side by side, as
the contract in `model.head` demands, and works with any backbone that returns `VideoTokens`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from endofm_lab.model.encoder import VideoTokens
from endofm_lab.model.head import Batch, BoxesHead, ClassHead, FrameBoxes, Head, MapHead
from endofm_lab.model.paper.detector import StftBoxHead
from endofm_lab.model.paper.transunet import TransUNetHead


class ClipClassifier(ClassHead):
    """Logits (B, K) of a clip from its CLS token, a single linear layer as in Endo-FM's PolypDiag model.

    The same layer serves multi-class (softmax) and multi-label (sigmoid) targets: the card says which.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, n_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: VideoTokens) -> Tensor:
        """Logits (B, K)."""
        return self.linear(tokens.pooled())

    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the layer by a linear probe's solution: weight (K, D) and bias (K,)."""
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)


class AttentiveClassifier(ClassHead):
    """Logits (B, K) of a clip from all its tokens: one learned query attends to CLS and patches, then a linear layer.

    Attentive probing of frozen features, as in CAE (arXiv 2202.03026) and V-JEPA (2404.08471); one attention head per
    64 channels.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.attention = nn.MultiheadAttention(width, 1 if width % 64 else width // 64, batch_first=True)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, n_classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: VideoTokens) -> Tensor:
        """Logits (B, K)."""
        every = tokens.every()  # (B, 1 + T h w, D)
        pooled, _ = self.attention(self.query.expand(len(every), -1, -1), every, every, need_weights=False)
        return self.linear(self.norm(pooled[:, 0]))


class MaskHead(MapHead):
    """Mask logits (B, K, T, 4h, 4w) from patch tokens: two steps of convolution and pixel shuffle, frame by frame.

    Frames exchange information in the backbone; a frame's mask depends on the other frames only through its tokens.
    """

    def __init__(self, width: int, n_classes: int = 1) -> None:
        super().__init__()
        half = max(width // 2, 16)
        self.up1 = nn.Conv2d(width, 4 * half, 3, padding=1)  # -> pixel shuffle -> (half, 2h, 2w)
        self.up2 = nn.Conv2d(half, 4 * (half // 2), 3, padding=1)  # -> pixel shuffle -> (half / 2, 4h, 4w)
        self.out = nn.Conv2d(half // 2, n_classes, 3, padding=1)
        self.out.bias = nn.Parameter(torch.full((n_classes,), -2.0))  # most pixels belong to no finding

    def forward(self, tokens: VideoTokens) -> Tensor:
        """Mask logits (B, K, T, 4h, 4w)."""
        patches = tokens.per_frame()
        x = rearrange(patches, "b t h w d -> (b t) d h w")
        x = F.gelu(F.pixel_shuffle(self.up1(x), 2))
        x = F.gelu(F.pixel_shuffle(self.up2(x), 2))
        return rearrange(self.out(x), "(b t) k h w -> b k t h w", t=patches.shape[1])

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Half binary cross-entropy, half soft Dice over each clip (0 where prediction and truth are both empty).

        ``batch["mask"]``: (B, K, T, H, W) in 0..1, any size; it is averaged down to the logits' grid.
        """
        logits = logits.float()
        t, h, w = logits.shape[2:]
        target = F.adaptive_avg_pool3d(batch["mask"].float(), (t, h, w))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
        p = logits.sigmoid()
        overlap = (p * target).sum(dim=(2, 3, 4))
        dice = 1 - (2 * overlap + 1) / (p.sum(dim=(2, 3, 4)) + target.sum(dim=(2, 3, 4)) + 1)
        return 0.5 * cross_entropy + 0.5 * dice.mean()


class BoxHead(BoxesHead):
    """Dense boxes from patch tokens, one prediction per patch: FCOS (arXiv 1904.01355) on a single level.

    Output (B, K + 4, T, h, w): K class logits, then the logarithms of the distances left, top, right, bottom from the
    patch's centre to the box's sides, in patches.
    """

    def __init__(self, width: int, n_classes: int = 1) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.tower = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, n_classes + 4, 3, padding=1)
        nn.init.normal_(self.out.weight, std=0.01)
        prior = torch.tensor([-4.6] * n_classes + [0.0] * 4)  # probability 0.01, as in the focal-loss paper
        self.out.bias = nn.Parameter(prior)

    def forward(self, tokens: VideoTokens) -> Tensor:
        """Raw outputs (B, K + 4, T, h, w)."""
        patches = tokens.per_frame()
        x = rearrange(patches, "b t h w d -> (b t) d h w")
        x = self.out(F.gelu(self.tower(x)))
        return rearrange(x, "(b t) k h w -> b k t h w", t=patches.shape[1])

    def boxes(self, raw: Tensor) -> Tensor:
        """Boxes (B, T, h, w, 4) as x1, y1, x2, y2 in fractions of the frame, one per patch; may leave 0..1."""
        h, w = raw.shape[-2:]
        distances = raw[:, self.n_classes :].float().clamp(max=6.0).exp()  # e^6 patches is beyond any frame
        left, top, right, bottom = distances.unbind(1)
        y = (torch.arange(h, device=raw.device) + 0.5)[:, None]
        x = (torch.arange(w, device=raw.device) + 0.5)[None, :]
        return torch.stack([(x - left) / w, (y - top) / h, (x + right) / w, (y + bottom) / h], dim=-1)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Focal loss of the classes plus GIoU loss of the boxes, both per patch that belongs to a box.

        A patch belongs to a box if its centre is in the middle half of the box, or if it holds the box's centre;
        where boxes overlap, to the smaller one (FCOS).

        Args:
            logits: the result of ``forward``.
            batch: with ``boxes`` (B, T, M, 4) in fractions of the frame, rows of NaN where a frame has fewer than M
                boxes, and ``labels`` (B, T, M), class indices that are ignored where the box is NaN.
        """
        raw, boxes, labels = logits, batch["boxes"], batch["labels"]
        h, w = raw.shape[-2:]
        y = (torch.arange(h, device=raw.device) + 0.5) / h
        x = (torch.arange(w, device=raw.device) + 0.5) / w
        x1, y1, x2, y2 = (side[..., None, None] for side in boxes.float().unbind(-1))  # (B, T, M, 1, 1)
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        reach_x = torch.maximum((x2 - x1) / 4, torch.tensor(0.5 / w))  # half of the middle half, at least half a patch
        reach_y = torch.maximum((y2 - y1) / 4, torch.tensor(0.5 / h))
        inside = ((x - cx).abs() <= reach_x) & ((y[:, None] - cy).abs() <= reach_y)  # (B, T, M, h, w); NaN: False
        area = torch.where(inside, (x2 - x1) * (y2 - y1), torch.inf)
        smallest, owner = area.min(dim=2)  # (B, T, h, w)
        positive = smallest.isfinite()

        count = positive.sum().clamp(min=1)
        b, t, *_ = positive.nonzero(as_tuple=True)
        truth, predictions = boxes.float()[b, t, owner[positive]], self.boxes(raw)[positive]
        target = torch.zeros_like(raw[:, : self.n_classes], dtype=torch.float32)  # (B, K, T, h, w)
        class_of = labels.clamp(min=0).gather(2, owner.flatten(2)).unflatten(2, (h, w))  # (B, T, h, w)
        worth = positive.float().masked_scatter(positive, self.worth(predictions.detach(), truth))
        target.scatter_(1, class_of[:, None], worth[:, None])
        classification = self.class_loss(raw[:, : self.n_classes].float(), target) / count
        if not positive.any():
            return classification
        return classification + generalized_box_iou_loss(predictions, truth, reduction="sum") / count

    def worth(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """The score (n,) that a patch with a box should have, for its predicted and its true box (n, 4): 1."""
        return torch.ones(len(truth), device=truth.device)

    def class_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Focal loss, summed."""
        return sigmoid_focal_loss(logits, target, reduction="sum")

    def decode(self, raw: Tensor, min_score: float = 0.3, max_boxes: int = 10) -> list[list[FrameBoxes]]:
        """Per clip and frame: boxes (n, 4) in fractions within 0..1, scores (n,) in 0..1, class indices (n,).

        Sorted by score after non-maximum suppression at IoU 0.5 per class; at most ``max_boxes`` of at least
        ``min_score``.
        """
        scores = rearrange(raw[:, : self.n_classes].float().sigmoid(), "b k t h w -> b t (h w) k")
        boxes = self.boxes(raw).clamp(0, 1).flatten(2, 3)  # (B, T, h*w, 4)
        decoded = []
        for clip_scores, clip_boxes in zip(scores, boxes, strict=True):
            frames = []
            for s, xyxy in zip(clip_scores, clip_boxes, strict=True):
                patch, label = (s >= min_score).nonzero(as_tuple=True)
                keep = batched_nms(xyxy[patch], s[patch, label], label, 0.5)[:max_boxes]
                frames.append((xyxy[patch][keep], s[patch, label][keep], label[keep]))
            decoded.append(frames)
        return decoded


class IouBoxHead(BoxHead):
    """The dense boxes whose scores are trained to be the overlap (IoU) of the predicted box with the true one.

    Of several boxes of one finding, non-maximum suppression then keeps the one that fits best, and average precision
    ranks good fits first.

    Source: quality focal loss of Generalized Focal Loss (arXiv 2006.04388), with beta 2.
    """

    def worth(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """The overlap of the boxes."""
        low, high = torch.maximum(predictions[:, :2], truth[:, :2]), torch.minimum(predictions[:, 2:], truth[:, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        areas = (predictions[:, 2:] - predictions[:, :2]).prod(dim=1) + (truth[:, 2:] - truth[:, :2]).prod(dim=1)
        return shared / (areas - shared).clamp(min=1e-9)

    def class_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy times the squared distance from the target, summed."""
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return ((target - logits.sigmoid()) ** 2 * cross_entropy).sum()


# Every head by its kind and variant (`HeadSpec.pooling` or `HeadSpec.form`; None is the plain variant). A new kind of
# head needs a line here and no further change: cards, training, prediction and explanations use the class.
HEADS: dict[tuple[str, str | None], type[Head]] = {
    ("multiclass", None): ClipClassifier,
    ("multiclass", "attention"): AttentiveClassifier,
    ("multilabel", None): ClipClassifier,
    ("multilabel", "attention"): AttentiveClassifier,
    ("mask", None): MaskHead,
    ("mask", "transunet"): TransUNetHead,
    ("box", None): BoxHead,
    ("box", "stft"): StftBoxHead,
    ("box", "iou"): IouBoxHead,
}
