"""From stored vectors to the inputs of a network over time: standardised, averaged, reduced, with a clock."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from endofm_lab.errors import UserError

TICKS = 10  # bumps of the clock from the start to the longest recording of training


@dataclass(frozen=True)
class InputConfig:
    """What a network is shown of every instant.

    Attributes:
        components: principal components of the training vectors to which vectors are reduced; None keeps them.
        average_s: seconds over which vectors are averaged: before the instant, or around it for offline networks.
        clock: also show the time since the start, and to offline networks the share of the recording that is over.
    """

    components: int | None = None
    average_s: float = 0.0
    clock: bool = False

    def __post_init__(self) -> None:
        if self.components is not None and not 1 <= self.components <= 65_536:
            raise UserError(f"components is {self.components}; give a whole number above 0.")
        if not 0 <= self.average_s <= 86_400:
            raise UserError(f"average_s is {self.average_s}; give seconds from 0 on.")


class Inputs(nn.Module):
    """Vectors (T, D) and times (T,) to inputs (T, D').

    ``mean``, ``scale`` and ``basis`` are learned from training vectors by `fit`; ``longest_s`` is the length of the
    longest recording of training. An instant without a vector (NaN) gets the mean.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    longest_s: Tensor

    def __init__(self, config: InputConfig, width: int, offline: bool) -> None:
        super().__init__()
        self.config, self.offline = config, offline
        if config.components is not None and config.components > width:
            raise UserError(f"components is {config.components}, but vectors have {width} numbers. Give fewer.")
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("basis", torch.zeros(width, config.components or 0))
        self.register_buffer("longest_s", torch.ones(()))

    @property
    def n_outputs(self) -> int:
        """D'."""
        clock = TICKS * (2 if self.offline else 1) if self.config.clock else 0
        return (self.config.components or len(self.mean)) + clock

    def fit(self, vectors: Tensor, longest_s: float) -> None:
        """Learn mean, scale and components from all training vectors (N, D)."""
        vectors = vectors[vectors.isfinite().all(1)].double()
        if len(vectors) < 2:
            raise UserError("No training recording has readable vectors. Look at the errors in the store's rows.")
        mean, scale = vectors.mean(0), vectors.std(0).clamp(min=1e-6)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.longest_s.fill_(max(longest_s, 1e-3))
        if self.config.components is None:
            return
        vectors = vectors - mean
        values, directions = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
        largest = directions.flip(1)[:, : self.config.components]
        largest = largest * largest.sum(0).sign()  # the sign of a component is arbitrary
        self.basis.copy_(largest / values.max().sqrt())

    def forward(self, vectors: Tensor, times_s: Tensor) -> Tensor:
        """Inputs (T, D') of a whole recording: vectors (T, D) and their times (T,) in seconds."""
        x = self._reduced(vectors)
        if self.config.average_s:
            apart = times_s[None, :] - times_s[:, None]
            half = self.config.average_s / 2
            near = apart.abs() <= half if self.offline else (apart <= 0) & (apart > -self.config.average_s)
            x = near.to(x.dtype) @ x / near.sum(1, keepdim=True)
        return torch.cat([x, *self._clock(times_s, times_s[-1])], dim=1)

    def begin(self) -> deque[Any]:
        """The state of `step` before the first instant."""
        return deque()

    def step(self, vector: Tensor, time_s: float, past: deque[Any]) -> Tensor:
        """Inputs (D',) of the next instant, for causal networks."""
        x = self._reduced(vector[None])
        times = torch.tensor([time_s], dtype=x.dtype, device=x.device)
        if self.config.average_s:
            past.append((time_s, x))
            while past[0][0] <= time_s - self.config.average_s:
                past.popleft()
            x = torch.cat([kept for _, kept in past]).mean(0, keepdim=True)
        return torch.cat([x, *self._clock(times, times[-1])], dim=1)[0]

    def _reduced(self, vectors: Tensor) -> Tensor:
        vectors = torch.where(vectors.isfinite().all(1, keepdim=True), vectors, self.mean)
        if self.config.components is None:
            return (vectors - self.mean) / self.scale
        return (vectors - self.mean) @ self.basis

    def _clock(self, times_s: Tensor, end_s: Tensor) -> list[Tensor]:
        """Bumps (T, TICKS) at equal distances from the start to the longest recording, and to this one's own end."""
        if not self.config.clock:
            return []
        at = torch.linspace(0, 1, TICKS, dtype=times_s.dtype, device=times_s.device)
        shares = [times_s / self.longest_s.to(times_s.dtype)]
        if self.offline:
            shares.append(times_s / end_s.clamp(min=1e-3))
        return [torch.exp(-0.5 * ((share[:, None] - at) * (TICKS - 1)).square()) for share in shares]
