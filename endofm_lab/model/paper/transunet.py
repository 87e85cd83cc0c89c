"""The paper's mask head: TransUNet's decoder with skips from the convolutional stem, and its loss."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.errors import CheckpointError
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.head import Batch, MapHead

if TYPE_CHECKING:
    from endofm_lab.model.card import HeadSpec

CHANNELS = (256, 128, 64, 16)
ENTER_CHANNELS = 512


class TransUNetHead(MapHead):
    """Mask logits for every frame of a clip, at the frame's own size, from tokens of a `HybridTransformer`.

    Background is a separate class; the head returns the logit of every other class minus the logit of the background.

    Source: Chen et al., *TransUNet*, arXiv 2102.04306.
    """

    def __init__(self, width: int, skip_channels: tuple[int, ...], n_classes: int = 1) -> None:
        super().__init__()
        self.decoder = Decoder(width, skip_channels)
        self.out = nn.Conv2d(CHANNELS[-1], 1 + n_classes, 3, padding=1)

    @classmethod
    def build(cls, spec: "HeadSpec", backbone: Encoder, image_px: int) -> "TransUNetHead":
        """The head on a backbone with a convolutional stem, whose finer maps it uses."""
        if backbone.skip_channels is None:
            raise CheckpointError("A transunet head needs a backbone with a convolutional stem for its skips.")
        return cls(backbone.width, backbone.skip_channels, len(spec.classes))

    def forward(self, tokens: VideoTokens) -> Tensor:
        """Logits (B, K, T, H, W) relative to the background."""
        logits = self.class_logits(tokens)
        return logits[:, 1:] - logits[:, :1]

    def class_logits(self, tokens: VideoTokens) -> Tensor:
        """Logits (B, 1 + K, T, H, W), background first."""
        assert tokens.skips is not None
        x = rearrange(tokens.patches, "b t h w d -> (b t) d h w")
        return rearrange(self.out(self.decoder(x, tokens.skips)), "(b t) k h w -> b k t h w", b=len(tokens.patches))

    def scores(self, logits: Tensor, spec: "HeadSpec") -> Tensor:
        """Probabilities (B, K, T, H, W) of every class but the background; with the background's they sum to one."""
        return _with_background(logits).softmax(dim=1)[:, 1:]

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """`segmentation_loss` for ``batch["mask"]``: shares (B, K, T, H, W) in 0..1 of every class in every pixel."""
        target = batch["mask"]
        background = 1 - target.sum(dim=1, keepdim=True)
        masks = torch.cat([background, target], dim=1).argmax(dim=1)
        return segmentation_loss(_with_background(logits.float()), masks)


class Decoder(nn.Module):
    """Four doublings from 1/16 to full size; the first three use a skip of the stem."""

    def __init__(self, width: int, skip_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.enter = _conv_bn_relu(width, ENTER_CHANNELS)
        in_channels = (ENTER_CHANNELS, *CHANNELS)
        self.steps = nn.ModuleList(
            nn.Sequential(_conv_bn_relu(in_channels[i] + skip, out), _conv_bn_relu(out, out))
            for i, (skip, out) in enumerate(zip((*skip_channels, 0), CHANNELS, strict=True))
        )

    def forward(self, x: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        """(N, D, H/16, W/16) and three skips, coarsest first -> (N, 16, H, W)."""
        x = self.enter(x)
        for i, step in enumerate(self.steps):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            if i < len(skips):
                x = torch.cat([x, skips[i]], dim=1)
            x = step(x)
        return x


def _conv_bn_relu(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _with_background(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Half cross-entropy, half soft Dice, a scalar; 0 for a perfect prediction.

    Args:
        logits: (B, K, T, H, W).
        masks: (B, T, H, W) int64, class of every pixel, 0 = background.

    Dice loss of one class: 1 - (2 sum(p m) + e) / (sum(p^2) + sum(m^2) + e), e = 1e-5, sums over the whole batch, then
    the mean over all classes, background included. An absent class adds no loss as long as it is not predicted.

    Source: TransUNet's loss, which was used to fine-tune Endo-FM; Milletari et al., *V-Net*, arXiv 1606.04797.
    """
    p = logits.softmax(dim=1)
    m = rearrange(F.one_hot(masks, logits.shape[1]), "b t h w k -> b k t h w").to(p)
    over = (0, 2, 3, 4)
    smooth = 1e-5
    dice = 1 - (2 * (p * m).sum(over) + smooth) / (p.square().sum(over) + m.square().sum(over) + smooth)
    return 0.5 * F.cross_entropy(logits, masks) + 0.5 * dice.mean()
