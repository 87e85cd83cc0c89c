"""The numbers of health on hand-made cases, the verdict on simulated runs, the probe on features that know."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.units import units
from endofm_lab.errors import ManifestError
from endofm_lab.metrics.probes import fit_linear, knn_scores
from endofm_lab.model.transformer import build_backbone
from endofm_lab.pretraining.dino import teacher_measures
from endofm_lab.pretraining.health import (
    ProbeData,
    encode,
    feature_std,
    load_probe,
    probe,
    rankme,
    verdict,
    with_interval,
)
from endofm_lab.pretraining.objective import Queue, Signs
from endofm_lab.video.transforms import IMAGENET

K = 64


def records(n=60, loss=3.0, entropy=0.5, used=12.0, std=0.6, **further):
    return [
        {"step": s, "loss": loss, "teacher_entropy": entropy * math.log(K), "prototypes_used": used, "feature_std": std}
        | further
        for s in range(n)
    ]


def test_rankme_counts_directions():
    assert rankme(torch.eye(8)) == pytest.approx(8, rel=1e-3)
    assert rankme(torch.ones(8, 5)) == pytest.approx(1, rel=1e-3)
    torch.manual_seed(0)
    three = torch.linalg.qr(torch.randn(50, 3)).Q @ torch.linalg.qr(torch.randn(10, 3)).Q.T
    assert rankme(three) == pytest.approx(3, rel=1e-2)


def test_feature_std_is_one_for_all_directions_and_zero_for_one():
    torch.manual_seed(0)
    assert feature_std(torch.randn(2000, 64)) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.ones(20, 64)) == pytest.approx(0, abs=1e-6)


def test_the_teachers_measures_on_answers_made_by_hand():
    certain = torch.eye(4)[None]  # four clips, four prototypes
    measures = teacher_measures(certain)
    assert float(measures["teacher_entropy"]) == 0 and float(measures["prototypes_used"]) == pytest.approx(4)
    assert float(measures["kl_to_uniform"]) == pytest.approx(math.log(4))
    collapsed = teacher_measures(torch.eye(4)[:1].expand(2, 3, 4))
    assert float(collapsed["prototypes_used"]) == pytest.approx(1)
    uniform = teacher_measures(torch.full((2, 3, 4), 0.25))
    assert float(uniform["kl_to_uniform"]) == pytest.approx(0, abs=1e-6)
    assert float(uniform["prototypes_used"]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("log", "state"),
    [
        (records(5), "too early to say"),
        (records(), "healthy"),
        (records(loss=0.01, entropy=0.01, used=1.02), "collapsing to one prototype"),
        (records(loss=math.log(K), entropy=0.999, used=63.5), "collapsed to uniform"),
        (records(std=0.01), "collapsed to uniform"),
        (records(20) + records(40, loss=9.0), "diverging"),
        ([*records(), {"step": 60, "loss": None}], "diverging"),
    ],
)
def test_the_verdict_names_what_happens_and_what_to_try(log, state):
    health = verdict(log, Signs(prototypes=K))
    assert health.state == state
    assert bool(health.advice) == (state not in ("healthy", "too early to say"))
    assert state in str(health)


def test_a_run_without_prototypes_is_judged_by_loss_and_features():
    log = [{"step": s, "loss": 3.0 - s / 100, "feature_std": 0.5, "rankme": 9.0} for s in range(60)]
    assert verdict(log, Signs()).state == "healthy" and "rank 9.0" in verdict(log, Signs()).words
    assert verdict([r | {"feature_std": 0.001} for r in log], Signs()).state == "collapsed to uniform"


def test_a_loss_that_grows_while_the_queue_fills_is_no_divergence():
    filling = [{"step": s, "loss": 1.0 + s / 10, "others": 7 + 8 * s} for s in range(20)]
    full = [{"step": s, "loss": 3.0 - s / 100, "others": 167} for s in range(20, 60)]
    assert verdict(filling + full, Signs()).state == "healthy"
    assert verdict(filling + [r | {"loss": 4.0 if r["step"] > 40 else 3.0} for r in full], Signs()).state == "diverging"


def probe_data(informative, n=60):
    random = np.random.default_rng(0)
    labels = np.arange(n) % 3
    features = random.normal(size=(n, 8))
    if informative:
        features[:, :3] += 6 * np.eye(3)[labels]
    of_row = units(pd.DataFrame({"patient": [f"p{i // 3}" for i in range(n)], "video": "", "dataset": "d"}))
    data = ProbeData(np.zeros((n, 1, 1, 1, 3), np.uint8), labels, of_row, np.arange(n) >= n // 2, ("a", "b", "c"))
    return features, data


def test_the_probe_separates_informative_features_and_nothing_in_noise():
    numbers = probe(*probe_data(True), n_resamples=200)
    assert numbers["knn"] == numbers["linear"] == 1.0 and numbers["chance"] == pytest.approx(1 / 3)
    noise = probe(*probe_data(False), n_resamples=200)
    assert noise["knn"] < 0.7 and noise["linear"] < 0.7
    assert noise["knn_low"] <= noise["knn"] <= noise["knn_high"] and noise["knn_low"] < noise["knn_high"]


def test_the_probes_are_those_of_fine_tuning_and_weigh_classes_alike():
    features, data = probe_data(False)
    labels = np.where(np.arange(len(features)) % 5 == 0, 1, 0)  # one in five
    data = replace(data, labels=labels, classes=("a", "b"))
    bank, queries = (torch.from_numpy(features[rows]).float() for rows in (~data.held_out, data.held_out))
    truth, numbers = labels[data.held_out], probe(features, data)
    knn = knn_scores(bank[:, None], labels[~data.held_out], queries[:, None], 2, 20).argmax(1)
    weight, bias = fit_linear(bank, torch.from_numpy(labels[~data.held_out]), 2, 0.1)
    linear = (queries @ weight.T + bias).argmax(1).numpy()
    for name, predicted in (("knn", knn), ("linear", linear)):
        recalls = [np.mean(predicted[truth == c] == c) for c in (0, 1)]
        assert numbers[name] == pytest.approx(np.mean(recalls)), name
    assert numbers["chance"] == 0.5


def test_one_patient_gives_no_interval():
    features, data = probe_data(True)
    one_video = units(pd.DataFrame({"video": "VID75", "dataset": "d"}, index=range(len(features))))
    numbers = probe(features, replace(data, units=one_video), n_resamples=50)
    assert numbers["tested_on"] == "1 video; patients unknown"
    assert numbers["knn"] == 1.0 and numbers["knn_low"] is None and numbers["linear_high"] is None
    assert with_interval(numbers, "knn") == "1.000 (no interval: too few units)"


def test_validation_is_probed_during_a_run_and_test_at_its_end(manifest):
    table = read_manifest(manifest).table
    table = table.assign(
        split=["test" if p == "p5" else s for p, s in zip(table["patient"], table["split"], strict=True)]
    )
    three = Manifest(table, manifest.parent)
    during, after = load_probe(three, 2, 16), load_probe(three, 2, 16, held_out=("test", "val"))
    assert set(during.units.ids[during.held_out]) == {"phantom/p4"}
    assert set(after.units.ids[after.held_out]) == {"phantom/p5"}
    for data in (during, after):
        assert set(data.units.ids[~data.held_out]) == {f"phantom/p{k}" for k in range(4)}


def test_the_probe_reads_the_rows_of_a_manifest(manifest):
    data = load_probe(read_manifest(manifest), n_frames=4, size_px=32)
    assert data.frames.shape == (12, 4, 32, 32, 3) and data.frames.std() > 10
    assert data.held_out.sum() == 4 and data.classes == ("normal", "polyp")
    backbone = build_backbone("micro").train()
    features = encode(backbone, data.frames, IMAGENET, batch=5)
    assert features.shape == (12, 32) and backbone.training
    np.testing.assert_allclose(encode(backbone, data.frames, IMAGENET, batch=12), features, atol=1e-4)
    with pytest.raises(ManifestError, match="has no column 'phase'"):
        load_probe(read_manifest(manifest), 4, 32, "phase")


def test_a_queue_keeps_the_newest_rows():
    queue = Queue(4, 1)
    assert queue.rows().shape == (0, 1)
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert queue.rows().flatten().tolist() == [1, 2, 3]
    queue.push(torch.tensor([[4.0], [5.0]]))
    assert sorted(queue.rows().flatten().tolist()) == [2, 3, 4, 5]
    queue.push(torch.arange(10.0)[:, None])
    assert sorted(queue.rows().flatten().tolist()) == [6, 7, 8, 9]
