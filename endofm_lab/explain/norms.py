"""Contributions of tokens in each step: attention times the norm of the transported value, and the residual.

A token with high attention contributes little if its value vector is short; models attend to such tokens when no other
token is informative (Kobayashi et al. 2020, arXiv 2004.10102). The residual is not half of a step, as rollout assumes,
but usually most of it (Kobayashi et al. 2021, arXiv 2109.07152).
"""

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.brief import Brief
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.transformer import Attention, Block


@dataclass(frozen=True, eq=False, repr=False)
class StepNorms(Brief):
    """The composition of each token (row) of one clip after a residual step, per block, as shares that sum to one.

    The step writes ``x_i + sum_j f_ij`` with ``f_ij = sum over heads of A_ij W_out v_j``; a share is the Euclidean
    length of one summand, ``|x_i + f_ii|`` for the token itself and ``|f_ij|`` for another token, divided by the sum of
    all lengths (Modarressi et al. 2022, arXiv 2205.03286, without the normalisation after the step, because these
    networks normalise before it). The bias of the output belongs to no token and is left out.

    Attributes:
        space: (T, 1 + N, 1 + N), entry 0 is CLS; T is 1 and N counts all patches in a joint model.
        time: (N, T, T) between frames at one patch; empty without temporal attention.
    """

    space: tuple[Tensor, ...]
    time: tuple[Tensor, ...]


def step_norms(backbone: Encoder, clip: Tensor) -> tuple[VideoTokens, StepNorms]:
    """The tokens of one clip (1, 3, T, H, W) with their attention, and the shares of every step.

    The encoder must have video blocks. MLPs and adapters in time change each token by itself after the step, so they
    are left out, as in every rollout.
    """
    recorded: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # norm -> its input and output, (1, T, 1 + N or N, D)

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recorded[norm] = (inputs[0], output)

    blocks = cast(list[Block], backbone.attention_blocks())
    norms = [norm for b in blocks for norm in ((b.temporal_norm1, b.norm1) if b.divided else (b.norm1,))]
    hooks = [norm.register_forward_hook(keep) for norm in norms]
    try:
        tokens = backbone(clip, attention=True)
    finally:
        for hook in hooks:
            hook.remove()
    space, time = [], []
    for number, block in enumerate(blocks):
        softmax = (tokens.spatial or tokens.joint or ())[number]
        within = softmax if backbone.attention_kind == "joint" else softmax[0]
        x, y = recorded[block.norm1]
        space.append(_shares(block.attn, None, x[0], y[0], within))
        if tokens.temporal is not None:
            x, y = (rearrange(x, "1 t n d -> n t d") for x in recorded[block.temporal_norm1])
            softmax = tokens.temporal[number][0].flatten(0, 1)
            time.append(_shares(block.temporal_attn, block.temporal_fc, x, y, softmax))
    return tokens, StepNorms(tuple(space), tuple(time))


def _shares(attention: Attention, fc: nn.Linear | None, x: Tensor, y: Tensor, softmax: Tensor) -> Tensor:
    """(S, n, n) from S sequences: residual ``x`` and normalised ``y`` (S, n, D), ``softmax`` (S, heads, n, n)."""
    D, heads = x.shape[-1], softmax.shape[1]
    v = rearrange(y @ attention.qkv.weight[2 * D :].T + attention.qkv.bias[2 * D :], "s n (k d) -> s n k d", k=heads)
    out, _ = attention.output(fc)
    carried = torch.einsum("snkd,ekd->snke", v, rearrange(out, "e (k d) -> e k d", k=heads))
    # |sum_k A_k c_k|^2 = sum_kl A_k A_l c_k.c_l needs inner products of heads per key, not a vector per pair of tokens
    inner = torch.einsum("snke,snle->snkl", carried, carried)
    squared = (torch.einsum("skij,sjkl->slij", softmax, inner) * softmax).sum(dim=1)
    diagonal = x + torch.einsum("skn,snke->sne", softmax.diagonal(dim1=-2, dim2=-1), carried)
    length = squared.clamp(min=0).sqrt().diagonal_scatter(diagonal.norm(dim=-1), dim1=-2, dim2=-1)
    return (length / length.sum(dim=-1, keepdim=True)).float().cpu()
