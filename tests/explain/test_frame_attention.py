"""Maps of image transformers against the rotary attention written out."""

import pytest
import timm
import torch

from endofm_lab.errors import UserError
from endofm_lab.explain.frame_attention import look_at_frames


@pytest.fixture(scope="module")
def eva():
    torch.manual_seed(0)
    return timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=2, num_classes=0).eval()


def rotate(x, sin, cos):
    """Rotary positions by pairs of neighbours: (a, b) -> (a cos - b sin, b cos + a sin)."""
    a, b = x[..., ::2], x[..., 1::2]
    turned = torch.stack([-b, a], dim=-1).flatten(-2)
    return x * cos + turned * sin


@torch.inference_mode()
def test_rotary_attention_is_read_after_the_rotation(eva):
    frames = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    maps = look_at_frames(eva, frames)
    assert maps.grid == (2, 4, 4) and maps.blocks == 2
    x = eva.patch_embed(frames).flatten(1, 2) if eva.patch_embed(frames).ndim == 4 else eva.patch_embed(frames)
    x, rope = eva._pos_embed(x)
    block = eva.blocks[0]
    y = block.norm1(x)
    attention = block.attn
    q, k = attention.q_proj(y) if attention.qkv is None else None, attention.k_proj(y)
    q, k = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (q, k))
    sin, cos = rope.chunk(2, dim=-1)
    q, k = (torch.cat([t[:, :, :1], rotate(t[:, :, 1:], sin, cos)], dim=2) for t in (q, k))
    by_hand = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    torch.testing.assert_close(maps.space[0], by_hand, rtol=0, atol=1e-5)
    without = (attention.q_proj(y), attention.k_proj(y))
    q, k = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in without)
    plain = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    assert (plain - by_hand).abs().max() > 1e-3, "the rotation matters, so reading before it would be seen"


@torch.inference_mode()
def test_looking_changes_nothing(eva):
    frames = torch.randn(1, 3, 56, 56)
    before = eva(frames)
    kernels = [block.attn.fused_attn for block in eva.blocks]
    maps = look_at_frames(eva, frames)
    assert [block.attn.fused_attn for block in eva.blocks] == kernels
    assert all(not block.attn.attn_drop._forward_hooks for block in eva.blocks)
    torch.testing.assert_close(eva(frames), before, rtol=0, atol=0)
    torch.testing.assert_close(maps.space[1].sum(-1), torch.ones_like(maps.space[1][..., 0]))
    assert maps.rollout().shape == (1, 4, 4)


def test_networks_without_one_cls_are_refused():
    with pytest.raises(UserError, match="no blocks with attention"):
        look_at_frames(torch.nn.Identity(), torch.zeros(1, 3, 56, 56))
    registers = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0, reg_tokens=4)
    with pytest.raises(UserError, match="5 special tokens"):
        look_at_frames(registers, torch.zeros(1, 3, 32, 32))
