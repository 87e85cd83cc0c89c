"""Attention maps and rollout against hand-computed cases, a naive restatement, and the released model's golden."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from endofm_lab.errors import UserError
from endofm_lab.explain.attention import AttentionMaps, look, maps_of
from endofm_lab.explain.norms import StepNorms
from endofm_lab.model.frame import build_frame_backbone
from endofm_lab.model.transformer import build_backbone
from tests.builders import clip_of, lively
from tests.goldens.weights_from_names import input_for, state_dict_for

GOLDENS = Path(__file__).parents[1] / "goldens"


def random_maps(T=3, h=2, w=3, heads=2, blocks=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    space = [torch.rand(T, heads, 1 + h * w, 1 + h * w, generator=draw).softmax(-1) for _ in range(blocks)]
    time = [(3 * torch.rand(h, w, heads, T, T, generator=draw)).softmax(-1) for _ in range(blocks)]
    return AttentionMaps(tuple(space), tuple(time), (T, h, w), "divided")


def naive_rollout(maps, first=0):
    """The product of full matrices over 1 + T N tokens: one CLS, then frame after frame."""
    T, h, w = maps.grid
    N = h * w
    total = torch.eye(1 + T * N, dtype=torch.float64)
    for space, time in zip(maps.space[first:], maps.time[first:], strict=True):
        in_time = torch.eye(1 + T * N, dtype=torch.float64)
        for n in range(N):
            A = time.mean(2)[n // w, n % w].double()
            for t in range(T):
                for s in range(T):
                    in_time[1 + t * N + n, 1 + s * N + n] = 0.5 * A[t, s] + 0.5 * (t == s)
        in_space = torch.zeros(1 + T * N, 1 + T * N, dtype=torch.float64)
        for t in range(T):
            B = 0.5 * space.mean(1)[t].double() + 0.5 * torch.eye(1 + N, dtype=torch.float64)
            tokens = [0, *range(1 + t * N, 1 + (t + 1) * N)]
            in_space[tokens[1:]] = 0
            for i, query in enumerate(tokens):
                for j, key in enumerate(tokens):
                    if query == 0:
                        in_space[0, key] += B[i, j] / T
                    else:
                        in_space[query, key] = B[i, j]
        total = in_space @ in_time @ total
    return total


@pytest.mark.parametrize("first", [0, 1, -1])
def test_rollout_is_the_product_of_all_steps_from_a_block_on(first):
    maps = random_maps()
    T, h, w = maps.grid
    full = naive_rollout(maps, first)
    maps = maps.since(first)
    torch.testing.assert_close(maps.rollout(), full[0, 1:].reshape(T, h, w).float())
    for query in ((0, 0, 0), (2, 1, 2)):
        row = full[1 + query[0] * h * w + query[1] * w + query[2], 1:]
        torch.testing.assert_close(maps.rollout(query), row.reshape(T, h, w).float())


def test_uniform_attention_gives_a_uniform_rollout():
    T, h, w = 4, 2, 3
    space = tuple(torch.full((T, 2, 7, 7), 1 / 7) for _ in range(5))
    time = tuple(torch.full((h, w, 2, T, T), 1 / T) for _ in range(5))
    maps = AttentionMaps(space, time, (T, h, w), "divided")
    rollout = maps.rollout()
    torch.testing.assert_close(rollout, rollout.mean().expand(T, h, w))
    # CLS keeps one part: c <- c (1/2 + 1/14) and what patches hold of CLS; all of it is below one
    assert 0.5 < float(rollout.sum()) < 1.0
    assert float(maps.statistics()["entropy"].min()) == pytest.approx(1.0, abs=1e-5)


def test_identity_attention_gives_identity():
    T, h, w = 3, 2, 2
    maps = AttentionMaps(
        (torch.eye(5).expand(T, 1, 5, 5),) * 3, (torch.eye(T).expand(h, w, 1, T, T),) * 3, (T, h, w), "divided"
    )
    assert float(maps.rollout().abs().sum()) == 0.0, "all of CLS stays at CLS"
    expected = torch.zeros(T, h, w)
    expected[1, 0, 1] = 1
    torch.testing.assert_close(maps.rollout((1, 0, 1)), expected)
    torch.testing.assert_close(maps.rollout_in_time(), torch.eye(T))
    assert maps.statistics()["distance"].abs().max() == 0.0


def test_two_frames_of_one_patch_by_hand():
    """Space: CLS reads only the patch, the patch only itself. Time: frame 0 reads frame 1, frame 1 itself.

    Space: c <- (c + mean(x0, x1)) / 2. Time before it: x0 <- (x0 + x1) / 2, x1 <- x1.
    So c = c/2 + (x0/2 + x1/2)/4 + x1/4 = c/2 + x0/8 + 3 x1/8.
    """
    space = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(2, 1, 2, 2)
    time = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 1, 1, 2, 2)
    maps = AttentionMaps((space,), (time,), (2, 1, 1), "divided")
    torch.testing.assert_close(maps.rollout().flatten(), torch.tensor([1 / 8, 3 / 8]))
    torch.testing.assert_close(maps.rollout((0, 0, 0)).flatten(), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(maps.rollout_in_time(), torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


def test_space_only_and_joint_rollouts_by_hand():
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(2, 1, 2, 2)
    maps = AttentionMaps((rows,), (), (2, 1, 1), "space_only")
    torch.testing.assert_close(maps.rollout().flatten(), torch.tensor([0.25, 0.25]))
    joint = AttentionMaps((torch.full((1, 1, 3, 3), 1 / 3),), (), (2, 1, 1), "joint")
    torch.testing.assert_close(joint.rollout().flatten(), torch.tensor([1 / 6, 1 / 6]))
    torch.testing.assert_close(joint.rollout((1, 0, 0)).flatten(), torch.tensor([1 / 6, 1 / 2 + 1 / 6]))


def test_distance_and_entropy_by_hand():
    one_step = torch.zeros(1, 1, 3, 3)
    one_step[0, 0, :, 0] = 0.5  # half goes to CLS and does not count
    one_step[0, 0, 1, 2] = one_step[0, 0, 2, 1] = one_step[0, 0, 0, 1] = 0.5
    maps = AttentionMaps((one_step,), (), (1, 1, 2), "space_only")
    (row,) = maps.statistics().to_dict("records")
    assert row == {
        "axis": "space",
        "block": 0,
        "head": 0,
        "distance": pytest.approx(1.0),
        "entropy": pytest.approx(0.0),
    }


@pytest.mark.parametrize("kind", ["divided", "space_only", "joint"])
def test_maps_of_a_model_have_shapes_and_rows_that_sum_to_one(kind):
    maps = look(lively(attention=kind), clip_of(1, 3, 3, 32, 48))
    assert maps.grid == (3, 2, 3) and maps.blocks == 2 and maps.heads == 2
    for rows in (*maps.space, *maps.time):
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    assert maps.in_space(0, "max", (1, 2)).shape == (3, 2, 3)
    assert maps.in_space(-1, 1).shape == maps.rollout().shape == (3, 2, 3)
    if kind != "space_only":
        for patch in (None, (0, 1)):
            in_time = maps.in_time(1, "mean", patch)
            torch.testing.assert_close(in_time.sum(-1), torch.ones(3))
    frames = maps.rollout_in_time()
    torch.testing.assert_close(frames.sum(-1), torch.ones(3))
    if kind == "space_only":
        torch.testing.assert_close(frames, torch.eye(3))


def test_permuting_the_frames_permutes_the_maps():
    backbone = lively()
    with torch.no_grad():
        backbone.time_embed.zero_()
    clip, order = clip_of(1, 3, 4, 32, 32), [2, 0, 3, 1]
    maps, permuted = look(backbone, clip), look(backbone, clip[:, :, order])
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(permuted.in_time(1, 0, (1, 1)), maps.in_time(1, 0, (1, 1))[order][:, order], **close)
    torch.testing.assert_close(permuted.rollout(), maps.rollout()[order], **close)
    torch.testing.assert_close(permuted.rollout_in_time(), maps.rollout_in_time()[order][:, order], **close)


def naive_shares(attention, x, y, softmax, fc):
    """Token by token and head by head: the summands of a residual step, and that they and a bias are its output."""
    n, D = x.shape
    K, d = softmax.shape[0], D // softmax.shape[0]
    v = y @ attention.qkv.weight[2 * D :].T + attention.qkv.bias[2 * D :]
    rows = torch.zeros(n, n)
    outputs = x.clone()
    for i in range(n):
        parts = []
        for j in range(n):
            mixed = torch.cat([softmax[k, i, j] * v[j, k * d : (k + 1) * d] for k in range(K)])
            part = attention.proj.weight @ mixed
            parts.append(part if fc is None else fc.weight @ part)
        outputs[i] += torch.stack(parts).sum(0)
        parts[i] = parts[i] + x[i]
        length = torch.stack(parts).norm(dim=1)
        rows[i] = length / length.sum()
    bias = attention.proj.bias if fc is None else fc.weight @ attention.proj.bias + fc.bias
    return rows, outputs + bias


@torch.inference_mode()
def test_norms_are_the_lengths_of_the_summands_of_each_step():
    backbone, clip = lively().eval(), clip_of(1, 3, 3, 32, 32)
    maps = look(backbone, clip, norms=True)
    block, tokens = backbone.blocks[0], backbone(clip, attention=True)
    x, _, _ = backbone._embed(clip, None)
    for n in (0, 3):
        at = x[0, :, 1 + n]
        rows, after = naive_shares(
            block.temporal_attn, at, block.temporal_norm1(at), tokens.temporal[0][0].flatten(0, 1)[n], block.temporal_fc
        )
        torch.testing.assert_close(maps.norms.time[0][n], rows)
        written, _ = block.temporal_attn(block.temporal_norm1(x[:, :, 1:]), "time", False, fc=block.temporal_fc)
        torch.testing.assert_close(x[0, :, 1 + n] + written[0, :, n], after)
    x = torch.cat([x[:, :, :1], x[:, :, 1:] + written], dim=2)
    for t in (0, 2):
        rows, _ = naive_shares(block.attn, x[0, t], block.norm1(x[0, t]), tokens.spatial[0][0, t], None)
        torch.testing.assert_close(maps.norms.space[0][t], rows)


@pytest.mark.parametrize("kind", ["divided", "space_only", "joint"])
def test_a_rollout_by_norms_shares_out_one_and_starts_where_it_is_told(kind):
    backbone = lively(attention=kind)
    maps = look(backbone, clip_of(1, 3, 3, 32, 48), norms=True)
    for rows in (*maps.norms.space, *maps.norms.time):
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    T, h, w = maps.grid
    row = torch.zeros(T, 1 + h * w)
    row[:, 0] = 1 / T
    torch.testing.assert_close(maps.walk(row, by="norms").sum(), torch.tensor(1.0))
    assert not torch.allclose(maps.rollout(by="norms"), maps.rollout())
    torch.testing.assert_close(maps.since(-1).norms.space[0], maps.norms.space[-1])
    torch.testing.assert_close(maps.rollout_in_time(by="norms").sum(-1), torch.ones(3))


def test_a_patch_that_everything_attends_to_but_that_brings_nothing_counts_for_nothing():
    """CLS attends to patch 0 with 0.9 and to patch 1 with 0.1; what patch 0 carries has length 0."""
    space = torch.tensor([[0.0, 0.9, 0.1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])[None, None]
    arrives = torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])[None]
    maps = AttentionMaps((space,), (), (1, 1, 2), "space_only", StepNorms((arrives,), ()))
    torch.testing.assert_close(maps.rollout().flatten(), torch.tensor([0.45, 0.05]))
    torch.testing.assert_close(maps.rollout(by="norms").flatten(), torch.tensor([0.0, 0.25]))


def test_without_values_nothing_moves():
    backbone = lively()
    D = backbone.config.width
    with torch.no_grad():
        for block in backbone.blocks:
            for attention in (block.attn, block.temporal_attn):
                attention.qkv.weight[2 * D :] = 0
                attention.qkv.bias[2 * D :] = 0
    maps = look(backbone, clip_of(1, 3, 3, 32, 32), norms=True)
    assert float(maps.rollout(by="norms").abs().sum()) == 0.0, "all of CLS stays at CLS"
    assert float(maps.rollout().sum()) > 0.1
    torch.testing.assert_close(maps.rollout_in_time(by="norms"), torch.eye(3))


def test_an_image_model_with_rotary_positions_attends_in_space_only():
    backbone, _ = build_frame_backbone("eva02_micro")
    clip = clip_of(1, 3, 2, 56, 56)
    maps, shorter = look(backbone.eval(), clip), look(backbone, clip[:, :, 1:])
    assert maps.grid == (2, 4, 4) and maps.kind == "space_only" and not maps.time
    torch.testing.assert_close(maps.in_space(1, 0, (2, 3))[1:], shorter.in_space(1, 0, (2, 3)))
    torch.testing.assert_close(maps.rollout()[1:] * 2, shorter.rollout())
    with pytest.raises(UserError, match="divided or joint"):
        maps.in_time(0)
    with pytest.raises(UserError, match="video transformers"):
        look(backbone, clip, norms=True)


@pytest.mark.slow  # the same maps, out of the backbone itself, are compared in tests/model/test_transformer.py
@torch.inference_mode()
def test_the_maps_of_base_are_the_released_ones():
    with torch.device("meta"):
        backbone = build_backbone("base").eval()
    shapes = json.loads((GOLDENS / "backbone_shapes.json").read_text())
    backbone.load_state_dict(state_dict_for(shapes), strict=True, assign=True)
    golden = load_file(GOLDENS / "backbone_clip_8x224.safetensors")["attn_cls"]  # (T, heads, P)
    maps = look(backbone, input_for("clip_8x224", (1, 3, 8, 224, 224)))
    for head in (0, 7):
        torch.testing.assert_close(maps.in_space(11, head).flatten(1), golden[:, head], rtol=0, atol=1e-5)
    assert maps.rollout().sum() < 1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda m: m.in_space(5), "no block 5; this model has the blocks 0 to 2"),
        (lambda m: m.in_time(-4), "no block -4; this model has the blocks 0 to 2"),
        (lambda m: m.in_space(0, 2), "no head 2; choose 0 to 1, 'mean' or 'max'"),
        (lambda m: m.since(3), "no block 3; this model has the blocks 0 to"),
        (lambda m: m.rollout(head="median"), "no head 'median'; choose 0 to 1"),
        (lambda m: m.in_space(0, 0, (2, 0)), "rows 0 to 1 and the columns 0 to 2"),
        (lambda m: m.in_time(0, 0, (0, -1)), "rows 0 to 1 and the columns 0 to 2"),
        (lambda m: m.rollout(by="norms"), "look(model, clip, norms=True)"),
        (lambda m: m.rollout((3, 0, 0)), "no frame 3 in the clip; it has the frames 0 to 2"),
        (lambda m: replace(m, kind="space_only", time=()).in_time(0), "maps in space for the blocks 0 to 2"),
    ],
)
def test_what_is_not_there_is_a_sentence_that_says_what_is(question, message):
    with pytest.raises(UserError) as error:
        question(random_maps())
    assert message in str(error.value)


def test_a_batch_and_tokens_without_maps_are_refused():
    backbone = lively()
    with pytest.raises(UserError, match="one clip at a time"):
        look(backbone, clip_of(2, 3, 2, 32, 32))
    with pytest.raises(UserError, match="attention=True"):
        maps_of(backbone(clip_of(1, 3, 2, 32, 32)), "divided")
