"""Attribution of scores whose truth is known, and of a small model."""

import pytest
import torch
import torch.nn.functional as F

from endofm_lab.errors import UserError
from endofm_lab.explain.attribution import (
    METHODS,
    baseline_of,
    grad_cam,
    gradient_x_input,
    integrated_gradients,
    methods_for,
    occlusion,
    shapley,
)
from endofm_lab.explain.relevance import attention_relevance, exchange_matrix
from endofm_lab.explain.targets import Target, similarity_to, target_of
from endofm_lab.model.video_model import build_frame_model
from tests.explain.models import small_clip, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def linear():
    """A score that is a weighted sum of pixels: its attribution is known exactly."""
    weights = small_clip(seed=9)
    return weights, Target("linear", lambda clips: (clips * weights).flatten(1).sum(dim=1))


def by_patch(pixels):
    return F.avg_pool2d(pixels[0].sum(0), 16) * 256


def test_methods_agree_with_a_linear_score(model, linear):
    weights, target = linear
    clip = small_clip()
    start = baseline_of(clip, model.card.input, "mean")
    truth = by_patch(weights * (clip - start))
    result = integrated_gradients(model, clip, target, "mean", steps=3)
    torch.testing.assert_close(result.values, truth, rtol=1e-4, atol=1e-3)
    assert result.completeness < 1e-4
    torch.testing.assert_close(gradient_x_input(model, clip, target).values, by_patch(weights * clip))
    one_by_one = occlusion(model, clip, target, "mean", tube=(1, 1))
    torch.testing.assert_close(one_by_one.values, truth, rtol=1e-3, atol=1e-3)
    shares = shapley(model, clip, target, "mean", tube=(1, 1), samples=2)
    torch.testing.assert_close(shares.values, truth, rtol=1e-3, atol=1e-2)
    tubes = shapley(model, clip, target, "mean", tube=(4, 2), samples=1)
    torch.testing.assert_close(tubes.values, truth.mean().expand(4, 2, 2), rtol=1e-3, atol=1e-2)


def test_integrated_gradients_and_shapley_values_are_complete(model):
    clip, target = small_clip(), target_of(model, "finding", "polyp")
    with torch.no_grad():
        change = float(target.score(clip) - target.score(baseline_of(clip, model.card.input, "black")))
    coarse, fine = (integrated_gradients(model, clip, target, "black", steps=n) for n in (2, 96))
    assert fine.completeness < 0.02 and fine.completeness < coarse.completeness
    assert float(fine.values.sum()) == pytest.approx(change, rel=0.03)
    shares = shapley(model, clip, target, "black", tube=(2, 1), samples=3)
    assert shares.completeness < 1e-3
    assert float(shares.values.sum()) == pytest.approx(change, rel=1e-3)


def test_the_batch_changes_memory_and_not_the_map(model):
    clip, target = small_clip(), target_of(model, "finding", "polyp")
    for method, options in ((integrated_gradients, {"steps": 8}), (occlusion, {})):
        small, large = (method(model, clip, target, batch_clips=n, **options).values for n in (1, 8))
        torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)


def test_every_method_explains_every_head(model):
    clip = small_clip()
    targets = [target_of(model, head, spec.classes[0]) for head, spec in model.card.heads.items()]
    targets.append(similarity_to(model, small_clip(seed=5)))
    for target in targets:
        assert target.score(torch.cat([clip, clip])).shape == (2,)
        for method in (grad_cam, gradient_x_input):
            result = method(model, clip, target)
            assert result.values.shape == (4, 2, 2) and result.target == target.name
            assert result.values.isfinite().all()


def test_the_methods_are_those_that_point_best_first_and_each_head_has_those_that_can_answer(model):
    gradients = ["gradient x input", "integrated gradients", "occlusion", "Shapley values"]
    assert list(METHODS) == ["attention relevance", *gradients, "Grad-CAM"]
    assert methods_for(model, "finding") == list(METHODS)
    assert methods_for(model, "mask") == methods_for(model, "box") == [*gradients, "Grad-CAM"]
    frames = build_frame_model("convnext_micro", {"finding": model_head()})
    assert methods_for(frames, "finding") == gradients


def test_targets_are_what_they_say(model):
    clip = small_clip()
    with torch.no_grad():
        logits = model(clip).logits
    p = logits["finding"].softmax(-1)[0, 1]
    torch.testing.assert_close(target_of(model, "finding", "polyp").score(clip)[0], (p / (1 - p)).log())
    torch.testing.assert_close(target_of(model, "mask", "finding").score(clip)[0], logits["mask"].sigmoid().sum())
    assert float(similarity_to(model, clip).score(clip)) == pytest.approx(1.0, abs=1e-5)


def test_grad_cam_by_hand(model):
    clip, target = small_clip(), target_of(model, "finding", "polyp")
    block = model.backbone.blocks[1]
    kept = []
    with torch.enable_grad():
        hook = block.norm1.register_forward_hook(lambda _, __, out: kept.append(out))
        score = target.score(clip.clone().requires_grad_())
        hook.remove()
        gradient = torch.autograd.grad(score.sum(), kept[0])[0]
    tokens, slope = kept[0][0, :, 1:], gradient[0, :, 1:]
    expected = (tokens * slope.mean(dim=(0, 1))).sum(-1).clamp(min=0).view(4, 2, 2)
    torch.testing.assert_close(grad_cam(model, clip, target).values, expected.detach())


