"""A model from recipe to prediction in a real Chromium: built, stopped, continued, and chosen for all pages."""

import re

import pytest

from tests.browser.serving import served_app
from tests.browser.waiting import settled
from tests.models.made_data import kvasir_from_phantom, micro_recipe

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENDOFM_LAB_MODELS", str(tmp_path_factory.mktemp("models")))
        yield from served_app(tmp_path_factory.mktemp("cache"))


def choose(page, label, option):
    field = page.get_by_role("combobox", name=label, exact=True)
    field.scroll_into_view_if_needed()
    field.click()
    field.press_sequentially(option)
    field.press("Enter")
    page.wait_for_timeout(700)
    settled(page)


def fill(page, label, text):
    field = page.get_by_label(label, exact=True)
    field.fill(str(text))
    field.press("Enter")
    page.wait_for_timeout(700)
    settled(page)


def test_a_model_is_built_with_a_stop_in_between_and_chosen_for_every_page(page, url, phantom, tmp_path):
    data = kvasir_from_phantom(phantom, tmp_path / "made")
    recipe = micro_recipe(tmp_path, replace={"steps: 4": "steps: 300", "validate_every: 2": "validate_every: 100"})
    page.goto(f"{url}/models")
    page.wait_for_selector("text=generated video only", timeout=120_000)
    settled(page)
    choose(page, "Recipe", "A recipe of your own")
    fill(page, "File of the recipe", recipe)
    page.wait_for_selector("text=Micro segmenter", timeout=60_000)
    assert page.get_by_role("button", name="Build", exact=True).is_disabled()
    fill(page, "Folder of the data set", data)
    page.get_by_text("Build from an incomplete data set").click()
    settled(page)
    page.get_by_role("button", name="Build", exact=True).click()
    page.wait_for_selector("text=/training · [1-9]\\d* of 300 steps/", timeout=200_000)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_selector("text=/stopped · training/", timeout=100_000)
    page.reload()
    page.get_by_role("button", name="Go on").click(timeout=100_000)
    page.wait_for_selector("text=is built: it is in the list", timeout=300_000)
    settled(page)
    choose(page, "Model", "micro-segmenter")
    page.wait_for_selector("text=/Built from 21 rows of kvasir-seg/", timeout=60_000)
    page.get_by_role("button", name="Use this model on all pages").click()
    page.wait_for_selector("text=micro-segmenter is the model of all pages", timeout=60_000)
    page.reload()
    page.wait_for_selector("text=micro-segmenter is the model of all pages", timeout=60_000)
    page.locator("[data-testid=stSidebarNavLink]").filter(has_text=re.compile("Prediction$")).click()
    page.wait_for_selector("text=/frame \\d+ of/", timeout=200_000)
    assert page.get_by_label("Model", exact=True).input_value() == "micro-segmenter"
    assert page.locator("[data-testid=stException]").count() == 0
