"""Image models on labels of several data sets: classes by mapping, balanced draws, options of the paper's recipe."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.fitting import Fit
from endofm_lab.finetuning.start import Start
from endofm_lab.model.loading.load import load_model
from endofm_lab.runs.run import read_run
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.clips import ClipData
from endofm_lab.tasks.labels import balanced
from endofm_lab.training.loop import read_log
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET

COLOURS = {"normal": (190, 120, 90), "polyp": (120, 190, 90), "ulcer": (90, 90, 200)}
COUNTS = {"normal": 24, "polyp": 6, "ulcer": 3}
MAPPING = """
title: two classes
targets: [normal, abnormal]
datasets:
  made:
    labels:
      normal: normal
      polyp: abnormal
      ulcer: null
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Small pictures whose class is their colour; three patients in every split."""
    root, random, rows = tmp_path_factory.mktemp("set"), np.random.default_rng(0), []
    for split in ("train", "val", "test"):
        for label, count in COUNTS.items():
            for n in range(count):
                noise = random.integers(-40, 40, (72, 72, 3))
                picture = (np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8)
                name = f"{split}_{label}_{n}.png"
                Image.fromarray(picture).save(root / name)
                rows.append((name, 0.0, 0.0, label, f"{split}{n % 3}", "made", split))
    columns = ["video", "start_s", "end_s", "label", "patient", "dataset", "split"]
    write_manifest(pd.DataFrame(rows, columns=columns), root / "manifest.csv")
    (root / "two.yaml").write_text(MAPPING)
    return root / "manifest.csv"


def recipe(manifest, out, **changes):
    """The paper's supervised stage: every class as often, AdaBelief, the rate falling by 5 % per epoch."""
    settings = {
        "start": Start("scratch", size="timm:eva02_micro"),
        "balanced": True,
        "augmentation": "strong",
        "optimiser": "adabelief",
        "lr": 2e-3,
        "lr_decay": 0.95,
        "layer_decay": 1.0,
        "weight_decay": 2e-4,
        "steps": 18,
        "batch": 12,
        "validate_every": 6,
        "clips": 1,
        "chosen_by": "balanced_accuracy",
    }
    return FinetuneConfig(manifest, out, **{**settings, **changes})


def examples_of(manifest, **options):
    task, table = Classification(**options), read_manifest(manifest)
    return task.head(table), task.examples(table, "train", task.head(table))


def test_balanced_draws_show_every_class_equally_often_and_every_row(manifest):
    head, examples = examples_of(manifest)
    assert Counter(e.target for e in balanced(examples)) == {0: 24, 1: 24, 2: 24}
    repeats = Counter(e.row for e in balanced(examples))
    assert set(repeats) == {e.row for e in examples}
    assert {repeats[e.row] for e in examples if head.classes[e.target] == "ulcer"} == {8}
    with pytest.raises(UserError, match="unless each has exactly one class"):
        balanced([replace(examples[0], target=(1, 0))])


def test_a_mapping_decides_on_classes_in_its_order_and_leaves_rows_out(manifest):
    head, examples = examples_of(manifest, mapping=str(manifest.parent / "two.yaml"))
    assert head.classes == ("normal", "abnormal")
    assert Counter(e.target for e in examples) == {0: 24, 1: 6}
    assert not any("ulcer" in e.name for e in examples)
    assert examples_of(manifest)[0].classes == ("normal", "polyp", "ulcer")


def test_a_mapping_that_leaves_a_split_without_rows_is_refused(manifest, tmp_path):
    (tmp_path / "none.yaml").write_text(MAPPING.replace("made:", "other:"))
    with pytest.raises(ManifestError, match=r"mapping none, no row of test, train, val .*data coverage"):
        next(finetune(recipe(manifest, tmp_path / "run", mapping=str(tmp_path / "none.yaml"))))
    several = MAPPING.replace("targets:", "multi_label: true\ntargets:")
    (tmp_path / "several.yaml").write_text(several)
    with pytest.raises(UserError, match="gives rows several labels"):
        next(finetune(recipe(manifest, tmp_path / "run", mapping=str(tmp_path / "several.yaml"))))