def test_an_image_model_is_explained_too():
    network = build_frame_model("eva02_micro", {"finding": model_head()}).eval()
    clip = small_clip(T=1, size=56)
    for method in (grad_cam, gradient_x_input):
        assert method(network, clip, target_of(network, "finding", "polyp")).values.shape == (1, 4, 4)
    with pytest.raises(UserError, match="video transformer"):
        attention_relevance(network, clip, target_of(network, "finding", "polyp"))


def model_head():
    from endofm_lab.model.card import HeadSpec

    return HeadSpec("multiclass", ("normal", "polyp"))


@pytest.mark.parametrize("kind", ["divided", "space_only", "joint"])
def test_the_gradient_of_a_map_is_that_of_the_score(kind):
    """Relevance of a one-block model against gradients from a forward pass written out with the maps as inputs."""
    model = small_model(attention=kind)
    target = target_of(model, "finding", "polyp")
    result = attention_relevance(model, small_clip(), target)
    assert torch.equal(METHODS["attention relevance"](model, small_clip(), target).values, result.values)
    assert result.values.shape == (4, 2, 2) and (result.values >= 0).all() and result.values.sum() > 0
    assert (result.time is None) == (kind != "divided")


def test_relevance_depends_on_the_question(model):
    clip = small_clip()
    first, second = (
        attention_relevance(model, clip, target_of(model, *question))
        for question in (("finding", "polyp"), ("motion", "advancing"))
    )
    assert (first.values / first.values.sum() - second.values / second.values.sum()).abs().max() > 1e-4
    assert first.time.shape == (4, 4)


def test_the_gradient_weighted_map_equals_a_finite_difference(model, monkeypatch):
    """Nudge one entry of one temporal softmax: the score must move by its gradient."""
    from endofm_lab.explain import relevance
    from endofm_lab.model import transformer

    clip, target = small_clip().double(), target_of(model.double(), "finding", "polyp")
    output = model(clip.clone().requires_grad_(), attention=True)
    view = output.tokens.temporal[1]
    logits = output.logits["finding"][0]
    score = logits[1] - logits[[0, 2]].logsumexp(0)
    gradient = torch.autograd.grad(score, [relevance._softmax(view)])[0].reshape(view.shape)
    step, calls, forward = 1e-3, [], transformer.Attention.forward

    def nudged(self, x, axis, maps, fc=None):
        y, softmax = forward(self, x, axis, True, fc)
        calls.append(axis)
        if axis == "time" and calls.count("time") == 2:  # block 1: patch 3, head 1, frame 0 reads frame 2 a little more
            v = self.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (self.heads, -1))  # (B, T, N, K, d)
            change = torch.zeros_like(v)
            change[0, 0, 3, 1] = step * v[0, 2, 3, 1]
            change = change.flatten(-2) @ self.proj.weight.T
            y = y + (change if fc is None else change @ fc.weight.T)
        return y, softmax if maps else None

    with torch.no_grad():
        before = float(target.score(clip))
        monkeypatch.setattr(transformer.Attention, "forward", nudged)
        moved = float(target.score(clip)) - before
    model.float()
    assert moved / step == pytest.approx(float(gradient[0, 1, 1, 1, 0, 2]), rel=1e-2)


def test_only_scores_that_depend_on_order_move_when_frames_change_places():
    clip = small_clip()
    blind = Target("mean colour", lambda clips: clips.mean(dim=(1, 2, 3, 4)))
    assert exchange_matrix(clip, blind).abs().max() < 1e-6
    ramp = torch.arange(4.0)
    ordered = Target("late light", lambda clips: (clips.mean(dim=(1, 3, 4)) * ramp).sum(dim=1))
    light = clip.mean(dim=(1, 3, 4))[0]
    expected = ((ramp[:, None] - ramp) * (light[:, None] - light)).abs()
    torch.testing.assert_close(exchange_matrix(clip, ordered, batch_clips=2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: target_of(m, "colour", "red"), "no head 'colour'; choose one of finding, motion, mask, box"),
        (lambda m, c: target_of(m, "finding", "cancer"), "no class 'cancer'; choose one of normal, polyp, ulcer"),
        (lambda m, c: baseline_of(c, m.card.input, "white"), "no baseline 'white'; choose one of blur, mean, black"),
        (
            lambda m, c: grad_cam(m, c, target_of(m, "finding", "polyp"), block=7),
            "no block 7; this model has the blocks 0 to 1",
        ),
        (
            lambda m, c: gradient_x_input(m, torch.cat([c, c]), target_of(m, "finding", "polyp")),
            "one clip at a time",
        ),
        (
            lambda m, c: attention_relevance(m, c, target_of(m, "mask", "finding")),
            "choose one of the class heads: finding: normal, polyp, ulcer; motion",
        ),
        (lambda m, c: occlusion(m, c, target_of(m, "mask", "finding"), tube=(0, 1)), "at least 1 frame and 1 patch"),
    ],
)
def test_bad_questions_are_sentences(model, call, message):
    with pytest.raises(UserError) as error:
        call(model, small_clip())
    assert message in str(error.value)
