"""Open the viewer in a browser, move it, and read what it shows."""

from tests.browser.waiting import settled


def viewer_of(page, overlays=True):
    """The viewer once it shows a frame; without overlays, nothing covers the frame."""
    page.wait_for_selector(".viewer[data-frame]", timeout=200_000)
    settled(page)
    viewer = page.locator(".viewer")
    if not overlays:
        for box in viewer.locator(".overlays input").all():
            box.uncheck()
    return viewer


def seek(viewer, frame):
    """Drag the slider to a frame and let go."""
    viewer.locator(".seek").evaluate(
        "(slider, frame) => { slider.value = frame; for (const kind of ['input', 'change'])"
        " slider.dispatchEvent(new Event(kind, { bubbles: true })); }",
        frame,
    )


def wait_for(page, frame):
    """Wait until the canvas shows a frame."""
    page.locator(f".viewer[data-frame='{frame}'][data-wanted='{frame}']").wait_for(timeout=60_000)
