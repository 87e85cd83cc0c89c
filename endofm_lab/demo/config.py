"""The training configuration of the demo model."""

import math
from dataclasses import dataclass

from endofm_lab.brief import Brief


@dataclass(frozen=True, repr=False)
class DemoConfig(Brief):
    """The training configuration of the demo model. The defaults give the weights in the package."""

    order_steps: int = 200  # first stage: the order of frames only, with small pictures
    small_steps: int = 700  # second stage: all losses, with pictures of half the size and four times the batch
    steps: int = 1300  # third stage: all losses at full size
    frame_steps: tuple[int, ...] = (1200, 800)  # fourth stage, in two rounds: the mask loss is also taken per frame
    batch: int = 8
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    stride: int = 4  # frames apart: 8 frames of the phantom's 24 per second span 1.3 s
    seed: int = 0

    @property
    def rounds(self) -> tuple[tuple[int, int, float], ...]:
        """First step, number of steps and peak learning rate of each round of warm-up and decay."""
        lengths = (self.order_steps, self.small_steps + self.steps, *self.frame_steps)
        rates = (self.lr, self.lr, *[self.lr / 2] * len(self.frame_steps))
        return tuple((sum(lengths[:n]), lengths[n], rates[n]) for n in range(len(lengths)))

    @property
    def total_steps(self) -> int:
        """Number of steps in all rounds."""
        return sum(length for _, length, _ in self.rounds)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: a short warm-up followed by a cosine decay in every round."""
        begin, length, peak = next(part for part in reversed(self.rounds) if part[0] <= step)
        warmup = (step - begin + 1) / max(1, min(100, length // 5))
        return peak * min(warmup, 0.5 + 0.5 * math.cos(math.pi * (step - begin) / length))
