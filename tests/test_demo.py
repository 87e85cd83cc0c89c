"""The demo weights in the package, and the training that made them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import endofm_lab
from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest
from endofm_lab.demo.clips import boxes_of, draw_batch, load_clips
from endofm_lab.demo.config import DemoConfig
from endofm_lab.demo.model import build_demo_model, carded
from endofm_lab.demo.training import order_losses, train_demo
from endofm_lab.files import read_json
from endofm_lab.metrics.intervals import Interval
from endofm_lab.model.card import ModelCard
from endofm_lab.model.loading.formats import is_temporal
from endofm_lab.model.loading.load import load_model, save_model
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import VideoModel
from endofm_lab.pretraining.config import tiny
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.phantom import FINDINGS, PhantomSpec, render
from endofm_lab.video.transforms import InputSpec, to_input

WEIGHTS = Path(endofm_lab.__file__).parent / "weights" / "demo"


@pytest.fixture(scope="module")
def demo():
    return load_model("demo").eval()


@pytest.fixture(scope="module")
def manifest(phantom):
    return read_manifest(phantom)


@pytest.fixture(scope="module")
def patients(manifest):
    """Four training clips, because decoding more of them would take longer than the steps."""
    return replace(manifest, table=manifest.rows("train").head(4))


def test_the_weights_are_small_enough_for_a_package():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 15e6


def numbers(demo):
    return {metric["name"]: metric for metric in demo.card.metrics}


def test_the_card_says_what_was_measured_on_which_patients_with_which_command(demo):
    assert demo.card.data["generated"] is True
    assert all(metric["split"] == "test" and metric["command"] for metric in demo.card.metrics)
    low, high = numbers(demo)["motion accuracy, one frame repeated"]["interval"]
    assert low <= 0.5 <= high, "one frame carries no motion"


@pytest.mark.parametrize(("name", "bound"), [("polyp AUC", 0.95), ("polyp mask Dice", 0.75), ("motion accuracy", 0.95)])
def test_the_card_reaches_the_bounds_of_the_demo(demo, name, bound):
    assert numbers(demo)[name]["value"] >= bound


def test_the_weights_find_polyps_in_patients_drawn_now(demo):
    """Sixteen clips of patients outside every data set: fewer than for the card's metrics, so the bound is wider."""
    score = {}
    for number in range(16):
        finding = FINDINGS[number % 4]
        spec = PhantomSpec(seed=number, patient=7000 + number, device=number % 3, finding=finding, size_px=160)
        clip = render(spec)
        x = torch.cat([to_input(clip.frames[start : start + 32 : 4], demo.card.input) for start in (0, 8, 16)])
        score.setdefault(spec.finding, []).append(demo.predict(x)["finding"][:, 1].mean().item())
    negatives = np.concatenate([score["normal"], score["ulcer"], score["bleeding"]])
    assert np.mean(np.array(score["polyp"])[:, None] > negatives) >= 0.75


