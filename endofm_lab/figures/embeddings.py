"""Figures of embeddings: a map of clips with a lasso, and a sheet of pictures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from endofm_lab.errors import UserError
from endofm_lab.figures.attention import SCALE
from endofm_lab.figures.prediction import data_uri
from endofm_lab.figures.style import WIDEST_PX, color_of, tidy


def scatter(
    points: ArrayLike, rows: pd.DataFrame, color: str, title: str = "", names: Sequence[str] = ("", "")
) -> go.Figure:
    """A marker per row at (N, 2) ``points``, coloured by a column: numbers on a colour scale, other columns by value.

    ``customdata`` is the row's position in ``rows``, so that a lasso or a click can be traced to its rows.

    Raises:
        UserError: there is no such column.
    """
    if color not in rows:
        raise UserError(f"There is no column {color!r} to colour by. The columns are {', '.join(rows.columns)}.")
    x, y = np.asarray(points).T
    place = np.arange(len(rows))
    hover_texts = [f"{video}\n{label}" for video, label in zip(rows["video"], rows["label"], strict=True)]
    figure = go.Figure()
    if pd.api.types.is_numeric_dtype(rows[color]):
        marker = {"color": rows[color], "colorscale": SCALE, "colorbar": {"title": color}, "size": 7}
        figure.add_trace(_markers(x, y, place, hover_texts, marker, color))
    else:
        for k, value in enumerate(sorted(set(rows[color].astype(str)))):
            in_group = (rows[color].astype(str) == value).to_numpy()
            marker = {"color": color_of(value, k), "size": 7, "opacity": 0.8}
            texts = [text for text, inside in zip(hover_texts, in_group, strict=True) if inside]
            figure.add_trace(_markers(x[in_group], y[in_group], place[in_group], texts, marker, value or "(not known)"))
    figure.update_xaxes(title_text=names[0], zeroline=False, showticklabels=False)
    figure.update_yaxes(title_text=names[1], zeroline=False, showticklabels=False)
    figure.update_layout(title=title, dragmode="lasso", height=560, legend={"title": color, "itemsizing": "constant"})
    return tidy(figure)


def picture_sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int = 6) -> go.Figure:
    """Pictures (H, W, 3) uint8 of any size in a grid, each with its title."""
    if not len(pictures):
        raise UserError("There are no pictures to show. Choose at least one clip.")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(titles), horizontal_spacing=0.01, vertical_spacing=0.2 / rows
    )
    for at, picture in enumerate(pictures):
        figure.add_trace(go.Image(source=data_uri(picture), hoverinfo="skip"), at // columns + 1, at % columns + 1)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=12)
    figure.update_layout(
        height=60 + rows * (WIDEST_PX // columns + 34), width=WIDEST_PX, margin={"l": 0, "r": 0, "t": 40, "b": 0}
    )
    return tidy(figure)


def _markers(
    x: np.ndarray, y: np.ndarray, place: np.ndarray, texts: list[str], marker: dict, name: str
) -> go.Scattergl | go.Scatter:
    """SVG markers for up to 4,000 points, which are sharp and which tests can click; WebGL markers for more points."""
    kind = go.Scatter if len(x) <= 4000 else go.Scattergl
    return kind(
        x=x,
        y=y,
        mode="markers",
        marker=marker,
        name=name,
        customdata=place.tolist(),
        text=texts,
        hovertemplate="%{text}<extra>%{customdata}</extra>",
    )
