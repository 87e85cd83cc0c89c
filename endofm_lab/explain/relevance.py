"""Gradient-weighted attention for one target, and the influence of the order of frames on a score."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.explain.attention import AttentionMaps
from endofm_lab.explain.targets import Target
from endofm_lab.model.encoder import VideoTokens
from endofm_lab.model.video_model import VideoModel


@dataclass(frozen=True, eq=False, repr=False)
class Relevance(Brief):
    """Relevance for one target: ``values`` (T, h, w) of each patch, and ``time`` (T, T) between frames.

    ``time`` is the gradient-weighted temporal attention, summed over blocks, averaged over patches; None without
    temporal attention.
    """

    values: Tensor
    time: Tensor | None
    target: str


def attention_relevance(model: VideoModel, clip: Tensor, target: Target) -> Relevance:
    """Attention relevance (Chefer et al. 2021, arXiv 2103.15679) of one clip (1, 3, T, H, W), in space and time.

    Plain attention does not depend on the target. Here every map is weighted by the gradient of the target's score:
    ``A' = mean over heads of max(0, dy/dA * A)``, and the row of CLS goes backwards as in rollout with ``M = I + A'``.

    Raises:
        UserError: the target is a mask or a box, or the model is not a video transformer.
    """
    if not model.backbone.has_video_blocks:
        raise UserError("Gradient-weighted attention needs a video transformer. Use another method for this model.")
    if target.of_output is None:
        possible = [f"{n}: {', '.join(s.classes)}" for n, s in model.card.heads.items() if s.answer == "clip"]
        raise UserError(
            f"Attention relevance works for scores from CLS, but {target.name} comes from patches; choose one of the "
            f"class heads: {'; '.join(possible) or 'there are none'}."
        )
    output = model(clip.clone().requires_grad_(), attention=True)
    score = target.of_output(output)[0]
    maps = _weighted(output.tokens, score, str(model.backbone.attention_kind))
    T, h, w = maps.grid
    row = torch.zeros(T, 1 + h * w)
    row[:, 0] = 1 / T
    values = maps.walk(row, share=1.0)[:, 1:].reshape(T, h, w)
    time = torch.stack([m.mean(dim=(0, 1, 2)) for m in maps.time]).sum(dim=0) if maps.time else None
    return Relevance(values, time, target.name)


@torch.inference_mode()
def exchange_matrix(clip: Tensor, target: Target, batch_clips: int = 8) -> Tensor:
    """(T, T): the change of the score when two frames of the clip (1, 3, T, H, W) are swapped; symmetric, 0 diagonal.

    A score that does not depend on the order of frames gives zeros everywhere, whatever the attention maps look like.
    """
    T = clip.shape[2]
    pairs = [(s, t) for s in range(T) for t in range(s + 1, T)]
    orders = [[t if i == s else s if i == t else i for i in range(T)] for s, t in pairs]
    original = target.score(clip)[0]
    changes = [
        (target.score(torch.cat([clip[:, :, order] for order in orders[start : start + batch_clips]])) - original).abs()
        for start in range(0, len(orders), batch_clips)
    ]
    matrix = torch.zeros(T, T)
    for (s, t), change in zip(pairs, torch.cat(changes).tolist() if changes else [], strict=True):
        matrix[s, t] = matrix[t, s] = change
    return matrix


def _weighted(tokens: VideoTokens, score: Tensor, kind: str) -> AttentionMaps:
    """The positive part of every map times its gradient, averaged to a single head."""
    returned = [*(tokens.spatial or tokens.joint or ()), *(tokens.temporal or ())]
    # The score does not depend on the returned maps, which are tensor views, but on the softmax that they are views of.
    edges = [_softmax(m) for m in returned]
    gradients = torch.autograd.grad(score, edges)
    weighted = [
        (m * gradient.reshape(m.shape)).clamp(min=0).detach().float().cpu()
        for m, gradient in zip(returned, gradients, strict=True)
    ]
    n = len(tokens.spatial or tokens.joint or ())
    _, T, h, w, _ = tokens.patches.shape
    return AttentionMaps(
        space=tuple((m if kind == "joint" else m[0]).mean(dim=-3, keepdim=True) for m in weighted[:n]),
        time=tuple(m[0].mean(dim=-3, keepdim=True) for m in weighted[n:]),
        grid=(T, h, w),
        kind=kind,
    )


def _softmax(attention: Tensor) -> GradientEdge:
    """The softmax that a returned map is a tensor view of, with its numbers in the same order."""
    node = attention.grad_fn
    while node is not None and "Softmax" not in node.name():
        node = node.next_functions[0][0]
    assert node is not None, "attention maps are views of a softmax"
    return GradientEdge(node, 0)
