"""The page Views without a browser: parameters, seeds, errors; and the figures that it shares with the notebook."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.figures.views import in_space, in_time, seen
from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, render(PhantomSpec(1, finding="polyp", n_frames=40, size_px=64)).frames, Fraction(10))
    return path


@pytest.fixture
def page(video, monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    app = AppTest.from_file(str(APP / "screens" / "views.py"), default_timeout=280).run()
    app.sidebar.radio[0].set_value("File or folder on this machine").run()
    app.sidebar.text_input[0].set_value(str(video)).run()
    assert not app.exception and not app.error
    return app


def described(app):
    return app.dataframe[0].value


def test_the_published_recipe_has_ten_views_and_the_same_seed_gives_the_same_views(page):
    first = described(page)
    assert list(first.index) == ["global 1", "global 2", *(f"local {n}" for n in range(1, 9))]
    assert "18 pairs, of which 2 are between the global views" in " ".join(c.value for c in page.caption)
    next(b for b in page.button if b.label == "Draw again").click().run()
    assert page.number_input(key="views_seed").value == 1
    assert not described(page).equals(first)
    page.number_input(key="views_seed").set_value(0).run()
    assert described(page).equals(first)


def test_parameters_change_the_views_immediately(page):
    page.text_input(key="endo-fm local").set_value("2, 8").run()
    page.slider(key="endo-fm flip").set_value(1.0).run()
    table = described(page)
    assert len(table) == 4 and table["flip"].all()
    page.selectbox[0].set_value("For lessons (tiny)").run()
    assert not page.exception
    assert len(described(page)) == 6  # the values of the preset again


def test_impossible_parameters_are_named(page):
    page.text_input(key="endo-fm local").set_value("two").run()
    assert "Give whole numbers" in page.error[0].value
    page.text_input(key="endo-fm local").set_value("2").run()
    page.number_input(key="endo-fm clip_s").set_value(0.2).run()
    assert not page.exception and "windows need" in page.error[0].value


def test_the_figures_draw_what_the_views_are(video):
    spec = ViewSpec(clip_s=4, global_px=64, local_px=32, local_frames=(2, 4))
    views = MultiView(spec).of_video(video, seed=5)
    at_s = float(views.times_s[views.draws[2].window[0]])
    space = in_space(views, at_s)
    for trace, draw in zip(space.data[1:], views.draws, strict=True):
        left, top, right, bottom = draw.crop_xyxy
        assert (min(trace.x), min(trace.y), max(trace.x), max(trace.y)) == (left, top, right, bottom)
    assert space.data[3].line.dash == "solid"
    bars = in_time(views, at_s).data
    for bar, dots, about in zip(bars[::2], bars[1::2], views.describe(), strict=True):
        start_s, end_s = about["window_s"]
        assert (bar.base[0], bar.base[0] + bar.x[0]) == pytest.approx((start_s, end_s))
        assert np.allclose(dots.x, about["times_s"]) and start_s <= min(dots.x) and max(dots.x) < end_s
    assert len(seen(views, spec.input).data) == 4 and len(seen(views, spec.input, [0, 1]).data) == 2
