"""The prediction page without a browser: the page shows what the user chose."""

import json
from pathlib import Path

import numpy as np
import pytest

import endofm_lab as lab
from tests.app.addresses import prediction
from tests.app.player import move_to, told

APP = Path(__file__).resolve().parents[2] / "app" / "main.py"


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    return prediction(APP, 120)


def captions(app):
    return " ".join(caption.value for caption in app.caption)


def test_the_first_page_shows_a_generated_sample_with_its_scores(app):
    app.run()
    assert not app.exception
    assert "Generated picture" in captions(app)
    tables = [table.value for table in app.dataframe]
    assert [table.columns.tolist() for table in tables[:2]] == [["class", "score"]] * 2
    assert tables[2]["finding"].tolist() == ["bleeding", "polyp"] and set(tables[2]["decision"]) == {"open"}
    tracks = next(table for table in tables if "track" in table)
    assert tracks["track"].tolist()[:1] == [1] and (tracks["score"] >= 0.5).all() and "bridged" in captions(app)
    assert "For research only" in captions(app)


def test_a_marker_of_the_timeline_has_clip_start_and_end_as_a_plain_list(app):
    """Browsers return rows of typed arrays as dicts."""
    chart = next(chart for chart in app.run().get("plotly_chart") if chart.key == "timeline")
    for trace in json.loads(chart.proto.spec)["data"]:
        assert isinstance(trace["customdata"], list)
        assert all(isinstance(row, list) and len(row) == 3 for row in trace["customdata"])


def test_the_page_shows_the_numbers_of_the_frame_to_which_the_reader_moved(app):
    app.run()
    opening, clip = told(app)["frame"], app.subheader[0].value
    assert f"frame {opening} of" in captions(app)
    move_to(app, 7)
    assert not app.exception and "frame 7 of" in captions(app) and app.subheader[0].value != clip
    assert told(app)["frame"] == 7 and told(app)["message"] == 1, "the browser knows that its message was read"
    move_to(app, 8)
    assert "frame 8 of" in captions(app) and told(app)["message"] == 2


def test_every_session_has_viewer_addresses_of_its_own_and_another_video_or_model_has_another_address(app):
    first = told(app.run())["address"]
    assert told(app.run())["address"] == first
    app.sidebar.selectbox[0].select_index(1).run()
    second = told(app)["address"]
    app.sidebar.toggle[0].set_value(True).run()
    assert len({first, second, told(app)["address"]}) == 3
    assert told(prediction(APP, 120).run())["address"] != first


def test_a_missing_file_is_a_red_box_that_names_it(app):
    app.run()
    app.sidebar.radio[0].set_value("File or folder on this machine").run()
    assert "Choose a video" in app.info[0].value
    app.sidebar.text_input[0].set_value("/nowhere/absent.mp4").run()
    assert not app.exception
    assert "absent.mp4" in app.error[0].value


def test_a_file_that_is_not_a_video_is_a_red_box_that_says_why(app, tmp_path):
    (tmp_path / "notes.mp4").write_text("these are notes")
    app.run()
    app.sidebar.radio[0].set_value("File or folder on this machine").run()
    app.sidebar.text_input[0].set_value(str(tmp_path / "notes.mp4")).run()
    assert not app.exception
    assert "notes.mp4" in app.error[0].value


def test_a_missing_model_is_a_red_box(app):
    app.run()
    next(field for field in app.sidebar.text_input if field.label == "Model").set_value("/nowhere/weights.pth").run()
    assert not app.exception
    assert "weights.pth" in app.error[0].value


def test_a_folder_of_frames_warns_that_the_model_knows_generated_video_only(app, tmp_path):
    from PIL import Image

    for n in range(12):
        Image.fromarray(np.full((64, 80, 3), 20 * n, np.uint8)).save(tmp_path / f"{n:03d}.png")
    app.run()
    app.sidebar.radio[0].set_value("File or folder on this machine").run()
    app.sidebar.text_input[0].set_value(str(tmp_path)).run()
    assert not app.exception
    assert "generated video only" in app.warning[0].value
    assert "of 11" in captions(app)


def test_a_real_video_says_that_the_model_does_not_know_such_pictures_and_a_switch_shows_its_findings(app, tmp_path):
    """The demo learned generated video; noise stands in for a real one."""
    path = tmp_path / "noise.mp4"
    draw = np.random.default_rng(0)
    lab.write_video(path, [draw.integers(0, 255, (64, 64, 3)).astype(np.uint8) for _ in range(40)], 24)
    app.query_params["source"] = "file"
    app.run()
    app.sidebar.text_input[0].set_value(str(path)).run()
    assert not app.exception
    (warning,) = [entry.value for entry in app.warning]
    assert "look unlike what the model learned" in warning and "trained on generated video only" in warning
    assert any("The others can be shown" in entry.value for entry in app.info)
    first = told(app)["address"]
    next(entry for entry in app.sidebar.toggle if "unfamiliar" in entry.label).set_value(True).run()
    assert not app.exception and told(app)["address"] != first
    assert not any("The others can be shown" in entry.value for entry in app.info)
