"""Every page in a real browser, with files whose texts try to load pictures: no request goes beyond loopback."""

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
def requests(page):
    """Addresses beyond loopback that the page requested, or that its security policy blocked."""
    beyond = []

    def note(request):
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:|about:|file:", request.url):
            beyond.append(request.url)

    page.on("request", note)
    page.on("websocket", lambda socket: note(socket))
    page.on("console", lambda message: "Content Security Policy" in message.text and beyond.append(message.text))
    return beyond


def done(page):
    """Wait until the page has processed the last input and is idle."""
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


def check(page, requests, mentions=True):
    done(page)
    if mentions:
        page.get_by_text("attacker.invalid").first.wait_for(state="attached", timeout=60_000)
    page.wait_for_timeout(500)
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.locator("img[src*=attacker], image[href*=attacker]").count() == 0
    assert not requests, requests


def view(page, name):
    page.get_by_test_id("stMain").get_by_text(name, exact=True).first.click()
    done(page)


def test_predictions_studies_and_attention_contact_loopback_only(page, hostile_url, files, requests):
    page.goto(f"{hostile_url}/prediction")
    done(page)
    icon = page.locator("link[rel*=icon]").first.get_attribute("href")
    assert "fonts" not in icon and page.locator("[data-testid=stSidebarNav]").count() == 1
    own_video(page, files)
    fill(page, "Model", files["model"])
    page.get_by_text("Model and provenance").click()
    check(page, requests)
    page.get_by_text("What did the model look at in this clip?").click()
    check(page, requests)
    view(page, "Attribution")
    check(page, requests)
    page.goto(f"{hostile_url}/prediction")
    done(page)
    view(page, "Study")
    fill(page, "Study", files["study"])
    check(page, requests)


def test_data_embeddings_and_views_contact_loopback_only(page, hostile_url, files, requests):
    page.goto(f"{hostile_url}/data")
    done(page)
    page.get_by_text("Manifests on this machine").click()
    done(page)
    fill(page, "Manifests", files["manifest.csv"])
    for name in ("Manifest", "Classes", "Split", "Audit"):
        view(page, name)
        check(page, requests)
    view(page, "Recipes")
    check(page, requests, mentions=False)
    page.goto(f"{hostile_url}/embeddings")
    done(page)
    fill(page, "Embedding store", files["store"])
    check(page, requests)
    page.goto(f"{hostile_url}/views")
    done(page)
    own_video(page, files)
    check(page, requests, mentions=False)


def test_training_and_comparison_contact_loopback_only(page, hostile_url, requests):
    page.goto(f"{hostile_url}/training")
    check(page, requests)
    page.goto(f"{hostile_url}/comparison")
    check(page, requests)


def test_a_report_sends_no_request_and_offers_no_upload(page, requests, tmp_path):
    figure = tidy(go.Figure(go.Scatter(x=[HOSTILE], y=[1], name=HOSTILE, text=HOSTILE, mode="markers+text")))
    figure.update_layout(showlegend=True)
    report = write_report(tmp_path / "report.html", HOSTILE, [(HOSTILE, [HOSTILE, figure])])
    page.goto(report.as_uri())
    page.wait_for_selector(".modebar", state="attached")
    page.locator(".js-plotly-plot").hover()
    titles = page.locator(".modebar-btn").evaluate_all("nodes => nodes.map(node => node.dataset.title)")
    assert titles and not [title for title in titles if re.search("share|cloud|chart studio", title, re.I)]
    assert page.locator(".js-plotly-plot").get_by_text(HOSTILE).count() > 0, "the text is drawn as it is"
    assert page.locator("img, a[href]").count() == 0 and not requests


def test_figures_of_the_app_offer_no_upload(page, hostile_url):
    page.goto(f"{hostile_url}/prediction")
    page.wait_for_selector(".modebar-btn", state="attached", timeout=120_000)
    titles = page.locator(".modebar-btn").evaluate_all("nodes => nodes.map(node => node.dataset.title)")
    assert titles and not [title for title in titles if re.search("share|cloud|chart studio", title, re.I)]
