import plotly.graph_objects as go
import pytest

from endofm_lab.figures.style import tidy
from tests.browser.waiting import settled, shown_frame

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def test_a_click_in_the_timeline_moves_the_viewer_to_that_clip(page, app_url):
    page.goto(f"{app_url}/prediction")
    page.wait_for_selector("text=Click a marker", timeout=120_000)
    settled(page)
    page.wait_for_selector(".scatterlayer .trace .points path", state="attached", timeout=60_000)
    before = shown_frame(page)
    markers = page.locator(".scatterlayer .trace .points path")
    assert markers.count() > 10
    markers.nth(1).click(force=True)
    page.wait_for_function(f"() => !document.body.innerText.includes('frame {before} of')", timeout=30_000)
    settled(page)
    after = shown_frame(page)
    assert after < before, "the second clip lies before the middle, where the viewer starts"


def test_the_viewer_shows_the_frame_with_its_generated_label(page, app_url):
    page.goto(f"{app_url}/prediction")
    page.wait_for_selector("text=Generated picture", timeout=120_000)
    settled(page)
    page.wait_for_selector(".viewer[data-frame]", timeout=60_000)
    corner = "canvas => Array.from(canvas.getContext('2d').getImageData(canvas.width - 60, 6, 56, 10).data)"
    pixels = page.locator(".viewer canvas").evaluate(corner)
    assert max(pixels[1::4]) > 200 and min(pixels[1::4]) < 60, "the word is written in the corner of the picture"
    assert page.locator("text=For research only").count() >= 1
    assert page.locator("[data-testid=stException]").count() == 0


def test_browsers_know_the_font_of_figures_so_that_text_is_drawn_as_wide_as_it_was_measured(page):
    figure = tidy(go.Figure(layout={"title": "a title"}))
    page.set_content(figure.to_html(include_plotlyjs=True))
    family = page.locator(".gtitle").evaluate("node => getComputedStyle(node).fontFamily")
    assert family.replace('"', "'") == figure.layout.font.family