@pytest.mark.slow  # the test below shows that a stopped training reaches the same weights
def test_training_is_reproducible_and_another_seed_is_another_training(patients):
    def losses(seed):
        model = build_demo_model(n_frames=4, seed=seed)
        return [
            log["loss"]
            for log in train_demo(
                model, patients, DemoConfig(order_steps=1, small_steps=1, steps=1, frame_steps=(1,), batch=2, seed=seed)
            )
        ]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.mark.parametrize("stop", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_training_that_was_stopped_continues_to_the_same_weights(patients, tmp_path, stop):
    config = DemoConfig(order_steps=2, small_steps=1, steps=1, frame_steps=(1, 1), batch=2)

    def fit(checkpoints, stop_after):
        model, losses = build_demo_model(n_frames=4), []
        training = train_demo(model, patients, config, checkpoints)
        for log in training:
            losses.append(log["loss"])
            if log["step"] == stop_after:
                training.close()
        return model, losses

    whole, losses = fit(None, None)
    checkpoints = Checkpoints(tmp_path)
    _, before = fit(checkpoints, stop)
    resumed, after = fit(checkpoints, None)
    assert before + after == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("sure_of", [0, 1])
def test_an_answer_that_ignores_the_order_gains_nothing_from_the_order_loss(sure_of):
    """Both directions of a clip are in the batch with opposite labels, so a confident answer is wrong for one."""
    model = build_demo_model(n_frames=4)
    with torch.no_grad():
        model.heads["motion"].linear.weight.zero_()
        model.heads["motion"].linear.bias.copy_(torch.tensor([3.0, -3.0]) * (1 - 2 * sure_of))
    clip = torch.rand((2, 3, 4, 64, 64), generator=torch.Generator().manual_seed(0))
    loss = order_losses(model, clip, torch.tensor([sure_of, sure_of]))["motion"].item()
    assert loss == pytest.approx((np.log1p(np.exp(-6)) + np.log1p(np.exp(6))) / 2, rel=1e-4)


def test_a_batch_moves_masks_and_motion_with_the_pictures(manifest):
    source = load_clips(manifest, "train", 64)
    config = DemoConfig(batch=64)
    clip, target = draw_batch(source, config, build_demo_model(n_frames=4).card, torch.Generator().manual_seed(0))
    assert clip.shape == (64, 3, 4, 64, 64)
    normal = target["finding"] == FINDINGS.index("normal")
    assert not target["mask"][normal].any()
    assert target["box"][normal].isnan().all()
    assert target["mask"][~normal].flatten(1).any(1).all()
    shown = target["mask"][:, 0].bool()
    assert torch.equal(torch.nan_to_num(boxes_of(shown)), torch.nan_to_num(target["box"]))
    assert 0.3 < target["motion"].float().mean() < 0.7


def test_boxes_of_a_hand_drawn_mask():
    mask = torch.zeros(1, 2, 8, 10, dtype=torch.bool)
    mask[0, 0, 2:5, 4:9] = True
    boxes = boxes_of(mask)
    assert boxes.shape == (1, 2, 1, 4)
    assert torch.allclose(boxes[0, 0, 0], torch.tensor([0.4, 0.25, 0.9, 0.625]))
    assert boxes[0, 1].isnan().all()


def test_the_demo_starts_from_a_pre_trained_spatial_part_and_its_normalisation(tmp_path):
    torch.manual_seed(1)
    backbone = build_backbone("tiny")
    card = ModelCard(
        name="pre-trained",
        backbone={},
        input=InputSpec(80, (0.7, 0.4, 0.3), (0.3, 0.2, 0.2)),
        clip=ClipSpec(2, fps=2.0),
    )
    save_model(VideoModel(backbone, nn.ModuleDict(), card), tmp_path / "m")
    model = build_demo_model(pretrained=tmp_path / "m")
    before, after = backbone.state_dict(), model.backbone.state_dict()
    unchanged = {name for name in after if torch.equal(before[name], after[name])}
    temporal = {name for name in after if is_temporal(name)}
    assert after.keys() - temporal <= unchanged and "blocks.0.temporal_attn.qkv.weight" in temporal - unchanged
    assert (model.card.input.mean, model.card.input.size_px) == ((0.7, 0.4, 0.3), 128)
    assert "come from pre-trained" in model.card.initialisation["words"]


@pytest.mark.slow
def test_demo_train_pre_trains_once_then_fits_the_heads_and_measures_what_it_stores(
    phantom, tmp_path, monkeypatch, capsys
):
    short = DemoConfig(order_steps=1, small_steps=1, steps=1, frame_steps=(1,), batch=2)
    monkeypatch.setattr("endofm_lab.data.phantom_set.write_phantom", lambda *_, **__: phantom)
    monkeypatch.setattr("endofm_lab.demo.config.DemoConfig", lambda seed: replace(short, seed=seed))
    monkeypatch.setattr("endofm_lab.pretraining.config.tiny", lambda *a: replace(tiny(*a), steps=2, batch=4))
    command = ["demo", "train", "--out", str(tmp_path / "demo"), "--seed", "3"]
    assert main(command) == 0
    assert read_json(tmp_path / "demo-pretraining" / "config.json")["config"]["seed"] == 3
    card = load_model(tmp_path / "demo").card
    assert "come from vcl pre-training, 2 steps" in card.initialisation["words"]
    output = capsys.readouterr().out
    assert "Probe (balanced accuracy" in output and card.initialisation["words"] in output
    assert {metric["seed"] for metric in card.metrics} == {3} and len(card.metrics) == 4
    before = (tmp_path / "demo-pretraining" / "log.jsonl").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "demo-pretraining" / "log.jsonl").stat().st_mtime_ns == before


def test_the_demo_weights_say_that_they_were_pre_trained(demo):
    assert "vcl pre-training" in demo.card.initialisation["words"]


def test_the_card_of_few_patients_has_numbers_without_intervals_and_none_that_is_undefined(manifest, tmp_path):
    lone = Interval(0.5, math.nan, math.nan, 0.95, 0, 2, 0)
    numbers = {
        "AUC": lone,
        "Dice": replace(lone, low=0.25, high=0.75, units=5),
        "undefined": replace(lone, value=math.nan),
    }
    save_model(carded(build_demo_model(n_frames=2), manifest, DemoConfig(seed=3), numbers), tmp_path / "m")
    metrics = load_model(tmp_path / "m").card.metrics
    assert [(metric["name"], metric.get("interval")) for metric in metrics] == [("AUC", None), ("Dice", [0.25, 0.75])]
