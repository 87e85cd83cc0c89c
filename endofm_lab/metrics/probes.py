"""The information on classes in frozen features: a linear probe and nearest neighbours, both deterministic."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from endofm_lab.model.card import HeadSpec

# The candidates; validation chooses, and the first of equal candidates wins.
L2 = (1.0, 0.1, 0.01, 0.001, 0.0001)
NEIGHBOURS = (20, 10, 5, 1)
KNN_TEMPERATURE = 0.07
FIXED_L2 = 0.1  # penalty of the linear probe if there are no validation rows to choose it on


def fit_linear(x: Tensor, target: Tensor, n_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of the logistic regression with the least mean loss + l2 / 2 |weight|^2.

    The features are standardised for the fit, so that ``l2`` means the same for every backbone; the result takes
    features that are not standardised. The problem is convex, so every start gives the same result. L-BFGS in float64.

    Args:
        x: (N, D) features.
        target: (N,) classes (softmax), or (N, K) of 0 and 1 (a sigmoid for each label).
        n_classes: K.
        l2: strength of the penalty.
    """
    x = x.double()
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x = (x - mean) / std
    weight = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = F.linear(x, weight, bias)
        if target.ndim == 1:
            error = F.cross_entropy(logits, target)
        else:
            error = F.binary_cross_entropy_with_logits(logits, target.double())
        value = error + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    scaled = weight.detach() / std
    return scaled.float(), (bias.detach() - scaled @ mean).float()


def linear_answers(bank: Tensor, target: NDArray[np.int64], query: Tensor) -> NDArray[np.int64]:
    """Classes (Q,) that a linear probe on (N, D) features predicts for (Q, D) other features, at ``FIXED_L2``.

    Args:
        bank: (N, D) features.
        target: (N,) classes; a class that does not occur is never predicted.
        query: (Q, D).
    """
    classes, numbers = np.unique(target, return_inverse=True)
    weight, bias = fit_linear(bank, torch.from_numpy(numbers), len(classes), FIXED_L2)
    return classes[F.linear(query, weight, bias).argmax(dim=1).numpy()]


def linear_scores(features: Tensor, weight: Tensor, bias: Tensor, head: HeadSpec) -> NDArray[np.float64]:
    """Scores (N, K), means over clips, from features (N, clips, D)."""
    logits = F.linear(features, weight, bias).double()
    scores = logits.softmax(-1) if head.kind == "multiclass" else logits.sigmoid()
    return scores.mean(1).numpy()


def knn_scores(bank: Tensor, target: NDArray[np.int64], query: Tensor, n_classes: int, k: int) -> NDArray[np.float64]:
    """Scores (Q, K) of the weighted vote of the k nearest training clips by cosine, means over the query's clips.

    A neighbour's vote weighs exp(cosine / 0.07), as in DINO (arXiv 2104.14294) after Wu et al. (1805.01978).

    Args:
        bank: (N, clips, D) training features; every clip is a separate neighbour.
        target: (N,) classes, or (N, K) of 0 and 1.
        query: (Q, clips, D).
        n_classes: K.
        k: number of neighbours, or all clips if there are fewer.
    """
    one_hot = np.eye(n_classes)[target] if target.ndim == 1 else target
    votes = torch.from_numpy(np.asarray(one_hot, np.float64)).repeat_interleave(bank.shape[1], dim=0)  # (N clips, K)
    similarity = F.normalize(query.double(), dim=-1) @ F.normalize(bank.double().flatten(0, 1), dim=-1).T
    nearest = similarity.topk(min(k, len(votes)), dim=-1)
    weight = (nearest.values / KNN_TEMPERATURE).softmax(-1)  # (Q, clips, k)
    return (weight[..., None] * votes[nearest.indices]).sum(-2).mean(1).numpy()
