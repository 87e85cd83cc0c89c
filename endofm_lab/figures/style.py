"""The style of all figures: a palette for colour-blind readers, and the same colour for a class name everywhere.

A figure can contain the names of files, classes and patients. Plotly reads text as HTML, so `tidy` escapes it. No
figure offers to upload itself: `tidy` removes the buttons for that, and every place that shows a figure passes `CONFIG`
or `STILL`.
"""

import html
import re
import sys
from typing import Any

import numpy as np
import plotly.graph_objects as go

# The palette of Okabe and Ito; grey means that nothing was found.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5D3A9B", "#B8B800")
COLOUR_OF = {
    "normal": "#7F7F7F",
    "polyp": "#D55E00",
    "ulcer": "#E69F00",
    "bleeding": "#B2182B",
    "advancing": "#0072B2",
    "withdrawing": "#009E73",
}
UNFAMILIAR = "#B0B0B0"  # stretches of a video that look unlike what the model learned
MASK_RGB = (0, 229, 255)  # unlike every colour of tissue
WIDEST_PX = 860  # the output of a cell in JupyterLab shows this width in a window of 1300 px

# Plotly's configuration wherever a figure is shown: no button that uploads the figure, and no server to upload it to.
CONFIG: dict[str, Any] = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
STILL = {**CONFIG, "displayModeBar": False}  # for figures without a tool bar

UPLOADS = ["sendDataToCloud", "editInChartStudio"]  # Plotly's names of the buttons that upload a figure

_MARKUP = re.compile(r"<(?!/?(?:br|extra)>)")  # every tag in a hover template except <br> and <extra>
_TEXTS = ("name", "text", "hovertext", "ticktext", "label", "prefix", "suffix", "x", "y", "customdata")


def color_of(name: str, index: int) -> str:
    """The colour of a class: its fixed colour if it has one, otherwise the colour of the palette at its position."""
    return COLOUR_OF.get(name.lower(), PALETTE[index % len(PALETTE)])


def tidy(figure: go.Figure) -> go.Figure:
    """Set the project's font, background and legend, and escape every text, so that none is read as HTML.

    Only the hover templates, which the project writes, may contain ``<br>`` and ``<extra>``. Call this function once
    per figure.
    """
    figure.layout.template = None  # copying the default template takes longer than everything else here
    for trace in figure.data:
        _show_as_text(trace, trace.to_plotly_json())
    _show_as_text(figure.layout, figure.layout.to_plotly_json())
    figure.update_layout(
        template="plotly_white",
        # Plotly measures text outside the figure, where a family that is not valid CSS would give another font.
        font={"family": "'Source Sans', 'Segoe UI', Helvetica, Arial, sans-serif", "size": 14},
        legend={"groupclick": "toggleitem"},
        modebar={"remove": UPLOADS},
    )
    return figure


def marked(figure: go.Figure, generated: bool) -> go.Figure:
    """The figure; if its pictures are generated, the word "Generated" is added in the corner of the first picture."""
    if generated:
        across, down = figure.layout.xaxis.range, figure.layout.yaxis.range  # in pixels, y from top to bottom
        has_ranges = across is not None and down is not None
        figure.add_annotation(
            text="Generated",
            xref="x" if has_ranges else "x domain",
            yref="y" if has_ranges else "y domain",
            x=across[1] if has_ranges else 1,
            y=down[0] if has_ranges else 0,
            xanchor="right",
            yanchor="bottom",
            showarrow=False,
            font={"color": "white", "size": 13},
            bgcolor="rgba(0, 0, 0, 0.6)",
        )
    return figure


def _show_as_text(part: Any, values: dict[str, Any]) -> None:
    """Escape the texts of a trace or of a part of the layout in place; ``values`` are its properties that are set."""
    for name, value in values.items():
        if isinstance(value, dict):
            _show_as_text(part[name], value)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for inner, inner_values in zip(part[name], value, strict=True):
                _show_as_text(inner, inner_values)
        elif name == "hovertemplate" and isinstance(value, str):
            part[name] = _MARKUP.sub("&lt;", value)
        elif name in _TEXTS:
            part[name] = _escaped(value)


def _escaped(value: Any) -> Any:
    """A text, or the texts in an array or nested list, escaped as HTML; line breaks become ``<br>``."""
    if isinstance(value, str):
        return html.escape(value, quote=False).replace("\n", "<br>")
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return np.array([_escaped(inner) for inner in value.ravel().tolist()], dtype=object).reshape(value.shape)
    return value


def _never_upload() -> None:
    """Set `CONFIG` in every renderer with which a notebook can show a figure."""
    from plotly.io import renderers  # imports nbformat, which takes two seconds

    for name in renderers:
        renderer = renderers[name]
        if hasattr(renderer, "config"):
            renderer.config = {**(renderer.config or {}), **CONFIG}


if "IPython" in sys.modules:  # in a notebook, where figures that did not go through `tidy` are shown, too
    _never_upload()
