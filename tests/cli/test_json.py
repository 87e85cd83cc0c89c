"""With --json every command prints one JSON value, which contains the numbers that the library gives."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from endofm_lab.cli.main import main
from endofm_lab.files import read_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.video.reader import write_video
from tests.model.weight_layouts import dino_image as image_weights


def refuse(constant: str):
    raise AssertionError(f"{constant} is not valid JSON")


@pytest.fixture
def run_json(capsys):
    def run(*args) -> dict:
        assert main([*map(str, args), "--json"]) == 0
        return json.loads(capsys.readouterr().out, parse_constant=refuse)

    return run


@pytest.fixture(scope="module")
def probe(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "probe"
    list(finetune(FinetuneConfig(phantom, out, method="linear probe", start=Start("scratch", size="micro"), clips=1)))
    return out


def test_evaluation_and_comparison(phantom, probe, tmp_path, run_json):
    model = probe / "seed-0" / "model"
    result = run_json("evaluate", model, phantom, "--out", tmp_path / "again", "--clips", 1)
    report = read_json(probe / "report.json")
    assert result["out"] == str(tmp_path / "again") and result["task"] == "classification"
    assert result["metrics"]["auc"]["value"] == pytest.approx(report["metrics"]["auc"]["value"], abs=1e-6)
    compared = run_json("compare", probe, tmp_path / "again", "--out", tmp_path / "table")
    assert {row["run"] for row in compared["runs"]} == {"probe", "again"} and compared["by"] == "f1"
    assert not compared["ranked"] and compared["reasons"], "one run was chosen on validation, the other is unknown"
    assert sorted(Path(path).suffix for path in compared["written"]) == [".csv", ".html", ".json", ".md", ".tex"]


def test_embedding_and_the_check_of_a_manifest(phantom, probe, tmp_path, run_json):
    store = run_json("embed", phantom, "--out", tmp_path / "store", "--model", probe / "seed-0" / "model")
    assert store["clips"] == 40 and store["unreadable"] == []
    assert 0 <= store["neighbour_purity"]["label"] <= 1 and sum(store["pca_explained"]) <= 1 + 1e-6
    checked = run_json("data", "check", phantom)
    assert checked["rows"] == 40 and checked["problems"] == []


def test_a_study(tmp_path, run_json):
    torch.manual_seed(0)
    model = build_frame_model("vit_micro", {"finding": HeadSpec("multiclass", ("normal", "polyp"))})
    save_model(model, tmp_path / "model")
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "study.mp4", frames, Fraction(12))
    result = run_json("study", tmp_path / "study.mp4", "--out", tmp_path / "out", "--model", tmp_path / "model")
    assert (result["frames"], result["near_duplicates"], result["unreadable"]) == (12, 0, 0)
    assert result["report"] == str(tmp_path / "out" / "report.html")
    assert all(finding["finding"] == "polyp" for finding in result["findings"])


def test_a_score(tmp_path, run_json):
    from endofm_lab.metrics.capsule_vision import CLASSES

    images = [f"{i}.jpg" for i in range(20)]
    classes = [CLASSES[i % 10] for i in range(20)]
    one_hot = {label: ",".join(str(float(c == label)) for c in CLASSES) for label in CLASSES}
    rows = [f"{name},{one_hot[label]}" for name, label in zip(images, classes, strict=True)]
    (tmp_path / "p.csv").write_text("\n".join([",".join(["image", *CLASSES]), *rows]))
    lines = [f"{name},{label}" for name, label in zip(images, classes, strict=True)]
    (tmp_path / "l.csv").write_text("\n".join(["image,class", *lines]))
    result = run_json("score", "capsule-vision", "--labels", tmp_path / "l.csv", "--probabilities", tmp_path / "p.csv")
    assert set(result["class_wise_metrics"]) >= set(CLASSES)


def test_model_takes_image_weights_as_an_encoder_of_frames(run_json, phantom, tmp_path, capsys):
    weights = image_weights(tmp_path / "dino_vit.pth")
    store = run_json("embed", phantom, "--model", weights, "--out", tmp_path / "store")
    assert store["clips"] > 1 and store["model"] == "dino_vit"
    assert np.load(tmp_path / "store" / "vectors.npy").shape == (store["clips"], 128)
    video = next((phantom.parent / "videos").iterdir())
    explained = run_json("explain", video, "--model", weights, "--out", tmp_path / "maps")
    assert explained["trust"] == {} and "attention" not in explained["refused"]
    assert np.load(tmp_path / "maps" / "maps.npz")["rollout"].shape == (1, 2, 2)
    assert main(["predict", str(video), "--model", str(weights), "--out", str(tmp_path / "prediction")]) == 0
    assert "the model has no head, so there are no scores" in capsys.readouterr().out
    assert main(["evaluate", str(weights), str(phantom), "--out", str(tmp_path / "run")]) == 2
    assert "dino_vit has no head, so there are no answers to test." in capsys.readouterr().err
