"""The backbone as a textbook writes it: the oracle of the tests of the transformer and the baseline of its benchmark.

It shares nothing with the library but the weights: TimeSformer's divided space-time attention (arXiv 2102.05095,
equations 1-9) in the released token order (CLS, then ``(h w t)`` with t fastest), with explicit softmax everywhere,
eager and in float32.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attention(x: Tensor, weights: dict[str, Tensor], name: str, heads: int) -> tuple[Tensor, Tensor]:
    """Self-attention of the sequences (S, N, D); also the softmax (S, heads, N, N)."""
    q, k, v = rearrange(linear(x, weights, f"{name}.qkv"), "s n (three k d) -> three s k n d", three=3, k=heads)
    scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    softmax = torch.softmax(scores, dim=-1)
    mixed = rearrange(softmax @ v, "s k n d -> s n (k d)")
    return linear(mixed, weights, f"{name}.proj"), softmax


def nearest(embedding: Tensor, size: list[int]) -> Tensor:
    """Entries of (A, ..., D) at the nearest positions below on each axis, one line per output index."""
    for axis, length in enumerate(size):
        n_places = embedding.shape[axis]
        embedding = torch.stack([embedding.select(axis, i * n_places // length) for i in range(length)], dim=axis)
    return embedding


def textbook_backbone(
    clip: Tensor, weights: dict[str, Tensor], heads: int, maps: bool = False
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """CLS (B, D), patches (B, T, h, w, D), and per block the spatial (B, T, heads, 1+hw, 1+hw) and temporal
    (B, h, w, heads, T, T) attention if ``maps``, for the state dict of a divided backbone.
    """
    B, _, T, _, _ = clip.shape
    kernel = weights["patch_embed.proj.weight"]
    frames = rearrange(clip, "b c t y x -> (b t) c y x")
    patches = F.conv2d(frames, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])
    h, w = patches.shape[-2:]
    position = weights["pos_embed"][0]
    if len(position) - 1 != h * w:
        grid = rearrange(position[1:], "(g f) d -> g f d", g=round((len(position) - 1) ** 0.5))
        position = torch.cat([position[:1], rearrange(nearest(grid, [h, w]), "h w d -> (h w) d")])
    time = nearest(weights["time_embed"][0], [T])
    patches = rearrange(patches, "(b t) d h w -> b (h w) t d", b=B) + position[1:, None] + time
    cls = (weights["cls_token"] + position[:1]).expand(B, 1, -1)
    x = torch.cat([cls, rearrange(patches, "b p t d -> b (p t) d")], dim=1)

    spatial_maps, temporal_maps = [], []
    depth = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
    for block in (f"blocks.{i}" for i in range(depth)):
        cls, patches = x[:, :1], x[:, 1:]
        # time: the T tokens of each patch position
        over_time = rearrange(patches, "b (p t) d -> (b p) t d", t=T)
        mixed, softmax = attention(
            layer_norm(over_time, weights, f"{block}.temporal_norm1"), weights, f"{block}.temporal_attn", heads
        )
        mixed = linear(rearrange(mixed, "(b p) t d -> b (p t) d", b=B), weights, f"{block}.temporal_fc")
        patches = patches + mixed
        if maps:
            temporal_maps.append(rearrange(softmax, "(b h w) k i j -> b h w k i j", b=B, h=h))
        # space: the tokens of each frame behind a copy of CLS, which is averaged afterwards
        copies = repeat(cls, "b 1 d -> (b t) 1 d", t=T)
        over_space = torch.cat([copies, rearrange(patches, "b (p t) d -> (b t) p d", t=T)], dim=1)
        mixed, softmax = attention(layer_norm(over_space, weights, f"{block}.norm1"), weights, f"{block}.attn", heads)
        if maps:
            spatial_maps.append(rearrange(softmax, "(b t) k i j -> b t k i j", b=B))
        cls_change = rearrange(mixed[:, :1], "(b t) 1 d -> b t d", b=B).mean(dim=1, keepdim=True)
        patch_change = rearrange(mixed[:, 1:], "(b t) p d -> b (p t) d", b=B)
        x = torch.cat([cls, patches], dim=1) + torch.cat([cls_change, patch_change], dim=1)
        # MLP
        hidden = F.gelu(linear(layer_norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
        x = x + linear(hidden, weights, f"{block}.mlp.fc2")
    x = layer_norm(x, weights, "norm")
    return x[:, 0], rearrange(x[:, 1:], "b (h w t) d -> b t h w d", h=h, t=T), spatial_maps, temporal_maps