def test_a_run_does_not_go_on_after_its_mapping_says_something_else(manifest, tmp_path):
    mapping = tmp_path / "two.yaml"
    shutil.copy(manifest.parent / "two.yaml", mapping)
    config = recipe(manifest, tmp_path / "run", mapping=str(mapping), steps=2, validate_every=1)
    next(finetune(config))
    mapping.write_text("# a comment changes nothing\n" + mapping.read_text())
    next(finetune(config))
    mapping.write_text(mapping.read_text().replace("ulcer: null", "ulcer: abnormal"))
    with pytest.raises(UserError, match=r"other settings: different mapping"):
        next(finetune(config))


def test_a_strongly_augmented_sample_is_a_function_of_its_index_and_seed(manifest):
    _, examples = examples_of(manifest)
    data = ClipData(examples, ClipSpec(1, stride=1), replace(IMAGENET, size_px=56), Classification(), "strong")
    state = torch.random.get_rng_state()
    first, second, third = (data.sample(3, seed)["clip"] for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, second) and not torch.equal(first, third) and first.shape == (3, 1, 56, 56)
    plain = replace(data, augmentation="none")
    assert torch.equal(plain.sample(3, 7)["clip"], plain.sample(3, 8)["clip"])


def test_the_recipe_learns_resumes_bit_for_bit_and_says_what_it_was(manifest, tmp_path):
    mapping = str(manifest.parent / "two.yaml")
    config = recipe(manifest, tmp_path / "whole", mapping=mapping)
    whole = list(finetune(config))
    log = read_log(config.out / "seed-0" / "log.jsonl")
    assert len(log) == 18 and log[3]["lr"] == config.lr and log[17]["lr"] == pytest.approx(config.lr * 0.95**4)
    assert whole[-1]["test"]["balanced_accuracy"] > 0.9
    best = max((r for r in whole if "step" in r and "validation" in r), key=lambda r: r["validation"])
    assert whole[-1]["validation"] == best["validation"] and whole[-1]["chosen"] == {"step": best["step"] + 1}
    run = read_run(config.out)
    assert run.method == "full fine-tuning, classes of two" and run.protocol["mapping"] == "two"
    assert load_model(config.out / "seed-0" / "model").card.heads["label"].classes == ("normal", "abnormal")

    stopped = replace(config, out=tmp_path / "stopped")
    steps = finetune(stopped)
    for _ in range(9):
        next(steps)
    steps.close()
    records = list(finetune(stopped))
    assert [r["loss"] for r in read_log(stopped.out / "seed-0" / "log.jsonl")] == [r["loss"] for r in log]
    assert records[-1]["test"] == whole[-1]["test"]


def test_validation_chooses_by_a_metric_of_which_more_is_better(manifest, tmp_path):
    for name in ("ece", "beauty"):
        config = recipe(manifest, tmp_path / name, chosen_by=name, steps=1, validate_every=1)
        with pytest.raises(UserError, match=rf"chosen_by is '{name}'; choose one of f1, auc, .*accuracy\.$"):
            list(finetune(config))


