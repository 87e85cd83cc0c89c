"""The paper's segmenter: a convolutional stem, the backbone's blocks over all frames, a decoder with skips."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.tasks.resnet import HybridStem

STEM_STRIDE = 16
DECODER_CHANNELS = (256, 128, 64, 16)


class VideoSegmenter(nn.Module):
    """Mask logits for every frame of a clip; a single image is a clip of one frame.

    A TransUNet whose transformer is the video backbone: it takes over the backbone's blocks, final norm and CLS token.
    Patches come from a convolutional stem and get a position embedding of their own, frames no time embedding: frames
    exchange information in the blocks' temporal attention, which does not know their order.

    Args:
        backbone: a ``VideoTransformer`` with divided attention. Its blocks become part of this model; its patch,
            position and time embeddings are left out. ``config.image_px`` fixes the frame size.
        n_classes: classes with background as class 0.
        stem_width: channels after the first convolution, a multiple of 32; 64 in R50.
        stem_units: bottlenecks per stage; (3, 4, 9) in the hybrid of R50 and ViT-B/16.

    Raises:
        UserError: the backbone does not divide attention, or its image size is not a multiple of 16 px.

    Source: Chen et al., *TransUNet*, arXiv 2102.04306, with the blocks of Endo-FM (arXiv 2306.16741).
    """

    def __init__(
        self,
        backbone: VideoTransformer,
        n_classes: int = 2,
        stem_width: int = 64,
        stem_units: tuple[int, int, int] = (3, 4, 9),
    ) -> None:
        super().__init__()
        config = backbone.config
        if config.attention != "divided":
            raise UserError(f"This backbone's attention is {config.attention!r}; the segmenter needs 'divided'.")
        if config.image_px % STEM_STRIDE:
            raise UserError(f"image_px is {config.image_px}; the segmenter needs a multiple of {STEM_STRIDE}.")
        self.image_px = config.image_px
        n_patches = (config.image_px // STEM_STRIDE) ** 2
        self.stem = HybridStem(stem_width, stem_units)
        self.project = nn.Conv2d(self.stem.out_channels, config.width, 1)
        self.pos_embed = nn.Parameter(torch.zeros(1, n_patches, config.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.cls_token = backbone.cls_token
        self.blocks = backbone.blocks
        self.norm = backbone.norm
        self.decoder = Decoder(config.width, self.stem.skip_channels)
        self.head = nn.Conv2d(DECODER_CHANNELS[-1], n_classes, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (B, K, T, H, W) for a clip (B, 3, T, H, W) with H = W = ``image_px``.

        Raises:
            UserError: frames of another size.
        """
        B, _, T, H, W = clip.shape
        side = self.image_px
        if {H, W} != {side}:
            raise UserError(f"Frames of {H} x {W} px; this segmenter takes {side} x {side}: resize them with to_input.")
        features, skips = self.stem(rearrange(clip, "b c t h w -> (b t) c h w"))
        x = rearrange(self.project(features), "(b t) d h w -> b t (h w) d", b=B) + self.pos_embed[:, None]
        x = torch.cat([self.cls_token[:, None].expand(B, T, 1, -1), x], dim=2)  # (B, T, 1 + N, D)
        for block in self.blocks:
            x, _, _ = block(x, maps=False)
        x = rearrange(self.norm(x)[:, :, 1:], "b t (h w) d -> (b t) d h w", h=H // STEM_STRIDE)
        return rearrange(self.head(self.decoder(x, skips)), "(b t) k h w -> b k t h w", b=B)


class Decoder(nn.Module):
    """Four doublings from 1/16 to full size; the first three take in a skip of the stem."""

    def __init__(self, width: int, skip_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.enter = _conv_bn_relu(width, 512)
        before = (512, *DECODER_CHANNELS)
        self.steps = nn.ModuleList(
            nn.Sequential(_conv_bn_relu(before[i] + skip, out), _conv_bn_relu(out, out))
            for i, (skip, out) in enumerate(zip((*skip_channels, 0), DECODER_CHANNELS, strict=True))
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
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


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Half cross-entropy, half soft Dice, a scalar; 0 for a perfect prediction.

    Args:
        logits: (B, K, T, H, W).
        masks: (B, T, H, W) int64, class of every pixel, 0 = background.

    Dice loss of one class: 1 - (2 sum(p m) + e) / (sum(p^2) + sum(m^2) + e), e = 1e-5, sums over the whole batch, then
    the mean over all classes, background included. A class that is nowhere costs nothing where it is not predicted.

    Source: TransUNet's loss, the one Endo-FM was fine-tuned with; Milletari et al., *V-Net*, arXiv 1606.04797.
    """
    p = logits.softmax(dim=1)
    m = rearrange(F.one_hot(masks, logits.shape[1]), "b t h w k -> b k t h w").to(p)
    over = (0, 2, 3, 4)
    smooth = 1e-5
    dice = 1 - (2 * (p * m).sum(over) + smooth) / (p.square().sum(over) + m.square().sum(over) + smooth)
    return 0.5 * F.cross_entropy(logits, masks) + 0.5 * dice.mean()
