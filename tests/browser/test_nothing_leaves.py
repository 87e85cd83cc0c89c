"""Every page in a real browser, with files whose every text would make it fetch a picture: nothing leaves loopback."""

import re

import plotly.graph_objects as go
import pytest

from endofm_lab.figures.style import tidy
from endofm_lab.reports.html import write_report
from tests.browser.serving import served_app
from tests.browser.waiting import settled
from tests.hostile import HOSTILE, write_hostile_files, write_hostile_runs

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_hostile_files(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def hostile_url(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    write_hostile_runs(cache / "runs")
    yield from served_app(cache)


@pytest.fixture
def asked(page):
    """Addresses beyond loopback that the page asked for, and what its policy had to refuse."""
    beyond = []

    def note(request):
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:|about:|file:", request.url):
            beyond.append(request.url)

    page.on("request", note)
    page.on("websocket", lambda socket: note(socket))
    page.on("console", lambda said: "Content Security Policy" in said.text and beyond.append(said.text))
    return beyond


def done(page):
    """Wait until the page has taken up what was typed or clicked, and has nothing left to do."""
    page.wait_for_timeout(700)  # the work begins a moment after the click
    settled(page)


def fill(page, label, text):
    field = page.get_by_label(label, exact=True).first
    field.fill(str(text))
    field.press("Control+Enter")
    done(page)


def own_video(page, files):
    page.get_by_text("File or folder on this machine").click()
    done(page)
    fill(page, "Path", files["video"])


def held(page, asked, mentions=True):
    done(page)
    if mentions:
        page.get_by_text("attacker.invalid").first.wait_for(state="attached", timeout=60_000)
    page.wait_for_timeout(500)
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.locator("img[src*=attacker], image[href*=attacker]").count() == 0
    assert not asked, asked


def view(page, name):
    page.get_by_test_id("stMain").get_by_text(name, exact=True).first.click()
    done(page)


def test_predictions_studies_and_attention_ask_loopback_only(page, hostile_url, files, asked):
    page.goto(hostile_url)
    done(page)
    icon = page.locator("link[rel*=icon]").first.get_attribute("href")
    assert "fonts" not in icon and page.locator("[data-testid=stSidebarNav]").count() == 1
    own_video(page, files)
    fill(page, "Model", files["model"])
    page.get_by_text("Model and provenance").click()
    held(page, asked)
    page.get_by_text("What did the model look at in this clip?").click()
    held(page, asked)
    view(page, "Attribution")
    held(page, asked)
    page.goto(hostile_url)
    done(page)
    view(page, "Study")
    fill(page, "Study", files["study"])
    held(page, asked)


def test_data_embeddings_and_views_ask_loopback_only(page, hostile_url, files, asked):
    page.goto(f"{hostile_url}/data")
    done(page)
    page.get_by_text("Manifests on this machine").click()
    done(page)
    fill(page, "Manifests", files["manifest.csv"])
    for name in ("Manifest", "Classes", "Split", "Audit"):
        view(page, name)
        held(page, asked)
    view(page, "Recipes")
    held(page, asked, mentions=False)
    page.goto(f"{hostile_url}/embeddings")
    done(page)
    fill(page, "Embedding store", files["store"])
    held(page, asked)
    page.goto(f"{hostile_url}/views")
    done(page)
    own_video(page, files)
    held(page, asked, mentions=False)


def test_training_and_comparison_ask_loopback_only(page, hostile_url, asked):
    page.goto(f"{hostile_url}/training")
    held(page, asked)
    page.goto(f"{hostile_url}/comparison")
    held(page, asked)


def test_a_report_asks_nobody_and_offers_no_upload(page, asked, tmp_path):
    figure = tidy(go.Figure(go.Scatter(x=[HOSTILE], y=[1], name=HOSTILE, text=HOSTILE, mode="markers+text")))
    figure.update_layout(showlegend=True)
    report = write_report(tmp_path / "report.html", HOSTILE, [(HOSTILE, [HOSTILE, figure])])
    page.goto(report.as_uri())
    page.wait_for_selector(".modebar", state="attached")
    page.locator(".js-plotly-plot").hover()
    titles = page.locator(".modebar-btn").evaluate_all("nodes => nodes.map(node => node.dataset.title)")
    assert titles and not [title for title in titles if re.search("share|cloud|chart studio", title, re.I)]
    assert page.locator(".js-plotly-plot").get_by_text(HOSTILE).count() > 0, "the text is drawn as it is"
    assert page.locator("img, a[href]").count() == 0 and not asked


def test_figures_of_the_app_offer_no_upload(page, hostile_url):
    page.goto(hostile_url)
    page.wait_for_selector(".modebar-btn", state="attached", timeout=120_000)
    titles = page.locator(".modebar-btn").evaluate_all("nodes => nodes.map(node => node.dataset.title)")
    assert titles and not [title for title in titles if re.search("share|cloud|chart studio", title, re.I)]
