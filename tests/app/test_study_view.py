"""The page Prediction with a frame model, and its view Study: what it shows, stores and refuses."""

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import endofm_lab.study.study as study_module
from endofm_lab.model.loading.load import save_model
from endofm_lab.reports.study import write_study_report
from endofm_lab.study.findings import findings
from endofm_lab.study.review import read_review
from endofm_lab.study.study import run_study, study_steps
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video
from tests.app.addresses import prediction, typed_before
from tests.builders import EVIL, frame_model

APP = Path(__file__).resolve().parents[2] / "app" / "main.py"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A phantom video, a frame model, and a study of the frames: one damaged, the last repeated."""
    folder = tmp_path_factory.mktemp("made")
    frames = render(PhantomSpec(0, finding="polyp", n_frames=24, size_px=64)).frames
    write_video(folder / "video.mp4", frames, 12)
    (folder / "frames").mkdir()
    for n, frame in enumerate([*frames, *[frames[-1]] * 6]):
        write_picture(folder / "frames" / f"{n:03d}.png", frame)
    (folder / "frames" / "007.png").write_bytes(b"damaged")
    model = frame_model(frames)
    save_model(model, folder / "model")
    study = run_study(folder / "frames", model, folder / "study", skip_near_duplicates=True, fps=12, progress=False)
    write_study_report(study, folder / "study", width=1)
    assert len(findings(study, 1)) >= 2, "this test needs something to decide on"
    return folder


def write_picture(path, frame):
    from PIL import Image

    Image.fromarray(frame).save(path)


@pytest.fixture
def opened(cache, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(cache))

    def open_study(folder, width: int = 1) -> AppTest:
        app = prediction(APP)
        app.query_params |= {"view": "Study", "study": typed_before(folder)}
        app.session_state["study width"] = width
        return app.run()

    return open_study


@pytest.fixture
def copied(files, tmp_path):
    """A copy of the study, for a reader's decisions."""
    return shutil.copytree(files / "study", tmp_path / "study")


def texts(app):
    return " ".join(str(e.value) for kind in ("markdown", "caption", "info", "warning") for e in app.get(kind))


def charts(app):
    return {chart.key: json.loads(chart.proto.spec) for chart in app.get("plotly_chart")}


def press(app, label):
    next(button for button in app.button if button.label == label).click()
    return app.run()


def test_a_frame_model_predicts_every_frame_of_a_video_on_the_page(files, cache, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(cache))
    app = prediction(APP)
    app.query_params |= {"source": "file", "path": typed_before(files / "video.mp4"), "frame": "11"}
    app.query_params["model"] = typed_before(files / "model")
    app.run()
    assert not app.exception and not app.error, [*app.exception, *app.error]
    figures = charts(app)
    assert set(figures) == {"timeline"}  # the viewer is a component, which is tested in the browser
    assert [len(trace["customdata"]) for trace in figures["timeline"]["data"]] == [24] * 4
    scores = next(table.value for table in app.dataframe if "normal" in set(table.value["class"]))
    assert scores["score"].sum() == pytest.approx(1, abs=1e-5) and set(scores["class"]) == {"normal", EVIL}
    assert "temperature 1.50" in texts(app) and "frame 11 of 23" in texts(app)


def test_the_page_shows_the_same_as_the_report(files, opened):
    app = opened(files / "study")
    assert not app.exception and not app.error, [*app.exception, *app.error]
    figures, words = charts(app), texts(app)
    assert set(figures) == {"study timeline", "found", "best frames"}
    assert figures["study timeline"]["layout"]["xaxis2"]["title"]["text"] == "time (s)"
    assert len(figures["best frames"]["layout"]["annotations"]) > 2
    assert "near-duplicates were not scored" in words and "temperature 1.50" in words and "1 frames could" in words
    assert "not finished" not in words
    tables = [table.value for table in app.dataframe]
    unreadable = next(table for table in tables if "reason" in table)
    assert unreadable["frame"].tolist() == [7] and unreadable["at"].tolist() == ["0:00.58"]
    assert any("mean score" in table for table in tables) and any("segments before" in table for table in tables)
    assert any(button.label == "Report" for button in app.get("download_button"))


