"""The page Training without a browser: the command that it starts, the run that it shows, and its buttons."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.cli.main import main
from endofm_lab.files import write_json
from endofm_lab.folders import background
from endofm_lab.folders.run_folder import Holder
from endofm_lab.pretraining.trainer import pretrain
from tests.folders.jobs import lost_job
from tests.pretraining.runs import micro, write_clips

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(APP))
    return tmp_path / "cache"


def page():
    app = AppTest.from_file(str(APP / "screens" / "training.py"), default_timeout=280).run()
    assert not app.exception, app.exception
    return app


def test_the_form_starts_the_command_that_it_describes(cache, manifest, monkeypatch):
    started = []
    monkeypatch.setattr(background, "start", lambda *arguments: started.append(arguments))
    app = page()
    assert "without labels" in app.markdown[0].value
    next(f for f in app.text_input if f.label == "Name").set_value("../my run!")
    next(f for f in app.selectbox if f.label == "Videos").set_value("A manifest on this machine")
    next(f for f in app.text_input if f.label == "Manifest").set_value(str(manifest))
    next(t for t in app.toggle if t.label == "Centring").set_value(False)
    app.button[0].click().run()
    assert not app.exception and not app.error
    ((command, folder, title),) = started
    assert folder == cache / "runs" / "my-run"  # a name leads nowhere else
    settings = {}
    monkeypatch.setattr("endofm_lab.cli.train.run", lambda config, *_: settings.update(config=config))
    assert main(command) == 0 and title == "Pre-training my-run"
    config = settings["config"]
    assert config.out == folder
    assert (config.manifest, config.steps, config.batch, config.probe) == (manifest, 200, 32, manifest)
    assert not config.dino.centring and config.dino.teacher_temperature == 0.03
    assert config.features.teacher == "demo"


def test_a_missing_manifest_is_an_error(cache):
    app = page()
    next(f for f in app.selectbox if f.label == "Videos").set_value("A manifest on this machine")
    next(f for f in app.text_input if f.label == "Manifest").set_value("/nowhere/manifest.csv")
    app.button[0].click().run()
    assert not app.exception and "manifest.csv" in app.error[0].value


def test_a_stopped_run_is_shown_and_resumed(cache, manifest, monkeypatch):
    run = cache / "runs" / "first"
    going = pretrain(micro(manifest, run, steps=30, save_every=5, probe=manifest))
    for _ in range(12):
        next(going)
    going.close()
    lost_job(run)
    app = page()
    assert "12 steps; the verdict needs 20" in app.info[0].value
    assert [b.label for b in app.button if b.label in ("Stop", "Resume")] == ["Resume"]
    assert "8 clips of 8 videos" in " ".join(c.value for c in app.caption)
    assert app.dataframe[0].value["network"].tolist() == ["untrained"]
    resumed = []
    monkeypatch.setattr(background, "start", lambda command, *_: resumed.append(command))
    next(b for b in app.button if b.label == "Resume").click().run()
    assert resumed == [["pretrain", str(run)]]


def test_a_running_run_can_be_stopped(cache, manifest, monkeypatch):
    run = cache / "runs" / "second"
    going = pretrain(micro(manifest, run, steps=30))
    next(going)
    going.close()
    stopped = []
    monkeypatch.setattr(background, "is_running", lambda folder: True)
    monkeypatch.setattr(background, "stop", stopped.append)
    app = page()
    next(b for b in app.button if b.label == "Stop").click().run()
    assert stopped == [run]


def test_a_stop_that_cannot_be_and_a_start_that_was_refused_are_sentences_on_the_page(cache, manifest):
    run = cache / "runs" / "third"
    going = pretrain(micro(manifest, run, steps=30))
    next(going)
    going.close()
    write_json(run / ".lock", {**asdict(Holder.this_process(run)), "host": "gpu-7"})
    app = page()
    next(b for b in app.button if b.label == "Stop").click().run()
    assert not app.exception and "Stop the run on gpu-7" in app.error[0].value
    (run / ".lock").unlink()
    lost_job(run, "Error: the folder holds a pre-training run with other settings\n")
    assert "with other settings" in page().error[0].value


def test_a_run_that_failed_at_once_says_why(cache):
    run = cache / "runs" / "broken"
    lost_job(run, "Error: the manifest has no rows\n")
    app = page()
    assert re.search("ended before its first step.*no rows", app.error[0].value)
