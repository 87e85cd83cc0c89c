"""Reports have one style and one notice, which is typed once."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from endofm_lab import NOTICE
from endofm_lab.reports.html import Markup, bullets, escape, picture, report_page, verdict

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '<script>alert(1)</script>"'


def test_the_notice_is_typed_once():
    files = [path for room in ("endofm_lab", "app") for path in (ROOT / room).rglob("*.py")]
    typed = [path.name for path in files if re.search(r"for research only", path.read_text(), re.IGNORECASE)]
    assert typed == ["__init__.py"]


def test_only_one_module_writes_pages():
    pages = [path.name for path in (ROOT / "endofm_lab").rglob("*.py") if "<!doctype" in path.read_text()]
    assert pages == ["html.py"]


def test_a_page_escapes_texts_and_carries_plotly_only_with_a_figure():
    items = [HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}), bullets([HOSTILE]), verdict(HOSTILE, "bad")]
    items.append(Markup(picture(np.zeros((300, 400, 3), np.uint8), HOSTILE)))
    page = report_page(HOSTILE, [(HOSTILE, items)])
    assert "<script" not in page and page.count("&lt;script&gt;") == 9 and escape(NOTICE) in page
    assert len(page) < 20_000
    assert "<script" in report_page("Figure", [("", [go.Figure()])])


def test_a_missing_picture_is_a_sentence():
    assert "not here" in picture(None, "a.png")
