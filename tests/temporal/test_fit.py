"""Models of time from the store to a run: what they learn, stopping and going on, and what they refuse."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.explain.embeddings import load_store
from endofm_lab.integrity import check_folder
from endofm_lab.metrics.smoothing import hmm_filter
from endofm_lab.runs.compare import compare
from endofm_lab.runs.run import read_run
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.fit import fit_temporal
from endofm_lab.temporal.inputs import InputConfig, Inputs
from endofm_lab.temporal.model import load_temporal, save_temporal
from endofm_lab.temporal.networks import NetworkConfig
from endofm_lab.temporal.predict import predict_temporal
from endofm_lab.temporal.recordings import Recording, recordings_of
from endofm_lab.temporal.training import prepare, temporal_loss
from tests.temporal.made_store import made

SMALL = {"width": 16, "layers": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture(scope="module")
def config(data):
    manifest, store = data

    def of(out, kind="gru", offline=False, **settings):
        sizes = {**SMALL, "layers": 1} if kind == "gru" else SMALL
        values = {"steps": 40, "validate_every": 20, "lr": 1e-2, **settings}
        return TemporalConfig(manifest, store, out, network=NetworkConfig(kind, offline, **sizes), **values)

    return of


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, kind, offline in (("linear", "linear", False), ("causal", "gru", False), ("offline", "tcn", True)):
        for _ in fit_temporal(config(folder / name, kind, offline)):
            pass
    return folder


def test_networks_over_time_learn_what_single_instants_do_not_show(runs):
    values = {
        name: read_run(runs / name).values().set_index("metric")["value"] for name in ("linear", "causal", "offline")
    }
    assert values["linear"]["accuracy"] < 0.8 < 0.9 < values["causal"]["accuracy"]
    assert values["offline"]["accuracy"] > 0.9
    assert {"jaccard", "edit_score", "segment_f1_10", "balanced_accuracy"} <= set(values["causal"].index)


def test_runs_are_compared_like_those_of_finetune(runs):
    comparison = compare([read_run(runs / name) for name in ("linear", "causal")])
    assert comparison.task == "phases" and len(comparison.lines) == 2
    chosen_by = [read_run(runs / name).provenance.get("chosen_by") for name in ("linear", "causal")]
    assert chosen_by == [None, "validation accuracy"], "the linear probe is fitted exactly, without a choice"
    assert "linear probe of instants, causal" in comparison.to_markdown()
    assert not [note for note in comparison.reasons if "differs" in note]


def test_a_stopped_training_goes_on_to_the_same_numbers(config, runs, tmp_path):
    steps = fit_temporal(config(tmp_path / "run"))
    for record in steps:
        if record.get("step") == 24:
            break
    steps.close()
    resumed = [record["step"] for record in fit_temporal(config(tmp_path / "run")) if "step" in record]
    assert resumed == list(range(25, 40))
    whole, again = (folder / "seed-0" / "model" / "model.safetensors" for folder in (runs / "causal", tmp_path / "run"))
    assert whole.read_bytes() == again.read_bytes()
    assert list(fit_temporal(config(tmp_path / "run"))) == []
    with pytest.raises(UserError, match=r"lr is 0\.01 there, 0\.02 here"):
        list(fit_temporal(config(tmp_path / "run", lr=2e-2)))


def test_a_saved_model_gives_the_answers_of_the_run_and_streams_them(runs, data):
    model, store = load_temporal(runs / "causal" / "seed-0" / "model"), load_store(data[1])
    rows, times = recordings_of(store)["v11.mp4"]
    vectors = np.array(store.vectors[rows])
    scores = model.scores(vectors, times)
    run = read_run(runs / "causal").predictions.query("video == 'v11.mp4'")
    np.testing.assert_allclose(run[["score_in", "score_out"]], scores, atol=1e-6)
    np.testing.assert_allclose(np.stack(list(model.stream(zip(vectors, times, strict=True)))), scores, atol=1e-5)
    smooth = model.scores(vectors, times, smooth=True)
    np.testing.assert_allclose(smooth, hmm_filter(scores, model.transition.numpy(), model.prior.numpy()), atol=1e-6)
    model.card = replace(model.card, smooth=True)
    np.testing.assert_allclose(np.stack(list(model.stream(zip(vectors, times, strict=True)))), smooth, atol=1e-5)
    offline = load_temporal(runs / "offline" / "seed-0" / "model")
    with pytest.raises(UserError, match="sees the whole recording"):
        next(offline.stream(zip(vectors, times, strict=True)))
    with pytest.raises(UserError, match=r"takes \(T, 6\)"):
        model.scores(vectors[:, :5], times)


def test_a_class_that_training_never_saw_is_not_smoothed(runs):
    model = load_temporal(runs / "causal" / "seed-0" / "model")
    model.prior[:] = torch.tensor([0.0, 1.0], dtype=model.prior.dtype)
    with pytest.raises(UserError, match="in had no instant in the training"):
        model.smoothed(np.full((3, 2), 0.5))


def test_predictions_of_a_store_have_a_row_per_instant(runs, data, tmp_path):
    table = predict_temporal(runs / "causal", data[1], tmp_path / "out")
    assert len(table) == 12 * 60 and {"recording", "time_s", "predicted", "score_in", "score_out"} <= set(table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "instants.parquet"), table)
    for folder, kind in ((tmp_path / "out", "answers over time"), (runs / "causal", "run")):
        assert check_folder(folder).whole and check_folder(folder).kind == kind
    assert check_folder(runs / "causal" / "seed-0" / "model").kind == "model of time"
    own = table[table["recording"] == "v11.mp4"]
    expected = read_run(runs / "causal").predictions.query("video == 'v11.mp4'")
    np.testing.assert_allclose(own["score_in"], expected["score_in"], atol=1e-6)


def test_several_labels_and_gaps_between_rows(config, data, tmp_path):
    manifest = read_manifest(data[0])
    tools = config(tmp_path / "tools", "tcn", True, label="tools", several_labels=True)
    *_, last = fit_temporal(tools)
    assert last["test"]["map"] > 0.8 if "map" in last["test"] else max(last["test"].values()) > 0.8
    assert {"target_snare", "score_forceps"} <= set(read_run(tmp_path / "tools").predictions)
    with pytest.raises(UserError, match="several labels, and the smoother is for exclusive classes"):
        predict_temporal(tmp_path / "tools", data[1], tmp_path / "smooth", smooth=True)
    assert not (tmp_path / "smooth" / "instants.parquet").exists()
    gaps = manifest.table[~((manifest.table["label"] == "out") & (manifest.table["tools"] != ""))]
    table = write_manifest(gaps, data[0].parent / "gaps.csv")
    *_, last = fit_temporal(replace(config(tmp_path / "gaps", "tcn", True), manifest=table.path))
    assert last["test"]["accuracy"] > 0.9
    run = read_run(tmp_path / "gaps")
    assert len(run.predictions) == 2 * 55, "instants without a label are not measured"


def test_a_label_budget_leaves_whole_patients_of_the_training_rows(config, tmp_path):
    records = list(fit_temporal(config(tmp_path / "run", "linear", budget="3 patients")))
    assert "3 train, 2 val, 2 test" in records[0]["split"]
    with pytest.raises(UserError, match='budget is "3 patients" there, "all" here'):
        list(fit_temporal(config(tmp_path / "run", "linear")))
    with pytest.raises(UserError, match="training has 8 patients"):
        list(fit_temporal(config(tmp_path / "more", "linear", budget="9 patients")))


def test_without_validation_rows_the_last_step_is_kept(config, data, tmp_path):
    table = read_manifest(data[0]).table
    manifest = write_manifest(table[table["split"] != "val"], data[0].parent / "two.csv")
    records = list(fit_temporal(replace(config(tmp_path / "run"), manifest=manifest.path)))
    assert "chosen" not in records[-1] and not any("validation" in record for record in records)
    assert read_run(tmp_path / "run").protocol["chosen_on"] == "nothing"


def test_features_that_do_not_belong_are_refused(config, runs, data, tmp_path):
    shutil.copytree(data[0].parent, tmp_path / "other")
    about = json.loads((tmp_path / "other" / "store" / "store.json").read_text())
    store = tmp_path / "other" / "store" / "store.json"
    store.write_text(json.dumps({**about, "model_fingerprint": "e" * 64}))
    with pytest.raises(UserError, match="takes those of made"):
        predict_temporal(runs / "causal", store.parent, tmp_path / "out")
    store.write_text(json.dumps({name: value for name, value in about.items() if name != "step_s"}))
    with pytest.raises(UserError, match="needs one per instant"):
        next(fit_temporal(replace(config(tmp_path / "run"), features=store.parent)))
    store.write_text(json.dumps(about))
    (tmp_path / "other" / "v03.mp4").write_text("another video")
    with pytest.raises(UserError, match=r"no vectors of 1 videos, for example v03\.mp4"):
        next(fit_temporal(replace(config(tmp_path / "run"), manifest=tmp_path / "other" / "manifest.csv")))


def test_damaged_models_are_refused(runs, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(runs / "causal" / "seed-0" / "model", folder)
    card = json.loads((folder / "temporal.json").read_text())
    for wrong in (
        {"classes": []},
        {"network": {**card["network"], "width": 10**9}},
        {"inputs": {"clock": "x"}},
        {"width": "a"},
    ):
        (folder / "temporal.json").write_text(json.dumps({**card, **wrong}))
        with pytest.raises(CheckpointError):
            load_temporal(folder)
    (folder / "temporal.json").write_text(json.dumps(card))
    assert save_temporal(load_temporal(folder), tmp_path / "again") and load_temporal(tmp_path / "again")
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not the file of weights"):
        load_temporal(folder)
    with pytest.raises(CheckpointError, match="holds no model of time"):
        load_temporal(tmp_path)


def test_the_loss_is_that_of_the_paper():
    draw = np.random.default_rng(0)
    logits, target = draw.normal(size=(2, 7, 3)) * 3, np.array([0, 1, -1, 2, 2, -1, 0])
    expected = 0.0
    for stage in logits:
        log_p = stage - np.log(np.exp(stage).sum(1, keepdims=True))
        expected -= np.mean([log_p[t, k] for t, k in enumerate(target) if k >= 0])
        changes = [min(abs(log_p[t, k] - log_p[t - 1, k]), 4.0) ** 2 for t in range(1, 7) for k in range(3)]
        expected += 0.15 * np.mean(changes)
    found = temporal_loss(torch.from_numpy(logits), torch.from_numpy(target), 0.15)
    assert float(found) == pytest.approx(expected)


def test_transitions_are_not_counted_across_gaps_in_the_labels(runs, data):
    model, store = load_temporal(runs / "causal" / "seed-0" / "model"), load_store(data[1])
    rows, times = recordings_of(store)["v11.mp4"]
    target = np.array([0, 0, -1, -1, 1, 1, -1, 0] + [-1] * (len(rows) - 8))
    prepare(model, [Recording("v11.mp4", "p", store, rows, times, target)])
    np.testing.assert_allclose(model.transition, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]])  # one 0 -> 0 and one 1 -> 1, plus 1
    np.testing.assert_allclose(model.prior, [3 / 5, 2 / 5])


@pytest.mark.parametrize("offline", [False, True])
def test_inputs_are_averaged_reduced_and_timed(offline):
    vectors = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    vectors[7] = float("nan")
    times = torch.arange(50) * 2.0
    inputs = Inputs(InputConfig(components=3, average_s=6.0, clock=True), 8, offline)
    inputs.fit(vectors, 98.0)
    x = inputs(vectors, times)
    assert x.shape == (50, inputs.n_outputs) and x.isfinite().all()
    filled = torch.where(vectors.isnan(), inputs.mean, vectors) - inputs.mean
    near = [18, 19, 20] if not offline else [19, 20, 21]
    torch.testing.assert_close(x[20, :3], (filled[near] @ inputs.basis).mean(0), rtol=1e-4, atol=1e-5)
    assert int(x[49, 3:13].argmax()) == 9 and int(x[0, 3:13].argmax()) == 0
    variances = (filled[vectors.isfinite().all(1)] @ inputs.basis).var(0)
    assert variances[0] == pytest.approx(1, abs=0.1) and variances[0] > variances[1] > variances[2]
    if not offline:
        past = inputs.begin()
        streamed = torch.stack([inputs.step(v, float(t), past) for v, t in zip(vectors, times, strict=True)])
        torch.testing.assert_close(streamed, x, rtol=1e-4, atol=1e-5)
