"""Losses of exclusive classes besides plain cross-entropy: for classes of unequal size, and for coarse labels.

All take logits (N, K) of any float type and give a float32 scalar. ``counts`` are rows per class in training, (K,).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.errors import UserError


def effective_number_weights(counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Class-balanced weights (K,) float32: (1 - beta) / (1 - beta ** count), scaled to mean 1 over the classes.

    beta = 0 gives equal weights; towards 1 they become proportional to 1 / count.

    Source: Cui et al., CVPR 2019 (arXiv 1901.05555), equation 2.

    Raises:
        UserError: beta outside 0 to below 1, or a class without rows.
    """
    counts = _checked(counts)
    if not 0 <= beta < 1:
        raise UserError(f"beta is {beta}; give a number from 0 to below 1.")
    weights = (1 - beta) / -torch.expm1(counts.double() * torch.log(torch.tensor(beta, dtype=torch.float64)))
    return (weights / weights.mean()).float()


def class_balanced_loss(logits: Tensor, target: Tensor, counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Cross-entropy with `effective_number_weights`, the weighted mean over rows; ``target``: (N,) classes.

    Source: Cui et al. 2019, equation 4.
    """
    weights = effective_number_weights(counts, beta).to(logits.device)
    return F.cross_entropy(logits.float(), target, weight=weights)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of -(1 - p[y]) ** gamma ln p[y]: rows that are already right count less. gamma = 0 is cross-entropy.

    ``target``: (N,) classes.

    Source: Lin et al., ICCV 2017 (arXiv 1708.02002), equation 4, with softmax in place of sigmoid.

    Raises:
        UserError: gamma below 0.
    """
    if gamma < 0:
        raise UserError(f"gamma is {gamma}; give 0 or more.")
    log_p = F.log_softmax(logits.float(), dim=1).gather(1, target[:, None])[:, 0]
    return (-((-torch.expm1(log_p)).clamp(min=0) ** gamma) * log_p).mean()


def logit_adjusted_loss(logits: Tensor, target: Tensor, counts: Sequence[int] | Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of logits plus tau times the log share of each class: the logits then aim at balanced accuracy.

    ``target``: (N,) classes.

    Source: Menon et al., ICLR 2021 (arXiv 2007.07314), equation 10.
    """
    counts = _checked(counts)
    return F.cross_entropy(logits.float() + tau * (counts / counts.sum()).log().to(logits.device), target)


def coarse_cross_entropy(logits: Tensor, allowed: Tensor) -> Tensor:
    """Minus log of the summed softmax probability over the classes that a label may stand for, mean over the batch.

    A data set with the label `abnormal` does not say which of the finer classes a picture shows, so the loss must not
    penalise any of them. It equals plain cross-entropy if one class is allowed, and 0 if all classes are allowed.

    Args:
        logits: float (B, K).
        allowed: (B, K), true for the classes that the row's label may stand for; at least one per row.

    Raises:
        ValueError: logits and mask differ in shape, or a row allows no class; leave such rows out.
    """
    if logits.shape != allowed.shape or logits.ndim != 2:
        raise ValueError(f"logits {tuple(logits.shape)} and mask {tuple(allowed.shape)} must both be (batch, classes).")
    allowed = allowed.bool()
    empty = torch.nonzero(~allowed.any(dim=1)).flatten().tolist()
    if empty:
        raise ValueError(f"Rows {empty} of the batch are compatible with no class. Leave unmapped rows out.")
    compatible = logits.masked_fill(~allowed, -torch.inf)
    return (logits.logsumexp(dim=1) - compatible.logsumexp(dim=1)).mean()


def _checked(counts: Sequence[int] | Tensor) -> Tensor:
    counts = torch.as_tensor(counts, dtype=torch.float32)
    if counts.ndim != 1 or not len(counts) or bool((counts < 1).any()):
        raise UserError(f"The class counts are {counts.tolist()}; every class needs at least one training row.")
    return counts
