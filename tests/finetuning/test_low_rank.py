"""Low-rank adaptation: it starts at the frozen model, trains nothing else, and ends as a model of the usual kind."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import UserError
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune, plan_of
from endofm_lab.finetuning.fitting import HeadTraining
from endofm_lab.finetuning.start import Start
from endofm_lab.model.adapters import add_low_rank, merge_low_rank
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import load_model
from endofm_lab.runs.run import read_run
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.scoring import clip_scores

HEAD = HeadSpec("multiclass", ("a", "b"))
SCRATCH = Start("scratch", size="micro")
STARTS = {
    "divided": SCRATCH,
    "space only": replace(SCRATCH, n_frames=1),
    "EVA-02": Start("scratch", size="timm:eva02_micro"),
    "DINOv3": Start("scratch", size="timm:dinov3_micro"),
}


def adapted(start, rank=4, alpha=8.0):
    """The same model frozen and with fresh low-rank changes, and a clip."""
    plain, model = (start.build("label", HEAD, seed=0).eval() for _ in range(2))
    torch.manual_seed(1)
    add_low_rank(model.backbone, rank, alpha)
    return plain, model, torch.randn(1, 3, plain.card.clip.n_frames, *(2 * [plain.backbone.image_px]))


def config_of(phantom, out, **settings):
    start = settings.pop("start", SCRATCH)
    return FinetuneConfig(
        phantom, out, method="LoRA", start=start, steps=4, batch=4, validate_every=2, clips=1, lr=1e-2, **settings
    )


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@torch.no_grad()
def test_it_starts_at_exactly_the_frozen_model_and_merged_weights_give_the_same_scores(start):
    plain, model, clip = adapted(start)
    assert torch.equal(model(clip).logits["label"], plain(clip).logits["label"])
    for name, parameter in model.backbone.named_parameters():
        if ".parametrizations.weight.0." in name:
            parameter.add_(torch.randn_like(parameter))
    before = model(clip).tokens.patches
    assert (before - plain(clip).tokens.patches).abs().max() > 1e-4
    merge_low_rank(model.backbone)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(clip).tokens.patches, before, atol=1e-5, rtol=1e-5)


def test_a_change_is_the_scaled_product_of_its_two_matrices():
    linear = nn.ModuleDict({"attn": nn.Linear(6, 10)}).double()
    weight = linear["attn"].weight.detach().clone()
    add_low_rank(linear, rank=2, alpha=3.0)
    change = linear["attn"].parametrizations.weight[0].double()
    nn.init.normal_(change.up)
    expected = weight + 3.0 / 2 * sum(torch.outer(change.up[:, r], change.down[r]) for r in range(2))
    torch.testing.assert_close(linear["attn"].weight, expected)
    assert int(torch.linalg.matrix_rank(linear["attn"].weight - weight)) == 2


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_only_the_low_rank_matrices_and_the_head_are_trained(start):
    _, model, clip = adapted(start)
    training = HeadTraining(model, "label", frozen=True).train()
    training({"clip": clip, "target": torch.tensor([0])}, None, 0)["loss"].backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("heads.") or name.endswith((".0.up", ".0.down")) for name in learned)
    changed = {name.split(".parametrizations")[0] for name in learned if not name.startswith("heads.")}
    n_blocks = len(model.backbone.attention_blocks())
    assert (
        len(changed)
        == n_blocks * {"divided": 5, "space_only": len(changed) // n_blocks}[str(model.backbone.attention_kind)]
    )
    assert all("attn" in name or name.endswith("temporal_fc") for name in changed) and not model.backbone.training


def test_a_run_leaves_a_model_of_the_usual_kind_that_gives_its_scores(phantom, tmp_path):
    config = config_of(phantom, tmp_path / "run", rank=2)
    records = list(finetune(config))
    run, model = read_run(config.out), load_model(config.out / "seed-0" / "model")
    assert run.method == "LoRA of rank 2" and run.provenance["trained"] == records[0]["trained"]
    fresh = SCRATCH.build("label", model.card.heads["label"], seed=0)
    n_head = sum(p.numel() for p in fresh.heads.parameters())
    # Two blocks of width 32, rank 2: twice qkv (32 -> 96) and output (32 -> 32), and the map behind attention in time
    n_low_rank = 2 * 2 * (2 * (32 + 96) + 3 * (32 + 32))
    assert records[0]["trained"].startswith(f"{n_low_rank + n_head:,} of ")
    before, after = fresh.state_dict(), model.state_dict()
    learned = {name for name in after if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and any(name.startswith("heads.") for name in learned)
    assert any(name.endswith("attn.qkv.weight") for name in learned)
    assert all(name.startswith("heads.") or "attn" in name or "temporal_fc" in name for name in learned)
    rows = Classification().examples(read_manifest(phantom), "test", model.card.heads["label"])
    written = run.predictions.filter(like="score_").to_numpy()
    np.testing.assert_allclose(clip_scores(model, "label", rows, 1).mean(1), written, atol=1e-6)


def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(phantom, tmp_path):
    whole, stopped = config_of(phantom, tmp_path / "whole"), config_of(phantom, tmp_path / "stopped")
    list(finetune(whole))
    running = finetune(stopped)
    for _ in range(3):
        next(running)
    running.close()
    list(finetune(stopped))
    weights = [load_model(config.out / "seed-0" / "model").state_dict() for config in (whole, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    pd.testing.assert_frame_equal(read_run(whole.out).predictions, read_run(stopped.out).predictions)
    with pytest.raises(UserError, match=r"other settings: rank is 8 there, 4 here\."):
        next(finetune(replace(whole, rank=4)))


@pytest.mark.parametrize(("task", "start"), [("segmentation", SCRATCH), ("detection", STARTS["EVA-02"])])
def test_it_answers_masks_and_boxes_too_and_a_dry_run_counts_its_memory(phantom, tmp_path, task, start):
    config = config_of(phantom, tmp_path / "run", task=task, start=start)
    assert plan_of(config)["estimate"].total_mb > 0
    assert list(finetune(config))[-1]["test"] and load_model(config.out / "seed-0" / "model").card.heads


def test_what_it_cannot_do_is_refused_in_a_sentence(phantom, tmp_path):
    with pytest.raises(UserError, match=r"FrameBackbone has no linear maps .* so LoRA has nothing to change"):
        next(finetune(config_of(phantom, tmp_path / "a", start=Start("scratch", size="timm:convnext_micro"))))
    with pytest.raises(UserError, match=r"rank is 64, but the narrowest map of the attention has 32"):
        next(finetune(config_of(phantom, tmp_path / "b", rank=64)))
    for settings, message in (({"rank": 0}, "rank is 0"), ({"alpha": 0}, "alpha is 0"), ({"alpha": 1e9}, "alpha is")):
        with pytest.raises(UserError, match=message):
            config_of(phantom, tmp_path / "c", **settings)
    with pytest.raises(UserError, match=r"rank is 4 and alpha 16\.0, but full has none: leave them out"):
        FinetuneConfig(phantom, tmp_path / "d", rank=4)
