"""Losses for classes of unequal size: logits (N, K) of any float type and target indices (N,) to a float32 scalar.

``counts`` are rows per class in the training split, (K,).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.errors import UserError


def inverse_frequency(counts: Sequence[int] | Tensor) -> Tensor:
    """Weights (K,) float32 proportional to 1 / count, with mean 1 over the classes. Every class needs a row."""
    counts = _checked(counts)
    weights = 1 / counts
    return weights / weights.mean()


def effective_number_weights(counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Class-balanced weights (K,) float32: (1 - beta) / (1 - beta ** count), scaled to mean 1 over the classes.

    beta = 0 gives equal weights; towards 1 they become those of `inverse_frequency`.

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
    """Cross-entropy with `effective_number_weights`, the weighted mean over rows.

    Source: Cui et al. 2019, equation 4.
    """
    weights = effective_number_weights(counts, beta).to(logits.device)
    return F.cross_entropy(logits.float(), target, weight=weights)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, weights: Tensor | None = None) -> Tensor:
    """Mean of -w[y] (1 - p[y]) ** gamma ln p[y]: rows that are already right count less. gamma = 0 is cross-entropy.

    ``weights`` (K,) multiply the rows of each class (alpha in the paper); the mean is over the rows, not the weights.

    Source: Lin et al., ICCV 2017 (arXiv 1708.02002), equation 5, with softmax in place of sigmoid.

    Raises:
        UserError: gamma below 0.
    """
    if gamma < 0:
        raise UserError(f"gamma is {gamma}; give 0 or more.")
    log_p = F.log_softmax(logits.float(), dim=1).gather(1, target[:, None])[:, 0]
    loss = -((-torch.expm1(log_p)).clamp(min=0) ** gamma) * log_p
    return loss.mean() if weights is None else (weights.to(logits.device)[target] * loss).mean()


def adjusted_logits(logits: Tensor, counts: Sequence[int] | Tensor, tau: float = 1.0) -> Tensor:
    """Logits (N, K) minus tau times the log share of each class: the argmax that is best for balanced accuracy.

    For a model trained with plain cross-entropy; not for one trained with `logit_adjusted_loss` or balanced sampling.

    Source: Menon et al., ICLR 2021 (arXiv 2007.07314), equation 9.
    """
    return logits.float() - tau * _log_share(counts).to(logits.device)


def logit_adjusted_loss(logits: Tensor, target: Tensor, counts: Sequence[int] | Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of logits plus tau times the log share: the logits themselves then aim at balanced accuracy.

    Source: Menon et al. 2021, equation 10.
    """
    return F.cross_entropy(logits.float() + tau * _log_share(counts).to(logits.device), target)


def _log_share(counts: Sequence[int] | Tensor) -> Tensor:
    counts = _checked(counts)
    return (counts / counts.sum()).log()


def _checked(counts: Sequence[int] | Tensor) -> Tensor:
    counts = torch.as_tensor(counts, dtype=torch.float32)
    if counts.ndim != 1 or not len(counts) or bool((counts < 1).any()):
        raise UserError(f"The class counts are {counts.tolist()}; every class needs at least one training row.")
    return counts
