"""Starting a backbone from weights: what is taken is exact, what is new adds nothing, and the record says which."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.card import collapse
from endofm_lab.model.loading.load import initialise, save_model
from endofm_lab.model.transformer import VideoTransformer, build_backbone
from endofm_lab.model.video_model import build_model
from tests.model import weight_layouts as made
from tests.model.weight_layouts import card

TEMPORAL = [k for k in made.backbone_state() if ".temporal_" in k or k == "time_embed"]


def fresh(seed=3, **changes):
    torch.manual_seed(seed)
    return VideoTransformer(replace(made.CONFIG, drop_path=0.0, **changes)).eval()


def timm_vit(tmp_path, **settings):
    """A random timm ViT, every tensor away from its initial value, and its file."""
    torch.manual_seed(5)
    vit = VisionTransformer(
        **{"img_size": 32, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0, **settings}
    ).eval()
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    return vit, tmp_path / "vit.safetensors"


@pytest.mark.parametrize("attention", ["divided", "space_only", "joint"])
@pytest.mark.parametrize("layer_scale", [None, 1.0])
def test_from_a_timm_vit_it_computes_what_timm_computes(attention, layer_scale, tmp_path):
    vit, path = timm_vit(tmp_path, init_values=layer_scale)
    backbone = fresh(attention=attention)
    record = initialise(backbone, path)
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = vit.forward_features(image)
        still = backbone(image[:, :, None])
        clip = backbone(image[:, :, None].repeat(1, 1, 3, 1, 1))
    assert (still.cls - expected[:, 0]).abs().max() < 1e-5
    assert (still.patches.flatten(1, 3) - expected[:, 1:]).abs().max() < 1e-5
    if attention != "joint":  # joint attention over three equal frames counts the patches three times
        assert (clip.cls - expected[:, 0]).abs().max() < 1e-5
    assert record["not_taken"] == [] and bool(record["folded"]) == bool(layer_scale)
    new = {"divided": collapse(TEMPORAL), "space_only": [], "joint": ["time_embed"]}[attention]
    assert sorted(record["new"]) == sorted(new)


def test_every_frame_is_seen_as_the_image_model_sees_it(tmp_path):
    vit, path = timm_vit(tmp_path, init_values=1.0)
    backbone = fresh(attention="space_only")
    initialise(backbone, path)
    clip = torch.randn(1, 3, 3, 32, 32)
    with torch.inference_mode():
        frames = vit.forward_features(clip[0].transpose(0, 1))
        tokens = backbone(clip)
    assert (tokens.patches[0].flatten(1, 2) - frames[:, 1:]).abs().max() < 1e-5
    assert (tokens.cls[0] - frames[:, 0].mean(0)).abs().max() < 1e-5


def test_a_position_embedding_without_place_for_cls_is_the_same_model(tmp_path):
    vit, path = timm_vit(tmp_path, no_embed_class=True)
    backbone = fresh()
    record = initialise(backbone, path)
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert (backbone(image[:, :, None]).cls - vit.forward_features(image)[:, 0]).abs().max() < 1e-5
    assert record["resized"] == [
        {"key": "pos_embed", "before": [1, 4, 128], "after": [1, 5, 128], "how": "zeros for CLS"}
    ]


def test_a_resized_patch_embedding_sees_enlarged_patches_as_before(tmp_path):
    vit, path = timm_vit(tmp_path, patch_size=14, img_size=28)
    backbone = fresh()
    record = initialise(backbone, path)
    patches = torch.randn(8, 3, 14, 14)
    larger = F.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True)
    with torch.inference_mode():
        before, after = vit.patch_embed.proj(patches), backbone.patch_embed.proj(larger)
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    assert [r["key"] for r in record["resized"]] == ["patch_embed.proj.weight"]
    assert "pseudo-inverse" in record["words"] and "128 x 3 x 14 x 14 to 128 x 3 x 16 x 16" in record["words"]


def test_a_resized_position_grid_keeps_cls_and_linear_slopes(tmp_path):
    state = made.backbone_state(config=replace(made.IMAGE_CONFIG, image_px=256))
    ramp = torch.linspace(0, 1, 16).repeat(16)  # rises from left to right
    state["pos_embed"][0, 1:] = ramp[:, None]
    save_file(state, tmp_path / "large.safetensors")
    backbone = fresh(image_px=224)
    record = initialise(backbone, tmp_path / "large.safetensors")
    embedding = backbone.pos_embed[0].detach()
    assert torch.equal(embedding[0], state["pos_embed"][0, 0])
    grid = embedding[1:, 0].unflatten(0, (14, 14))
    assert (grid - grid[0]).abs().max() < 1e-5, "rows are equal"
    slope = (grid[0, 11] - grid[0, 2]) / 9
    assert abs(slope - 16 / 14 / 15) < 1e-3
    assert record["resized"] == [
        {"key": "pos_embed", "before": [1, 257, 128], "after": [1, 197, 128], "how": "bicubic"}
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reg_tokens": 4}, "reg_token"),
        ({"qk_norm": True}, "q_norm"),
        ({"pre_norm": True}, "norm_pre"),
        ({"qkv_bias": False}, r"qkv\.bias"),
        ({"global_pool": "avg", "fc_norm": True}, r"norm\.weight"),
        ({"depth": 3}, r"blocks\.2"),
        ({"depth": 1}, r"blocks\.1"),
        ({"mlp_ratio": 2}, r"fc1\.bias has shape \(256,\), but the model wants \(512,\) \(5 more"),
        ({"embed_dim": 64}, r"has shape .*64"),
        ({"in_chans": 1}, r"patch_embed\.proj\.weight has shape \(128, 1, 16, 16\)"),
    ],
)
def test_an_image_model_that_does_not_fit_is_refused_and_nothing_changes(settings, message, tmp_path):
    _, path = timm_vit(tmp_path, **settings)
    backbone = fresh()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        initialise(backbone, path)
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


def test_heads_of_image_models_are_named_as_not_taken(tmp_path):
    record = initialise(fresh(), made.timm_image(tmp_path / "timm.pth.tar"))
    assert record["not_taken"] == ["head.weight", "head.bias"] and "head.bias" in record["words"]
    record = initialise(fresh(), made.image_training(tmp_path / "dino.pth"))
    assert record["network"] == "teacher" and record["not_taken"] == ["head.mlp.0.weight", "head.last_layer.weight_v"]


@pytest.mark.parametrize("name", ["Endo-FM", "TimeSformer", "PolypDiag", "plain video", "detector"])
def test_from_a_video_model_everything_is_taken(name, tmp_path):
    writer, filename, layout = made.WRITERS[name]
    backbone, source = fresh(), made.backbone_state()
    record = initialise(backbone, str(writer(tmp_path / filename)))
    assert all(torch.equal(v, source[k]) for k, v in backbone.state_dict().items())
    assert record["new"] == [] and record["resized"] == [] and record["layout"] == layout
    assert record["taken"] == collapse(source)
    assert record["source"] == filename and str(tmp_path) not in str(record)


def test_the_spatial_part_of_a_video_model_leaves_time_new(tmp_path):
    backbone = fresh()
    record = initialise(backbone, made.plain_video(tmp_path / "v.safetensors"), part="spatial")
    state, source = backbone.state_dict(), made.backbone_state()
    assert all(torch.equal(state[k], source[k]) == (k not in TEMPORAL) for k in state)
    assert not state["blocks.1.temporal_fc.weight"].any() and not state["time_embed"].any()
    assert sorted(record["new"]) == sorted(record["not_taken"]) == sorted(collapse(TEMPORAL))


def test_other_sizes_and_lengths_compute_what_the_source_computes_on_them(tmp_path):
    path = made.plain_video(tmp_path / "v.safetensors")
    source = fresh()
    initialise(source, path)
    backbone = fresh(image_px=96, frames=7)
    record = initialise(backbone, path)
    clip = torch.randn(1, 3, 7, 96, 96)
    with torch.inference_mode():
        assert (source(clip).cls - backbone(clip).cls).abs().max() < 1e-5
    assert {r["key"]: r["how"] for r in record["resized"]} == {"pos_embed": "nearest", "time_embed": "nearest"}


def test_a_space_only_backbone_takes_the_spatial_part_of_a_video_model(tmp_path):
    backbone = fresh(attention="space_only")
    record = initialise(backbone, made.plain_video(tmp_path / "v.safetensors"))
    assert record["new"] == [] and sorted(record["not_taken"]) == sorted(collapse(TEMPORAL))


def test_from_the_segmenter_the_blocks_are_taken_and_the_record_says_what_is_new(tmp_path):
    backbone = fresh()
    record = initialise(backbone, made.segmenter(tmp_path / "cvc.pth"))
    new = ["pos_embed", "time_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert record["new"] == new and all(name in record["words"] for name in new)
    source = made.backbone_state()
    assert all(torch.equal(v, source[k]) for k, v in backbone.state_dict().items() if k not in new)
    assert "transformer.embeddings.position_embeddings" in record["not_taken"]


def test_from_our_own_model(tmp_path):
    torch.manual_seed(0)
    model = build_model(card())
    save_model(model, tmp_path / "model")
    backbone = fresh()
    record = initialise(backbone, tmp_path / "model")
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in backbone.state_dict().items())
    assert record["source"] == "tested" and record["not_taken"][0].startswith("heads.")


def test_a_mask_token_stays_new(tmp_path):
    record = initialise(fresh(mask_token=True), made.plain_video(tmp_path / "v.safetensors"))
    assert record["new"] == ["mask_token"]


def test_from_scratch_is_drawn_anew_and_repeatable():
    backbone = fresh()
    with torch.no_grad():
        backbone.blocks[0].temporal_fc.weight.fill_(1.0)
    torch.manual_seed(3)
    record = initialise(backbone, "scratch")
    assert record["words"].startswith("Random") and "source" not in record
    assert not backbone.blocks[0].temporal_fc.weight.any()
    second = fresh(4)
    torch.manual_seed(3)
    initialise(second, "scratch")
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in backbone.state_dict().items())


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="part is 'temporal'"):
        initialise(fresh(), "scratch", part="temporal")


def test_runs_of_blocks_are_drawn_together():
    names = ["cls_token", *(f"blocks.{i}.norm1.weight" for i in (0, 1, 2, 10)), "heads.a.bias"]
    assert collapse(names) == ["cls_token", "blocks.0-2,10.norm1.weight", "heads.a.bias"]


@pytest.mark.real_data
def test_real_image_weights_start_a_small_video_transformer():
    """ViT-S/14: 16-px patches and 224 px see what the image model sees at 196 px with 14-px patches."""
    folder = os.environ.get("ENDOFM_LAB_WEIGHTS")
    if not folder:
        pytest.skip("ENDOFM_LAB_WEIGHTS is not set")
    import timm

    path = Path(folder) / "vit_small_patch14_dinov2_224.safetensors"
    backbone = build_backbone("small").eval()
    record = initialise(backbone, path)
    assert (
        len(record["resized"]) == 2
        and len(record["folded"]) == 2
        and record["new"] == collapse(k for k in backbone.state_dict() if k == "time_embed" or ".temporal_" in k)
    )
    vit = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
    timm.models.load_checkpoint(vit, str(path))
    torch.manual_seed(0)
    scene = F.interpolate(torch.randn(4, 3, 12, 12), size=224, mode="bicubic")
    with torch.inference_mode():
        actual = backbone(scene[:, :, None]).cls
        expected = vit.forward_features(scene)[:, 0]
    similarity = F.cosine_similarity(actual, expected)
    print(f"cosine similarity of CLS with the image model: {similarity.min():.3f} to {similarity.max():.3f}")
    assert similarity.min() > 0.8


def test_a_temporal_part_that_is_left_behind_is_named_as_such(tmp_path):
    save_model(build_model(card(heads={})), tmp_path / "m")
    record = initialise(fresh(), tmp_path / "m", part="spatial")
    assert f"the temporal part of the file's network ({len(TEMPORAL)} tensors) was not taken" in record["words"]
