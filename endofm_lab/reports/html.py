"""Stand-alone HTML reports: one file, no network, everything that a reader wrote escaped."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from endofm_lab import __version__
from endofm_lab.figures.style import CONFIG
from endofm_lab.files import atomic_path
from endofm_lab.prediction import NOTICE

Item: TypeAlias = str | pd.DataFrame | go.Figure  # a paragraph, a table, or a figure

_STYLE = """
body { font: 16px/1.5 'Source Sans 3', 'Segoe UI', Helvetica, Arial, sans-serif; color: #1c1c1c;
       max-width: 1100px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.notice { color: #8a3b00; } footer { margin-top: 3rem; color: #666; font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
"""


def write_report(path: str | Path, title: str, sections: Sequence[tuple[str, Sequence[Item]]]) -> Path:
    """Write a report of headed sections as one HTML file (about 5 MB, because it carries Plotly); atomic."""
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="notice">{html.escape(NOTICE)}</p>']
    for heading, items in sections:
        body.append(f"<h2>{html.escape(heading)}</h2>")
        body += [_item(item) for item in items]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(body)}"
        f"<footer>endofm_lab {__version__}</footer></body></html>"
    )
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _item(item: Item) -> str:
    if isinstance(item, go.Figure):
        return item.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)
    if isinstance(item, pd.DataFrame):
        return item.to_html(index=False, border=0, escape=True, float_format=lambda value: f"{value:.4g}")
    return f"<p>{html.escape(item)}</p>"
