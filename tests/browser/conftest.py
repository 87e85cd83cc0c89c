"""A served app and a real Chromium."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


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


def served_app(cache: Path):
    """The address of a running app with a cache of its own; it is stopped when the generator goes on."""
    from endofm_lab.cli.serve import command_line, free_port

    port = free_port(8600)
    environment = {**os.environ, "ENDOFM_LAB_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command_line(port, headless=True), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert server.poll() is None, f"the app stopped with {server.returncode}; {sys.executable}"
        try:
            if urllib.request.urlopen(f"{url}/_stcore/health", timeout=2).status == 200:
                break
        except OSError:  # not there yet, or too busy to answer in time
            time.sleep(0.3)
    yield url
    server.terminate()
    server.wait(timeout=20)
