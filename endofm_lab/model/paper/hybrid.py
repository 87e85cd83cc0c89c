"""A video transformer whose patches come from a convolutional stem: the backbone of TransUNet over a clip."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.paper.resnet import HybridStem
from endofm_lab.model.transformer import BackboneConfig, Block, VideoTransformer

STEM_STRIDE = 16


@dataclass(frozen=True)
class HybridConfig(BackboneConfig):
    """A `BackboneConfig` with a stem; ``frames`` and ``time_embed`` are not used, ``patch_px`` is the stem's 16.

    Attributes:
        stem_width: channels after the first convolution, a multiple of 32; 64 in R50.
        stem_units: bottlenecks per stage; (3, 4, 9) in the hybrid of R50 and ViT-B/16.

    Raises:
        UserError: as `BackboneConfig`; joint attention; a picture whose side is not a multiple of 16 px.
    """

    stem_width: int = 64
    stem_units: tuple[int, int, int] = (3, 4, 9)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem_units", tuple(self.stem_units))
        if self.image_px % STEM_STRIDE or self.patch_px != STEM_STRIDE:
            raise UserError(f"image_px is {self.image_px}; the convolutional stem needs a multiple of {STEM_STRIDE}.")
        if self.attention == "joint" or self.adapter or self.mask_token:
            raise UserError(
                "A convolutional stem works with divided or spatial attention only, without adapters and masks."
            )
        if self.stem_width % 32 or len(self.stem_units) != 3 or min(self.stem_width, *self.stem_units) < 1:
            raise UserError(
                f"stem_width is {self.stem_width} and stem_units {self.stem_units}; "
                "give a multiple of 32 and three numbers."
            )
        if self.stem_width > 1024 or max(self.stem_units) > 64:
            raise UserError(
                f"stem_width is {self.stem_width} and stem_units {self.stem_units}; "
                "give at most 1024, and at most 64 each."
            )
        super().__post_init__()


class HybridTransformer(Encoder):
    """Tokens of a clip and the stem's finer maps; a single image is a clip of one frame.

    Patches get a position embedding, but frames get no time embedding: frames exchange information in the temporal
    attention of the blocks, which does not depend on their order.

    Source: Chen et al., *TransUNet*, arXiv 2102.04306, with the blocks of Endo-FM (arXiv 2306.16741).
    """

    kind = "hybrid_transformer"
    Config = HybridConfig
    has_video_blocks = True
    state_is_whole = True

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.stem = HybridStem(config.stem_width, config.stem_units)
        self.skip_channels = self.stem.skip_channels
        self.project = nn.Conv2d(self.stem.out_channels, config.width, 1)
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.image_px // STEM_STRIDE) ** 2, config.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        drop_path = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, p) for p in drop_path)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    @classmethod
    def around(cls, backbone: VideoTransformer, **stem: Any) -> "HybridTransformer":
        """A fresh stem in front of a backbone's blocks, which become part of it, with its final norm and CLS token.

        The backbone's patch, position and time embeddings are left out. ``stem``: fields of `HybridConfig`.

        Raises:
            UserError: as `HybridConfig`.
        """
        settings = vars(backbone.config) | {"patch_px": STEM_STRIDE}
        hybrid = cls(HybridConfig(**settings, **stem))
        hybrid.blocks, hybrid.norm, hybrid.cls_token = backbone.blocks, backbone.norm, backbone.cls_token
        return hybrid

    def layers(self) -> list[nn.Module]:
        """Blocks, then the last norm with everything before the blocks, because a stem is as new as the heads."""
        stem = nn.ParameterList(p for name, p in self.named_parameters() if not name.startswith(("blocks.", "norm.")))
        return [*self.blocks, nn.ModuleList([self.norm, stem])]

    def forward(self, clip: Tensor, attention: bool = False) -> VideoTokens:
        """Tokens of clips (B, 3, T, H, W) with H = W = ``image_px``, and ``skips`` for a decoder.

        Raises:
            UserError: frames of another size.
        """
        B, _, T, H, W = clip.shape
        side = self.config.image_px
        if {H, W} != {side}:
            raise UserError(
                f"The frames are {H} x {W} px, but this backbone takes {side} x {side} px. Resize them with to_input."
            )
        frames = rearrange(clip.to(self.project.weight.dtype), "b c t h w -> (b t) c h w")
        features, skips = self.stem(frames)
        x = rearrange(self.project(features), "(b t) d h w -> b t (h w) d", b=B) + self.pos_embed[:, None]
        x = torch.cat([self.cls_token[:, None].expand(B, T, 1, -1), x], dim=2)  # (B, T, 1 + N, D)
        spatial, temporal = [], []
        for block in self.blocks:
            x, in_space, in_time = block(x, attention)
            spatial.append(in_space)
            temporal.append(in_time)
        h = H // STEM_STRIDE
        x = self.norm(x)
        maps: dict[str, Any] = {}
        if attention:
            maps["spatial"] = tuple(spatial)
            if self.config.attention == "divided":
                maps["temporal"] = tuple(rearrange(m, "b (h w) k i j -> b h w k i j", h=h) for m in temporal)
        patches = rearrange(x[:, :, 1:], "b t (h w) d -> b t h w d", h=h)
        return VideoTokens(x[:, :, 0].mean(dim=1), patches, skips=tuple(skips), **maps)
