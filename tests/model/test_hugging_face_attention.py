"""Attention maps of tubelet models: those of the public classes, read with and without a CLS token."""

import numpy as np
import pytest
import torch
from einops import rearrange

import endofm_lab as lab
from endofm_lab.errors import UserError
from endofm_lab.explain.attention import look
from endofm_lab.figures.attention import blend, film_strip, overlay, temporal_matrices
from endofm_lab.model.others.hugging_face import HuggingFaceVideo
from endofm_lab.model.others.hugging_face_config import configured
from endofm_lab.model.video_model import model_on
from endofm_lab.reports.explanation import explain, write_explanation

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SETTINGS = {
    "videomae": {"image_size": 32, "patch_size": 8, "num_frames": 4},
    "vjepa2": {"crop_size": 32, "patch_size": 8, "frames_per_clip": 4},
    "vivit": {"image_size": 32, "tubelet_size": [2, 8, 8], "num_frames": 4},
    "timesformer": {"image_size": 32, "patch_size": 8, "num_frames": 4},
    "joint": {"image_size": 32, "patch_size": 8, "num_frames": 4, "attention_type": "joint_space_time"},
}


@pytest.fixture(scope="module")
def model_of():
    """A random model of a family with weights that are large enough for uneven attention."""
    pytest.importorskip("transformers")

    def build(family, **changes):
        torch.manual_seed(0)
        settings = SETTINGS[family] | SIZES | {"intermediate_size": 96} | changes
        if family == "vjepa2":
            settings.pop("intermediate_size")
        encoder = HuggingFaceVideo(configured("timesformer" if family == "joint" else family, settings)).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        return model_on(encoder, {"label": lab.HeadSpec("multiclass", ("a", "b"))}, family)

    return build


@torch.no_grad()
@pytest.mark.parametrize("family", ["videomae", "vjepa2", "vivit"])
def test_joint_maps_are_those_that_the_public_class_returns_and_change_no_token(model_of, family):
    encoder = model_of(family).backbone
    clip = torch.randn(2, 3, 4, 32, 32)
    plain, tokens = encoder(clip), encoder(clip, attention=True)
    torch.testing.assert_close(tokens.patches, plain.patches)
    encoder.net.set_attn_implementation("eager")
    returned = encoder.net(clip.transpose(1, 2), output_attentions=True, **encoder.config.family.call).attentions
    n = 2 * 4 * 4 + (family == "vivit")
    assert len(tokens.joint) == len(returned) == 2 and tokens.joint[0].shape == (2, 4, n, n)
    for ours, theirs in zip(tokens.joint, returned, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_divided_maps_are_those_that_the_public_class_returns(model_of):
    encoder = model_of("timesformer").backbone
    clip = torch.randn(2, 3, 4, 32, 32)
    tokens = encoder(clip, attention=True)
    returned = encoder.net(clip.transpose(1, 2), output_attentions=True).attentions
    assert [m.shape for m in tokens.spatial] == [(2, 4, 4, 17, 17)] * 2
    assert [m.shape for m in tokens.temporal] == [(2, 4, 4, 4, 4, 4)] * 2
    for ours, theirs in zip(tokens.spatial, returned, strict=True):
        torch.testing.assert_close(ours, theirs.reshape(ours.shape))
    assert all(torch.allclose(m.sum(-1), torch.ones(())) for m in (*tokens.spatial, *tokens.temporal))
    changed = clip.clone()  # before the first block, only the rows and columns of a changed patch differ
    changed[:, :, 2, 8:16, 16:24] += 2
    moved = (encoder(changed, attention=True).temporal[0] - tokens.temporal[0]).abs().amax(dim=(0, 3, 4, 5))
    assert moved.argmax() == 1 * 4 + 2 and (moved > 1e-6).sum() == 1


@torch.no_grad()
def test_maps_of_a_joint_timesformer_are_ordered_moment_after_moment(model_of):
    encoder = model_of("joint").backbone
    clip = torch.randn(1, 3, 4, 32, 32)
    ours, theirs = (
        encoder(clip, attention=True).joint[0],
        encoder.net(clip.transpose(1, 2), output_attentions=True).attentions[0],
    )
    patches = theirs[..., 1:, 1:]
    expected = rearrange(patches, "b k (n s) (m t) -> b k (s n) (t m)", s=4, t=4)
    torch.testing.assert_close(ours[..., 1:, 1:], expected)
    torch.testing.assert_close(ours[..., 0, 0], theirs[..., 0, 0])


def test_a_model_without_cls_is_read_from_the_mean_over_its_patches(model_of):
    model, clip = model_of("videomae"), torch.randn(1, 3, 4, 32, 32)
    maps = look(model, clip)
    raw = model.backbone(clip, attention=True).joint[1][0].detach()
    assert maps.grid == (2, 4, 4) and maps.kind == "joint" and maps.reader == "the mean over all patches"
    expected = raw.mean(dim=(0, 1)).reshape(2, 4, 4)
    torch.testing.assert_close(maps.in_space(1), expected)
    for at in ((0, 1, 2), (1, 3, 0)):
        row = raw.mean(dim=0).reshape(2, 4, 4, 2, 4, 4)[at]
        torch.testing.assert_close(maps.in_space(1, patch=at[1:])[at[0]], row[at[0]])
    product = torch.eye(32)
    for block in reversed(model.backbone(clip, attention=True).joint):
        product = product @ (torch.eye(32) + block[0].detach().mean(dim=0)) / 2
    torch.testing.assert_close(maps.rollout(), product.mean(dim=0).reshape(2, 4, 4))
    assert maps.rollout().sum() == pytest.approx(1) and maps.rollout_in_time().shape == (2, 2)
    assert len(maps.statistics()) == 2 * 4


def test_maps_of_moments_cover_every_frame_of_a_figure(model_of):
    frames = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    maps = np.stack([np.zeros((4, 4)), np.ones((4, 4))])
    covered = blend(frames, maps)
    assert covered.shape == frames.shape and np.array_equal(covered, blend(frames, np.repeat(maps, 2, axis=0)))
    times = [0.0, 0.5, 1.0, 1.5]
    assert overlay(frames, maps, times) and film_strip(frames, maps, times)
    assert list(temporal_matrices({"a": np.eye(2)}, times).data[0].x) == ["0.00 s", "1.00 s"]


@pytest.mark.parametrize("family", ["videomae", pytest.param("vivit", marks=pytest.mark.slow)])
def test_a_video_is_explained_with_rollout_and_attribution(model_of, phantom, tmp_path, family):
    manifest = lab.read_manifest(phantom)
    video = manifest.resolve(manifest.rows("test")["video"][0])
    folder = lab.save_model(model_of(family), tmp_path / family)
    explanation = explain(video, lab.load_model(folder), methods=("gradient x input",))
    assert explanation.maps is not None and not explanation.refused
    html = write_explanation(explanation, tmp_path / "out")[0].read_text(encoding="utf-8")
    assert ("what reaches CLS" in html) == (family == "vivit")
    assert ("what reaches the mean over all patches" in html) == (family == "videomae")


def test_what_cannot_be_shown_is_refused_in_a_sentence(model_of):
    with pytest.raises(UserError, match=r"Norms can be measured in video transformers only\. For other models"):
        look(model_of("videomae"), torch.randn(1, 3, 4, 32, 32), norms=True)
    large = model_of("vjepa2", crop_size=256, frames_per_clip=8)
    with pytest.raises(UserError, match=r"maps of 32,768 tokens in 2 blocks of 4 heads would need 34 GB"):
        look(large, torch.zeros(1, 3, 64, 256, 256))
