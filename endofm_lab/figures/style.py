"""One look for all figures: colours that colour-blind readers can tell apart, names that keep their colour."""

import plotly.graph_objects as go

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


def color_of(name: str, index: int) -> str:
    """The colour of a class: its own if it has one, else the palette's by position."""
    return NAMED.get(name.lower(), PALETTE[index % len(PALETTE)])


def tidy(figure: go.Figure) -> go.Figure:
    """The project's fonts, background and legend."""
    figure.update_layout(
        template="plotly_white",
        # Plotly measures text outside the figure: a family that is no valid CSS would be another font there.
        font={"family": "'Source Sans', 'Segoe UI', Helvetica, Arial, sans-serif", "size": 14},
        legend={"groupclick": "toggleitem"},
    )
    return figure
