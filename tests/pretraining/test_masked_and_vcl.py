"""The masked and the contrastive objective against naive restatements."""

import pytest
import torch

from endofm_lab.errors import UserError
from endofm_lab.model.transformer import build_backbone
from endofm_lab.pretraining.dino import DinoConfig
from endofm_lab.pretraining.masked import MaskConfig, Masked
from endofm_lab.pretraining.vcl import VCL, ContrastConfig, info_nce

CONFIG = DinoConfig(prototypes=16, hidden=24, bottleneck=8, frozen_epochs=0)


def masked_model(**settings):
    torch.manual_seed(0)
    masking = MaskConfig(**{"probability": 1.0, "share": (0.25, 0.5)} | settings)
    model = Masked(build_backbone("micro", mask_token=True), CONFIG, masking, steps=10, steps_per_epoch=2)
    for tensor in (model.student["backbone"].mask_token, model.student["backbone"].cls_token):
        torch.nn.init.normal_(tensor)
    batch = [torch.randn(2, 3, T, px, px) for T, px in [(4, 64), (4, 64), (2, 32)]]
    return model, batch


def all_losses(model, batch):
    parts = [model(batch, part, 0) for part in range(len(model.parts(batch)))]
    return parts, {name: sum(p.get(name, 0) for p in parts) for name in ("loss", "L_dm", "L_cv", "L_patch")}


def test_the_masked_loss_is_dino_plus_the_mean_over_masked_patches():
    model, batch = masked_model(weight=0.5)
    assert model.parts(batch) == [[2], [0], [1]]
    _, total = all_losses(model, batch)
    expected = 0.0
    for view in (0, 1):
        mask = model._masks[view]
        assert mask.shape == (2, 4, 4, 4) and torch.equal(mask, mask[:, :1].expand_as(mask))
        assert ((mask[:, 0].sum(dim=(1, 2)) >= 4) & (mask[:, 0].sum(dim=(1, 2)) <= 8)).all()
        student = model.student["head"](model.student["backbone"](batch[view], mask=mask).patches)
        teacher = model.teacher["head"](model.teacher["backbone"](batch[view]).patches)
        p, log_q = (teacher / 0.04).softmax(-1), (student / 0.1).log_softmax(-1)
        terms = [-(p[i] * log_q[i]).sum() for i in map(tuple, mask.nonzero().tolist())]
        expected += torch.stack(terms).mean() / 2
    assert float(total["L_patch"]) == pytest.approx(float(expected), rel=1e-4)
    pairs = (2 * total["L_dm"] + 2 * total["L_cv"]) / 4
    assert float(total["loss"]) == pytest.approx(float(pairs + 0.5 * expected), rel=1e-4)


def test_the_mask_token_learns_and_the_teacher_does_not():
    model, batch = masked_model()
    for losses in all_losses(model, batch)[0]:
        losses["loss"].backward()
    assert model.student["backbone"].mask_token.grad.abs().max() > 0
    assert all(p.grad is None for p in model.teacher.parameters())
    assert model.after_step(0)["centre_norm"] > 0 and model.patch_centre.value.norm() > 0


def test_without_masks_the_patch_loss_is_zero_and_every_tensor_still_has_a_gradient():
    model, batch = masked_model(probability=0.0)
    parts, total = all_losses(model, batch)
    assert float(total["L_patch"]) == 0
    for losses in parts:
        losses["loss"].backward()
    assert all(p.grad is not None for p in model.student.parameters())


@pytest.mark.parametrize(("B", "M"), [(1, 3), (4, 0), (5, 7)])
def test_info_nce_is_the_formula(B, M):
    torch.manual_seed(0)
    unit = [torch.nn.functional.normalize(torch.randn(n, 6), dim=-1) for n in (B, B, M)]
    queries, keys, negatives = unit
    order = torch.randperm(B)
    terms = []
    for b in range(B):
        scores = [float(queries[b] @ k) / 0.2 for k in [*keys, *negatives]]
        terms.append(-torch.tensor(scores).double().log_softmax(0)[order[b]])
    loss, accuracy = info_nce(queries, keys, negatives, order, 0.2)
    assert float(loss) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)
    assert 0 <= float(accuracy) <= 1


def test_a_query_that_is_its_key_is_found():
    keys = torch.eye(4)
    loss, accuracy = info_nce(keys, keys, torch.zeros(0, 4), torch.arange(4), 0.01)
    assert float(loss) < 1e-6 and float(accuracy) == 1


def test_vcl_compares_each_view_with_the_other_and_queues_the_keys():
    torch.manual_seed(0)
    model = VCL(build_backbone("micro"), ContrastConfig(hidden=16, width=8, queue=10, momentum=0.5), steps=10)
    batch = [torch.randn(3, 3, T, 32, 32) for T in (2, 4)]
    model.before_step(0)
    losses = [model(batch, part, 0) for part in model.parts(batch)]
    for part in losses:
        part["loss"].backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())
    assert len(model.queue.rows()) == 0
    assert model.after_step(0)["others"] == 2
    assert len(model.queue.rows()) == 6
    torch.testing.assert_close(model.queue.rows().norm(dim=1), torch.ones(6))
    later_loss = model(batch, 0, 1)["loss"]  # its own keys of the last step are among the negatives now
    assert later_loss > losses[0]["loss"]
    assert model.after_step(1)["others"] == 8


def test_what_all_clips_share_plays_no_part_in_vcl_and_one_clip_is_refused():
    torch.manual_seed(0)
    model = VCL(build_backbone("micro"), ContrastConfig(hidden=16, width=8), steps=10)
    features = torch.randn(5, model.student["backbone"].config.width)
    for head in (model.student["head"], model.teacher["head"]):
        torch.testing.assert_close(head(3 * features + 7), head(features), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="batch of at least 2"):
        model([torch.randn(1, 3, 2, 32, 32)] * 2, 0, 0)


@pytest.mark.parametrize("wrong", [{"share": (0.0, 0.5)}, {"share": (0.5, 0.2)}, {"probability": 2.0}])
def test_impossible_masks_are_refused(wrong):
    with pytest.raises(UserError, match="share"):
        MaskConfig(**wrong)


def test_impossible_contrasts_are_refused():
    with pytest.raises(UserError, match="temperature"):
        ContrastConfig(temperature=0.0)


@pytest.mark.parametrize("wrong", [{"width": -1}, {"hidden": 0}, {"temperature": 0}, {"queue": 0}, {"momentum": 2}])
def test_impossible_settings_of_the_contrast_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ContrastConfig(**wrong)
