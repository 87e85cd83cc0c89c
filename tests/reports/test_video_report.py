"""The report of a video: what it holds, what it never holds, and the command that writes it."""

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.data.samples import SAMPLES, sample_video
from endofm_lab.explain.attribution import METHODS
from endofm_lab.explain.targets import target_of
from endofm_lab.explain.trust import Curves
from endofm_lab.figures.pictures import overlaid
from endofm_lab.model.loading.load import save_model
from endofm_lab.predict import predict_video
from endofm_lab.reports.explanation import Explained
from endofm_lab.reports.video import ExplainedClip, video_report
from endofm_lab.study.review import CONFIRM, decide, video_reviews
from endofm_lab.study.stretches import Thresholds, video_findings
from tests.builders import EVIL, frame_model


@pytest.fixture(scope="module")
def model():
    return lab.load_model("demo")


@pytest.fixture(scope="module")
def predicted(model):
    """The prediction of a sample with a polyp and a bleeding by the demo model."""
    return predict_video(sample_video(next(iter(SAMPLES))), model, progress=False)


@pytest.fixture(autouse=True)
def reviews(monkeypatch, tmp_path):
    monkeypatch.setenv("ENDOFM_LAB_REVIEWS", str(tmp_path / "reviews"))


def words_of(page):
    """The text of a page without scripts, styles and pictures."""
    page = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_the_report_holds_findings_with_decisions_frames_timeline_calibration_card_and_notice(model, predicted):
    folder = video_reviews(predicted.provenance["video"])
    decide(folder, video_findings(predicted).iloc[1], CONFIRM, "flat, 5 mm", by="A. Reader")
    page = video_report(predicted, model.card, title="Case 7")
    words = words_of(page)
    for text in ("Case 7", "Not a medical device", "1 of 2 are not decided on", "☒ confirm", "flat, 5 mm", "A. Reader"):
        assert text in words, text
    for text in ("2: polyp 0.", ", confirmed", "not calibrated", model.card.name, "no audit", "generated. It shows no"):
        assert text in words, text
    assert page.count('src="data:image/jpeg;base64,') == 2 and page.count("Plotly.newPlot") == 2
    assert words.count("Provenance") == 1 and lab.__version__ in words and "@page { size: A4" in page


def test_no_name_of_a_file_and_nothing_from_outside_is_in_the_report(model, predicted):
    named = replace(predicted.video, path=Path("/data/Brzeczyszczykiewicz_1951.mp4"))
    origin = predicted.provenance | {"command": "endofm-lab predict /data/Brzeczyszczykiewicz_1951.mp4"}
    page = video_report(replace(predicted, video=named, provenance=origin), model.card)
    assert "Brzeczysz" not in page and "Video report" in page
    assert page.count("The picture is missing.") == 2, "a video that cannot be opened costs the pictures only"
    outside_plotly = re.sub(r"<script>.*?</script>", " ", page, flags=re.S)
    assert not re.search(r"""(src|href)=["']?https?:""", outside_plotly)
    assert '"showSendToCloud": false' in page and '"showSendToCloud": true' not in page


def test_foreign_text_is_shown_and_never_run(model, predicted):
    folder = video_reviews(predicted.provenance["video"])
    decide(folder, video_findings(predicted).iloc[0], CONFIRM, EVIL, by=EVIL)
    card = replace(model.card, name=EVIL, audit=EVIL, limits=(EVIL,))
    classes = {head: [name.replace("polyp", EVIL) for name in names] for head, names in predicted.classes.items()}
    page = video_report(replace(predicted, classes=classes), card, title=EVIL)
    assert "<img src=x" not in page and page.count("&lt;img src=x") >= 6


def test_thresholds_audit_spread_and_temperature_are_stated(model, predicted):
    heads = {
        name: replace(head, temperature=1.5) if name in predicted.scores else head
        for name, head in model.card.heads.items()
    }
    card = replace(model.card, heads=heads, audit="No leakage found.", intended_use="Lessons.", limits=("Small.",))
    spread = {head: np.stack([scores, scores], axis=-1) for head, scores in predicted.scores.items()}
    words = words_of(video_report(replace(predicted, score_spread=spread), card, thresholds=Thresholds(0.9, 0.6)))
    for text in (
        "at least 0.90, and boxes with a score of at least 0.60",
        "finding: temperature 1.50",
        "No leakage found.",
    ):
        assert text in words, text
    assert "lowest highest" in words and "Lessons." in words and "Small." in words
    none = words_of(video_report(predicted, card, thresholds=Thresholds(0.9999999)))
    assert "There are none." in none and "Frame " in none, "frames are shown without findings too"


def test_a_tested_map_is_in_the_report_with_its_figures(model, predicted):
    clip = lab.read_clip(predicted.video.path, model.card.clip, start_s=2.0)
    target = target_of(model, "finding", "polyp")
    attribution = METHODS["Grad-CAM"](model, lab.to_input(clip.frames, model.card.input), target)
    line = np.linspace(1, 0, 5)
    explained = Explained(attribution, Curves(line, line, line * 0.5, line), 0.125)
    words = words_of(video_report(predicted, model.card, maps=[ExplainedClip(clip, explained)]))
    assert "by Grad-CAM" in words and "shuffled weights: 0.12" in words
    page = video_report(predicted, model.card, maps=[ExplainedClip(clip, explained)])
    assert '"text":"Generated"' in page, "the film strip of a generated video is marked"


def test_masks_and_boxes_are_drawn_into_the_picture_and_generated_pictures_are_marked():
    frame, mask = np.full((100, 120, 3), 90, np.uint8), np.zeros((100, 120), bool)
    mask[60:90, 60:100] = True
    boxes = pd.DataFrame({"label": ["polyp"], "score": [0.8], "x1": [10.0], "y1": [40.0], "x2": [50.0], "y2": [90.0]})
    drawn = overlaid(frame, mask, boxes)
    changed = (drawn != frame).any(axis=2)
    assert changed[75, 80] and changed[65:90, 10].all() and not changed[:30].any() and (frame == 90).all()
    marked = overlaid(frame, None, boxes.head(0), generated=True)
    assert (marked != frame).any(axis=2)[:12, -40:].any() and (marked[20:] == 90).all()


def test_the_command_writes_a_report_of_one_video_and_of_each_of_several(tmp_path):
    frames = [np.full((16, 64, 64, 3), value, np.uint8) for value in (40, 90)]
    for name, pixels in zip("ab", frames, strict=True):
        lab.write_video(tmp_path / f"{name}.mp4", pixels, Fraction(8))
    save_model(frame_model(np.concatenate(frames)), tmp_path / "model")
    videos = [str(tmp_path / f"{name}.mp4") for name in "ab"]
    common = ["--model", str(tmp_path / "model"), "--title", "Case 7", "--out"]
    assert main(["predict", videos[0], *common, str(tmp_path / "one"), "--report", str(tmp_path / "one.html")]) == 0
    assert "Case 7" in words_of((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert main(["predict", *videos, *common, str(tmp_path / "two"), "--report", str(tmp_path / "reports")]) == 0
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["a.html", "b.html"]
