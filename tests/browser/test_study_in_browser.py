"""A study in the app, in a real Chromium: the figures are drawn, and a selected finding is confirmed in the file."""

import re

import numpy as np
import pytest

from endofm_lab.study.review import read_review
from endofm_lab.study.study import run_study
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video
from tests.browser.waiting import settled
from tests.builders import frame_model

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.fixture
def study(tmp_path):
    clips = [
        render(PhantomSpec(n, finding=finding, n_frames=24)).frames for n, finding in enumerate(["polyp", "ulcer"])
    ]
    frames = np.concatenate(clips)
    write_video(tmp_path / "video.mp4", frames, 12)
    run_study(tmp_path / "video.mp4", frame_model(frames), tmp_path / "study", progress=False)
    return tmp_path / "study"


def still_open(page) -> int:
    return int(re.search(r"(\d+) open", page.locator("text=/\\d+ open/").first.inner_text()).group(1))


def test_a_study_is_drawn_and_a_selected_finding_is_confirmed(page, app_url, study, tmp_path):
    page.goto(f"{app_url}/prediction", timeout=120_000)
    page.locator("[data-testid=stButtonGroup] button:has-text('Study')").click(timeout=120_000)
    field = page.get_by_label("Study", exact=True)
    field.fill(str(study), timeout=120_000)
    field.press("Enter")
    page.wait_for_selector("text=Best frames", timeout=120_000)
    settled(page)
    page.wait_for_selector(".heatmaplayer image", state="attached", timeout=60_000)
    page.wait_for_selector(".imagelayer image, .imagelayer-above image, .im image", state="attached", timeout=60_000)
    assert page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count() == 0
    assert page.evaluate("() => document.querySelectorAll('img[src=x]').length") == 0, "a class name became HTML"
    page.screenshot(path=str(tmp_path / "study.png"))
    n_open = still_open(page)
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_selector(f"text=/{n_open - 1} open/", timeout=60_000)
    settled(page)
    assert read_review(study)["decision"].tolist() == ["confirm"]
    page.screenshot(path=str(tmp_path / "decided.png"))
