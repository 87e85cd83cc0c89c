"""Small trained additions to a frozen backbone: ST-Adapter (arXiv 2206.13559), and low-rank adaptation (2106.09685).

ST-Adapters teach time to an image transformer. Low-rank adaptation (LoRA) changes the attention of any transformer.
"""

import math
import re

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize

from endofm_lab.errors import UserError

FRAMES = 3  # length of the kernel over time; 3 x 1 x 1 was the best kernel in the paper
_OF_ATTENTION = re.compile(r"(^|[._])(attn|attention|temporal_fc)(\.|\d|$)")  # in the name of a linear map


def is_adapter(name: str) -> bool:
    """Whether a backbone's tensor of this name belongs to an adapter or a low-rank change."""
    return ".temporal_adapter" in name or ".parametrizations.weight.0." in name


class STAdapter(nn.Module):
    """``x + up(f(conv(down(x))))`` on patch tokens, with a depth-wise 3-D convolution in the bottleneck.

    The kernel is 3 x 1 x 1 (time, height, width): each channel of a patch sees its neighbours in time.  A fresh
    adapter changes nothing.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, (FRAMES, 1, 1), padding=(FRAMES // 2, 0, 0), groups=bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the adapter add nothing: ``up`` is zero, and the convolution passes each frame on unchanged."""
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.dirac_(self.conv.weight, groups=self.conv.groups)
        nn.init.zeros_(self.up.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, T, 1 + N, D)`` -> the same shape; CLS, the first of every frame, passes unchanged."""
        hidden = rearrange(self.down(x[:, :, 1:]), "b t n d -> b d t n 1")
        y = self.up(F.gelu(rearrange(self.conv(hidden), "b d t n 1 -> b t n d")))
        return x + F.pad(y, (0, 0, 1, 0))


class LowRank(nn.Module):
    """``W + (alpha / rank) up down`` for a frozen weight W: LoRA, Hu et al. 2021 (arXiv 2106.09685), section 4.1.

    ``down`` is drawn as in the released code, and ``up`` is zero: a fresh change adds nothing.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """``(D', D)`` -> the same shape."""
        return weight + self.scale * (self.up @ self.down)


def add_low_rank(backbone: nn.Module, rank: int, alpha: float) -> None:
    """Give every linear map in the attention of a backbone a `LowRank` change, in place.

    These are queries, keys, values (often one map, which then has one change) and outputs, also of attention in time.
    The maps are recognised by their names, which contain "attn" or "attention" in all common libraries.

    Raises:
        UserError: there are no such maps, or one is not as wide as ``rank``.
    """
    maps = [m for name, m in backbone.named_modules() if isinstance(m, nn.Linear) and _OF_ATTENTION.search(name)]
    if not maps:
        raise UserError(
            f"{type(backbone).__name__} has no linear maps in modules called attn or attention, so LoRA has nothing to "
            "change. Choose another method, such as full or frozen."
        )
    if rank > (narrowest := min(min(m.weight.shape) for m in maps)):
        raise UserError(f"rank is {rank}, but the narrowest map of the attention has {narrowest}; give at most that.")
    for linear in maps:
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank, alpha))


def merge_low_rank(backbone: nn.Module) -> None:
    """Replace every changed weight by the sum of weight and change, in place; the backbone is then as usual."""
    for module in backbone.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
