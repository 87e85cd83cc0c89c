"""An estimate of the memory of a training, before any of it is allocated, and a comparison with the free memory.

The networks are built without memory (on torch's "meta" device). A forward pass through the backbone, on tensors
without values, counts the bytes that it keeps for the gradient. Measured peaks of micro, tiny and small backbones lie
within `TOLERANCE` of the estimate (`tests/training/test_memory.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from endofm_lab.errors import UserError
from endofm_lab.machine import free_memory_mb

TOLERANCE = 0.35  # largest difference of measured peaks from the estimate, relative to the estimate
_MB = 2**20
_FLOAT = 4  # bytes; weights stay float32 in every precision
_BESIDE = 1.0  # temporary gradients of activations and workspaces, relative to the stored activations
_START_MB = 60  # constant share of decoders and the first step


@dataclass(frozen=True)
class MemoryEstimate:
    """The additional memory that a training needs in its process, in MB."""

    weights_mb: float
    gradients_mb: float
    optimiser_mb: float
    activations_mb: float
    other_mb: float

    @property
    def total_mb(self) -> float:
        """The sum of all parts, in MB."""
        return self.weights_mb + self.gradients_mb + self.optimiser_mb + self.activations_mb + self.other_mb

    def to_json(self) -> dict[str, float]:
        """Every part and the sum, in MB."""
        return {**{name: round(value, 1) for name, value in vars(self).items()}, "total_mb": round(self.total_mb, 1)}

    def text(self) -> str:
        """The parts in one line of text."""
        parts = {
            "weights": self.weights_mb,
            "gradients": self.gradients_mb,
            "optimiser": self.optimiser_mb,
            "activations": self.activations_mb,
            "other": self.other_mb,
        }
        words = ", ".join(f"{name} {_gb(value)}" for name, value in parts.items())
        return f"Estimated memory: {_gb(self.total_mb)} ({words}; measured peaks lie within {TOLERANCE:.0%})"

    def refuse_if_too_large(self, free_mb: float, advice: str) -> None:
        """Refuse a training that needs more memory than is free.

        Args:
            free_mb: memory that the process may still use.
            advice: a remedy that reduces the need, as the end of a sentence.

        Raises:
            UserError: the estimate is larger.
        """
        if self.total_mb > free_mb:
            raise UserError(
                f"The training needs about {_gb(self.total_mb)}, of which {_gb(self.activations_mb)} are activations, "
                f"but {_gb(free_mb)} are free: {advice}."
            )


def estimated(
    network: nn.Module,
    backbone: nn.Module,
    passes: Iterable[Sequence[tuple[int, ...]]],
    *,
    half: bool,
    logits: int = 0,
    states: int = 2,
) -> MemoryEstimate:
    """The memory of one training step.

    Args:
        network: all networks of the training, on the device "meta".
        backbone: the part of ``network`` that turns clips into tokens with gradients; also on "meta", in training mode.
        passes: for each part of a batch that is computed at once, the shapes (B, 3, T, S, S) of its clips.
        half: whether the training computes in bfloat16 or float16.
        logits: number of logits that a head with many outputs computes at once.
        states: number of values that the optimiser keeps for each trained weight.
    """
    tensors = [*network.parameters(), *network.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    trained = sum(weight.numel() * _FLOAT for weight in network.parameters() if weight.requires_grad)
    shapes = [list(part) for part in passes]
    stored_by = {shape: _stored_bytes(backbone, shape, half) for shape in {shape for part in shapes for shape in part}}
    stored = max((sum(stored_by[shape] for shape in part) for part in shapes), default=0)
    clips = sum(int(torch.Size(shape).numel()) * _FLOAT for part in shapes for shape in part)
    copies = weights // 2 if half else 0  # autocast keeps a half of every weight
    return MemoryEstimate(
        weights_mb=weights / _MB,
        gradients_mb=trained / _MB,
        optimiser_mb=trained * states / _MB,
        activations_mb=(stored * _BESIDE + logits * _FLOAT) / _MB,
        other_mb=(2 * clips + copies) / _MB + _START_MB,
    )


def free_mb(device: torch.device) -> float:
    """Memory that is free for this process on a device, in MB."""
    return torch.cuda.mem_get_info(device)[0] / _MB if device.type == "cuda" else float(free_memory_mb())


def _stored_bytes(backbone: nn.Module, shape: tuple[int, ...], half: bool) -> int:
    """Bytes of the tensors that a forward pass stores for the gradient, without weights; scaled from two clips.

    The tensors are fake tensors of the CPU: on "meta", attention would store matrices that no device stores.
    """
    storages: dict[Any, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in inputs:
            storages[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    weights = list(backbone.named_parameters())
    if not any(weight.requires_grad for _, weight in weights):
        return 0
    inputs: set[Any] = set()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FakeTensorMode(), hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        arguments: dict[str, torch.Tensor] = {}
        arguments |= {name: nn.Parameter(torch.empty(weight.shape), weight.requires_grad) for name, weight in weights}
        arguments |= {name: torch.zeros(buffer.shape, dtype=buffer.dtype) for name, buffer in backbone.named_buffers()}
        inputs |= {tensor.untyped_storage()._cdata for tensor in arguments.values()}
        torch.func.functional_call(backbone, arguments, (torch.zeros(2, *shape[1:]),))
    return sum(size for size, _ in storages.values()) * shape[0] // 2


def _gb(mb: float) -> str:
    return f"{mb / 1024:.1f} GB" if mb >= 1024 else f"{mb:.0f} MB"
