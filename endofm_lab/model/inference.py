"""Video transformers arranged for inference on CPUs: the same equations in fewer passes over memory.

Libraries need weights in their own memory order and rearrange them in every call; here this is done once. Element-wise
operations after a product (GELU, residual) are computed in place; oneDNN computes them together with the product.
"""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from endofm_lab.model.encoder import Encoder
from endofm_lab.model.transformer import Block, attend

M = TypeVar("M", bound=nn.Module)


def for_inference(model: M, dtype: torch.dtype) -> M:
    """A copy of a model that computes in ``dtype``, on CPUs in fewer passes; the model itself does not change.

    The results of the copy equal those of the model up to rounding, but its blocks have no parameters: it cannot be
    trained or saved. Encoders without their own `Encoder.pack` are copied without rearrangement.
    """
    quick = deepcopy(model).to(dtype).eval()
    on_cpu = next(quick.parameters()).device.type == "cpu" and torch.backends.mkldnn.is_available()
    for encoder in [module for module in quick.modules() if isinstance(module, Encoder)]:
        if on_cpu:
            encoder.pack(PackedBlock)
    return quick


class PackedBlock(nn.Module):
    """`Block` without gradients: the same tokens and maps."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.heads, self.divided = block.attn.heads, block.divided
        if self.divided:
            self.temporal_norm1 = block.temporal_norm1
            self.temporal_qkv = _Linear(block.temporal_attn.qkv.weight, block.temporal_attn.qkv.bias)
            self.temporal_output = _Linear(*block.temporal_attn.output(fc=block.temporal_fc))
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = _Linear(block.attn.qkv.weight, block.attn.qkv.bias)
        self.output = _Linear(*block.attn.output())
        self.fc1 = _Linear(block.mlp.fc1.weight, block.mlp.fc1.bias)
        self.fc2 = _Linear(block.mlp.fc2.weight, block.mlp.fc2.bias)

    @torch.no_grad()
    def forward(self, x: Tensor, maps: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `Block.forward`: ``(B, T, 1 + N, D)`` -> the same shape, maps over space, maps over time."""
        temporal = None
        if self.divided:  # CLS, one row in 197, is computed too and then restored: cheaper than removing and adding it
            cls = x[:, :, 0].clone()
            y, temporal = attend(self.temporal_qkv(self.temporal_norm1(x)), self.heads, "time", maps)
            x = self.temporal_output(y, add=x)
            x[:, :, 0] = cls
            temporal = temporal[:, 1:] if temporal is not None else None
        y, spatial = attend(self.qkv(self.norm1(x)), self.heads, "space", maps)
        x = self.output(y, add=x)
        if self.divided:  # the copies of CLS were equal: the mean of the sums is the sum with the mean
            x[:, :, 0] = x[:, :, 0].mean(dim=1, keepdim=True)
        return self.fc2(self.fc1(self.norm2(x), gelu=True), add=x), spatial, temporal


class _Linear:
    """A linear map with its weight in the order of the multiplying library: MKL in float32, otherwise oneDNN.

    In float32, MKL's product followed by a pass over the result is a tenth faster than oneDNN, which does both at once.
    MKL packs weights for a number of rows and also needs the plain weight, which doubles the memory.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        weight = weight.detach().contiguous()
        self.by_mkl = weight.dtype == torch.float32 and torch.backends.mkl.is_available()
        self.weight = weight if self.by_mkl else torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias.detach()
        self.packed: tuple[int, Tensor] | None = None  # rows, and MKL's weight for as many

    def __call__(self, x: Tensor, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """``(..., D)`` -> ``(..., D')``, then an exact GELU, or ``add`` ``(..., D')`` is added to the result."""
        if self.by_mkl:
            y = self._mkl(x)
            if add is not None:
                return y.add_(add)
            return torch.ops.aten.gelu_(y) if gelu else y
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu" if gelu else "none", [], "none")

    def _mkl(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        packed = self.packed  # rows and weight are read and written together: threads may share this map
        if packed is None or packed[0] != rows:
            packed = self.packed = rows, torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)
        return torch.ops.mkl._mkl_linear(x, packed[1], self.weight, self.bias, rows)
