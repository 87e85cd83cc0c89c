"""What every optimiser here shares: which parameters decay, and gradients clipped tensor by tensor."""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in two groups for the optimiser: tensors with weight decay, and those without: biases,
    norms and embeddings of one row (all tensors with one dimension).
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim > 1], "decays": True},
        {"params": [p for p in learning if p.ndim <= 1], "decays": False},
    ]


@torch.no_grad()
def clip_each(model: nn.Module, limit: float | None) -> float:
    """Scale the gradient of every parameter tensor to at most ``limit``; returns the norm of all before that.

    Per tensor, as in Endo-FM and DINO, not over all together.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    if isinstance(norms, DTensor):
        norms = norms.full_tensor()  # of whole tensors, not of shards
    if limit is not None:
        torch._foreach_mul_(gradients, list((limit / (norms + 1e-6)).clamp(max=1.0).unbind()))
    return float(norms.norm())
