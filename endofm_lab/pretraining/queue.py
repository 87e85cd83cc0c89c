"""The last rows that came by, kept with the weights."""

import torch
from torch import Tensor, nn


class Queue(nn.Module):
    """A ring of at most ``length`` rows (D,), float32; part of the state dict."""

    ring: Tensor
    pushed: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("ring", torch.zeros(length, width))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Add rows (N, D); the oldest make room."""
        rows = rows[-len(self.ring) :]
        places = (self.pushed + torch.arange(len(rows), device=self.ring.device)) % len(self.ring)
        self.ring[places] = rows.to(self.ring.dtype)
        self.pushed += len(rows)

    def rows(self) -> Tensor:
        """The rows that are there, (N, D), in no particular order."""
        return self.ring[: int(self.pushed)]
