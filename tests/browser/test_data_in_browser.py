import pytest

from tests.browser.waiting import settled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]


def test_every_view_of_the_data_page_draws_the_generated_set(page, app_url):
    page.goto(f"{app_url}/data")
    # The set is drawn at first use: seconds, but minutes on a busy machine.
    page.wait_for_selector("text=Generated pictures: they show no patient.", timeout=500_000)
    settled(page)
    assert page.locator(".imagelayer image, .imagelayer-above image, .im image").count() == 10
    for view, words in (
        ("Classes", "Coverage as CSV"),
        ("Split", "Divided groups"),
        ("Audit", "No leakage found between train, val, test"),
        ("Recipes", "endofm-lab data prepare"),
    ):
        page.locator(f"[data-testid=stButtonGroup] button:has-text('{view}')").click()
        page.wait_for_selector(f"text={words}", timeout=120_000)
        settled(page)
        assert page.locator("[data-testid=stException]").count() == 0
