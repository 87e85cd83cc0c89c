"""The viewer in a real Chromium: frame numbers are read back from the pixels of the canvas."""

import http.client
import random

import numpy as np
import pytest

from tests.app.addresses import typed_before
from tests.browser.playing import seek, viewer_of, wait_for
from tests.browser.serving import served_app
from tests.browser.waiting import settled, shown_frame
from tests.video.recordings import BITS, WIDTH_PX, encode

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

# What the canvas shows, by the bars that `recordings.numbered` draws, and what the viewer says; read in one moment.
READ = f"""canvas => {{
  const pen = canvas.getContext("2d");
  const scale = canvas.width / {WIDTH_PX};
  let number = 0;
  for (let bit = 0; bit < {BITS}; bit++) {{
    const [x, y] = [Math.round((8 + bit * 10) * scale), Math.round(24 * scale)];
    if (pen.getImageData(x, y, 1, 1).data[1] > 128) number += 1 << bit;
  }}
  return [number, Number(canvas.closest(".viewer").dataset.frame)];
}}"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def url(cache):
    yield from served_app(cache)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video with a key frame every ten seconds, and one with a variable frame rate."""
    folder = tmp_path_factory.mktemp("videos")
    steps = np.random.default_rng(0).integers(15, 90, 119)
    times = [0, *np.cumsum(steps).tolist()]
    return {
        "steady": encode(folder / "steady.mp4", 150, g="250"),
        "variable": encode(folder / "variable.mp4", 120, times_ms=times),
    }


def opened(page, url, cache, path, monkeypatch, overlays=False):
    """The viewer with a video, paused, without overlays so that they do not cover the bars."""
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(cache))
    page.goto(f"{url}/?source=file&path={typed_before(path)}")
    return viewer_of(page, overlays)


def read(viewer):
    return viewer.locator("canvas").evaluate(READ)


def arrived(page, viewer, frame):
    wait_for(page, frame)
    return read(viewer)


@pytest.mark.parametrize("name", ["steady", "variable"])
def test_after_every_seek_the_pixels_show_the_frame_that_the_viewer_names(page, url, cache, videos, monkeypatch, name):
    viewer = opened(page, url, cache, videos[name], monkeypatch)
    last = int(viewer.locator(".seek").get_attribute("max"))
    draw = random.Random(1)
    for frame in [0, last, *draw.sample(range(1, last), 28), 1, last - 1]:
        seek(viewer, frame)
        assert arrived(page, viewer, frame) == [frame, frame]
    page.wait_for_function(f"() => document.body.innerText.includes('frame {last - 1} of')", timeout=60_000)
    settled(page)
    assert f"frame={last - 1}" in page.url, "the page was told where the reader is"
    assert page.locator("[data-testid=stException]").count() == 0


@pytest.mark.parametrize("name", ["steady", "variable"])
def test_while_playing_every_drawn_frame_is_the_one_that_the_viewer_names(page, url, cache, videos, monkeypatch, name):
    viewer = opened(page, url, cache, videos[name], monkeypatch)
    last = int(viewer.locator(".seek").get_attribute("max"))
    seek(viewer, 0)
    arrived(page, viewer, 0)
    settled(page)
    viewer.focus()
    page.keyboard.press("Space")
    frames = set()
    while viewer.get_attribute("data-playing") == "yes" or not frames:
        shown, label = read(viewer)
        assert shown == label
        frames.add(shown)
    assert len(frames) > 5 and read(viewer) == [last, last], "it stops at the last frame"
    page.wait_for_function(f"() => document.body.innerText.includes('frame {last} of')", timeout=60_000)


