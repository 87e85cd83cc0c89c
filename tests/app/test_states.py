"""Every page answers with a sentence if nothing is chosen, or if a path does not exist or is too long."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.addresses import typed_before

APP = Path(__file__).resolve().parents[2] / "app"
EMPTY = {
    "prediction": ({"source": "file"}, "Choose a video"),
    "attention": ({"source": "file"}, "Choose a video"),
    "views": ({"source": "file"}, "Choose a video"),
    "embeddings": ({}, "Embed a manifest first"),
    "data": ({"own_manifests": "yes"}, "Give the path of a manifest"),
    "comparison": ({}, "no finished run in this folder yet"),
    "models": ({}, "Missing: The folder of the unpacked data set"),
    "training": ({}, None),
}
PATHS = {
    "prediction": ({"source": "file"}, "path"),
    "attention": ({}, "model"),
    "views": ({"source": "file"}, "path"),
    "embeddings": ({}, "store"),
    "data": ({"own_manifests": "yes"}, "manifests"),
    "study": ({"view": "Study"}, "study"),
    "models": ({}, "model"),
}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(APP))

    def open_page(name: str, address: dict[str, str]) -> AppTest:
        name = {"study": "prediction"}.get(name, name)
        app = AppTest.from_file(str(APP / "screens" / f"{name}.py"), default_timeout=250)
        app.query_params |= address
        return app.run()

    return open_page


@pytest.mark.parametrize("page", EMPTY)
def test_a_page_on_which_nothing_is_chosen_says_what_to_do(opened, page):
    address, words = EMPTY[page]
    app = opened(page, address)
    assert not app.exception and not app.error
    if words is None:
        assert app.expander[0].label == "Start a new run" and app.expander[0].proto.expanded
    else:
        assert words in app.info[0].value


@pytest.mark.parametrize("path", ["/nowhere/absent.mp4", "a" * 5000], ids=["absent", "too long"])
@pytest.mark.parametrize("page", PATHS)
def test_a_path_that_does_not_exist_is_answered_by_a_sentence(opened, page, path):
    address, field = PATHS[page]
    app = opened(page, address | {field: typed_before(path)})
    assert not app.exception and len(app.error) == 1
    assert "\n" not in app.error[0].value and not app.get("progress")


@pytest.mark.parametrize(
    ("page", "term"),
    [("prediction", "Familiarity"), ("attention", "Rollout"), ("embeddings", "Store"), ("comparison", "Interval")],
)
def test_the_title_of_a_page_explains_the_terms_that_stand_there(opened, page, term):
    app = opened(page, EMPTY[page][0])
    assert f"**{term}**:" in app.title[0].proto.help
