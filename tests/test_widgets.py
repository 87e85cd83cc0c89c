"""Sliders, clicks and lassos change the explorers as they should; tested without a browser."""

import shutil
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from endofm_lab.data.manifest import write_manifest
from endofm_lab.explain.embeddings import embed
from endofm_lab.predict import predict_video
from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.video.reader import write_video
from endofm_lab.widgets import AttentionExplorer, EmbeddingExplorer, PredictionExplorer, ViewsExplorer
from tests.explain.models import small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (48, 64, 64, 3), dtype=np.uint8), Fraction(12))
    return path


def points(*indices):
    return SimpleNamespace(point_inds=list(indices))


def test_the_slider_moves_the_frame_and_a_click_changes_the_query(model):
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    explorer = AttentionExplorer(model, frames, np.arange(4) / 6)
    first, text = explorer.picture.data[0].source, explorer.sentence.value
    assert "CLS" in text and "Frame 0 (0.00 s)" in text
    explorer.frame.value = 3
    assert explorer.picture.data[0].source != first and "Frame 3 (0.50 s)" in explorer.sentence.value
    cls = explorer.picture.data[1].text
    explorer._clicked(None, points(2), None)
    assert explorer.patch == (1, 0) and "row 1, column 0" in explorer.sentence.value
    assert explorer.picture.data[1].text != cls and len(explorer.picture.layout.shapes) == 1
    expected = explorer.maps.in_time(1, "mean", (1, 0)).numpy()
    np.testing.assert_allclose(explorer.matrix.data[0].z, expected)
    explorer.query.value = "CLS"
    assert explorer.patch is None and explorer.picture.data[1].text == cls


def test_a_still_picture_is_shown_where_widgets_do_not_render(model):
    explorer = AttentionExplorer(model, np.zeros((4, 32, 32, 3), np.uint8))
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "data:image/jpeg" in data["text/html"] and "Open the notebook in JupyterLab" in data["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_lasso_fills_the_sheet_and_a_click_shows_neighbours(model, video, tmp_path):
    copies = [shutil.copy(video, tmp_path / f"{patient}{video.suffix}") for patient in range(3)]
    rows = [
        {"video": str(copies[n % 3]), "start_s": 0.3 * n, "end_s": 0.3 * n + 0.7, "label": "ab"[n % 2]}
        for n in range(8)
    ]
    table = pd.DataFrame(rows).assign(dataset="<b>noise</b>", split="train", patient=[f"p{n % 3}" for n in range(8)])
    store = embed(write_manifest(table, tmp_path / "m.csv"), model, tmp_path / "store", progress=False)
    explorer = EmbeddingExplorer(store)
    a, b = explorer.map.data
    explorer._selected(a, points(0, 2), None)
    explorer._selected(b, points(1), None)
    assert explorer.chosen == [0, 3, 4] and explorer.sheet.value.count("<img") == 3
    explorer._selected(b, points(), None)
    assert explorer.chosen == [0, 4]
    explorer.not_same.value = "recording"
    explorer._clicked(b, points(0), None)
    assert explorer.chosen[0] == 1 and sorted(explorer.chosen[1:]) == [0, 2, 3, 5, 6]
    explorer.color.value = "dataset"
    assert [trace.name for trace in explorer.map.data] == ["&lt;b&gt;noise&lt;/b&gt;"], "the name as text"


def test_views_show_their_crop_and_their_frames(video):
    spec = ViewSpec(clip_s=4.0, global_px=32, local_px=16, local_frames=(2, 2))
    explorer = ViewsExplorer(MultiView(spec).of_video(video, seed=3), spec.input)
    before = explorer.view_picture.value
    assert "Teacher and student" in explorer.sentence.value and explorer.frame.max == 7
    explorer.view.value = 3
    assert explorer.frame.max == 1 and "Only the student" in explorer.sentence.value
    assert explorer.view_picture.value != before


def test_the_prediction_follows_slider_and_click(model, video):
    prediction = predict_video(video, model, progress=False)
    explorer = PredictionExplorer(prediction)
    explorer.frame.value = 5
    assert "Frame 5, 0.417 s" in explorer.sentence.value
    before = explorer.picture.data[0].source
    explorer._clicked(None, points(len(prediction.times_s) - 1), None)
    assert explorer.frame.value > 30 and explorer.picture.data[0].source != before
