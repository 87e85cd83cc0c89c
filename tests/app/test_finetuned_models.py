"""Models of the four tasks on the page Prediction: the page shows the answers of their heads."""

from dataclasses import replace
from pathlib import Path

import pytest

from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.heads import MaskHead
from endofm_lab.model.loading.load import save_model
from endofm_lab.tasks import TASKS
from tests.app.addresses import prediction
from tests.app.player import facts_of, overlays_of, told

APP = Path(__file__).resolve().parents[2] / "app" / "main.py"
SPECS = {
    "classification": HeadSpec("multiclass", ("normal", "polyp"), temperature=1.5),
    "segmentation": HeadSpec("mask", ("polyp",)),
    "detection": HeadSpec("box", ("polyp", "ulcer")),
    "phases": HeadSpec("multiclass", ("in", "out")),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the module, because every page starts with the demo's prediction, which takes time."""
    return tmp_path_factory.mktemp("cache")


def opened(task, folder, cache, monkeypatch):
    """The page with a model of that task, whose name and heads are those of fine-tuning."""
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(cache))
    model = Start("scratch", size="micro").build(TASKS[task].head_name, SPECS[task], seed=0)
    if task == "detection":  # an untrained head finds nothing: let it find something everywhere
        model.heads["box"].out.bias.data[:2] = 1.0
    save_model(model, folder / "model")
    app = prediction(APP, 280).run()
    next(field for field in app.sidebar.text_input if field.label == "Model").set_value(str(folder / "model")).run()
    assert not app.exception and not app.error, [*app.exception, *app.error]
    return app


def captions(app):
    return " ".join(caption.value for caption in app.caption)


@pytest.mark.parametrize("task", SPECS)
def test_the_page_shows_the_answers_of_a_model_of_each_task(task, tmp_path, cache, monkeypatch):
    app = opened(task, tmp_path, cache, monkeypatch)
    assert told(app)["frame"] in range(facts_of(app)["frames"])
    charts = {chart.key for chart in app.get("plotly_chart")}
    caption = captions(app)
    if task in ("segmentation", "detection"):
        tables = [table.value for table in app.dataframe if "track" not in table.value]
        assert charts == {"frames"} and all("decision" in table for table in tables), "no scores of clips"
        assert (len(tables) < len(app.dataframe)) == (task == "detection")
        assert ("masks" if task == "segmentation" else "boxes") in app.info[0].value
        return
    assert app.dataframe[0].value["class"].isin(SPECS[task].classes).all()
    assert ("temperature 1.50" in caption) == (task == "classification")
    assert ("Not calibrated" in caption) == (task == "phases")
    assert charts == {"timeline"} | ({"phases"} if task == "phases" else set())


def test_masks_of_two_heads_are_shown_separately(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(cache))
    model = Start("scratch", size="micro").build("polyp", HeadSpec("mask", ("polyp",)), seed=0)
    model.heads["tool"] = MaskHead(model.backbone.config.width)
    model.heads["tool"].out.bias.data[:] = 9.0  # an untrained head finds nothing: let this one find it everywhere
    heads = {"polyp": HeadSpec("mask", ("polyp",)), "tool": HeadSpec("mask", ("tool",))}
    model.card = replace(model.card, heads=heads)
    save_model(model, tmp_path / "model")
    app = prediction(APP, 280).run()
    next(field for field in app.sidebar.text_input if field.label == "Model").set_value(str(tmp_path / "model")).run()
    assert facts_of(app)["overlays"] == {"Mask: polyp": "polyp", "Mask: tool": "tool"}
    shown = overlays_of(app, *facts_of(app)["seen"][:1])
    assert set(shown["masks"]) == {"polyp", "tool"} and shown["masks"]["polyp"] != shown["masks"]["tool"]
    assert not app.exception and not app.error
