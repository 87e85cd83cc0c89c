"""From Home through a door to a video and back, and a study that is started in the app, left, and found finished."""

import re
from fractions import Fraction

import numpy as np
import pytest

from endofm_lab.files import read_json
from endofm_lab.model.loading.load import save_model
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video
from tests.browser.serving import served_app
from tests.browser.waiting import settled
from tests.builders import frame_model

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def home_url(cache):
    yield from served_app(cache)


def go(page, name):
    page.locator("[data-testid=stSidebarNavLink]").filter(has_text=re.compile(rf"{name}$")).click(timeout=120_000)
    settled(page)
    assert page.locator("[data-testid=stException]").count() == 0, name


def test_a_door_leads_to_a_video_and_home_lists_it_afterwards(page, home_url):
    page.goto(home_url)
    page.get_by_text("Nothing yet.").wait_for(timeout=120_000)
    page.get_by_role("button", name="Look at a video").click()
    page.wait_for_selector("text=/frame \\d+ of/", timeout=200_000)
    settled(page)
    assert page.url.startswith(f"{home_url}/prediction")
    go(page, "Home")
    page.get_by_text("A walk with a polyp and a bleeding").first.wait_for(timeout=60_000)
    page.reload()
    page.get_by_text("Recent work on this machine").wait_for(timeout=120_000)
    settled(page)
    page.get_by_role("button", name="Open").first.click()
    page.wait_for_selector("text=/frame \\d+ of/", timeout=200_000)
    go(page, "Home")
    page.get_by_text("Recent work on this machine").wait_for(timeout=120_000)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A video and a frame model of the user."""
    folder = tmp_path_factory.mktemp("own")
    frames = np.concatenate(
        [render(PhantomSpec(n, finding=finding, n_frames=24)).frames for n, finding in enumerate(["polyp", "ulcer"])]
    )
    write_video(folder / "case.mp4", frames, Fraction(12))
    save_model(frame_model(frames), folder / "frames")
    return folder


def test_a_study_that_is_started_left_and_returned_to_is_finished(page, home_url, files, cache):
    page.goto(f"{home_url}/prediction?view=Study", timeout=120_000)
    page.get_by_text("File or folder on this machine").click(timeout=120_000)
    for label, text in (("Path", files / "case.mp4"), ("Model", files / "frames")):
        settled(page)
        field = page.get_by_label(label, exact=True)
        field.fill(str(text), timeout=120_000)
        field.press("Enter")
    settled(page)
    page.get_by_role("button", name="Start the study").click(timeout=60_000)
    page.get_by_text(re.compile("^Study .* · (waiting|running)")).first.wait_for(timeout=60_000)
    address = page.url
    page.goto("about:blank")
    (job,) = cache.glob("jobs/*/job.json")
    page.goto(f"{home_url}/jobs", timeout=120_000)
    page.get_by_text(re.compile("^Study .* · finished")).first.wait_for(timeout=200_000)
    assert read_json(job.with_name("end.json"))["code"] == 0
    page.goto(address, timeout=120_000)
    page.wait_for_selector("text=Best frames", timeout=120_000)
    settled(page)
    assert page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count() == 0
