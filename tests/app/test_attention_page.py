"""The pages Attention and Embeddings without a browser."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.data.manifest import write_manifest
from endofm_lab.explain.embeddings import embed
from endofm_lab.model.loading.load import load_model, save_model
from endofm_lab.video.reader import write_video
from tests.app.addresses import typed_before
from tests.explain.models import small_model

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    save_model(small_model(), folder)
    return folder


@pytest.fixture
def video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", frames, Fraction(6))
    return tmp_path / "noise.mp4"


@pytest.fixture
def page(tmp_path, monkeypatch, model_folder, video):
    """The page Attention, opened from the page Prediction."""
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(APP))
    app = AppTest.from_file(str(APP / "screens" / "attention.py"), default_timeout=120)
    app.query_params |= {
        "source": "file",
        "path": typed_before(video),
        "model": typed_before(model_folder),
        "start_s": "0.5",
    }
    return app


def captions(app):
    return " ".join(caption.value for caption in app.caption)


def test_the_page_shows_the_clip_of_the_prediction_page(page):
    page.run()
    assert not page.exception and not page.error
    assert page.sidebar.number_input[0].value == 0.5
    assert "4 frames from 0.50 s" in captions(page) and "2 blocks of 2 heads" in captions(page)
    assert "Generated" not in captions(page)
    assert "Where **CLS** looks" in captions(page)
    page.slider(key="clip_frame").set_value(2).run()
    assert "0.83 s" in captions(page)


def test_a_chosen_patch_becomes_the_query_instead_of_cls(page):
    page.session_state["patch"] = (1, 0)
    page.run()
    assert "the patch in row 1, column 0" in captions(page)
    next(button for button in page.button if button.label == "Back to CLS").click().run()
    assert "Where **CLS** looks" in captions(page)


@pytest.mark.parametrize("view", ["Time", "Rollout", "Heads", "Attribution", "Two models"])
def test_every_view_is_drawn(page, view):
    page.query_params["look"] = view
    page.run()
    assert not page.exception and not page.error
    if view == "Two models":
        assert "Give a second model" in page.info[0].value
    if view == "Attribution":
        page.toggle[0].set_value(True).run()
        assert not page.exception
        assert [metric.label for metric in page.metric] == [
            "Completeness error",
            "Insertion minus deletion",
            "Same with shuffled weights",
        ]
        assert any("The patches that this map marks" in entry.value for entry in page.markdown)
        assert not page.get("progress") and "Cancel" not in [button.label for button in page.button]


def test_attention_relevance_is_offered_first(page):
    page.query_params["look"] = "Attribution"
    page.run()
    assert next(box for box in page.selectbox if box.label == "Method").value == "attention relevance"


def test_attribution_starts_with_the_class_with_the_highest_score(page, tmp_path, model_folder):
    for k in range(2):
        model = load_model(model_folder)
        head, spec = next((n, s) for n, s in model.card.heads.items() if s.kind in ("multiclass", "multilabel"))
        model.heads[head].linear.bias.data[k] += 100
        save_model(model, tmp_path / f"sure of {k}")
        page.query_params["model"] = typed_before(tmp_path / f"sure of {k}")
        page.query_params["look"] = "Attribution"
        page.run()
        assert not page.exception and not page.error
        assert next(box for box in page.selectbox if box.label == "Class").value == spec.classes[k]


def test_attention_in_time_of_an_image_model_is_a_red_box(page, tmp_path):
    save_model(small_model(attention="space_only"), tmp_path / "still")
    page.query_params["model"] = typed_before(tmp_path / "still")
    page.query_params["look"] = "Time"
    page.run()
    assert not page.exception
    assert "no attention in time" in page.error[0].value


def test_the_embeddings_page_draws_a_store_and_refuses_other_folders(tmp_path, monkeypatch, model_folder, video):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    rows = [
        {"video": video.name, "start_s": 0.1 * n, "end_s": 1.0 + 0.1 * n, "label": "ab"[n % 2], "patient": f"p{n}"}
        for n in range(6)
    ]
    table = pd.DataFrame(rows).assign(dataset="noise", split="train")
    embed(write_manifest(table, tmp_path / "manifest.csv"), small_model(), tmp_path / "store", progress=False)
    monkeypatch.syspath_prepend(str(APP))
    app = AppTest.from_file(str(APP / "screens" / "embeddings.py"), default_timeout=120).run()
    assert "Embed a manifest first" in app.info[0].value
    field = next(f for f in app.sidebar.text_input if f.label == "Embedding store")
    field.set_value(str(tmp_path / "store")).run()
    assert not app.exception and not app.error
    assert "6 clips of 1 patient · small" in captions(app)
    field = next(f for f in app.sidebar.text_input if f.label == "Embedding store")
    field.set_value(str(tmp_path)).run()
    assert "no finished embeddings" in app.error[0].value
