"""The video transformer against the released code's goldens, the textbook equations and what must not change it."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from endofm_lab.errors import UserError
from endofm_lab.model.precision import automatic_dtype
from endofm_lab.model.transformer import ATTENTION_KINDS, PRESETS, BackboneConfig, build_backbone
from tests.builders import clip_of, lively
from tests.goldens.weights_from_names import input_for, state_dict_for
from tests.model.textbook import textbook_backbone

GOLDENS = Path(__file__).parents[1] / "goldens"
CLOSE = {"rtol": 0, "atol": 2e-5}


def same(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **(tolerance or CLOSE))


# ---- the released model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):  # spares drawing 121 million numbers that are replaced at once
        backbone = build_backbone("base").eval()
    shapes = json.loads((GOLDENS / "backbone_shapes.json").read_text())
    backbone.load_state_dict(state_dict_for(shapes), strict=True, assign=True)
    return backbone


def test_base_has_the_released_keys_shapes_and_size(base):
    released = json.loads((GOLDENS / "backbone_shapes.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in base.state_dict().items()} == released
    assert round(sum(p.numel() for p in base.parameters()) / 1e6, 1) == 121.3


@torch.inference_mode()
def test_base_gives_the_released_numbers(base):
    golden = load_file(GOLDENS / "backbone_clip_8x224.safetensors")
    clip = input_for("clip_8x224", (1, 3, 8, 224, 224))
    tokens, looked_into = base(clip), base(clip, attention=True)
    for output in (tokens, looked_into):
        # the released order: CLS, then (h w t) with t fastest
        sequence = torch.cat([output.cls[:, None], output.patches.permute(0, 2, 3, 1, 4).flatten(1, 3)], dim=1)
        same(output.cls, golden["cls"], rtol=0, atol=1e-4)
        same(sequence[0, :64], golden["tokens_head"].reshape(64, 768), rtol=0, atol=1e-4)
        same(sequence.mean(dim=1), golden["tokens_mean"].reshape(1, 768), rtol=0, atol=1e-4)
    cls_row = looked_into.spatial[-1][0, :, :, 0, 1:]  # (T, heads, P)
    same(cls_row, golden["attn_cls"], rtol=0, atol=1e-5)


# ---- the equations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "height_px", "width_px"), [(4, 64, 64), (3, 32, 48), (5, 80, 48), (1, 64, 96), (8, 16, 16), (7, 32, 128)]
)
@torch.inference_mode()
def test_any_length_and_size_gives_the_textbook_numbers(frames, height_px, width_px):
    backbone = lively(depth=3, frames=8).double()
    clip = clip_of(2, 3, frames, height_px, width_px).double()
    cls, patches, spatial, temporal = textbook_backbone(clip, backbone.state_dict(), heads=2, maps=True)
    fast, looked_into = backbone(clip), backbone(clip, attention=True)
    for tokens in (fast, looked_into):
        same(tokens.cls, cls, rtol=0, atol=1e-10)
        same(tokens.patches, patches, rtol=0, atol=1e-10)
    assert fast.spatial is fast.temporal is fast.joint is looked_into.joint is None
    assert len(looked_into.spatial) == len(looked_into.temporal) == 3
    for actual, expected in zip(looked_into.spatial + looked_into.temporal, spatial + temporal, strict=True):
        same(actual, expected, rtol=0, atol=1e-10)


@torch.inference_mode()
def test_embeddings_are_resized_by_nearest_neighbour():
    backbone = lively(frames=8)
    assert backbone._time(3)[0, :, 0].equal(backbone.time_embed[0, [0, 2, 5]])
    assert backbone._time(5)[0, :, 0].equal(backbone.time_embed[0, [0, 1, 3, 4, 6]])
    grid = backbone.pos_embed[0, 1:].unflatten(0, (4, 4))
    assert backbone._position(2, 3)[0, 0].equal(grid[[0, 2]][:, [0, 1, 2]].flatten(0, 1))
    # released behaviour: 2 x 8 patches are as many as 4 x 4, so the embedding stays as it is
    assert backbone._position(2, 8)[0, 0].equal(backbone.pos_embed[0, 1:])


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
@torch.inference_mode()
def test_shapes_and_rows_of_the_maps(attention):
    backbone = lively(attention=attention)
    tokens = backbone(clip_of(2, 3, 3, 32, 48), attention=True)
    assert tokens.cls.shape == (2, 32)
    assert tokens.patches.shape == (2, 3, 2, 3, 32)
    shapes = {
        "divided": {"spatial": (2, 3, 2, 7, 7), "temporal": (2, 2, 3, 2, 3, 3), "joint": None},
        "space_only": {"spatial": (2, 3, 2, 7, 7), "temporal": None, "joint": None},
        "joint": {"spatial": None, "temporal": None, "joint": (2, 2, 19, 19)},
    }[attention]
    for name, shape in shapes.items():
        maps = getattr(tokens, name)
        assert (maps is None) == (shape is None)
        for of_block in maps or ():
            assert of_block.shape == shape
            assert of_block.min() >= 0
            same(of_block.sum(dim=-1), torch.ones(shape[:-1]), rtol=0, atol=1e-6)
    plain = backbone(clip_of(2, 3, 3, 32, 48))
    same(plain.cls, tokens.cls)
    same(plain.patches, tokens.patches)


@torch.inference_mode()
def test_maps_of_a_bfloat16_model_are_float32_and_their_rows_still_sum_to_one():
    backbone = lively().to(torch.bfloat16)
    tokens = backbone(clip_of(1, 3, 4, 64, 64), attention=True)
    assert tokens.cls.dtype == torch.bfloat16
    for maps in tokens.spatial + tokens.temporal:
        assert maps.dtype == torch.float32
        same(maps.sum(dim=-1), torch.ones(maps.shape[:-1]), rtol=0, atol=1e-6)


# ---- what must not change it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
@torch.inference_mode()
def test_a_batch_of_two_equals_two_batches_of_one_and_eval_twice_is_bit_identical(attention):
    backbone = lively(attention=attention, drop_path=0.5)
    clips = clip_of(2, 3, 4, 64, 64)
    batch, repeat = backbone(clips), backbone(clips)
    assert batch.cls.equal(repeat.cls)
    assert batch.patches.equal(repeat.patches)
    for i in range(2):
        single = backbone(clips[i : i + 1])
        same(batch.cls[i], single.cls[0])
        same(batch.patches[i], single.patches[0])


@pytest.mark.parametrize("attention", ["divided", "joint"])
@torch.inference_mode()
def test_permuting_frames_matters_only_through_the_time_embedding(attention):
    backbone = lively(attention=attention)
    clip, order = clip_of(1, 3, 4, 64, 64), torch.tensor([2, 0, 3, 1])
    original = backbone(clip, attention=True)
    shuffled = backbone(clip[:, :, order])
    assert (original.cls - shuffled.cls).abs().max() > 1e-2
    backbone.time_embed.copy_(backbone.time_embed[:, order])
    permuted = backbone(clip[:, :, order], attention=True)
    same(permuted.cls, original.cls)
    same(permuted.patches, original.patches[:, order])
    if attention == "divided":
        for actual, expected in zip(permuted.temporal, original.temporal, strict=True):
            same(actual, expected[..., order, :][..., order])
        for actual, expected in zip(permuted.spatial, original.spatial, strict=True):
            same(actual, expected[:, order])


@torch.inference_mode()
def test_space_only_equals_running_each_frame_alone_and_has_no_temporal_parameters():
    backbone = lively(attention="space_only")
    assert not [name for name in backbone.state_dict() if "tempor" in name or "time" in name]
    clip = clip_of(2, 3, 3, 64, 48)
    together = backbone(clip, attention=True)
    singles = [backbone(clip[:, :, t : t + 1], attention=True) for t in range(3)]
    same(together.patches, torch.cat([single.patches for single in singles], dim=1))
    same(together.cls, torch.stack([single.cls for single in singles]).mean(dim=0))
    same(together.spatial[1], torch.cat([single.spatial[1] for single in singles], dim=1))


@torch.inference_mode()
def test_one_frame_without_time_is_the_same_in_space_only_and_joint_models():
    space_only, joint = lively(attention="space_only"), lively(attention="joint")
    joint.load_state_dict(space_only.state_dict() | {"time_embed": torch.zeros(1, 4, 32)})
    clip = clip_of(2, 3, 1, 64, 64)
    same(joint(clip).cls, space_only(clip).cls)
    same(joint(clip).patches, space_only(clip).patches)


@torch.inference_mode()
def test_joint_attention_lets_every_token_see_every_frame_and_divided_only_its_own_column_of_patches():
    clip = clip_of(1, 3, 4, 64, 64).double()
    touched = clip.clone()
    touched[:, :, 3, :16, :16] += 1.0  # one patch of the last frame
    changed = {}
    for attention in ATTENTION_KINDS:
        backbone = lively(attention=attention, depth=1).double()
        change = (backbone(clip).patches - backbone(touched).patches).abs().amax(dim=-1)[0] > 0  # (T, h, w)
        changed[attention] = [int(frame.sum()) for frame in change]
    # divided, one block: time carries it to the same patch of every frame, then space to that frame's other patches
    assert changed == {"divided": [16] * 4, "space_only": [0, 0, 0, 16], "joint": [16] * 4}


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
def test_every_parameter_receives_a_gradient(attention):
    backbone = lively(attention=attention, mask_token=True).train()
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    mask[0, 1, 2, 3] = True
    tokens = backbone(clip_of(1, 3, 4, 64, 64), mask=mask)
    (tokens.cls * clip_of(1, 32)).sum().add((tokens.patches * clip_of(1, 4, 4, 4, 32, seed=2)).sum()).backward()
    silent = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6]
    assert not silent


def test_gradients_are_those_of_the_textbook():
    backbone = lively(depth=3).train()
    clip = clip_of(2, 3, 4, 64, 64)
    weights = {name: p.detach().clone().requires_grad_() for name, p in backbone.named_parameters()}
    cls, patches, _, _ = textbook_backbone(clip, weights, heads=2)
    (cls.square().sum() + patches.sin().sum()).backward()
    tokens = backbone(clip)
    (tokens.cls.square().sum() + tokens.patches.sin().sum()).backward()
    for name, parameter in backbone.named_parameters():
        scale = weights[name].grad.abs().max().clamp(min=1.0)
        same(parameter.grad / scale, weights[name].grad / scale, rtol=0, atol=1e-4)


def test_a_new_model_ignores_time_and_its_weights_are_small():
    torch.manual_seed(0)
    backbone = build_backbone("micro", width=64).eval()
    for block in backbone.blocks:
        assert not block.temporal_fc.weight.any()
        assert not block.temporal_fc.bias.any()
        assert 0.015 < block.temporal_attn.qkv.weight.std() < 0.025
    assert 0.015 < backbone.pos_embed.std() < 0.025
    nn.init.zeros_(backbone.time_embed)
    frame = clip_of(1, 3, 1, 64, 64)
    with torch.inference_mode():
        same(backbone(frame.repeat(1, 1, 4, 1, 1)).cls, backbone(frame).cls)


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_checkpointing_gives_the_same_tokens_and_gradients(drop_path):
    clip = clip_of(2, 3, 4, 64, 64)
    results = []
    for checkpointing in (False, True):
        backbone = lively(depth=3, checkpointing=checkpointing, drop_path=drop_path).train()
        torch.manual_seed(5)
        tokens = backbone(clip, attention=True)
        (tokens.cls.square().sum() + tokens.patches.sin().sum() + tokens.temporal[0].square().sum()).backward()
        results.append([tokens.cls] + [p.grad for p in backbone.parameters()])
    for plain, recomputed in zip(*results, strict=True):
        same(recomputed, plain)


def test_drop_path_grows_over_the_depth_and_drops_residuals_of_whole_clips():
    backbone = lively(depth=3, drop_path=0.6)
    assert [round(block.drop_path.p, 6) for block in backbone.blocks] == [0.0, 0.3, 0.6]
    block = backbone.blocks[2]
    x = clip_of(64, 2, 5, 32)
    torch.manual_seed(0)
    with torch.no_grad():
        changed = (block.train()(x, False)[0] - x)[:, :, 1:].abs().flatten(1).amax(dim=1) > 0
        assert (block.eval()(x, False)[0] - x)[:, :, 1:].abs().flatten(1).amax(dim=1).min() > 0
    assert 0 < int((~changed).sum()) < 64  # all three residuals of a clip fall together with probability 0.6 ** 3


@torch.no_grad()
def test_the_backbone_does_not_write_into_its_input():
    backbone = lively()
    x = clip_of(2, 4, 17, 32)
    before = x.clone()
    for block in backbone.blocks:
        block(x, maps=False)
        block(x, maps=True)
    assert x.equal(before)


def test_autocast_gives_the_tokens_of_float32_up_to_its_precision():
    backbone = lively("micro", depth=1)
    clip = clip_of(2, 3, 4, 64, 64)
    exact = backbone(clip).cls
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone(clip).cls
    rough.float().sum().backward()
    assert torch.cosine_similarity(rough.float(), exact).min() > 0.99
    assert all(p.grad is not None for p in backbone.parameters())


@torch.inference_mode()
def test_bfloat16_weights_keep_the_direction_of_cls(base):
    clip = clip_of(1, 3, 2, 64, 64)
    exact = base(clip).cls
    rough = deepcopy(base).to(torch.bfloat16)(clip).cls
    assert torch.cosine_similarity(exact, rough.float()).item() > 0.999


def test_automatic_precision_is_bfloat16_or_float32():
    assert automatic_dtype("cpu") in {torch.bfloat16, torch.float32}
    assert automatic_dtype("mps") == torch.float32


# ---- the mask token -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_mask_hides_the_pixels_under_it_and_nothing_else():
    backbone = lively(mask_token=True)
    clip = clip_of(1, 3, 4, 64, 64)
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    same(backbone(clip, mask=mask).cls, backbone(clip).cls)
    mask[0, 1, 2, 3] = True
    changed = clip.clone()
    changed[0, :, 1, 32:48, 48:64] = 7.0
    same(backbone(clip, mask=mask).patches, backbone(changed, mask=mask).patches)
    assert (backbone(clip, mask=mask).cls - backbone(clip).cls).abs().max() > 1e-3


# ---- configurations and errors ------------------------------------------------------------------------------------


def test_every_preset_builds_and_its_stated_size_is_true():
    sizes = {"micro": 0.06, "tiny": 3.3, "small": 30.5, "base": 121.3}
    assert sizes.keys() == PRESETS.keys()
    with torch.device("meta"):
        for name, millions in sizes.items():
            n = sum(p.numel() for p in build_backbone(name).parameters()) / 1e6
            assert round(n, 2 if millions < 1 else 1) == millions


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_backbone("huge"), "'huge'; choose one of micro, tiny, small, base"),
        (lambda: build_backbone("micro", with_=3), "no setting 'with_'; choose among width, depth"),
        (lambda: build_backbone("micro", attention="both"), "'both'; choose one of divided, space_only, joint"),
        (lambda: build_backbone("micro", heads=5), "width is 32; give a multiple of heads"),
        (lambda: build_backbone("micro", depth=0), "depth is 0"),
        (lambda: build_backbone("micro", drop_path=1.0), "drop_path is 1.0"),
        (lambda: build_backbone("micro", image_px=100), "image_px is 100; give a multiple of patch_px, which is 16"),
        (lambda: replace(BackboneConfig(), frames=-1), "frames is -1"),
    ],
)
def test_a_wrong_setting_is_named_with_the_possible_values(build, message):
    with pytest.raises(UserError) as error:
        build()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("clip", "mask", "message"),
    [
        (torch.zeros(1, 3, 4, 64, 72), None, "64 x 72 px do not divide into patches of 16 px; .* 64 x 64 px"),
        (torch.zeros(1, 3, 4, 8, 64), None, "8 x 64 px .* 16 x 64 px"),
        (torch.zeros(3, 4, 64, 64), None, r"\(3, 4, 64, 64\)"),
        (torch.zeros(1, 4, 3, 64, 64), None, r"\(1, 4, 3, 64, 64\)"),
        (torch.zeros(1, 3, 0, 64, 64), None, r"\(1, 3, 0, 64, 64\)"),
        (torch.zeros(1, 3, 4, 64, 64, dtype=torch.uint8), None, "uint8.*to_input"),
        (torch.zeros(1, 3, 4, 64, 64), torch.zeros(1, 4, 4, 3, dtype=torch.bool), r"shape \(1, 4, 4, 4\)"),
        (torch.zeros(1, 3, 4, 64, 64), torch.zeros(1, 4, 4, 4), "float32"),
    ],
)
def test_a_wrong_clip_or_mask_is_a_user_error_with_the_remedy(clip, mask, message):
    backbone = build_backbone("micro", mask_token=True)
    with pytest.raises(UserError, match=message):
        backbone(clip, mask=mask)


def test_a_mask_for_a_model_without_mask_token_is_refused():
    with pytest.raises(UserError, match="mask_token=True"):
        build_backbone("micro")(torch.zeros(1, 3, 4, 64, 64), mask=torch.zeros(1, 4, 4, 4, dtype=torch.bool))
    assert "mask_token" not in build_backbone("micro").state_dict()


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
def test_state_dicts_are_strict(attention):
    backbone, fresh = lively(attention=attention), build_backbone("micro", attention=attention).eval()
    state = backbone.state_dict()
    fresh.load_state_dict(state)
    clip = clip_of(1, 3, 4, 64, 64)
    assert fresh(clip).cls.equal(backbone(clip).cls)
    with pytest.raises(RuntimeError, match=r"norm\.bias"):
        fresh.load_state_dict({name: tensor for name, tensor in state.items() if name != "norm.bias"})
