"""Losses for data sets of different label granularity trained together (see ``endofm_lab.data.labels``).

A set that knows only `abnormal` cannot say which of the finer classes a picture shows, so it must not punish any of
them: the model is asked for the summed probability of all leaves the label is compatible with.
"""

import torch
import torch.nn.functional as F


def granular_cross_entropy(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Minus log of the summed softmax probability over the compatible leaves, mean over the batch.

    Equal to the plain cross-entropy where one leaf is allowed, and 0 where all are.

    Args:
        logits: float (B, K).
        allowed: bool (B, K), ``MappedLabels.allowed`` of the rows; at least one True per row.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: when a row is compatible with no leaf: such rows have to be left out of the batch.
    """
    _same_shape(logits, allowed)
    empty = torch.nonzero(~allowed.any(dim=1)).flatten().tolist()
    if empty:
        raise ValueError(f"Rows {empty} of the batch are compatible with no class; leave unmapped rows out.")
    compatible = logits.masked_fill(~allowed, -torch.inf)
    return (logits.logsumexp(dim=1) - compatible.logsumexp(dim=1)).mean()


def granular_binary_cross_entropy(
    logits: torch.Tensor, present: torch.Tensor, unknown: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy of a multi-label model, over the (row, leaf) pairs whose truth is known.

    Args:
        logits: float (B, K).
        present: bool (B, K), ``MappedLabels.allowed`` of a multi-label mapping.
        unknown: bool (B, K), ``MappedLabels.unknown``; None when everything is known.

    Returns:
        A scalar in nats: the mean over the known pairs, 0 when there is none.
    """
    _same_shape(logits, present)
    known = torch.ones_like(present) if unknown is None else ~unknown
    each = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def _same_shape(logits: torch.Tensor, mask: torch.Tensor) -> None:
    if logits.shape != mask.shape or logits.ndim != 2:
        raise ValueError(f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must both be (batch, classes).")
