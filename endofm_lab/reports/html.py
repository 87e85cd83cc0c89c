"""Stand-alone HTML reports: one file in one style that needs no network, with every foreign text escaped.

This module makes every report of the project, from sections of paragraphs, tables, figures and pictures with headings.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs

from endofm_lab import NOTICE, __version__
from endofm_lab.figures.style import CONFIG
from endofm_lab.files import atomic_path
from endofm_lab.folders.provenance import provenance


@dataclass(frozen=True)
class Markup:
    """HTML that is inserted unchanged, because the report that wrote it has escaped the texts in it."""

    html: str


Item: TypeAlias = str | pd.DataFrame | go.Figure | Markup  # a paragraph, a table, a figure, or HTML
Section: TypeAlias = tuple[str, Sequence[Item]]  # a heading and the items below it

_STYLE = """
body { font: 16px/1.5 'Source Sans 3', 'Segoe UI', Helvetica, Arial, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 1100px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.notice { color: #8a3b00; } footer { margin-top: 3rem; color: #666; font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.verdict { padding: .8rem 1rem; border-left: 6px solid; font-weight: 600; }
.bad { border-color: #b3261e; background: #fbeceb; } .good { border-color: #2e6b34; background: #edf5ee; }
.unsure { border-color: #8a5a00; background: #fcf4e4; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 1rem; }
.pair { border: 1px solid #ddd; padding: .5rem; font-size: .85rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
figure { margin: 0; font-size: .8rem; overflow-wrap: anywhere; }
figure img { width: 100%; height: 220px; object-fit: contain; background: #000; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
.frames img { height: auto; max-height: 420px; }
.absent { height: 60px; display: grid; place-items: center; background: #eee; color: #444; }
@page { size: A4; margin: 14mm 12mm; }
@media print {
  body { font-size: 12px; max-width: none; margin: 0; padding: 0; print-color-adjust: exact; }
  h2 { margin-top: 1.4rem; break-after: avoid; } figure, tr, .pair, .verdict, .js-plotly-plot { break-inside: avoid; }
  table { font-size: 10px; } th, td { padding: .15rem .4rem; overflow-wrap: anywhere; } .wide { overflow: visible; }
  .frames { grid-template-columns: 1fr 1fr; }
}
"""
# A figure is as wide as the window; printed, it has to be as wide as the page, and afterwards as before.
_PRINT = """
const figures = () => [...document.querySelectorAll(".js-plotly-plot")];
addEventListener("beforeprint", () => figures().forEach((figure) => {
  const { width, height } = figure._fullLayout;
  figure.before = [figure.layout.width ?? null, figure.layout.height ?? null];
  Plotly.relayout(figure, { width: %d, height: figure.before[0] ? (height * %d) / width : height });
}));
addEventListener("afterprint", () => figures().forEach((figure) => {
  const [width, height] = figure.before;
  Plotly.relayout(figure, { width, height, autosize: width === null });
}));
"""
_PRINTED_PX = 690  # the width between the margins of A4

_COLUMNS = ["item", "value"]
escape = html.escape


def write_report(
    path: str | Path, title: str, sections: Sequence[Section], origin: Mapping[str, Any] | None = None
) -> Path:
    """Write `report_page` as one file, atomically; returns its path.

    Args:
        path: the HTML file.
        title: title and first heading of the page.
        sections: headings and the items below them; a section with an empty heading continues the previous section.
        origin: the `provenance` of the result in the report; None if the report itself is the result.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(report_page(title, sections, origin), encoding="utf-8")
    return path


def report_page(title: str, sections: Sequence[Section], origin: Mapping[str, Any] | None = None) -> str:
    """A report as HTML that needs no network; a report with a figure contains Plotly (about 5 MB).

    Its last section is the provenance of the result (``origin``), or of this process.
    """
    sections = [*sections, ("Provenance", [_origin_table(provenance() if origin is None else origin)])]
    body = [f"<h1>{escape(title)}</h1>", f'<p class="notice">{escape(NOTICE)}</p>']
    for heading, items in sections:
        body.append(f"<h2>{escape(heading)}</h2>" * bool(heading))
        body += [_item(item) for item in items]
    has_figure = any(isinstance(item, go.Figure) for _, items in sections for item in items)
    scripts = f"{get_plotlyjs()}</script><script>{_PRINT % (_PRINTED_PX, _PRINTED_PX)}"
    plotly = f"<script>{scripts}</script>" if has_figure else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style>{plotly}</head><body>{''.join(body)}"
        f"<footer>endofm_lab {__version__}</footer></body></html>"
    )


def _origin_table(origin: Mapping[str, Any]) -> pd.DataFrame:
    """A provenance as a table; entries about the model and its data stay out."""
    rows = [(name, origin[name]) for name in provenance() if name in origin]
    texts = [
        (name, ", ".join(f"{key} {version}" for key, version in value.items()) if isinstance(value, dict) else value)
        for name, value in rows
    ]
    return pd.DataFrame([(name, "not known" if text is None else str(text)) for name, text in texts], columns=_COLUMNS)


def bullets(sentences: Sequence[str]) -> Markup:
    """An HTML list of sentences."""
    return Markup("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>")


def verdict(sentence: str, kind: str) -> Markup:
    """The sentence of a report that a reader must not miss; ``kind`` is "good", "bad" or "unsure"."""
    return Markup(f'<p class="verdict {kind}">{escape(sentence)}</p>')


def picture(pixels: np.ndarray | None, name: str, side_px: int = 220) -> str:
    """HTML of a small picture (H, W, 3) uint8, embedded in the page; for None, a sentence that it is missing."""
    if pixels is None:
        return '<div class="absent">The picture is missing.</div>'
    small = Image.fromarray(pixels)
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _item(item: Item) -> str:
    if isinstance(item, Markup):
        return item.html
    if isinstance(item, go.Figure):
        return item.to_html(full_html=False, include_plotlyjs=False, config=dict(CONFIG))
    if isinstance(item, pd.DataFrame):
        with pd.option_context("display.max_colwidth", None):  # a long cell is shown whole
            table = item.to_html(index=False, border=0, escape=True, float_format=lambda value: f"{value:.4g}")
        return f'<div class="wide">{table}</div>'
    return f"<p>{escape(item)}</p>"
