"""Image models of timm as backbones: tokens, exact attention maps, weights, cards."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.model.frame import TINY, FrameBackbone, build_frame_backbone, frame_config, frame_input
from endofm_lab.model.loading.load import inspect_checkpoint, load_model, save_model
from endofm_lab.model.video_model import build_frame_model, build_model

ATTENTIVE = ("eva02_micro", "vit_micro", "dinov2_micro", "dinov3_micro")
HEADS = {
    "finding": HeadSpec("multiclass", ("normal", "polyp", "ulcer")),
    "area": HeadSpec("mask", ("polyp",)),
    "place": HeadSpec("box", ("polyp",)),
}


def built(name: str, **settings) -> FrameBackbone:
    """A backbone whose every parameter matters: zero-initialised parts would hide what passes through them."""
    torch.manual_seed(0)
    backbone, _ = build_frame_backbone(name, **settings)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return backbone.eval()


def clip_for(backbone: FrameBackbone, batch: int = 2, frames: int = 3) -> torch.Tensor:
    S = backbone.config.image_px
    return torch.randn(batch, 3, frames, S, S, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_those_of_timm_frame_by_frame(name):
    backbone = built(name)
    clip = clip_for(backbone)
    tokens = backbone(clip)
    h = backbone.config.image_px // backbone.config.patch_px
    assert tokens.cls.shape == (2, backbone.config.width)
    assert tokens.patches.shape == (2, 3, h, h, backbone.config.width)
    assert tokens.spatial is None and tokens.temporal is None
    for b in range(2):
        pooled = []
        for t in range(3):
            features = backbone.net.forward_features(clip[b : b + 1, :, t])
            pooled.append(backbone.net.forward_head(features, pre_logits=True))
            first, last = tokens.patches[b, t, 0, 0], tokens.patches[b, t, -1, -1]
            if features.ndim == 3:
                prefix = backbone.net.num_prefix_tokens
                expected = features[0, prefix], features[0, -1]
            else:
                expected = features[0, :, 0, 0], features[0, :, -1, -1]
            torch.testing.assert_close((first, last), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokens.cls[b], torch.cat(pooled).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_asking_for_maps_changes_no_token(name):
    backbone = built(name)
    clip = clip_for(backbone)
    fast, explicit = backbone(clip), backbone(clip, attention=True)
    torch.testing.assert_close(explicit.cls, fast.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(explicit.patches, fast.patches, atol=1e-5, rtol=1e-4)
    n = 1 + (backbone.config.image_px // backbone.config.patch_px) ** 2
    assert [m.shape for m in explicit.spatial] == [(2, 3, 2, n, n)] * 2
    total = explicit.spatial[0].sum(-1)
    if backbone.net.num_prefix_tokens == 1:
        torch.testing.assert_close(total, torch.ones_like(total))
    else:  # the registers took the rest
        assert bool((total < 1).all()) and bool((total > 0).all())


def rotated(x: torch.Tensor, grid: int, reference: int = 16) -> torch.Tensor:
    """Rotary positions of EVA-02 (arXiv 2303.11331) on (B, heads, N, d), in complex numbers.

    The first half of the channels turns with the row, the second with the column; pairs of neighbouring channels are
    one complex number; the grid is measured in the reference grid of pre-training (16 x 16).
    """
    d = x.shape[-1]
    bands = 10000.0 ** -(torch.arange(d // 4) / (d // 4))
    at = torch.arange(grid) * reference / grid
    rows = (at[:, None, None] * bands).expand(grid, grid, d // 4)
    columns = (at[None, :, None] * bands).expand(grid, grid, d // 4)
    angle = torch.cat([rows, columns], dim=-1).reshape(grid * grid, d // 2)
    pairs = torch.view_as_complex(x.unflatten(-1, (d // 2, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def test_eva02_maps_are_the_softmax_of_rotated_queries_and_keys():
    backbone = built("eva02_micro")
    clip = clip_for(backbone, batch=1, frames=1)
    net, grid = backbone.net, 4
    x, _ = net._pos_embed(net.patch_embed(clip[:, :, 0]))
    block = net.blocks[0]
    attn = block.attn
    y = block.norm1(x)
    bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    q, k, _ = (
        torch.nn.functional.linear(y, attn.qkv.weight, bias).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind()
    )
    q, k = (torch.cat([z[:, :, :1], rotated(z[:, :, 1:], grid)], dim=2) for z in (q, k))
    softmax = torch.softmax(q @ k.transpose(-2, -1) / 16**0.5, dim=-1)
    spatial = backbone(clip, attention=True).spatial[0]
    torch.testing.assert_close(spatial[:, 0], softmax, atol=1e-5, rtol=1e-4)


def test_vit_maps_are_the_softmax_of_queries_and_keys():
    backbone = built("vit_micro")
    clip = clip_for(backbone, batch=1, frames=1)
    net = backbone.net
    x = net._pos_embed(net.patch_embed(clip[:, :, 0]))
    q, k, _ = net.blocks[0].attn.qkv(net.blocks[0].norm1(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind()
    softmax = torch.softmax(q @ k.transpose(-2, -1) / 4, dim=-1)
    torch.testing.assert_close(backbone(clip, attention=True).spatial[0][:, 0], softmax, atol=1e-5, rtol=1e-4)


def test_maps_carry_gradients_and_leave_the_model_as_it_was():
    backbone = built("eva02_micro")
    clip = clip_for(backbone).requires_grad_()
    backbone(clip, attention=True).spatial[-1][..., 0, 1].sum().backward()
    assert clip.grad.abs().max() > 0
    assert backbone(clip).spatial is None
    assert all(block.attn.fused_attn for block in backbone.net.blocks)


def test_frames_do_not_see_each_other():
    backbone = built("eva02_micro")
    clip = clip_for(backbone)
    changed = clip.clone()
    changed[:, :, 2] = 0
    torch.testing.assert_close(backbone(clip).patches[:, :2], backbone(changed).patches[:, :2])


def test_a_model_without_maps_says_which_have_them():
    backbone = built("convnext_micro")
    with pytest.raises(UserError, match=r"convnext_atto .*no attention maps.*EVA-02"):
        backbone(clip_for(backbone), attention=True)


def test_windowed_attention_is_not_passed_off_as_a_map():
    backbone = FrameBackbone(
        frame_config("swin_tiny_patch4_window7_224", 224, embed_dim=16, depths=[1, 1], num_heads=[2, 2])
    )
    assert backbone(torch.randn(1, 3, 1, 224, 224)).patches.shape == (1, 1, 28, 28, 32)
    with pytest.raises(UserError, match="no attention maps"):
        backbone(torch.randn(1, 3, 1, 224, 224), attention=True)


@pytest.mark.parametrize("name", TINY)
def test_a_model_folder_gives_back_the_same_model(name, tmp_path):
    torch.manual_seed(0)
    model = build_frame_model(name, HEADS).eval()
    clip = clip_for(model.backbone)
    expected = model.predict(clip)
    save_model(model, tmp_path / "m")
    copy = load_model(tmp_path / "m")
    assert copy.card == model.card
    assert ModelCard.from_json(json.loads(json.dumps(model.card.to_json()))) == model.card
    for head, values in copy.predict(clip).items():
        assert torch.equal(values, expected[head])
    report = inspect_checkpoint(tmp_path / "m")
    assert not report.problems and report.architecture["architecture"] == model.backbone.config.architecture


def test_normalisation_and_size_come_from_timm():
    clip_mean = (0.48145466, 0.4578275, 0.40821073)
    eva = frame_config("eva02_base_patch14_224.mim_in22k")
    assert (eva.image_px, eva.patch_px, eva.width) == (224, 14, 768)
    assert frame_input(eva).mean == clip_mean and frame_input(eva).size_px == 224
    assert frame_input(frame_config("vit_micro")).mean == (0.5, 0.5, 0.5)
    dinov2 = frame_config("vit_small_patch14_dinov2")
    assert dinov2.image_px == 518 and frame_input(dinov2).mean == (0.485, 0.456, 0.406)


def reference_file(path: Path, **sizes) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(3)
    net = timm.create_model("vit_small_patch14_dinov2", embed_dim=32, depth=2, num_heads=2, num_classes=5, **sizes)
    save_file(net.state_dict(), path)
    return path, net.eval()


def test_weights_of_a_local_file_are_all_taken_but_the_classifier(tmp_path):
    path, net = reference_file(tmp_path / "vit.safetensors", img_size=56)
    backbone, record = build_frame_backbone("dinov2_micro", path)
    clip = clip_for(backbone.eval(), frames=1)
    torch.testing.assert_close(
        backbone(clip).cls, net.forward_head(net.forward_features(clip[:, :, 0]), pre_logits=True)
    )
    assert (
        sorted(record["not_taken"]) == ["head.bias", "head.weight"] and record["new"] == [] and record["resized"] == []
    )
    assert record["source"] == "vit.safetensors" and len(record["sha256"]) == 64


def test_positions_of_another_size_are_resized_and_recorded(tmp_path):
    path, _ = reference_file(tmp_path / "vit.safetensors", img_size=112)
    _, record = build_frame_backbone("dinov2_micro", path)
    assert [(r["key"], r["before"], r["after"]) for r in record["resized"]] == [("pos_embed", [1, 65, 32], [1, 17, 32])]


def test_weights_that_do_not_fit_are_refused_and_nothing_is_taken(tmp_path):
    path, net = reference_file(tmp_path / "vit.safetensors", img_size=56)
    state = net.state_dict()
    del state["blocks.1.norm1.weight"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks blocks\.1\.norm1\.weight"):
        build_frame_backbone("dinov2_micro", tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match="shape"):
        build_frame_backbone("dinov2_micro", path, embed_dim=64)
    with pytest.raises(CheckpointError):
        build_frame_backbone("eva02_micro", path)


def test_without_a_network_the_hub_is_a_readable_error(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=r"no route to host.*local path"):
        load_model("timm:vit_tiny_patch16_224.augreg_in21k")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"architecture": "hf-hub:someone/something"}, "no image model 'hf-hub:someone/something'"),
        ({"architecture": "local-dir:/etc"}, "no image model"),
        ({"settings": {"checkpoint_path": "evil.pth"}}, "checkpoint_path"),
        ({"settings": {"pretrained": True}}, "pretrained"),
        ({"settings": {"embed_dim": "os"}}, "embed_dim is 'os'"),
        ({"width": 33}, "width"),
        ({"settings": {"num_heads": 0}}, "cannot build"),
    ],
)
def test_a_card_cannot_make_timm_read_or_fetch_anything(backbone, message):
    card = build_frame_model("eva02_micro").card
    changed = ModelCard.from_json({**card.to_json(), "backbone": card.backbone | backbone})
    with pytest.raises(UserError, match=message):
        build_model(changed)


def test_a_clip_of_another_size_or_type_is_refused():
    backbone = built("vit_micro")
    with pytest.raises(UserError, match=r"takes \(B, 3, T, 64, 64\)"):
        backbone(torch.randn(1, 3, 2, 32, 32))
    with pytest.raises(UserError, match="normalised floats"):
        backbone(torch.zeros(1, 3, 2, 64, 64, dtype=torch.uint8))


@pytest.mark.skipif("ENDOFM_LAB_WEIGHTS" not in os.environ, reason="set ENDOFM_LAB_WEIGHTS to a folder of weights")
def test_real_dinov2_like_weights_load_and_give_timm_s_features():
    path = Path(os.environ["ENDOFM_LAB_WEIGHTS"]) / "vit_small_patch14_dinov2_224.safetensors"
    backbone, record = build_frame_backbone("vit_small_patch14_dinov2", path, image_px=224)
    assert record["new"] == [] and record["resized"] == []
    net = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0, checkpoint_path=str(path))
    clip = clip_for(backbone.eval(), batch=1, frames=1)
    with torch.no_grad():
        tokens = backbone(clip, attention=True)
        torch.testing.assert_close(tokens.cls, net.eval()(clip[:, :, 0]), atol=1e-3, rtol=1e-3)
    assert tokens.spatial[-1].shape == (1, 1, 6, 257, 257)
