"""The findings of a video on the page Prediction: thresholds, calibration, spread, and decisions that stay."""

from fractions import Fraction
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.model.loading.load import save_model
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video
from tests.app.addresses import prediction, typed_before
from tests.app.player import told
from tests.builders import EVIL, frame_model

APP = Path(__file__).resolve().parents[2] / "app" / "main.py"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def opened(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(cache))
    monkeypatch.setenv("ENDOFM_LAB_REVIEWS", str(tmp_path / "reviews"))

    def open_page(**address) -> AppTest:
        app = prediction(APP)
        app.query_params |= address
        app.run()
        assert not app.exception and not app.error, [*app.exception, *app.error]
        return app

    return open_page


def findings(app):
    return next(table.value for table in app.dataframe if "decision" in table.value)


def press(app, label):
    next(button for button in app.button if button.label == label).click()
    return app.run()


def captions(app):
    return " ".join(caption.value for caption in app.caption)


def test_decisions_move_the_viewer_to_the_next_finding_and_are_there_when_the_video_is_opened_again(opened):
    app = opened()
    first, second = (told(app)["findings"][n]["frame"] for n in (1, 0))  # the viewer has them in order of time
    assert told(app)["frame"] == first and findings(app)["decision"].tolist() == ["open", "open"]
    next(field for field in app.text_input if field.label == "Reviewer").set_value("A. Reader").run()
    next(field for field in app.text_input if field.label == "Remark").set_value("fresh blood").run()
    press(app, "Confirm")
    assert told(app)["frame"] == second and app.selectbox(key="finding").value == 1
    press(app, "Reject")
    again = opened(frame=str(second))
    assert findings(again)["decision"].tolist() == ["confirmed", "rejected"]
    assert findings(again).loc[0, ["remark", "by"]].tolist() == ["fresh blood", "A. Reader"]
    assert again.selectbox(key="finding").value == 1, "the finding that contains the frame in the address"
    assert "Rejected by A. Reader at" in captions(again)
    press(again, "Undo")
    assert findings(again)["decision"].tolist() == ["confirmed", "open"] and told(again)["frame"] == second
    other = opened(sample="Nothing to find")
    assert told(other)["findings"] == [] and not any("decision" in table.value for table in other.dataframe)


def test_the_reader_is_named_again_after_a_reload_unless_the_app_is_served_to_others(opened, monkeypatch):
    def reviewer(app):
        return next(field for field in app.text_input if field.label == "Reviewer")

    reviewer(opened(sample="Polyp, advancing")).set_value("B. Reader").run()
    assert reviewer(opened(sample="Polyp, advancing")).value == "B. Reader"
    monkeypatch.setenv("ENDOFM_LAB_PASSWORD", "a long password")
    assert reviewer(opened(sample="Polyp, advancing")).value == ""


def test_choosing_a_finding_moves_the_viewer(opened):
    app = opened()
    app.selectbox(key="finding").set_value(1).run()
    frame = told(app)["findings"][0]["frame"]
    assert told(app)["frame"] == frame and app.query_params["frame"] == str(frame)


def test_a_finding_that_the_viewer_does_not_show_is_shown_by_a_button_and_not_chosen_at_first(opened):
    app = opened()
    press(app, "Confirm")
    again = opened()
    assert again.selectbox(key="finding").value == 0, "the viewer opens at the decided finding, so that one is chosen"
    again.query_params["frame"] = "0"
    again.run()
    assert "The viewer shows the frame at 0:00.00" in captions(again)
    press(again, "Show this finding")
    assert told(again)["frame"] == told(again)["findings"][1]["frame"] and "The viewer shows" not in captions(again)


def test_a_threshold_changes_findings_masks_and_marks_and_is_in_the_address(opened):
    app = opened()
    assert told(app)["thresholds"] == {"mask": 0.5, "box": 0.3}
    slider = next(slider for slider in app.sidebar.slider if slider.label == "Threshold")
    slider.set_value(0.01).run()
    assert len(findings(app)) == len(told(app)["findings"]) > 2 and told(app)["thresholds"]["mask"] == 0.01
    assert app.query_params["threshold"] == "0.01"
    again = opened(threshold="0.99", box_threshold="0.6")
    assert told(again)["thresholds"] == {"mask": 0.99, "box": 0.6}
    assert {slider.value for slider in again.sidebar.slider} == {0.99, 0.6}


@pytest.mark.parametrize("text", ["0", "1.5", "nan", "0.0", "-0.1"])
def test_an_impossible_threshold_in_the_address_is_named_and_left_out(opened, text):
    app = opened(threshold=text)
    assert told(app)["thresholds"]["mask"] == 0.5 and "threshold" in app.toast[0].value


def test_calibration_is_switched_off_only_where_the_model_has_a_temperature(opened, tmp_path):
    labels = [toggle.label for toggle in opened().sidebar.toggle]
    assert "Without calibration" not in labels
    frames = render(PhantomSpec(0, finding="polyp", n_frames=24, size_px=64)).frames
    write_video(tmp_path / "video.mp4", frames, Fraction(12))
    save_model(frame_model(frames), tmp_path / "model")
    paths = {"path": typed_before(tmp_path / "video.mp4"), "model": typed_before(tmp_path / "model")}
    app = opened(source="file", frame="11", **paths)
    scores = app.dataframe[0].value.set_index("class")["score"]
    next(toggle for toggle in app.sidebar.toggle if toggle.label == "Without calibration").set_value(True).run()
    plain = app.dataframe[0].value.set_index("class")["score"]
    assert "switched off" in captions(app) and app.query_params["uncalibrated"] == "yes"
    top = scores.idxmax()
    assert plain[top] > scores[top], "a temperature above 1 makes scores less certain"
    odds = (plain / (1 - plain))[top] / ((scores / (1 - scores))[top] ** 1.5)
    assert odds == pytest.approx(1, rel=1e-3), "two classes: the log odds are divided by the temperature"


def test_the_spread_over_shifted_clips_stands_beside_the_scores(opened):
    app = opened(every_frame="yes", sample="Polyp, advancing")
    tables = [table.value for table in app.dataframe]
    assert tables[0].columns.tolist() == ["class", "score", "spread"] and "spread" in findings(app)
    for score, spread in tables[0][["score", "spread"]].itertuples(index=False):
        low, high = map(float, spread.split(" to "))
        assert low - 0.006 <= score <= high + 0.006


def test_a_second_model_stands_beside_the_first_with_the_findings_that_only_one_has(opened, tmp_path):
    frames = render(PhantomSpec(0, finding="polyp", n_frames=24, size_px=64)).frames
    save_model(frame_model(frames), tmp_path / "model")
    app = opened(sample="Polyp, advancing", second_model=typed_before(tmp_path / "model"))
    table = app.dataframe(key="disagreements").value
    assert set(table["finding"]) <= {"polyp", EVIL} and "polyp" in set(table["finding"])
    assert set(table.loc[table["finding"] == "polyp", "the other model"]) == {"has no such class"}
    both = next(table.value for table in app.dataframe if EVIL in table.value.index)
    assert set(both.index) == {"normal", "polyp", "ulcer", "bleeding", EVIL} and both.shape[1] == 2
    assert "timeline of the second model" in {chart.key for chart in app.get("plotly_chart")}
    same = opened(sample="Polyp, advancing", second_model="demo")
    assert "same findings" in same.success[0].value
