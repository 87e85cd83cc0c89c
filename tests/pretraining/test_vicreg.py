"""VICReg: the loss against a naive restatement, collapse in the log, and a run from start to report."""

import shutil
from dataclasses import replace

import pytest
import torch

from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.model.transformer import build_backbone
from endofm_lab.pretraining.health import verdict
from endofm_lab.pretraining.trainer import pretrain, resume
from endofm_lab.pretraining.vicreg import Vicreg, VicregConfig, vicreg_loss
from endofm_lab.reports.pretraining import curves, health_of, report_run
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import micro


def naive(a, b, config):
    """The double sums of the paper, number by number."""
    n, d = a.shape
    a, b = a.double(), b.double()
    agreement = sum(((a[i] - b[i]) ** 2).sum() for i in range(n)) / (n * d)
    spread, redundancy, deviations = 0.0, 0.0, []
    for z in (a, b):
        mean = [sum(z[i, j] for i in range(n)) / n for j in range(d)]
        for j in range(d):
            for k in range(d):
                c = sum((z[i, j] - mean[j]) * (z[i, k] - mean[k]) for i in range(n)) / (n - 1)
                if j == k:
                    deviations.append((c + 1e-4) ** 0.5)
                    spread += max(0.0, 1 - deviations[-1]) / d
                else:
                    redundancy += c**2 / d
    loss = config.invariance * agreement + config.variance * spread + config.covariance * redundancy
    return loss, agreement, spread, redundancy, sum(deviations) / len(deviations)


@pytest.mark.parametrize(("n", "d"), [(2, 2), (3, 7), (8, 4)])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (0.0, 3.0, 0.5)])
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_the_loss_is_the_formula(n, d, weights, scale):
    torch.manual_seed(0)
    a, b = scale * torch.randn(n, d) + 3, scale * torch.randn(n, d) - 1
    config = VicregConfig(width=d, invariance=weights[0], variance=weights[1], covariance=weights[2])
    losses, expected = vicreg_loss(a, b, config), naive(a, b, config)
    for name, value in zip(("loss", "invariance", "variance", "covariance", "embedding_std"), expected, strict=True):
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-4), name


def test_constant_embeddings_agree_and_still_cost_the_whole_variance_term():
    terms = vicreg_loss(torch.ones(4, 3), torch.ones(4, 3), VicregConfig(width=3))
    assert float(terms["invariance"]) == float(terms["covariance"]) == 0
    assert float(terms["variance"]) == pytest.approx(2 * 0.99) and float(terms["loss"]) == pytest.approx(25 * 1.98)


def test_gradients_reach_every_tensor_and_one_clip_is_refused():
    torch.manual_seed(0)
    model = Vicreg(build_backbone("micro"), VicregConfig(width=16, hidden=16))
    for block in model.backbone.blocks:
        torch.nn.init.normal_(block.temporal_fc.weight, std=0.02)  # zero at the start: nothing flows behind it
    model([torch.randn(4, 3, T, 32, 32) for T in (2, 4)], None, 0)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert model.recent.rows().shape == (4, 32)
    with pytest.raises(UserError, match="batch of at least 2"):
        model([torch.randn(1, 3, 2, 32, 32)] * 2, None, 0)


def run_of(manifest, out, **weights):
    """A short run whose views differ in place and time alone, so that they can be made to agree within seconds."""
    config = micro(manifest, out, objective="vicreg", vicreg=VicregConfig(width=64, hidden=64, **weights))
    views = replace(config.views, jitter=0.0, grey=0.0, global_scale=(0.6, 1.0))
    return replace(config, views=views, batch=8, lr=0.1, steps=40, save_every=30)


def test_a_run_is_healthy_resumes_bit_for_bit_and_is_reported(manifest, tmp_path):
    config = run_of(manifest, tmp_path / "whole")
    whole = [record["loss"] for record in pretrain(config)]
    assert sum(whole[-10:]) < 0.9 * sum(whole[:10])
    health = health_of(config.out)
    assert health.state == "healthy", health
    log, described = read_log(config.out / "log.jsonl"), read_json(config.out / "config.json")
    assert list(curves(described, log))[:3] == list(config.chosen.signs(config).curves)
    assert "Standard deviation of the embeddings" in report_run(config.out).read_text()
    shutil.copytree(config.out, tmp_path / "killed", ignore=shutil.ignore_patterns("step-00000040", "model"))
    assert [record["loss"] for record in resume(tmp_path / "killed")] == whole[30:]


def test_without_variance_and_covariance_a_run_collapses_and_is_told_so(manifest, tmp_path):
    config = replace(run_of(manifest, tmp_path, variance=0.0, covariance=0.0), lr=0.3)
    losses = [record["loss"] for record in pretrain(config)]
    assert losses[-1] < 0.2 * losses[0]
    health = health_of(tmp_path)
    assert health.state == "collapsed to uniform" and "weight of the variance" in health.advice


def test_a_log_whose_embeddings_have_no_spread_is_called_collapsed(manifest, tmp_path):
    signs = VicregConfig().signs(micro(manifest, tmp_path))
    log = [{"step": s, "loss": 30.0, "feature_std": 0.5, "embedding_std": 0.9} for s in range(40)]
    assert verdict(log, signs).state == "healthy"
    health = verdict([record | {"embedding_std": 0.01} for record in log], signs)
    assert health.state == "collapsed to uniform" and "embedding_std 0.010" in health.words
    assert verdict([record | {"feature_std": 0.001} for record in log], signs).state == "collapsed to uniform"


@pytest.mark.parametrize("wrong", [{"width": 1}, {"hidden": 0}, {"variance": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
        VicregConfig(**wrong)
