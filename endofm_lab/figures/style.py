"""One look for all figures: colours that colour-blind readers can tell apart, names that keep their colour.

A figure can hold the names of files, classes and patients. Plotly reads text as HTML, so `tidy` escapes it. No figure
offers to upload itself: every place that shows one passes `CONFIG` or `STILL` on.
"""

import html
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

# Okabe and Ito's palette; grey stands for "nothing found".
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5D3A9B", "#B8B800")
NAMED = {
    "normal": "#7F7F7F",
    "polyp": "#D55E00",
    "ulcer": "#E69F00",
    "bleeding": "#B2182B",
    "advancing": "#0072B2",
    "withdrawing": "#009E73",
}
MASK_RGB = (0, 229, 255)  # far from every colour of tissue

# Plotly's configuration wherever a figure is shown: without the button that uploads it, and without the way there.
CONFIG: dict[str, Any] = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
STILL = {**CONFIG, "displayModeBar": False}  # for figures that need no tools

_MARKUP = re.compile(r"<(?!/?(?:br|extra)>)")  # in templates of ours, every other tag is text
_TEXTS = ("name", "text", "hovertext", "ticktext", "label", "prefix", "suffix", "x", "y", "customdata")


def color_of(name: str, index: int) -> str:
    """The colour of a class: its own if it has one, else the palette's by position."""
    return NAMED.get(name.lower(), PALETTE[index % len(PALETTE)])


def tidy(figure: go.Figure) -> go.Figure:
    """The project's fonts, background and legend; every text in the figure is shown as it is, not read as HTML.

    Only the hover templates, which the project writes, may hold ``<br>`` and ``<extra>``. To be called once.
    """
    figure.update_layout(
        template="plotly_white",
        # Plotly measures text outside the figure: a family that is no valid CSS would be another font there.
        font={"family": "'Source Sans', 'Segoe UI', Helvetica, Arial, sans-serif", "size": 14},
        legend={"groupclick": "toggleitem"},
    )
    for trace in figure.data:
        _show_as_text(trace, trace.to_plotly_json())
    layout = figure.layout.to_plotly_json()
    del layout["template"]  # it is long and holds no text
    _show_as_text(figure.layout, layout)
    return figure


def marked(figure: go.Figure, generated: bool) -> go.Figure:
    """A figure with pictures that says in the corner of the first one that they are generated, where they are."""
    if generated:
        across, down = figure.layout.xaxis.range, figure.layout.yaxis.range  # of pixels, from top to bottom
        known = across is not None and down is not None
        figure.add_annotation(
            text="Generated",
            xref="x" if known else "x domain",
            yref="y" if known else "y domain",
            x=across[1] if known else 1,
            y=down[0] if known else 0,
            xanchor="right",
            yanchor="bottom",
            showarrow=False,
            font={"color": "white", "size": 13},
            bgcolor="rgba(0, 0, 0, 0.6)",
        )
    return figure


def _show_as_text(part: Any, values: dict[str, Any]) -> None:
    """Escape the texts of a trace or of a part of the layout in place; ``values`` is what is set in it."""
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
    """A text, or the texts in an array or (nested) list, with entities for ``&``, ``<``, ``>`` and breaks of lines."""
    if isinstance(value, str):
        return html.escape(value, quote=False).replace("\n", "<br>")
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return np.array([_escaped(inner) for inner in value.ravel().tolist()], dtype=object).reshape(value.shape)
    return value


def _never_upload() -> None:
    """Give `CONFIG` to every way in which a notebook shows a figure."""
    for name in pio.renderers:
        renderer = pio.renderers[name]
        if hasattr(renderer, "config"):
            renderer.config = {**(renderer.config or {}), **CONFIG}


_never_upload()
