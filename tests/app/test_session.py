"""A choice on one page is valid on every page, after a reload, and after going back and forward."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.model.loading.load import save_model
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video
from tests.app.addresses import prediction, typed_before
from tests.app.player import move_to, told
from tests.explain.models import small_model

APP = Path(__file__).resolve().parents[2] / "app"
LOCAL = "File or folder on this machine"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A cache, a video of the user, and a small model."""
    folder = tmp_path_factory.mktemp("made")
    write_video(
        folder / "own.mp4", render(PhantomSpec(1, finding="polyp", n_frames=20, size_px=64)).frames, Fraction(6)
    )
    save_model(small_model(), folder / "model")
    return folder


@pytest.fixture
def opened(tree, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tree / "cache"))

    def open_app(**address: str) -> AppTest:
        if not address:
            return prediction(APP / "main.py").run()
        app = AppTest.from_file(str(APP / "main.py"), default_timeout=250)  # such addresses led to videos before Home
        app.query_params |= address
        return app.run()

    return open_app


def go(app, page):
    """Another page by its link, which brings an empty address."""
    app.query_params = {}
    app.switch_page(f"screens/{page}.py").run()
    assert not app.exception and not app.error, (page, [box.value for box in (*app.exception, *app.error)])


def field(app, label):
    return next(widget for widget in [*app.sidebar.text_input, *app.sidebar.selectbox] if widget.label == label)


def captions(app):
    return " ".join(caption.value for caption in app.caption)


def own(tree):
    paths = {"path": typed_before(tree / "own.mp4"), "model": typed_before(tree / "model")}
    return {"source": "file"} | paths


def test_video_model_and_frame_stay_chosen_on_every_page(tree, opened):
    app = opened()
    app.sidebar.radio[0].set_value(LOCAL).run()
    field(app, "Path").set_value(str(tree / "own.mp4")).run()
    field(app, "Model").set_value(str(tree / "model")).run()
    move_to(app, 3)
    assert not app.exception and "frame 3 of 19" in captions(app)
    for page in ("attention", "embeddings", "views", "training", "comparison"):
        go(app, page)
        if page in ("attention", "views"):
            assert field(app, "Path").value == str(tree / "own.mp4")
        go(app, "prediction")
        assert field(app, "Path").value == str(tree / "own.mp4") and field(app, "Model").value == str(tree / "model")
        assert "frame 3 of 19" in captions(app) and "Generated picture" not in captions(app)


def test_the_folders_of_embeddings_and_runs_stay_too(opened):
    app = opened()
    for page, label in (("embeddings", "Embedding store"), ("comparison", "Folder with runs")):
        app.query_params = {}
        app.switch_page(f"screens/{page}.py").run()
        field(app, label).set_value(f"/nowhere/{page}").run()
        go(app, "data")
        app.query_params = {}
        app.switch_page(f"screens/{page}.py").run()
        assert not app.exception and field(app, label).value == f"/nowhere/{page}"


def test_manifests_the_study_and_the_views_of_pages_stay_too(opened):
    app = opened()
    for page, label, typed in (("data", "Manifests", "/nowhere/m.csv"), ("prediction", "Study", "/nowhere/study")):
        if page == "data":
            go(app, page)
            app.sidebar.radio[0].set_value(True).run()
            app.button_group[0].set_value("Audit").run()
        else:
            app.query_params = {}
            app.switch_page("screens/prediction.py").run()
            app.button_group[0].set_value("Study").run()
        next(widget for widget in [*app.text_area, *app.text_input] if widget.label == label).set_value(typed).run()
        go(app, "training")
        app.query_params = {}
        app.switch_page(f"screens/{page}.py").run()
        assert not app.exception
        assert next(widget for widget in [*app.text_area, *app.text_input] if widget.label == label).value == typed
        assert app.button_group[0].value == {"data": "Audit", "prediction": "Study"}[page]
    app = opened(**app.query_params)
    assert app.button_group[0].value == "Study" and field(app, "Study").value == "/nowhere/study"


def test_a_path_in_an_address_is_opened_after_the_user_agrees_once(tree, opened):
    linked = tree / "linked.mp4"
    linked.write_bytes((tree / "own.mp4").read_bytes())
    address = {"source": "file", "path": str(linked), "frame": "7"}
    app = opened(**address)
    assert not app.exception and "wants to open a path" in app.warning[0].value
    assert app.code[0].value == address["path"] and "path" not in app.query_params
    assert field(app, "Path").value == "" and "Choose a video" in app.info[0].value
    next(button for button in app.button if button.label == "Leave it out").click().run()
    assert not app.exception and not app.code and field(app, "Path").value == ""
    app = opened(**address)
    next(button for button in app.button if button.label == "Open this path").click().run()
    assert not app.exception and not app.code and "of 19" in captions(app)
    second = opened(**address)
    assert not second.exception and not second.code and "frame 7 of 19" in captions(second)


