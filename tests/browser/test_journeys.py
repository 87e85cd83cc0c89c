"""Journeys through the app in a real Chromium: a choice on one page is valid on every page and after a reload."""

import os
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from endofm_lab.data.manifest import write_manifest
from endofm_lab.explain.embeddings import embed
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video
from tests.browser.waiting import settled, shown_frame
from tests.explain.models import small_model

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
PAGES = ["Prediction", "Attention", "Embeddings", "Data", "Views", "Models", "Training", "Comparison"]
LOCAL = "File or folder on this machine"


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A real video if the data are available, otherwise a generated video that is opened by its path."""
    real = Path(os.environ.get("ENDOFM_LAB_DATA", "")) / "laparoscopy" / "endo.mp4"
    if real.is_file():
        return real
    path = tmp_path_factory.mktemp("video") / "own.mp4"
    write_video(path, render(PhantomSpec(1, finding="polyp", n_frames=48)).frames, Fraction(12))
    return path


def go(page, name):
    """Open a page by its link in the sidebar."""
    page.locator("[data-testid=stSidebarNavLink]").filter(has_text=re.compile(rf"{name}$")).click()
    page.wait_for_selector(f"h1:has-text('{name}')", timeout=120_000)
    settled(page)
    assert page.locator("[data-testid=stException]").count() == 0, name


def open_own_video(page, url, video):
    page.goto(f"{url}/prediction")
    page.wait_for_selector("text=Generated picture", timeout=200_000)
    settled(page)
    page.get_by_text(LOCAL).click()
    field = page.get_by_label("Path")
    field.fill(str(video))
    field.press("Enter")
    page.wait_for_selector("text=/frame \\d+ of/", timeout=200_000)
    settled(page)


def step(page):
    """Move the viewer by one frame; returns the frame then shown."""
    before = shown_frame(page)
    page.get_by_role("button", name="One frame back" if before > 5 else "One frame forward").click()
    page.wait_for_function(f"() => !document.body.innerText.includes('frame {before} of')", timeout=60_000)
    settled(page)
    return shown_frame(page)


def test_a_video_and_its_frame_stay_chosen_on_every_page_and_after_reload_back_and_forward(page, app_url, video):
    open_own_video(page, app_url, video)
    step(page)
    frame = step(page)
    for name in PAGES[1:]:
        go(page, name)
        if name in ("Attention", "Views"):
            assert page.get_by_label("Path").input_value() == str(video), name
            assert page.locator("text=/Generated (video|picture)/").count() == 0, name
        go(page, "Prediction")
        page.wait_for_selector("text=/frame \\d+ of/", timeout=60_000)
        assert shown_frame(page) == frame, f"on the way back from {name}"
        assert page.get_by_label("Path").input_value() == str(video)
    page.reload()
    page.wait_for_selector("text=/frame \\d+ of/", timeout=120_000)
    settled(page)
    assert shown_frame(page) == frame and page.get_by_label("Path").input_value() == str(video)
    next_frame = step(page)
    for move, expected in ((page.go_back, frame), (page.go_forward, next_frame)):
        move()
        page.wait_for_selector(f"text=frame {expected} of", timeout=60_000)
        settled(page)
        assert page.get_by_label("Path").input_value() == str(video)


def test_after_a_corrected_path_and_a_corrected_model_the_prediction_is_shown(page, app_url, video):
    open_own_video(page, app_url, video)
    for label, wrong, right in (("Path", "/nowhere/absent.mp4", str(video)), ("Model", "/nowhere/weights.pth", "demo")):
        for text, words in ((wrong, f"text={Path(wrong).name}"), (right, "text=/frame \\d+ of/")):
            field = page.get_by_label(label, exact=True)
            field.fill(text)
            field.press("Enter")
            page.wait_for_selector(words, timeout=120_000)
            settled(page)
            assert page.locator("[data-testid=stException]").count() == 0


def test_an_upload_is_still_chosen_on_other_pages_and_after_a_reload(page, app_url, tmp_path):
    write_video(tmp_path / "mine.mp4", render(PhantomSpec(3, finding="ulcer", n_frames=30)).frames, Fraction(10))
    page.goto(f"{app_url}/prediction")
    page.wait_for_selector("text=Generated picture", timeout=200_000)
    settled(page)
    page.locator("[data-testid=stSidebar] [role=radiogroup]").get_by_text("Upload", exact=True).click()
    page.locator("[data-testid=stSidebar] input[type=file]").set_input_files(tmp_path / "mine.mp4", timeout=60_000)
    page.wait_for_selector("text=of 29 ·", timeout=120_000)
    go(page, "Attention")
    page.wait_for_selector("text=Click a dot", timeout=120_000)
    page.reload()
    page.wait_for_selector("text=Click a dot", timeout=120_000)
    go(page, "Prediction")
    page.wait_for_selector("text=of 29 ·", timeout=120_000)


def test_a_click_on_a_patch_makes_that_patch_the_query(page, app_url):
    page.goto(f"{app_url}/attention")
    page.wait_for_selector("text=Click a dot", timeout=200_000)
    settled(page)
    dots = page.locator(".js-plotly-plot .scatterlayer .points path")
    dots.first.wait_for(state="attached", timeout=60_000)
    across = int(re.search(r"x (\d+) patches", page.locator("text=/x \\d+ patches/").first.inner_text()).group(1))
    pictures = [picture_of(page)]
    for number in (17, 20):
        dots.nth(number).click(force=True)
        page.wait_for_selector(f"text=/row {number // across}, column {number % across}/", timeout=60_000)
        settled(page)
        page.wait_for_timeout(1000)
        assert page.locator("[data-testid=stException]").count() == 0
        pictures.append(picture_of(page))
    assert len(set(pictures)) == 3, "the map under the dots is that of the patch"
    page.get_by_role("button", name="Back to CLS").click()
    page.wait_for_selector("text=/Where CLS looks/", timeout=60_000)
    settled(page)
    dots.nth(20).click(force=True)
    page.wait_for_selector(f"text=/row {20 // across}, column {20 % across}/", timeout=60_000)


def test_the_test_of_a_map_shows_how_far_it_is_and_can_be_cancelled(page, app_url):
    page.goto(f"{app_url}/attention?look=Attribution")
    page.wait_for_selector("text=Test this map", timeout=200_000)
    settled(page)
    page.get_by_text("Test this map").click()
    page.wait_for_selector("text=Testing the map", timeout=60_000)
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("text=Testing the map", state="detached", timeout=60_000)
    settled(page)
    assert page.get_by_role("switch", name="Test this map").is_checked() is False
    assert page.locator("[data-testid=stException]").count() == 0


def picture_of(page):
    image = page.locator(".js-plotly-plot image").first
    return image.get_attribute("href") or image.get_attribute("xlink:href")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    frames = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    write_video(folder / "v.mp4", frames, Fraction(10))
    rows = [{"start_s": n / 10, "end_s": 1 + n / 10, "label": "ab"[n % 2], "patient": f"p{n}"} for n in range(20)]
    table = pd.DataFrame(rows).assign(video="v.mp4", dataset="noise", split="train")
    embed(write_manifest(table, folder / "m.csv"), small_model(), folder / "store", progress=False)
    return folder / "store"


def test_a_click_on_a_marker_shows_its_neighbours_and_a_lasso_shows_many_pictures(page, app_url, store):
    page.goto(f"{app_url}/embeddings")
    field = page.get_by_label("Embedding store", exact=True)
    field.fill(str(store), timeout=120_000)
    field.press("Enter")
    page.wait_for_selector(".js-plotly-plot .scatterlayer .points path", state="attached", timeout=120_000)
    settled(page)
    page.locator(".js-plotly-plot .scatterlayer .points path").nth(3).click(force=True)
    page.wait_for_selector("text=The clicked clip and its neighbours", timeout=30_000)
    settled(page)
    page.get_by_text("Draw a lasso").click()
    page.wait_for_selector("text=Draw a lasso around markers", timeout=30_000)
    settled(page)
    page.wait_for_timeout(1000)
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    left, top, right, bottom = box["x"] + 4, box["y"] + 4, box["x"] + box["width"] - 4, box["y"] + box["height"] - 4
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 8)):
        page.mouse.move(x, y, steps=8)
    page.mouse.up()
    page.wait_for_selector("text=/20 clips, of which the first 18 are shown/", timeout=60_000)
