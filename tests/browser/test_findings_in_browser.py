"""Findings of a video in a real Chromium: decide, move the threshold, leave, reload, and find the decisions again."""

import pytest

from tests.browser.playing import viewer_of, wait_for
from tests.browser.waiting import settled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def decided(page):
    """The decisions that the list of findings names."""
    page.get_by_role("combobox", name="Finding").click()
    options = page.locator("[role=option]").all_inner_texts()
    page.keyboard.press("Escape")
    return [text.rpartition(", ")[2] for text in options]


def test_findings_are_decided_on_and_the_threshold_redraws_them_at_once(page, app_url):
    page.goto(f"{app_url}/?sample=Polyp, advancing&threshold=0.51")
    viewer = viewer_of(page)
    page.get_by_role("textbox", name="Reviewer").fill("A. Reader")
    page.get_by_role("textbox", name="Remark").fill("flat, 5 mm")
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_selector("text=/Confirmed by A. Reader at/", timeout=60_000)
    settled(page)
    covered = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.filter("
    covered += "(value, at, all) => at % 4 == 2 && value > 200 && all[at - 2] < 90).length"
    before = viewer.locator("canvas").evaluate(covered)
    assert viewer.locator(".marks button").count() == 1 and before > 0
    page.locator("[data-testid=stSidebar] [data-testid=stSlider]").first.get_by_role("slider").press("End")
    page.wait_for_function("() => location.search.includes('threshold=0.99')", timeout=60_000)
    settled(page)
    viewer = viewer_of(page)
    page.wait_for_timeout(1000)
    assert viewer.locator("canvas").evaluate(covered) != before, "the outline of the mask is another one"
    page.goto(f"{app_url}/attention?sample=Polyp, advancing")
    page.wait_for_selector("text=Click a dot", timeout=120_000)
    page.goto(f"{app_url}/?sample=Polyp, advancing")
    viewer_of(page)
    page.wait_for_selector("text=/Confirmed by A. Reader at/", timeout=60_000)
    page.reload()
    viewer_of(page)
    page.wait_for_selector("text=/Confirmed by A. Reader at/", timeout=60_000)
    assert decided(page) == ["confirmed"]
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector("text=/Open by A. Reader at/", timeout=60_000)
    settled(page)
    assert decided(page) == ["open"]


def test_choosing_a_finding_in_the_list_moves_the_viewer(page, app_url):
    page.goto(f"{app_url}/prediction")
    viewer = viewer_of(page)
    before = int(viewer.get_attribute("data-wanted"))
    page.get_by_role("combobox", name="Finding").click()
    page.locator("[role=option]").nth(1).click()
    page.wait_for_function(f"() => !document.body.innerText.includes('frame {before} of')", timeout=60_000)
    settled(page)
    after = int(viewer.get_attribute("data-wanted"))
    wait_for(page, after)
    assert after < 108 < before, "from the bleeding to the polyp"
