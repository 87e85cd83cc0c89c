"""Text from files is escaped on every page where the app uses Markdown, so that browsers load nothing from it."""

import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.files import write_json
from endofm_lab.folders.background import job_folder
from tests.app.addresses import typed_before
from tests.hostile import FILE, HOSTILE, write_hostile_files, write_hostile_runs

APP = Path(__file__).resolve().parents[2] / "app"
READ_AS_MARKDOWN = ("body", "label", "help", "text", "delta", "caption", "placeholder")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_hostile_files(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(APP))
    write_hostile_runs(tmp_path / "cache" / "runs")

    def open_page(name: str, typed: dict[str, object], address: dict[str, str] | None = None) -> AppTest:
        app = AppTest.from_file(str(APP / "screens" / f"{name}.py"), default_timeout=250)
        for name, value in (address or {}).items():
            app.query_params[name] = typed_before(value) if "/" in value else value
        app.run()
        for label, value in typed.items():
            fields = [*app.text_input, *app.text_area, *app.selectbox, *app.sidebar.text_input, *app.sidebar.radio]
            next(field for field in fields if field.label == label).set_value(value).run()
        return app

    return open_page


def markdown_of(app):
    """Every text that the browser will read as Markdown."""
    for element in app._tree:
        if type(element).__name__ == "Json":
            continue
        proto = getattr(element, "proto", None)
        for field in READ_AS_MARKDOWN:
            value = getattr(proto, field, None)
            if isinstance(value, str):
                yield value
        if type(element).__name__ in ("Radio", "ButtonGroup", "SelectSlider"):
            yield from map(str, getattr(proto, "options", []))


def held(app, at_least=1):
    assert not app.exception, app.exception
    shown = [text for text in markdown_of(app) if "attacker" in text]
    assert len(shown) >= at_least, "the page shows the text"
    for text in shown:
        assert not re.search(r"\]\(|\]\[|(?<!\\)<img", text), text


@pytest.mark.parametrize("view", ["Space", "Attribution"])
def test_the_attention_page_shows_foreign_text_as_text(opened, files, view):
    address = {"source": "file", "path": str(files["video"]), "model": str(files["model"]), "start_s": "0.5"}
    held(opened("attention", {}, address | {"look": view}))


def test_the_prediction_page_shows_foreign_text_as_text(opened, files):
    held(
        opened(
            "prediction",
            {"Video": "File or folder on this machine", "Path": str(files["video"]), "Model": str(files["model"])},
        )
    )


def test_the_study_view_shows_foreign_text_as_text(opened, files):
    held(opened("prediction", {"Study": str(files["study"])}, {"view": "Study"}), at_least=2)


def test_the_embeddings_page_shows_foreign_text_as_text(opened, files):
    held(opened("embeddings", {"Embedding store": str(files["store"])}))


@pytest.mark.parametrize("view", ["Manifest", "Classes", "Split", "Audit"])
def test_the_data_page_shows_foreign_text_as_text(opened, files, view):
    typed = (
        {"Mapping": "own mapping file", "Path of the mapping": str(files["mapping.yaml"])} if view == "Classes" else {}
    )
    address = {"data_view": view, "own_manifests": "yes", "manifests": str(files["manifest.csv"])}
    held(opened("data", typed, address), at_least={"Classes": 2, "Audit": 4}.get(view, 1))


def test_the_comparison_page_shows_foreign_text_as_text(opened):
    held(opened("comparison", {}), at_least=4)


@pytest.mark.parametrize("run", ["failed", "waits"])
def test_the_training_page_shows_foreign_text_as_text(opened, tmp_path, run):
    held(opened("training", {"Folder of another run": str(tmp_path / "cache" / "runs" / f"{run} {FILE}")}))


def test_the_models_page_shows_foreign_text_as_text(opened, files, tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(tmp_path / "models"))
    out = tmp_path / "models" / FILE
    out.mkdir(parents=True)
    (out / "job.json").write_text("{}")
    job_folder(out).mkdir(parents=True)
    write_json(job_folder(out) / "job.json", {"out": str(out), "command": [], "title": HOSTILE, "entered_s": 0.0})
    write_json(job_folder(out) / "end.json", {"time_s": 0.0, "code": 2})
    (job_folder(out) / "output.txt").write_text(f"Error: {HOSTILE}")
    held(opened("models", {}, {"model": str(files["model"])}), at_least=2)


@pytest.mark.parametrize("page", ["attention", "prediction", "embeddings", "data", "views", "models", "training"])
def test_errors_show_foreign_text_as_text(opened, page):
    path = f"/nowhere/{HOSTILE}"
    typed = {
        "attention": {"Video": "File or folder on this machine", "Path": path},
        "prediction": {"Video": "File or folder on this machine", "Path": path},
        "embeddings": {"Embedding store": path},
        "data": {"Data": True, "Manifests": path},
        "views": {"Video": "File or folder on this machine", "Path": path},
        "models": {"Recipe": "A recipe of your own", "File of the recipe": path},
        "training": {"Folder of another run": path},
    }[page]
    app = opened(page, typed)
    assert app.error
    held(app)
