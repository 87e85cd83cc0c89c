"""ST-Adapter (arXiv 2206.13559): small modules that teach time to a frozen image transformer."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

FRAMES = 3  # length of the kernel over time; 3 x 1 x 1 was the best kernel in the paper


def is_adapter(name: str) -> bool:
    """Whether a backbone's tensor of this name belongs to an adapter."""
    return ".temporal_adapter" in name


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
