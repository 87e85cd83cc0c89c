"""Parameter groups with and without weight decay, and clipping of gradients tensor by tensor, for every optimiser."""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in two groups for the optimiser: those with weight decay, and those without (biases,
    norms and embeddings of one row, which are all tensors with one dimension).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "decays": True},
        {"params": [p for p in trainable if p.ndim <= 1], "decays": False},
    ]


@torch.no_grad()
def clip_each(model: nn.Module, limit: float | None) -> float:
    """Scale the gradient of every parameter tensor to a norm of at most ``limit``; returns the total norm before that.

    Each tensor is clipped separately, as in Endo-FM and DINO.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    if isinstance(norms, DTensor):
        norms = norms.full_tensor()  # norms of whole tensors, not of shards
    if limit is not None:
        torch._foreach_mul_(gradients, list((limit / (norms + 1e-6)).clamp(max=1.0).unbind()))
    return float(norms.norm())
