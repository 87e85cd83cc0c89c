"""Speed of the backbone against the same equations written as a textbook writes them.

The textbook version below shares nothing with the library but the weights: TimeSformer's divided space-time attention
(arXiv 2102.05095, equations 1-9) in the released token order (CLS, then ``(h w t)`` with t fastest), with explicit
softmax everywhere, eager and in float32. It is the oracle of tests/model/test_transformer.py as well.
"""

import json
import time
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from endofm_lab.model.inference import for_inference
from endofm_lab.model.precision import automatic_dtype
from endofm_lab.model.transformer import build_backbone
from tests.goldens.weights_from_names import input_for, state_dict_for

GOLDENS = Path(__file__).parents[1] / "goldens"


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
    for axis, wanted in enumerate(size):
        have = embedding.shape[axis]
        embedding = torch.stack([embedding.select(axis, i * have // wanted) for i in range(wanted)], dim=axis)
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


def interleaved_medians(calls: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns, so that whatever else the machine does meets all of them."""
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


@pytest.mark.benchmark
@pytest.mark.timeout(900)
@torch.inference_mode()
def test_base_against_the_textbook():
    shapes = json.loads((GOLDENS / "backbone_shapes.json").read_text())
    weights = state_dict_for(shapes)
    clip = input_for("clip_8x224", (1, 3, 8, 224, 224))
    with torch.device("meta"):
        backbone = build_backbone("base").eval()
    backbone.load_state_dict(weights, assign=True)
    dtype = automatic_dtype()
    exact, quick = for_inference(backbone, torch.float32), for_inference(backbone, dtype)
    calls = {
        "textbook": lambda: textbook_backbone(clip, weights, heads=12)[:2],
        "float32": lambda: exact(clip),
        "float32, all maps": lambda: exact(clip, attention=True),
        "automatic": lambda: quick(clip),
        "automatic, all maps": lambda: quick(clip, attention=True),
    }
    cls, patches = calls["textbook"]()
    for name in ("float32", "float32, all maps"):
        tokens = calls[name]()
        torch.testing.assert_close(tokens.cls, cls, rtol=0, atol=1e-4)
        torch.testing.assert_close(tokens.patches, patches, rtol=0, atol=1e-4)
    for name in ("automatic", "automatic, all maps"):
        assert torch.cosine_similarity(calls[name]().cls.float(), cls).item() >= 0.999
    seconds = interleaved_medians(calls, repeats=15)
    ratio = {name: seconds["textbook"] / s for name, s in seconds.items()}
    print(
        f"\nbase, one clip of 8 x 224 x 224, {torch.get_num_threads()} threads, against the textbook "
        f"({seconds['textbook']:.2f} s):\n"
        f"  float32                {ratio['float32']:.2f}x as fast (goal 1.15)\n"
        f"  automatic ({str(dtype).removeprefix('torch.')})   {ratio['automatic']:.2f}x as fast (goal 3)\n"
        f"  all maps of all blocks cost {seconds['float32, all maps'] / seconds['float32']:.2f}x a plain forward in "
        f"float32, {seconds['automatic, all maps'] / seconds['automatic']:.2f}x in automatic precision (goal <= 1.5)"
    )
