"""The report of a video in a real Chromium: one click gives a file with the decisions, which prints to pages of A4."""

import re

import pytest

from tests.browser.playing import viewer_of
from tests.browser.waiting import settled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
WIDTHS = "() => [...document.querySelectorAll('.js-plotly-plot .main-svg')].map((svg) => svg.clientWidth)"


def test_one_click_gives_a_report_with_the_decisions_that_prints_to_a4(page, app_url, tmp_path):
    page.goto(f"{app_url}/?sample=Ulcer, withdrawing")
    viewer_of(page)
    page.get_by_role("textbox", name="Reviewer").fill("A. Reader")
    page.get_by_role("button", name="Reject").click()
    page.wait_for_selector("text=/Rejected by A. Reader at/", timeout=60_000)
    page.get_by_role("textbox", name="Title of the report").fill("Case 7")
    page.get_by_role("textbox", name="Title of the report").press("Enter")
    page.wait_for_timeout(2000)
    settled(page)
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Report", exact=True).click()
    download.value.save_as(tmp_path / "report.html")
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    text = page.locator("body").inner_text()
    for words in ("Case 7", "For research only", "☒ reject", "A. Reader", "Key frames", "Model card", "Provenance"):
        assert words in text, words
    assert page.locator(".frames img").count() == 1 and page.locator(".js-plotly-plot").count() == 2
    assert all(url.startswith(("file:", "data:")) for url in requests), requests
    before = page.evaluate(WIDTHS)
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(500)
    assert page.evaluate(WIDTHS) == [690] * len(before), "as wide as the page between its margins"
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(500)
    assert page.evaluate(WIDTHS) == before
    printed = page.pdf(prefer_css_page_size=True)
    boxes = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox \[([\d. ]+)\]", printed)}
    assert len(boxes) == 1 and boxes.pop()[2:] == pytest.approx((595, 842), abs=1)
    assert 2 <= len(re.findall(rb"/Type /Page\b", printed)) <= 5
