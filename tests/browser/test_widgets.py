"""The explorers in a real JupyterLab: slider, click and lasso."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import TimeoutError as TimedOut

from tests.browser.serving import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ATTENTION = """
import numpy as np
from tests.explain.models import small_model
from endofm_lab.widgets import AttentionExplorer
frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
AttentionExplorer(small_model(), frames)
"""

EMBEDDINGS = """
import tempfile
from fractions import Fraction
import numpy as np, pandas as pd
import endofm_lab as lab
from tests.explain.models import small_model
from endofm_lab.widgets import EmbeddingExplorer
folder = tempfile.mkdtemp()
frames = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
lab.write_video(folder + "/v.mp4", frames, Fraction(10))
rows = [{"start_s": n / 10, "end_s": 1 + n / 10, "label": "ab"[n % 2], "patient": f"p{n}"} for n in range(20)]
table = pd.DataFrame(rows).assign(video="v.mp4", dataset="noise", split="train")
manifest = lab.write_manifest(table, folder + "/m.csv")
EmbeddingExplorer(lab.embed(manifest, small_model(), folder + "/store", progress=False))
"""


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    import nbformat  # takes two seconds to load, at the start of every run of the tests

    from endofm_lab.cli.serve import free_port

    home = tmp_path_factory.mktemp("jupyter")
    for name, source in (("attention", ATTENTION), ("embeddings", EMBEDDINGS)):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip())])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(notebook, home / f"{name}.ipynb")
    (home / "config" / "labconfig").mkdir(parents=True)
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home / "config" / "labconfig" / "page_config.json").write_text(json.dumps(news))
    port = free_port(8900)
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}", f"--notebook-dir={home}"]
    command += ["--IdentityProvider.token=", "--ServerApp.ip=127.0.0.1", "--allow-root"]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(home / "config"), "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, f"JupyterLab stopped with {server.returncode}"
        try:
            urllib.request.urlopen(f"{url}/api", timeout=2)
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    yield url
    server.terminate()
    server.wait(timeout=30)


def opened(page, url, name):
    """The notebook after it was run."""
    page.goto(f"{url}/lab/workspaces/{name}/tree/{name}.ipynb", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_selector("text=/ipykernel.* Idle/", timeout=120_000)
    for _ in range(6):  # the menu answers before the notebook does: run until the cell says that it runs or ran
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
        try:
            page.wait_for_selector(r"text=/\[(\*|1)\]:/", timeout=20_000)
            break
        except TimedOut:
            continue
    page.wait_for_selector(".js-plotly-plot .scatterlayer .points path", timeout=240_000)
    page.wait_for_timeout(1500)


def test_the_slider_moves_the_frame_and_a_click_on_a_patch_changes_the_map(page, jupyter, tmp_path):
    opened(page, jupyter, "attention")
    page.wait_for_selector("text=/Frame 0: where CLS looks/")
    page.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=/Frame 1: where CLS looks/", timeout=60_000)
    assert page.get_by_role("slider", name="Block").count() == 1, "a screen reader says which slider it is"
    page.locator(".endofm-explorer select").first.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("text=/looks in block 1, head max/", timeout=60_000)
    assert page.evaluate("document.activeElement.tagName") == "SELECT", "the arrow key stayed in the list"
    pictures = page.locator(".js-plotly-plot image").first
    before = pictures.get_attribute("href") or pictures.get_attribute("xlink:href")
    page.locator(".js-plotly-plot .scatterlayer .points path").nth(3).click(force=True)
    page.wait_for_selector("text=/where the patch in row 1, column 1 looks/", timeout=60_000)
    page.wait_for_timeout(1500)
    after = pictures.get_attribute("href") or pictures.get_attribute("xlink:href")
    assert before != after, "the picture under the markers is another"
    page.screenshot(path=str(tmp_path / "attention.png"))


def test_a_lasso_shows_the_selected_pictures(page, jupyter, tmp_path):
    opened(page, jupyter, "embeddings")
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    left, top, right, bottom = box["x"] + 4, box["y"] + 4, box["x"] + box["width"] - 4, box["y"] + box["height"] - 4
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 8)):
        page.mouse.move(x, y, steps=8)
    page.mouse.up()
    page.wait_for_selector(".endofm-count", timeout=60_000)
    page.wait_for_selector("text=/20 clips, of which the first 12 are shown/", timeout=60_000)
    assert page.locator(".endofm-count ~ figure img").count() == 12
    page.screenshot(path=str(tmp_path / "embeddings.png"))
