"""Videos, folders and models are chosen without typing, and long work is started on the page that shows its result."""

from pathlib import Path

import pytest

from endofm_lab.files import write_json
from endofm_lab.folders import background
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.video_model import build_frame_model
from tests.app.addresses import home, prediction, press, texts, typed_before
from tests.folders.jobs import lost_job

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """An allowed folder with a video and a model; everything that is written goes into the same temporary folder."""
    for name in ("CACHE", "STUDIES", "MODELS"):
        monkeypatch.setenv(f"ENDOFM_LAB_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("ENDOFM_LAB_FOLDERS", str(tmp_path / "allowed"))
    monkeypatch.syspath_prepend(str(APP))
    (tmp_path / "allowed" / "day 1").mkdir(parents=True)
    (tmp_path / "allowed" / "day 1" / "case.mp4").write_bytes(b"no video")
    (tmp_path / "allowed" / "rows.csv").write_text("video\n")
    heads = {"finding": HeadSpec("multiclass", ("normal", "polyp"))}
    save_model(build_frame_model("vit_micro", heads), tmp_path / "models" / "frames")
    return tmp_path


@pytest.fixture
def started(made, monkeypatch):
    """The jobs that pages started, in place of processes."""
    from machine import jobs

    entered = []
    monkeypatch.setattr(jobs, "start", lambda *job: entered.append(job))
    return entered


def page(name, **address):
    app = home(**({"home": "yes", "source": "file"} | address))
    app.query_params = {}
    app.switch_page(f"screens/{name}.py").run()
    assert not app.exception, app.exception
    return app


def labels(app):
    return [button.label.replace("\\", "") for button in app.button]


def test_a_video_is_chosen_by_clicks_through_the_allowed_folders(made):
    app = page("views")
    press(app, "Choose a video")
    assert "day 1" in labels(app) and "rows.csv" not in " ".join(labels(app))
    press(app, "day 1")
    app.button(key=f"entry 0 {made / 'allowed' / 'day 1'}").click().run()
    assert not app.exception and app.query_params["path"] == str(made / "allowed" / "day 1" / "case.mp4")
    again = page("views", path=app.query_params["path"])
    assert "case.mp4" in again.error[0].value.replace("\\", ""), "an address with it opens it without a question"


def test_a_part_of_a_name_narrows_the_list_and_up_ends_at_the_allowed_folder(made):
    app = page("views")
    press(app, "Choose a video")
    assert next(button for button in app.button if button.label == "Up").disabled
    next(field for field in app.text_input if field.label == "Show names that contain").set_value("xyz").run()
    assert "Nothing here fits." in texts(app) and "day 1" not in labels(app)


def test_a_model_is_chosen_by_its_card(made):
    app = page("attention")
    press(app, "Choose a model")
    assert "Use demo" in labels(app) and "models that can be built" in app.expander[0].label
    press(app, "Use frames")
    assert app.query_params["model"] == "frames"


def test_studies_of_this_machine_are_listed_with_their_state(made):
    write_json(made / "studies" / "ward 3" / "job.json", {})
    app = page("prediction", view="Study")
    press(app, "Choose a study")
    (label,) = [label for label in labels(app) if label.startswith("ward 3 · not finished · today")]
    next(button for button in app.button if button.label.replace("\\", "") == label).click().run()
    assert app.query_params["study"] == str(made / "studies" / "ward 3")


def test_a_study_is_started_with_the_chosen_video_and_model(made, started):
    video = typed_before(made / "allowed" / "day 1" / "case.mp4")
    app = page("prediction", view="Study", path=video)
    assert "a study scores single frames" in app.info[0].value.lower()
    assert next(button for button in app.button if button.label == "Start the study").disabled
    app = page("prediction", view="Study", path=video, model=typed_before("frames"))
    next(field for field in app.text_input if field.label == "Name").set_value("../my case!").run()
    press(app, "Start the study")
    ((command, out, title),) = started
    assert out == made / "studies" / "my-case" and title == "Study my-case"
    assert command == ["study", video, "--model", str(made / "models" / "frames"), "--out", str(out)]


def test_a_study_whose_process_was_killed_says_so_where_it_is_shown_and_goes_on(made, monkeypatch):
    resumed = []
    out = made / "studies" / "first"
    lost_job(out, command=("study", "case.mp4", "--out", str(out)))
    app = page("prediction", view="Study", study=typed_before(out))
    assert not app.error and "it was killed" in texts(app)
    from machine import jobs

    monkeypatch.setattr(jobs, "resume", resumed.append)
    app.run()
    press(app, "Go on")
    assert resumed == [out]


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("embeddings", "start a store", ["embed"]),
        ("comparison", "start a run", ["finetune", "--method", "linear-probe"]),
    ],
)
def test_a_store_and_a_run_are_started_from_a_manifest(made, started, name, key, words):
    manifest = made / "allowed" / "rows.csv"
    app = page(name, manifests=typed_before(manifest))
    app.button(key=key).click().run()
    assert not app.exception
    ((command, out, _),) = started
    assert command[:2] == [words[0], str(manifest)] and set(words) <= set(command)
    assert command[command.index("--out") + 1] == str(out) and out.parent.parent == made / "cache"


def test_a_prediction_that_runs_in_the_background_is_shown_in_place_of_the_video(made, monkeypatch):
    from machine import jobs

    waiting = background.Job(made / "p", ("predict",), "Prediction of case", 0.0, background.WAITING, 2)
    monkeypatch.setattr(jobs, "job_of", lambda out: waiting)
    monkeypatch.setattr(jobs, "is_running", lambda out: True)
    app = prediction(APP / "main.py").run()
    assert not app.exception and "**Prediction of case** · waiting" in texts(app)
    assert "Waiting: 2 jobs before yours." in texts(app) and not app.get("bidi_component")
