"""From the patch tokens of a plain vision transformer to a feature pyramid P3..P7."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.errors import UserError

N_LEVELS = 5


class TokenPyramid(nn.Module):
    """Five maps per frame, of ``width`` channels, at 1/2, 1, 2, 4 and 8 times the patch size.

    One token map serves three resolutions: a transposed convolution doubles it, max pooling halves it. A feature
    pyramid is built on these maps; its top-down path carries the maps before their 3x3 convolution. Two strided
    convolutions on its coarsest output add P6 and P7.

    Source: Li et al., *Exploring plain vision transformer backbones for object detection*, arXiv 2203.16527 (simple
    pyramid); Lin et al., *Feature pyramid networks*, arXiv 1612.03144; Tian et al., *FCOS*, arXiv 1904.01355 (P6, P7).
    """

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(token_width, token_width, kernel_size=2, stride=2)
        self.lateral = nn.ModuleList(nn.Conv2d(token_width, width, 1) for _ in range(3))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.p6 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        for conv in (*self.lateral, *self.smooth, self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def token_maps(self, patches: Tensor) -> list[Tensor]:
        """Three maps (B*T, D, h, w), finest first, from patch tokens (B, T, h, w, D).

        Raises:
            UserError: fewer than two patches each way.
        """
        if min(patches.shape[2:4]) < 2:
            h, w = patches.shape[2:4]
            raise UserError(f"The frames have {h} x {w} patches; the detector needs at least 2 x 2. Use larger frames.")
        tokens = rearrange(patches, "b t h w d -> (b t) d h w")
        return [self.upsample(tokens), tokens, F.max_pool2d(tokens, kernel_size=2, stride=2)]

    def forward(self, patches: Tensor) -> list[Tensor]:
        """P3..P7, each (B, T, C, H_l, W_l), finest first, from patch tokens (B, T, h, w, D)."""
        fine, middle, coarse = (lateral(x) for lateral, x in zip(self.lateral, self.token_maps(patches), strict=True))
        middle = middle + F.interpolate(coarse, size=middle.shape[-2:], mode="nearest")
        fine = fine + F.interpolate(middle, size=fine.shape[-2:], mode="nearest")
        levels = [smooth(x) for smooth, x in zip(self.smooth, (fine, middle, coarse), strict=True)]
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return [rearrange(x, "(b t) c h w -> b t c h w", b=patches.shape[0]) for x in levels]
