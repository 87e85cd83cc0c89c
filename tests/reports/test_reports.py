"""All reports have the same style and the same notice, which is written in one place only."""

import importlib.metadata
import platform
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from endofm_lab import NOTICE
from endofm_lab.reports.html import Markup, bullets, escape, picture, report_page, verdict

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '<script>alert(1)</script>"'


def test_the_notice_is_written_in_one_place():
    files = [path for room in ("endofm_lab", "app") for path in (ROOT / room).rglob("*.py")]
    names = [path.name for path in files if re.search(r"for research only", path.read_text(), re.IGNORECASE)]
    assert names == ["__init__.py"]


def test_one_module_writes_the_pages_of_reports_and_one_those_of_lessons():
    pages = [path.name for path in (ROOT / "endofm_lab").rglob("*.py") if "<!doctype" in path.read_text()]
    assert sorted(pages) == ["html.py", "site.py"]


def test_a_page_escapes_texts_and_contains_plotly_only_with_a_figure():
    items = [HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}), bullets([HOSTILE]), verdict(HOSTILE, "bad")]
    items.append(Markup(picture(np.zeros((300, 400, 3), np.uint8), HOSTILE)))
    page = report_page(HOSTILE, [(HOSTILE, items)])
    assert "<script" not in page and page.count("&lt;script&gt;") == 9 and escape(NOTICE) in page
    assert len(page) < 20_000
    assert "<script" in report_page("Figure", [("", [go.Figure()])])


def test_every_page_ends_with_the_provenance_of_its_result():
    page = report_page("Page", [("Numbers", ["0.94"])])
    for name in ("endofm_lab", "git", "host", "device", "packages", "command", "time"):
        assert f"<td>{name}</td>" in page, name
    assert platform.node() in page and f"torch {importlib.metadata.version('torch')}" in page
    long = "endofm-lab pretrain" + " corpus/manifest.csv" * 20
    page = report_page("Page", [], {"device": "cuda:1", "git": None, "model_name": "demo", "command": long})
    assert long in page
    assert "<td>cuda:1</td>" in page and "<td>not known</td>" in page and "demo" not in page and "host" not in page


def test_a_sentence_replaces_a_missing_picture():
    assert "The picture is missing." in picture(None, "a.png")