def test_names_from_files_are_shown_unchanged(files, opened):
    app = opened(files / "study")
    for chart in charts(app).values():
        assert "<img" not in json.dumps(chart)
    for kind in ("markdown", "caption", "warning", "error"):
        assert not any("<img" in element.value.replace("\\<", "") for element in app.get(kind))
    assert "<img" not in (files / "study" / "report.html").read_text(encoding="utf-8")


def test_decisions_are_stored_and_shown_again(copied, opened):
    app = opened(copied)
    n = len(app.selectbox(key="finding").options)
    first = app.selectbox(key="finding").value
    next(field for field in app.text_input if field.label == "Remark").set_value("flat, 5 mm").run()
    press(app, "Confirm")
    assert not app.exception and not app.error
    second = app.selectbox(key="finding").value
    assert second != first, "the next open one"
    press(app, "Reject")
    table = next(table.value for table in opened(copied).dataframe if "decision" in table.value)
    assert table["decision"].tolist().count("open") == n - 2
    assert table.loc[first, ["decision", "remark"]].tolist() == ["confirmed", "flat, 5 mm"]
    assert table.loc[second, "decision"] == "rejected"
    app.selectbox(key="finding").set_value(first).run()
    press(app, "Undo")
    decided = read_review(copied).query("decided_at != ''")
    assert decided["decision"].tolist() == ["confirm", "reject", ""]
    assert "1 open" not in texts(app) and f"{n - 1} open" in texts(app)


def test_a_decision_survives_other_smoothing(copied, opened):
    app = press(opened(copied), "Confirm")
    table = next(table.value for table in opened(copied, width=51).dataframe if "decision" in table.value)
    assert (table["decision"] == "confirmed").sum() == 1 and not app.exception


def test_a_review_that_was_spoilt_by_hand_is_named_and_the_rest_is_shown(copied, opened):
    (copied / "review.csv").write_text("something;else\n")
    app = opened(copied)
    assert "review.csv" in app.error[0].value and not app.exception
    assert {"study timeline", "best frames"} <= set(charts(app))


def test_an_unfinished_study_shows_its_finished_frames(files, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "PART_FRAMES", 10)
    steps = study_steps(files / "video.mp4", files / "model", tmp_path / "study")
    next(steps)
    assert "has no part yet" in opened(tmp_path / "study").error[0].value
    next(steps)
    steps.close()
    app = opened(tmp_path / "study")
    assert not app.exception and not app.error, [*app.exception, *app.error]
    assert "not finished" in app.warning[0].value and "10 of 24 frames" in app.warning[0].value
    assert charts(app)["study timeline"]["data"][0]["customdata"][0][-1] == "0:00.75", "the tenth frame"
    last = next(table.value for table in app.dataframe if "mean score" in table.value).iloc[-1]
    assert last["to"] == "0:00.83", "its end"


def test_a_study_whose_video_is_gone_says_so_and_shows_the_rest(files, copied, opened):
    about = json.loads((copied / "study.json").read_text())
    about["video"]["path"] = "/nowhere/video.mp4"
    (copied / "study.json").write_text(json.dumps(about))
    (copied / "hashes.json").unlink()  # or the edit is refused
    app = opened(copied)
    assert not app.exception and not app.error
    assert "cannot be shown" in app.warning[0].value and "study timeline" in charts(app)


def another_version(folder):
    about = json.loads((folder / "study.json").read_text())
    about["provenance"] |= {"form": 99, "version": "9.0"}
    (folder / "study.json").write_text(json.dumps(about))


def damaged(folder):
    (folder / "frames.parquet").write_bytes(b"PAR1 and no more")


def damaged_without_hashes(folder):
    damaged(folder)
    (folder / "hashes.json").unlink()


def no_study(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_study, "contains no study"),
        (another_version, "file format 99, written by endofm"),
        (damaged, "damaged or was edited"),
        (damaged_without_hashes, "damaged or was altered"),
    ],
)
def test_a_folder_without_a_readable_study_gives_a_red_box(copied, opened, spoil, words):
    spoil(copied)
    app = opened(copied)
    assert not app.exception and len(app.error) == 1
    assert words in app.error[0].value and "\n" not in app.error[0].value


def test_without_a_folder_the_page_says_how_to_make_a_study(opened):
    assert "endofm-lab study" in opened("").info[-1].value
