"""A running app and a real Chromium."""

import shutil

import pytest

from tests.browser.serving import FLAGS, served_app


@pytest.fixture(scope="session")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: install it (Debian: apt-get install chromium) to run browser tests")
    return path


@pytest.fixture
def page(chromium, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=chromium,
            args=FLAGS,
            headless=True,
            viewport={"width": 1400, "height": 1500},
        )
        yield context.pages[0] if context.pages else context.new_page()
        context.close()


@pytest.fixture(scope="session")
def app_url(tmp_path_factory):
    yield from served_app(tmp_path_factory.mktemp("cache"))
