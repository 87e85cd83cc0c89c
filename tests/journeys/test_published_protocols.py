"""The published protocols as dry runs on the command line, against the table of released values."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from endofm_lab.cli import train
from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest
from endofm_lab.finetuning.presets import PRESETS
from endofm_lab.reports.plans import memory_of
from tests.finetuning.released import RELEASED, RELEASED_PRETRAINING, of_finetuning, value_of

MEASURED = {"memory_gb": 1.0, "step_s": 0.5, "steps_measured": 1}


@pytest.fixture
def line(phantom, tmp_path, monkeypatch):
    """A dry run's output as JSON, from an empty folder that stays empty."""

    def run(capsys, *words):
        assert main([words[0], os.path.relpath(phantom), *words[1:], "--dry-run", "--json"]) == 0
        assert not list(tmp_path.iterdir())
        return json.loads(capsys.readouterr().out)

    monkeypatch.chdir(tmp_path)
    return run


def check_finetuning(name, planned, phantom):
    config = planned["config"]
    epoch = -(-len(read_manifest(phantom).rows("train")) // config["batch"])
    found = of_finetuning(config, epoch)
    assert {key: found[key] for key in RELEASED[name]} == RELEASED[name]
    rows = {split: planned[f"{split} rows"] for split in ("train", "val", "test")}
    assert rows == {split: len(read_manifest(phantom).rows(split)) for split in rows}
    assert "no leak" in planned["audit"].lower() and planned["estimate"]["total_mb"] > 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_fine_tuning_is_planned_with_the_released_values(name, line, phantom, monkeypatch, capsys):
    monkeypatch.setattr(train, "_measured", lambda running, config=None: ({}, MEASURED))
    start = ["--start", "scratch", "--size", "micro"]
    planned = line(capsys, "finetune", "--out", "runs/dry", "--preset", name, *start)
    check_finetuning(name, planned, phantom)
    assert planned["step_s"] == MEASURED["step_s"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_published_fine_tuning_makes_its_first_steps(name, line, phantom, capsys):
    start = ["--start", "scratch", "--size", "micro"]
    planned = line(capsys, "finetune", "--out", "runs/dry", "--preset", name, *start)
    check_finetuning(name, planned, phantom)
    assert planned["steps_measured"] >= 1 and planned["step_s"] > 0


def shallow(config, *start):
    """The estimate for one of the twelve blocks, in a second."""
    return memory_of(replace(config, backbone=replace(config.backbone, depth=1)), *start)


@pytest.mark.parametrize("estimate", [shallow, pytest.param(memory_of, marks=pytest.mark.slow)])
def test_the_published_pre_training_is_planned_with_the_released_values(estimate, line, phantom, monkeypatch, capsys):
    words = {"initialisation": {"words": "not built"}}
    monkeypatch.setattr(train, "_measured", lambda running, config=None: (words, MEASURED))
    monkeypatch.setattr(train, "memory_of", estimate)
    monkeypatch.setattr(train, "free_mb", lambda device: 1e6)
    planned = line(capsys, "pretrain")
    assert {key: value_of(planned["config"], key) for key in RELEASED_PRETRAINING} == RELEASED_PRETRAINING
    rows = read_manifest(phantom).rows("train")
    assert planned["n_clips"] == len(rows)
    assert planned["steps"] == 30 * planned["steps_per_epoch"] == 30 * (len(rows) // 12)
    assert 1000 < planned["estimate"]["total_mb"] < 100_000

    monkeypatch.setattr(train, "free_mb", lambda device: 1000.0)
    assert main(["pretrain", os.path.relpath(phantom), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert '"epochs": 30' in printed.out and "free on cpu: 1.0 GB" in printed.out
    assert "--accumulation" in printed.err and not list(Path.cwd().iterdir())
