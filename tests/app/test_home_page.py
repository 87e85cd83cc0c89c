"""The page Home: three ways into the app, recent work with its state, the model's card, the tour and the glossary."""

import os
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.explain.embeddings import STORE
from endofm_lab.files import write_json
from endofm_lab.model.card import CARD_FILE
from endofm_lab.pretraining.trainer import MODEL
from endofm_lab.runs.run import PREDICTIONS
from endofm_lab.training.loop import LOG
from tests.app.addresses import home, press, texts, typed_before
from tests.folders.jobs import lost_job

APP = Path(__file__).resolve().parents[2] / "app"
NOTHING_CHOSEN = {"home": "yes", "source": "file", "own_manifests": "yes"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENDOFM_LAB_STUDIES", str(tmp_path / "studies"))
    monkeypatch.delenv("ENDOFM_LAB_PASSWORD", raising=False)
    monkeypatch.syspath_prepend(str(APP))
    return tmp_path / "cache"


def test_a_new_machine_has_no_recent_work_and_the_card_of_the_demo_says_what_it_was_trained_on(cache):
    app = home()
    assert [title.value for title in app.title] == ["endofm_lab"]
    assert app.query_params == {"home": "yes", "source": "sample"}
    assert "Nothing yet." in texts(app) and "polyp, ulcer, bleeding" in texts(app)
    assert "trained on generated video" in texts(app) and "**Rollout**" in texts(app)


@pytest.mark.parametrize(
    ("door", "page"),
    [("Look at a video", "Prediction"), ("Learn how it works", "Attention"), ("Study a data set", "Data")],
)
def test_every_door_leads_to_its_page(cache, door, page):
    app = home(**NOTHING_CHOSEN)
    press(app, door)
    assert [title.value for title in app.title] == [page]


def test_recent_work_is_listed_with_its_state_and_opened_with_its_fields(cache, tmp_path):
    (tmp_path / "studies" / "case 7").mkdir(parents=True)
    write_json(tmp_path / "studies" / "case 7" / "study.json", {})
    write_json(cache / "stores" / "own" / "job.json", {})
    own = typed_before(tmp_path / "typed store")
    write_json(Path(own) / STORE, {})
    os.utime(own, (time.time() + 60,) * 2)
    app = home()
    assert "Study · **case 7** · finished · today" in texts(app)
    assert "Store · **own** · not finished" in texts(app) and "Store · **typed store** · finished" in texts(app)
    press(app, "Open")
    assert [title.value for title in app.title] == ["Embeddings"]
    assert app.query_params["store"] == own


def test_a_predicted_video_is_recent_work_unless_others_can_reach_the_app(cache, monkeypatch):
    import session
    from machine import places

    fields = {"source": session.SAMPLE, "sample": "Polyp, advancing", "model": "demo"}
    places.remember_video(fields)
    places.remember_video({**fields, "source": session.FILE, "path": "/nowhere/gone.mp4"})
    app = home()
    assert "Prediction · **Polyp, advancing** · finished · today" in texts(app) and "gone" not in texts(app)
    monkeypatch.setenv("ENDOFM_LAB_PASSWORD", "a long password")
    assert "Nothing yet." in texts(home())


def test_a_damaged_card_is_a_sentence_and_the_rest_of_the_page_stays(cache, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / CARD_FILE).write_text("{")
    app = home(home="yes", source="sample", model=typed_before(tmp_path / "model"))
    assert CARD_FILE in app.error[0].value and "Look at a video" in [button.label for button in app.button]
    assert "**Rollout**" in texts(app)


def test_the_tour_leads_over_the_pages_and_ends_when_it_is_told_to(cache):
    app = home(**NOTHING_CHOSEN)
    press(app, "Take the tour (one minute)")
    assert "Tour, 1 of 5" in texts(app) and [title.value for title in app.title] == ["Prediction"]
    press(app, "Next")
    assert "Tour, 2 of 5" in texts(app) and [title.value for title in app.title] == ["Attention"]
    press(app, "End the tour")
    assert "Tour" not in texts(app) and [title.value for title in app.title] == ["Attention"]


def test_the_files_by_which_results_are_recognised_are_those_that_the_library_writes(cache):
    from machine.places import _FILES

    assert _FILES["store"][0] == STORE and _FILES["run"][0] == PREDICTIONS
    assert _FILES["pre-training"][:2] == (f"{MODEL}/{CARD_FILE}", LOG)


def test_the_page_jobs_is_empty_at_first_and_then_shows_jobs_that_can_go_on_or_be_removed(cache, tmp_path):
    app = AppTest.from_file(str(APP / "screens" / "jobs.py"), default_timeout=250).run()
    assert not app.exception and "No job was started yet" in app.info[0].value
    lost_job(tmp_path / "study", "", ("study", "video.mp4", "--out", str(tmp_path / "study")))
    app.run()
    assert "**study** · lost" in texts(app) and "it was killed" in texts(app)
    assert [button.label for button in app.button] == ["Go on", "Remove"]
    press(app, "Remove")
    assert "No job was started yet" in app.run().info[0].value


def test_a_job_that_cannot_go_on_says_why_in_its_box(cache, tmp_path, monkeypatch):
    from machine import jobs

    import endofm_lab as lab

    def refuse(out):
        raise lab.UserError("The folder is in use.")

    lost_job(tmp_path / "study")
    app = AppTest.from_file(str(APP / "screens" / "jobs.py"), default_timeout=250).run()
    monkeypatch.setattr(jobs, "resume", refuse)
    app.run()
    next(button for button in app.button if button.label == "Go on").click().run()
    assert not app.exception and "in use" in app.error[0].value
