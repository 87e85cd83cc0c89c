"""Public objects in a terminal or a notebook: short, escaped, compared without an exception; paths may be text."""

from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import torch

import endofm_lab as lab
from endofm_lab.brief import Brief
from endofm_lab.data.samples import SAMPLES, sample_video
from endofm_lab.data.splits import holdout
from endofm_lab.pretraining.config import tiny
from endofm_lab.pretraining.trainer import pretrain, run_config
from endofm_lab.reports.explanation import explain
from tests.builders import made_run


@pytest.fixture(scope="module")
def objects(phantom, tmp_path_factory):
    folder, video = tmp_path_factory.mktemp("public"), sample_video(next(iter(SAMPLES)))
    model, manifest = lab.load_model("demo"), lab.read_manifest(phantom)
    clip = lab.read_clip(video, model.card.clip, "centre")
    x = lab.to_input(clip.frames, model.card.input)
    runs = [made_run("a", "classification"), made_run("b", "classification")]
    compared = lab.compare(runs)
    explained = explain(video, model, methods=["gradient x input"])
    return [
        lab.predict_video(video, model, progress=False), manifest, clip, model(x), model(x).tokens, lab.look(model, x),
        lab.attribute(model, x, "finding", model.card.heads["finding"].classes[0], "gradient x input"),
        lab.embed(manifest, model, folder / "store", progress=False), runs[0], compared, compared.lines[0], explained,
        explained.attributions[0], explained.attributions[0].curves, holdout(manifest.table), model.card.clip,
        lab.FinetuneConfig(phantom, folder), lab.Start(),
    ]  # fmt: skip


def test_what_a_terminal_shows_of_an_object_is_short(objects):
    for thing in objects:
        assert len(repr(thing)) < 500 or type(thing).__name__ == "FinetuneConfig", repr(thing)[:200]
        assert type(thing).__name__ in repr(thing)
    assert sum(isinstance(thing, Brief) for thing in objects) >= 14


def test_objects_with_arrays_compare_without_an_exception(objects):
    for thing in objects:
        same, other = thing == thing, thing == object()
        assert same is True and other is False and hash(thing) is not None


def test_a_notebook_shows_escaped_text(objects):
    shown = [thing for thing in objects if hasattr(thing, "_repr_html_")]
    assert {type(thing).__name__ for thing in shown} == {"VideoPrediction", "Manifest", "Comparison"}
    table = pd.DataFrame({"video": ["<script>x</script>"], "label": ["<b>"]})
    html = type(next(t for t in shown if type(t).__name__ == "Manifest"))(table, Path("<i>"))._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "<i>" not in html and "&lt;script&gt;" in html


def test_paths_may_be_text():
    config = lab.FinetuneConfig("m.csv", "runs/a")
    assert config.manifest == Path("m.csv") and config.out == Path("runs/a")
    config = lab.PretrainConfig("m.csv", "runs/a", probe="p.csv")
    assert (config.manifest, config.out, config.probe) == (Path("m.csv"), Path("runs/a"), Path("p.csv"))
    assert {f.name for f in fields(config)} >= {"device", "manifest"}


def test_a_researcher_finds_the_names_in_the_library():
    names = (
        "PretrainConfig",
        "prepare",
        "holdout",
        "kfold",
        "compare",
        "read_run",
        "coverage",
        "Neighbours",
        "METHODS",
    )
    assert {*names, "METHODS", "attribute"} <= set(lab.__all__)
    with pytest.raises(lab.UserError, match="There is no attribution method 'magic'"):
        lab.attribute(lab.load_model("demo"), torch.zeros(1, 3, 8, 128, 128), "finding", "polyp", "magic")


def test_a_pretraining_goes_on_from_another_folder(phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(phantom.parent)
    settings = {"manifest": Path(phantom.name), "out": tmp_path / "run", "steps": 2, "batch": 2, "trackers": ()}
    config = lab.PretrainConfig(**{**vars(tiny(phantom, tmp_path)), **settings})
    steps = pretrain(config)
    next(steps)
    steps.close()
    monkeypatch.chdir(tmp_path)
    again = run_config("run")
    assert again.manifest.is_absolute() and again.manifest.is_file()
    assert list(pretrain(again))


def test_tables_have_the_initialisation_as_a_label():
    long = (
        "148 of the backbone's 150 tensors come from endo_fm.pth (Endo-FM's training, teacher); "
        "2 tensors are new: " + ", ".join(["blocks.0.norm"] * 40) + "."
    )
    run = made_run("a", initialisation=long)
    assert run.start == "endo_fm.pth, 148/150 tensors"
    compared = lab.compare([run])
    assert run.start in compared.to_markdown() and long not in compared.to_markdown()
    assert compared.table()["initialisation"].tolist() == [long]
    assert made_run("a", initialisation="Random numbers; nothing was loaded.").start == "Random numbers"
    assert len(made_run("a", initialisation="word " * 100).start) <= 60


def test_a_tracker_that_is_not_installed_is_refused(phantom, tmp_path):
    settings = {"out": tmp_path / "run", "steps": 2, "batch": 2, "trackers": ("trackio-that-is-not-there",)}
    config = lab.PretrainConfig(**{**vars(tiny(phantom, tmp_path)), **settings})
    with pytest.raises(lab.UserError, match="The tracker 'trackio-that-is-not-there' is not available"):
        next(pretrain(config))
