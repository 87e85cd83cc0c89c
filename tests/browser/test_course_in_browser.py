"""A page of the course at the width of a phone: nothing is wider than the window, and no request leaves its folder."""

import pytest

from endofm_lab.course import outputs, running, site
from tests.browser.serving import FLAGS

nbformat = pytest.importorskip("nbformat")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
TEXT = "# 1 · Wide things\n\n| a | b |\n|---|---|\n| " + "long " * 60 + " | " + "w" * 90 + " |\n\n" + "x" * 120


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A site of a lesson whose text, code, table, output and figure are wider than a phone."""
    figure = {"data": [{"type": "scatter", "y": [1, 3, 2]}], "layout": {"width": 860, "height": 300}}
    table = "<table><tr>" + "<td>a number</td>" * 40 + "</tr></table>"
    data = ({outputs.FIGURE: figure}, {outputs.FIGURE: {"data": figure["data"], "layout": {}}}, {"text/html": table})
    shown = [nbformat.v4.new_output("display_data", part) for part in data]
    shown.append(nbformat.v4.new_output("stream", name="stdout", text="7 " * 200))
    cell = nbformat.v4.new_code_cell("value = " + " + ".join(["number"] * 40), outputs=shown)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(TEXT), cell])
    (tmp_path / "lessons").mkdir()
    nbformat.write(notebook, tmp_path / "lessons" / "01_wide.ipynb")
    monkeypatch.setattr(site, "executed", lambda lesson, into: notebook)
    monkeypatch.setattr(site, "_still_pictures", lambda notebooks, into: {})
    site.write_site(tmp_path / "lessons", tmp_path / "site")
    assert running.EXECUTED in [path.name for path in (tmp_path / "site").iterdir()]
    return tmp_path / "site"


@pytest.mark.parametrize("name", ["01_wide.html", "index.html"])
def test_a_page_fits_a_phone_and_loads_only_files_of_its_folder(page, folder, name):
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto((folder / name).as_uri())
    if name != "index.html":
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 4", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(url.startswith((folder.as_uri(), "data:", "blob:")) for url in requests), requests
    assert not problems, problems


def test_colours_follow_the_system_and_figures_keep_a_light_ground(page, folder):
    page.goto((folder / "01_wide.html").as_uri())
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.figure')).backgroundColor") == "rgb(255, 255, 255)"
        )
    assert grounds == ["rgb(255, 255, 255)", "rgb(22, 24, 28)"]


def test_without_scripts_a_sentence_stands_in_place_of_a_figure(chromium, folder):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto((folder / "01_wide.html").as_uri())
        sentences = page.locator("noscript .missing")
        assert sentences.count() == 2 and sentences.first.is_visible() and not page.locator(".plot").first.is_visible()
        browser.close()
