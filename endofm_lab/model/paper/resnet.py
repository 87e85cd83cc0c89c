"""The convolutional stem of the segmenter: R50 with weight standardisation and group norm, as in BiT and TransUNet."""

import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import Tensor, nn

GROUPS = 32
NORM_EPS = 1e-6


class HybridStem(nn.Module):
    """Frames (N, 3, H, W) to features at 1/16 of their size, and three finer maps for a decoder's skips.

    Three of R50's four stages: ``units`` bottlenecks each, the last two with stride 2.

    Source: Kolesnikov et al., *Big transfer (BiT)*, arXiv 1912.11370; Chen et al., *TransUNet*, arXiv 2102.04306.
    The pooling has no padding and loses a row and a column (224 px: 112, then 55 instead of 56); skips are padded with
    zeros at the bottom and right. The released weights depend on this.
    """

    def __init__(self, width: int = 64, units: tuple[int, int, int] = (3, 4, 9)) -> None:
        super().__init__()
        self.conv = StdConv2d(3, width, 7, stride=2, padding=3, bias=False, eps=1e-5)
        self.norm = nn.GroupNorm(GROUPS, width, eps=NORM_EPS)
        stages = []
        channels = width
        for stage, n_units in enumerate(units):
            out = 4 * width * 2**stage
            first = Bottleneck(channels, out, stride=1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(Bottleneck(out, out) for _ in range(n_units - 1))))
            channels = out
        self.stages = nn.ModuleList(stages)
        self.skip_channels = (8 * width, 4 * width, width)
        self.out_channels = channels

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (N, C, H/16, W/16) and skips, coarsest first, at 1/8, 1/4 and 1/2 of the input."""
        H, W = x.shape[-2:]
        x = F.relu(self.norm(self.conv(x)))
        skips = [x]
        x = F.max_pool2d(x, kernel_size=3, stride=2)  # (N, C, H/4 - 1, W/4 - 1)
        for shrink, stage in zip((4, 8), self.stages, strict=False):
            x = stage(x)
            skips.append(F.pad(x, (0, W // shrink - x.shape[-1], 0, H // shrink - x.shape[-2])))
        return self.stages[-1](x), skips[::-1]


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 (strided), 1x1, each with group norm, beside a shortcut; ReLU after the sum."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        middle = out // 4
        self.conv1 = StdConv2d(channels, middle, 1, bias=False, eps=1e-5)
        self.gn1 = nn.GroupNorm(GROUPS, middle, eps=NORM_EPS)
        self.conv2 = StdConv2d(middle, middle, 3, stride=stride, padding=1, bias=False, eps=1e-5)
        self.gn2 = nn.GroupNorm(GROUPS, middle, eps=NORM_EPS)
        self.conv3 = StdConv2d(middle, out, 1, bias=False, eps=1e-5)
        self.gn3 = nn.GroupNorm(GROUPS, out, eps=NORM_EPS)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                StdConv2d(channels, out, 1, stride=stride, bias=False, eps=1e-5),
                nn.GroupNorm(out, out),  # every channel is its own group, eps 1e-5, as in the released weights
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H/stride, W/stride)."""
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        return F.relu(self.shortcut(x) + self.gn3(self.conv3(y)))
