"""Values that change with the step; pure functions, so that a resumed run needs only its step number."""

import math


def cosine(step: int, start: float, end: float, steps: int, warmup: int = 0) -> float:
    """The value at a step: linear from 0 to ``start`` over ``warmup`` steps, then half a cosine down or up to ``end``.

    The last warm-up step and the first step after it have the value ``start``, as in DINO's released schedule.

    Args:
        step: number of the step, counted from 0; from ``steps`` on the value is ``end``.
        start: value at the end of the warm-up, or at step 0 without a warm-up.
        end: the final value, which step ``steps`` would have.
        steps: number of steps in the whole run, including the warm-up.
        warmup: number of steps in the warm-up.
    """
    if step < warmup:
        return start * step / max(warmup - 1, 1)
    if step >= steps:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def linear(step: int, start: float, end: float, steps: int) -> float:
    """The value at a step: evenly from ``start`` at step 0 to ``end`` at the last of ``steps``, then ``end``."""
    return end if step >= steps - 1 else start + (end - start) * step / (steps - 1)