@pytest.mark.parametrize("share", ["//server/share/video.mp4", "\\\\server\\share", "//server\\share"])
def test_an_address_cannot_make_the_app_contact_another_machine(opened, share):
    app = opened(source="file", path=share)
    assert not app.exception and not app.code and "path" not in app.query_params
    assert "not possible" in app.toast[0].value and field(app, "Path").value == ""


def test_a_reload_shows_what_the_address_says(tree, opened):
    app = opened(**own(tree), frame="7")
    assert "frame 7 of 19" in captions(app) and "Generated picture" not in captions(app)
    move_to(app, 9)
    assert app.query_params == own(tree) | {"frame": "9"}
    assert "frame 9 of 19" in captions(opened(**app.query_params))


def test_back_and_forward_bring_the_earlier_address_back(tree, opened):
    app = opened(**own(tree), frame="7")
    move_to(app, 9)
    app.query_params = own(tree) | {"frame": "7"}
    app.run()
    assert "frame 7 of 19" in captions(app) and told(app)["frame"] == 7
    app.query_params = {"source": "sample"}
    app.run()
    assert "Generated picture" in captions(app) and app.sidebar.radio[0].value == "Generated sample"


def test_another_video_starts_at_its_own_opening_frame(tree, opened):
    app = opened(**own(tree), frame="7", start_s="1.5")
    app.sidebar.radio[0].set_value("Generated sample").run()
    assert "frame" not in app.query_params and "start_s" not in app.query_params
    assert not app.exception and "Generated picture" in captions(app)


def test_after_a_corrected_path_and_a_corrected_model_the_prediction_is_shown(tree, opened):
    app = opened(**own(tree))
    for label, wrong in (("Path", "/nowhere/absent.mp4"), ("Model", "/nowhere/weights.pth")):
        right = field(app, label).value
        field(app, label).set_value(wrong).run()
        assert Path(wrong).name in app.error[0].value.replace("\\", "") and not app.exception
        field(app, label).set_value(right).run()
        assert not app.exception and not app.error and "of 19" in captions(app)


def test_an_upload_is_stored_under_its_hash_and_a_lost_upload_is_named(tree, opened):
    app = opened()
    app.sidebar.radio[0].set_value("Upload").run()
    content = (tree / "own.mp4").read_bytes()
    app.get("file_uploader")[0].set_value(("own.mp4", content, "video/mp4")).run()
    assert not app.exception and "of 19" in captions(app)
    name = app.query_params["upload"]
    assert "own" not in name, "a file's name may be a patient's"
    go(app, "views")
    go(app, "prediction")
    assert "of 19" in captions(app)
    (tree / "cache" / "uploads" / name).unlink()
    app = opened(source="upload", upload=name)
    assert not app.exception and "no longer on this machine" in app.error[0].value


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "elsewhere"},
        {"sample": "none"},
        {"source": "upload", "upload": "../../etc/passwd"},
        {"frame": "-1"},
        {"frame": "9" * 400},
        {"start_s": "nan"},
        {"start_s": "soon"},
        {"every_frame": "perhaps"},
    ],
)
def test_an_impossible_value_in_an_address_is_named_and_left_out(opened, wrong):
    app = opened(**wrong)
    assert not app.exception and not app.error
    assert "not possible" in app.toast[0].value
    assert wrong.items() - {("source", "upload")} - app.query_params.items()


def test_a_frame_after_the_end_shows_the_last_frame(tree, opened):
    app = opened(**own(tree), frame="5000")
    assert not app.exception and "frame 19 of 19" in captions(app)


def test_clicked_points_are_read_in_every_form_that_browsers_send(monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    import cache

    assert cache.clicked({"customdata": [3, 4]}) == [3, 4]
    assert cache.clicked({"customdata": {"1": 4, "0": 3}}) == [3, 4]
    assert cache.clicked({"customdata": 3}) == [3]


def test_clickable_markers_have_plain_numbers():
    """Browsers return typed arrays as dicts."""
    from endofm_lab.figures.attention import patch_picker

    figure = patch_picker(np.zeros((8, 8, 3), np.uint8), np.zeros((2, 2)))
    assert figure.to_dict()["data"][1]["customdata"] == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_value_that_arrives_after_the_user_left_its_page_changes_nothing():
    page = AppTest.from_string(
        """
import session
import streamlit as st

st.session_state["here"] = 3
for key in ("here", "gone"):
    session.with_value(key, lambda value: st.write(f"took {value}"))()
"""
    ).run()
    assert not page.exception and [text.value for text in page.markdown] == ["took 3"]
