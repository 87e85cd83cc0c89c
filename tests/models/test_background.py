"""Builds in their own process: the command that is started, stopping and continuing, and what their files say."""

import time

import pytest

import endofm_lab as lab
from endofm_lab.files import read_json, write_json
from endofm_lab.folders import background
from endofm_lab.models.background import progress, resume_build, start_build, stop_build
from endofm_lab.models.shelf import state_of
from tests.models.made_data import kvasir_from_phantom, micro_recipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(background, "start", lambda command, out, title: calls.append((command, out, title)))
    return calls


def test_a_build_is_started_by_its_command_in_the_background(folder, tmp_path, started):
    recipe = micro_recipe(tmp_path)
    assert start_build(recipe, tmp_path, "scratch", incomplete="accept", seed=3) == "micro-segmenter"
    ((command, out, title),) = started
    assert out == folder / "micro-segmenter" and title == "Model micro-segmenter"
    assert command[:3] == ["models", "build", recipe]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert options == {"--data": str(tmp_path), "--start": "scratch", "--incomplete": "accept", "--seed": "3"}
    with pytest.raises(lab.UserError, match="is not a folder"):
        start_build("polyp-segmenter", tmp_path / "absent")


def test_a_build_that_was_begun_in_a_terminal_goes_on_by_its_request(folder, tmp_path, started):
    request = {"recipe": "polyp-segmenter@1", "data": str(tmp_path), "start": "scratch", "seed": 0, "dataset": None}
    (folder / "polyp-segmenter").mkdir(parents=True)
    write_json(folder / "polyp-segmenter" / "job.json", request)
    resume_build("polyp-segmenter")
    assert started[0][0][:3] == ["models", "build", "polyp-segmenter"] and "scratch" in started[0][0]
    with pytest.raises(lab.UserError, match="no build of landmarks"):
        resume_build("landmarks")


def wait_until(condition, name, seconds=250):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, progress(name)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_build_in_the_background_stops_goes_on_and_is_then_known_by_its_name(folder, phantom, tmp_path):
    data = kvasir_from_phantom(phantom, tmp_path / "made")
    recipe = micro_recipe(tmp_path, replace={"steps: 4": "steps: 400"})
    name = start_build(recipe, data, incomplete="accept")
    with pytest.raises(lab.UserError, match="is being worked on"):
        start_build(recipe, data, incomplete="accept")
    wait_until(lambda: progress(name).done >= 2 or progress(name).state not in background.LIVE, name)
    stop_build(name)
    wait_until(lambda: progress(name).state not in background.LIVE, name)
    stopped = progress(name)
    assert stopped.state == "stopped" and stopped.stage == "training" and 2 <= stopped.done < 400 == stopped.steps
    assert state_of(folder / name) == "stopped" and "Stopped." in stopped.last
    resume_build(name)
    wait_until(lambda: progress(name).state not in background.LIVE, name)
    finished = progress(name)
    assert finished.state == "finished" and finished.share == 1.0, finished
    assert lab.load_model(name).card.name == "Micro segmenter"
    assert [entry.state for entry in lab.models.list() if entry.name == name] == ["built"]
    assert read_json(folder / name / "built.json")["recipe"] == name


@pytest.mark.slow
def test_a_build_that_cannot_begin_says_why(folder, tmp_path):
    name = start_build(micro_recipe(tmp_path), tmp_path)
    wait_until(lambda: progress(name).state not in background.LIVE, name)
    assert progress(name).state == "failed" and progress(name).last.startswith("Error: ")
