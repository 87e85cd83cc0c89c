"""The page Models without a browser: lists and cards, the choice of a model, and builds in their own process."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import endofm_lab as lab
from endofm_lab.familiarity.statistics import Familiarity
from endofm_lab.files import write_json
from endofm_lab.folders.background import job_folder
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.models import background
from tests.models.made_data import micro_recipe

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(tmp_path / "models"))
    monkeypatch.syspath_prepend(str(APP))
    return tmp_path / "models"


def opened(**address):
    app = AppTest.from_file(str(APP / "screens" / "models.py"), default_timeout=250)
    app.query_params |= address
    app.run()
    assert not app.exception, app.exception
    return app


def save_built(folder):
    network = build_frame_model("vit_micro", {"mask": HeadSpec("mask", ("polyp",))})
    metric = {"name": "dice", "value": 0.89, "interval": [0.87, 0.91], "data": "kvasir-seg", "split": "test"}
    network.card = replace(
        network.card,
        name="Polyp segmenter",
        data={"description": "Kvasir-SEG", "licence": "Research only", "generated": False},
        audit="No leakage found.",
        metrics=(metric,),
        limits=("Has seen polyps only.",),
    )
    network.familiarity = Familiarity(
        np.zeros(network.backbone.width, np.float32), np.eye(network.backbone.width, dtype=np.float32), 1.0
    )
    return lab.save_model(network, folder / "mine")


def card_of(app):
    (text,) = [element.value for element in app.markdown if "**Trained on**" in element.value]
    return [re.sub(r"\\(?=\W)", "", line.removeprefix("- ").replace("**", "")) for line in text.splitlines()]


def field(app, label):
    return next(entry for entry in [*app.text_input, *app.selectbox, *app.toggle] if entry.label == label)


def button(app, label):
    return next(entry for entry in app.button if entry.label == label)


def test_without_built_models_the_page_shows_the_demo_with_its_card_and_the_recipes(folder):
    app = opened()
    listed = app.dataframe[0].value.set_index("name")
    assert listed.loc["demo", "state"] == "in the package" and listed.loc["demo", "chosen"] == "✓"
    assert listed.loc["polyp-segmenter", "state"] == "not built"
    assert "generated video only" in app.warning[0].value
    card = card_of(app)
    assert "Kind of data: generated video; it shows no patient" in card
    assert "Finds: mask: a mask per frame: finding" in card
    assert any(line.startswith("Familiarity: Features of") for line in card)
    metrics = next(frame.value for frame in app.dataframe if "95 % interval" in frame.value)
    assert metrics["95 % interval"].str.contains(" to ").all()
    field(app, "Model").set_value("polyp-segmenter").run()
    assert "not built" in app.info[0].value and "Build it below" in app.info[0].value


def test_a_built_model_is_chosen_for_all_pages_and_after_a_reload(folder):
    save_built(folder)
    app = opened()
    field(app, "Model").set_value("mine").run()
    card = card_of(app)
    assert {"Trained on: Kvasir-SEG", "Licence of the data: Research only", "Audit: No leakage found."} <= set(card)
    assert "Kind of data: real pictures or video" in card and "Limit: Has seen polyps only." in card
    button(app, "Use this model on all pages").click().run()
    assert app.query_params["model"] == ["mine"] or app.query_params["model"] == "mine"
    again = opened(model="mine")
    assert field(again, "Model").value == "mine" and "is the model of all pages" in again.success[0].value


def test_a_model_that_was_changed_says_so_in_place_of_its_card(folder):
    path = save_built(folder) / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "limits": []}))
    app = opened()
    field(app, "Model").set_value("mine").run()
    assert "changed" in app.info[0].value and not app.exception


def test_the_form_says_what_to_expect_and_what_is_missing_before_it_starts_a_build(folder, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(background, "start_build", lambda *arguments: started.append(arguments) or "polyp-segmenter")
    app = opened()
    assert button(app, "Build").disabled and "folder of the unpacked data set" in app.info[0].value
    field(app, "Recipe").set_value("polyp-segmenter").run()
    starts = next(frame.value for frame in app.dataframe if "expected" in frame.value).set_index("start")
    assert "dice" in starts.loc["image weights", "expected"] and "±" in starts.loc["image weights", "expected"]
    assert "missing" in starts.loc["image weights", "weights"] and starts.loc["scratch", "weights"] == "here"
    assert "time on two cores" in starts and "time on a GPU" in starts
    field(app, "Folder of the data set").set_value("/nowhere").run()
    assert button(app, "Build").disabled and "is not a folder" in app.info[0].value
    field(app, "Folder of the data set").set_value(str(tmp_path)).run()
    assert any("Starts from **scratch**" in element.value for element in app.markdown)
    field(app, "Initial weights").set_value("absent.safetensors").run()
    assert button(app, "Build").disabled
    field(app, "Initial weights").set_value("scratch").run()
    field(app, "Build from an incomplete data set").set_value(True).run()
    button(app, "Build").click().run()
    assert not app.exception
    assert started == [("polyp-segmenter", str(tmp_path), "scratch", None, "accept", 0)]


def test_a_stopped_build_shows_how_far_it_is_and_goes_on(folder, monkeypatch):
    build = folder / "polyp-segmenter" / "build"
    (build / "run" / "seed-0").mkdir(parents=True)
    write_json(folder / "polyp-segmenter" / "job.json", {})
    write_json(build / "run" / "config.json", {"steps": 8})
    (build / "run" / "seed-0" / "log.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    resumed = []
    monkeypatch.setattr(background, "resume_build", resumed.append)
    app = opened()
    bar = app.get("progress")[0].proto
    assert "stopped · training · 2 of 8 steps" in bar.text and bar.value == 25
    button(app, "Go on").click().run()
    assert resumed == ["polyp-segmenter"]


def test_a_running_build_is_stopped_by_its_button(folder, monkeypatch):
    stopped = []
    running = background.Progress("training", 3, 8, "running", "")
    monkeypatch.setattr(background, "progress", lambda name: running)
    monkeypatch.setattr(background, "stop_build", stopped.append)
    (folder / "polyp-segmenter").mkdir(parents=True)
    write_json(folder / "polyp-segmenter" / "job.json", {})
    button(opened(), "Stop").click().run()
    assert stopped == ["polyp-segmenter"]


def test_a_build_that_ended_with_an_error_says_why(folder, tmp_path):
    (folder / "polyp-segmenter").mkdir(parents=True)
    write_json(folder / "polyp-segmenter" / "job.json", {})
    job = job_folder(folder / "polyp-segmenter")
    job.mkdir(parents=True)
    facts = {"out": str(folder / "polyp-segmenter"), "command": ["models"], "title": "Model", "entered_s": 0.0}
    write_json(job / "job.json", facts)
    write_json(job / "end.json", {"time_s": 0.0, "code": 2})
    (job / "output.txt").write_text("Error: The disk is full.\n")
    app = opened()
    assert app.error[0].value == "The disk is full." and button(app, "Go on")
    field(app, "Recipe").set_value("A recipe of your own").run()
    field(app, "File of the recipe").set_value(micro_recipe(tmp_path, replace={"version: 1": "version: ["})).run()
    assert not app.exception and "not readable YAML" in app.error[-1].value