def test_keys_move_by_frames_and_seconds_and_only_inside_the_viewer(page, url, cache, videos, monkeypatch):
    viewer = opened(page, url, cache, videos["steady"], monkeypatch)
    seek(viewer, 60)
    arrived(page, viewer, 60)
    viewer.focus()
    at = 60
    for key, step in (("ArrowRight", 1), ("ArrowLeft", -1), ("Shift+ArrowRight", 25), ("Shift+ArrowLeft", -25)):
        for _ in range(2):
            page.keyboard.press(key)
            at += step
            assert arrived(page, viewer, at) == [at, at]
    for key, frame in (("Home", 0), ("ArrowLeft", 0), ("End", 149), ("ArrowRight", 149)):
        page.keyboard.press(key)
        assert arrived(page, viewer, frame) == [frame, frame]
    page.get_by_label("Path").focus()
    for key in ("ArrowLeft", "Home", "Space"):
        page.keyboard.press(key)
    assert viewer.get_attribute("data-wanted") == "149" and viewer.get_attribute("data-playing") != "yes"


def test_speed_and_loop(page, url, cache, videos, monkeypatch):
    viewer = opened(page, url, cache, videos["steady"], monkeypatch)
    viewer.locator(".speed").select_option("2")
    viewer.get_by_role("button", name="Loop").click()
    seek(viewer, 140)
    arrived(page, viewer, 140)
    viewer.get_by_role("button", name="Play").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('*')].some(node => { const frame ="
        " node.shadowRoot?.querySelector('.viewer')?.dataset.frame; return frame > 5 && frame < 100; })",
        timeout=60_000,
    )
    viewer.get_by_role("button", name="Pause").click()
    shown, label = read(viewer)
    assert shown == label and viewer.get_by_role("button", name="Loop").get_attribute("aria-pressed") == "true"


def test_a_deleted_video_gets_a_sentence_and_the_page_stays(page, url, cache, tmp_path, monkeypatch):
    video = encode(tmp_path / "gone.mp4", 150, g="250")
    viewer = opened(page, url, cache, video, monkeypatch)
    page.wait_for_timeout(1500)
    video.unlink()
    seek(viewer, 149)
    viewer.get_by_role("alert").get_by_text("deleted, moved or changed").wait_for(timeout=30_000)
    settled(page)
    assert page.locator("[data-testid=stException]").count() == 0


def test_frames_are_given_to_known_hosts_and_tokens_only(url):
    port = int(url.rpartition(":")[2])
    for host, status, words in ((f"127.0.0.1:{port}", 404, "no longer open"), ("evil.example", 421, "host name")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", f"/viewer/{'0' * 40}/frames/0/5", headers={"Host": host})
        reply = connection.getresponse()
        assert reply.status == status and words in reply.read().decode()
        assert reply.headers["content-security-policy"] and reply.headers["cache-control"] == "no-store"


# A server that answers the page late: what it sends arrives after ``window.late_ms``.
LATE = """() => {
  const listen = WebSocket.prototype.addEventListener;
  WebSocket.prototype.addEventListener = function (kind, act, ...options) {
    const late = (event) => setTimeout(() => act.call(this, event), window.late_ms || 0);
    return listen.call(this, kind, kind === "message" ? late : act, ...options);
  };
}"""


def test_a_page_that_is_chosen_right_after_a_step_opens_and_the_frame_is_kept(page, url, cache, videos, monkeypatch):
    page.add_init_script(f"({LATE})()")
    viewer = opened(page, url, cache, videos["steady"], monkeypatch)
    frame = shown_frame(page)
    page.evaluate("window.late_ms = 1500")
    viewer.get_by_role("button", name="One frame forward").click()
    page.get_by_role("link", name="Views").click(delay=100)  # as long as a person holds the button
    page.locator("h1", has_text="Views").wait_for(timeout=60_000)
    page.wait_for_timeout(2500)  # longer than the last answers need
    settled(page)
    assert page.locator("h1", has_text="Views").count() == 1, "no late message brings the old page back"
    page.get_by_role("link", name="Prediction").click()
    viewer_of(page)
    assert shown_frame(page) == frame + 1
