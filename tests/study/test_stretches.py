"""Findings of a predicted video: where they are, the effect of thresholds and calibration, and decisions on them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

import endofm_lab as lab
from endofm_lab.data.samples import SAMPLES, sample_video
from endofm_lab.figures.prediction import frame_timeline
from endofm_lab.model.card import HeadSpec
from endofm_lab.predict import predict_video
from endofm_lab.prediction import VideoPrediction
from endofm_lab.study.review import CONFIRM, decide, read_review, video_reviews, with_decisions
from endofm_lab.study.stretches import Thresholds, disagreements, video_findings, without_calibration

POLYP = [0.1, 0.6, 0.9, 0.4, 0.0, 0.7]  # of clips that start every second and last for two


@pytest.fixture(scope="module")
def predicted():
    """The prediction of a sample with a polyp and a bleeding by the demo model."""
    return predict_video(sample_video(next(iter(SAMPLES))), lab.load_model("demo"), progress=False)


@pytest.fixture
def made():
    """Six clips with a frame per half second, without masks and boxes."""
    polyp = np.array(POLYP, np.float32)
    starts = np.arange(6.0)
    return VideoPrediction(
        times_s=np.column_stack([starts, starts + 2]),
        scores={"finding": np.column_stack([1 - polyp, polyp])},
        classes={"finding": ["normal", "polyp"]},
        frames=np.arange(14) * 3,
        frame_times_s=np.arange(14) / 2,
        maps={},
        boxes_xyxy=pd.DataFrame({"frame": [], "head": [], "label": [], "score": []}),
        video=SimpleNamespace(duration_s=7.0),
    )


def rows(findings):
    return findings[["finding", "start_s", "end_s", "score"]].round(3).values.tolist()


def test_a_finding_is_a_stretch_of_clips_that_reach_the_threshold_the_highest_score_first(made):
    assert rows(video_findings(made)) == [["polyp", 1.0, 4.0, 0.9], ["polyp", 5.0, 7.0, 0.7]]
    assert rows(video_findings(made, Thresholds(0.4))) == [["polyp", 1.0, 5.0, 0.9], ["polyp", 5.0, 7.0, 0.7]]
    assert rows(video_findings(made, Thresholds(0.65))) == [["polyp", 2.0, 4.0, 0.9], ["polyp", 5.0, 7.0, 0.7]]
    assert rows(video_findings(made, Thresholds(0.8))) == [["polyp", 2.0, 4.0, 0.9]]
    none = video_findings(made, Thresholds(0.95))
    assert none.empty and list(none.columns) == list(video_findings(made).columns)


@pytest.mark.parametrize("name", ["Normal", "normal_clean mucosa", "BACKGROUND"])
def test_normal_is_no_finding_however_a_data_set_spells_it(made, name):
    spelt = replace(made, classes={"finding": [name, "polyp"]})
    assert rows(video_findings(spelt)) == rows(video_findings(made)) and len(rows(video_findings(spelt)))
    assert spelt.telling_frames(2) == made.telling_frames(2)


def test_a_finding_names_its_frames_and_the_spread_of_its_best_clip(made):
    bounds = np.stack([made.scores["finding"] - 0.05, made.scores["finding"] + 0.05], axis=-1)
    findings = video_findings(replace(made, score_spread={"finding": bounds}))
    assert findings[["first", "last", "frame", "time_s"]].values.tolist() == [[6, 21, 18, 3.0], [30, 39, 36, 6.0]]
    assert findings[["lowest", "highest"]].round(3).values.tolist() == [[0.85, 0.95], [0.65, 0.75]]
    assert findings["number"].tolist() == [1, 2] and video_findings(made)["lowest"].isna().all()


def test_findings_are_the_stretches_where_the_sample_shows_them(predicted):
    findings = video_findings(predicted).set_index("finding")
    assert set(findings.index) == {"polyp", "bleeding"}
    quarter = predicted.video.n_frames // 4
    for name, scene in (("polyp", 1), ("bleeding", 3)):
        finding = findings.loc[name]
        shared = min(finding["last"], (scene + 1) * quarter) - max(finding["first"], scene * quarter)
        assert shared > 0.8 * quarter and finding["first"] <= finding["frame"] <= finding["last"]
        assert finding["frame"] in predicted.frames and 0.5 < finding["score"] <= 1
    assert predicted.opening_frame() == video_findings(predicted)["frame"][0], "the viewer opens at the first finding"


def test_without_classes_findings_are_neighbouring_frames_with_a_mask_or_a_box(predicted):
    only = replace(predicted, scores={}, score_spread={})
    findings = video_findings(only)
    with_answer = {frame for frame in only.frames if only.overlay(frame)[0].any() or len(only.boxes(frame))}
    spans = list(zip(findings["first"], findings["last"], strict=True))
    assert len(findings) and {n for first, last in spans for n in only.frames if first <= n <= last} == with_answer
    assert findings["frame"].isin(only.frames).all() and findings["score"].between(0.3, 1).all()
    surest = video_findings(only, Thresholds(0.5, box=float(only.boxes_xyxy["score"].max())))
    assert (surest["head"].isin(only.box_heads)).sum() == 1


def test_every_finding_of_a_video_can_be_decided_on_and_the_decision_is_found_again(predicted, tmp_path):
    for prediction in (predicted, replace(predicted, scores={}, score_spread={})):
        folder = tmp_path / str(len(prediction.scores))
        findings = video_findings(prediction)
        for _, finding in findings.iterrows():
            decide(folder, finding, CONFIRM, by="A. Reader")
        again = with_decisions(findings, read_review(folder))
        assert len(again) == len(findings) and set(again["decision"]) == {CONFIRM}
        assert set(again["decided_by"]) == {"A. Reader"}
        decisions = with_decisions(video_findings(prediction, Thresholds(0.4)), read_review(folder))["decision"]
        assert set(decisions) == {CONFIRM}, "a lower threshold withdraws nothing"


def test_the_timeline_of_frames_follows_the_thresholds(predicted):
    usual, strict = (
        {trace.name: np.asarray(trace.y) for trace in frame_timeline(predicted, thresholds=thresholds).data}
        for thresholds in (Thresholds(), Thresholds(0.9, 0.6))
    )
    assert (strict["mask"] <= usual["mask"]).all() and 0 < strict["mask"].sum() < usual["mask"].sum()
    scores = usual["box: finding"]
    np.testing.assert_array_equal(strict["box: finding"], np.where(scores >= 0.6, scores, 0))


def test_models_disagree_where_only_one_has_a_finding_of_this_name(made):
    other = np.array([0.1, 0.1, 0.8, 0.1, 0.0, 0.1], np.float32)  # of clip 2 only
    ulcer = np.array([0.9, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    second = replace(
        made,
        scores={"finding": np.column_stack([1 - other, other, ulcer])},
        classes={"finding": ["normal", "Polyp", "ulcer"]},
    )
    table = disagreements(made, second)
    assert table[["number", "finding", "start_s", "only", "possible"]].values.tolist() == [
        [1, "ulcer", 0.0, 1, False],
        [2, "polyp", 5.0, 0, True],
    ]
    swapped = disagreements(second, made)
    assert swapped["only"].tolist() == [0, 1] and disagreements(made, made).empty
    assert disagreements(made, second, Thresholds(0.95)).empty


def test_decisions_belong_to_the_content_of_a_video(monkeypatch, tmp_path):
    monkeypatch.setenv("ENDOFM_LAB_REVIEWS", str(tmp_path))
    assert video_reviews("a") != video_reviews("b") and video_reviews("../a").parent == tmp_path


def test_without_calibration_scores_are_those_of_the_logits(made):
    logits = np.random.default_rng(0).normal(0, 3, (6, 3))
    heads = {
        name: HeadSpec(kind, ("a", "b", "c"), 2.5) for name, kind in (("one", "multiclass"), ("many", "multilabel"))
    }
    heads["plain"] = HeadSpec("multiclass", ("a", "b", "c"))
    calibrated = {
        "one": softmax(logits / 2.5, axis=1),
        "many": 1 / (1 + np.exp(-logits / 2.5)),
        "plain": softmax(logits, axis=1),
    }
    bounds = {name: np.stack([values, values], axis=-1) for name, values in calibrated.items()}
    shown = without_calibration(replace(made, scores=calibrated, score_spread=bounds), heads)
    np.testing.assert_allclose(shown.scores["one"], softmax(logits, axis=1), atol=1e-6)
    np.testing.assert_allclose(shown.scores["many"], 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_array_equal(shown.scores["plain"], calibrated["plain"])
    np.testing.assert_allclose(shown.score_spread["many"][..., 1], shown.scores["many"], atol=1e-6)
    assert set(shown.score_spread) == {"many", "plain"}