def test_the_options_reach_the_optimiser(manifest, tmp_path):
    model = Start("scratch", size="timm:eva02_micro").build("label", examples_of(manifest)[0], seed=0)
    fit = Fit(recipe(manifest, tmp_path), 0, Classification(), model, {}, tmp_path)
    assert type(fit._optimiser()).__name__ == "AdaBelief"
    assert {group["lr_scale"] for group in fit._optimiser().param_groups} == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_decay": 0.0}, "lr_decay 0.0; give a rate"),
        ({"lr_decay": 1.5}, "above 0 and at most 1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"batch": 10**9}, "batch is 1,000,000,000; give a number from 1 to 65,536"),
        ({"clips": 10**9}, "clips is 1,000,000,000"),
        ({"workers": -1}, "workers is -1"),
        ({"augmentation": "wild"}, "'wild'; choose none, light, strong"),
    ],
)
def test_settings_out_of_range_are_refused(manifest, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(manifest, tmp_path, **changes)


def test_masks_cannot_follow_the_strong_augmentation(tmp_path):
    import endofm_lab as lab

    phantom = lab.write_phantom(tmp_path / "phantom", preset="tiny", progress=False)
    with pytest.raises(UserError, match="Choose 'light' for segmentation"):
        next(finetune(recipe(phantom, tmp_path / "run", task="segmentation")))
    with pytest.raises(UserError, match="Switch balancing off"):
        list(finetune(recipe(phantom, tmp_path / "run", task="segmentation", augmentation="light")))


COARSE = """
title: three classes
targets:
  - normal
  - abnormal: [polyp, ulcer]
datasets:
  made:
    labels: {normal: normal, polyp: polyp, ulcer: ulcer, finding: abnormal, anything: [normal, abnormal]}
"""


@pytest.fixture(scope="module")
def coarse(manifest):
    """The manifest with every second polyp of training called a finding, one row of which nothing is known."""
    table = read_manifest(manifest).table.copy()
    polyps = table.index[(table["split"] == "train") & (table["label"] == "polyp")]
    table.loc[polyps[::2], "label"] = "finding"
    table.loc[table.index[(table["split"] == "train") & (table["label"] == "normal")][0], "label"] = "anything"
    (manifest.parent / "coarse.yaml").write_text(COARSE)
    return write_manifest(table, manifest.parent / "coarse.csv").path


def test_the_coarse_loss_keeps_rows_whose_label_stands_for_several_classes(coarse, tmp_path):
    mapping = str(coarse.parent / "coarse.yaml")
    head, exact = examples_of(coarse, mapping=mapping)
    _, kept = examples_of(coarse, mapping=mapping, loss="coarse")
    assert head.classes == ("normal", "polyp", "ulcer")
    assert Counter(e.target for e in exact) == {0: 23, 1: 3, 2: 3}
    assert Counter(e.target for e in kept) == {(1, 0, 0): 23, (0, 1, 0): 3, (0, 1, 1): 3, (0, 0, 1): 3}
    settings = {"mapping": mapping, "loss": "coarse", "balanced": False, "steps": 4, "validate_every": 4}
    config = recipe(coarse, tmp_path / "run", **settings)
    records = list(finetune(config))
    assert all(np.isfinite(r["loss"]) for r in records if "loss" in r)
    run = read_run(config.out)
    assert run.method == "full fine-tuning, classes of coarse, coarse loss"
    assert run.predictions["target"].isin([0, 1, 2]).all(), "test rows have one class each"


def test_each_loss_trains_with_another_gradient(manifest, tmp_path):
    losses = ("cross-entropy", "focal", "class-balanced", "logit-adjusted")
    first = {}
    for loss in losses:
        config = recipe(manifest, tmp_path / loss, loss=loss, balanced=False, steps=1, validate_every=1)
        first[loss] = next(r["loss"] for r in list(finetune(config)) if "loss" in r)
    assert len({round(value, 6) for value in first.values()}) == len(losses), first
    assert first["focal"] < first["cross-entropy"]
    assert read_run(tmp_path / "focal").method == "full fine-tuning, focal loss"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "'hinge'; choose one of cross-entropy, focal"),
        ({"loss": "coarse"}, "Name a mapping"),
        ({"loss": "focal", "several_labels": True}, "one class per row"),
        ({"loss": "focal", "method": "knn"}, "knn has no choice of losses"),
    ],
)
def test_losses_that_do_not_go_with_the_rest_are_refused(manifest, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(manifest, tmp_path, **changes)
