"""Figures of attention and attribution: maps over frames, heads, matrices over time, film strips.

Maps are (T, h, w) arrays or tensors, frames are (T, H, W, 3) uint8, times are in seconds. A map is divided by its
largest value in the whole clip, so that frames can be compared; negative values (evidence against the class) stay dark.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from plotly.colors import get_colorscale, unlabel_rgb
from plotly.subplots import make_subplots

from endofm_lab.figures.prediction import data_uri
from endofm_lab.figures.style import PALETTE, WIDEST_PX, tidy

SCALE = "Viridis"
_STOPS = get_colorscale(SCALE)
_RGB = np.array(
    [unlabel_rgb(c) if c.startswith("rgb") else [int(c[i : i + 2], 16) for i in (1, 3, 5)] for _, c in _STOPS]
)


def blend(frames: np.ndarray, maps: ArrayLike, smooth: bool = True) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 covered by their maps (T, h, w): the higher a value, the more colour.

    ``smooth`` interpolates between patches; otherwise each patch keeps its own value. A map of a moment of several
    frames covers each of them.
    """
    values = torch.as_tensor(np.asarray(maps), dtype=torch.float32).clamp(min=0)[:, None]
    values = values.repeat_interleave(len(frames) // len(values), dim=0)
    size = frames.shape[1:3]
    values = F.interpolate(values, size=size, mode="bilinear") if smooth else F.interpolate(values, size=size)
    heat = (values[:, 0] / values.max().clamp(min=1e-12)).numpy()
    colour = np.stack([np.interp(heat, [at for at, _ in _STOPS], _RGB[:, c]) for c in range(3)], axis=-1)
    cover = (0.25 + 0.5 * heat)[..., None]
    return (frames * (1 - cover) + colour * cover).round().astype(np.uint8)


def overlay(frames: np.ndarray, maps: ArrayLike, times_s: ArrayLike | None = None, title: str = "") -> go.Figure:
    """The frames of a clip covered by their maps, with a time slider."""
    pictures = blend(frames, maps)
    names = frame_names(len(frames), times_s)
    images = [go.Image(source=data_uri(picture), hoverinfo="skip") for picture in pictures]
    figure = go.Figure(images[0], frames=[go.Frame(data=[i], name=n) for i, n in zip(images, names, strict=True)])
    settings = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": name, "method": "animate", "args": [[name], settings]} for name in names]
    figure.update_layout(
        sliders=[{"steps": steps, "currentvalue": {"prefix": "frame at "}, "pad": {"t": 10}}],
        title=title,
        height=600,
        margin={"l": 30, "r": 30, "t": 44 if title else 0, "b": 20},
    )
    _picture_axes(figure, frames)
    return tidy(figure)


def patch_picker(
    frame: np.ndarray, values: ArrayLike, selected: tuple[int, int] | None = None, title: str = ""
) -> go.Figure:
    """One frame covered by its map (h, w), with a clickable marker per patch; ``customdata`` is row and column."""
    values = np.asarray(values)
    h, w = values.shape
    H, W = frame.shape[:2]
    row, column = (axis.ravel() for axis in np.mgrid[:h, :w])
    figure = go.Figure(go.Image(source=data_uri(blend(frame[None], values[None])[0]), hoverinfo="skip"))
    figure.add_trace(
        go.Scatter(
            x=(column + 0.5) * W / w,
            y=(row + 0.5) * H / h,
            mode="markers",
            marker={"size": 9, "color": "rgba(255,255,255,0.5)", "line": {"width": 1, "color": "rgba(0,0,0,0.5)"}},
            customdata=np.column_stack([row, column]).tolist(),  # as lists: Plotly returns rows of arrays as dicts
            text=[f"{value:.4f}" for value in values.ravel()],
            hovertemplate="row %{customdata[0]}, column %{customdata[1]}: %{text}<extra></extra>",
            showlegend=False,
        )
    )
    if selected is not None:
        y, x = selected[0] * H / h, selected[1] * W / w
        figure.add_shape(
            type="rect", x0=x, x1=x + W / w, y0=y, y1=y + H / h, line={"color": "rgb(255,255,255)", "width": 3}
        )
    figure.update_layout(
        title=title, height=520, margin={"l": 0, "r": 0, "t": 44 if title else 0, "b": 0}, clickmode="event+select"
    )
    _picture_axes(figure, frame[None])
    return tidy(figure)


def head_grid(frame: np.ndarray, maps: Mapping[str, ArrayLike], title: str = "", columns: int = 6) -> go.Figure:
    """One frame covered by several maps (h, w), each divided by its own largest value: heads, blocks or methods."""
    names = list(maps)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(rows, columns, subplot_titles=names, horizontal_spacing=0.01, vertical_spacing=0.16 / rows)
    for at, name in enumerate(names):
        picture = blend(frame[None], np.asarray(maps[name])[None])[0]
        figure.add_trace(go.Image(source=data_uri(picture), hoverinfo="skip"), at // columns + 1, at % columns + 1)
    figure.update_layout(
        title=title,
        width=WIDEST_PX,
        height=round(90 + rows * (WIDEST_PX / columns * frame.shape[0] / frame.shape[1] + 30)),
        margin={"l": 0, "r": 0, "t": 80, "b": 0},
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return tidy(figure)


def temporal_matrices(
    matrices: Mapping[str, ArrayLike], times_s: ArrayLike | None = None, title: str = "", of: str = "attention"
) -> go.Figure:
    """Matrices (T, T) side by side on one colour scale: the frame of a row reads from the frame of a column.

    For moments of several frames, the time is that of the first of them.
    """
    names = list(matrices)
    values = [np.asarray(matrices[name]) for name in names]
    n = len(values[0])
    labels = frame_names(n, None if times_s is None else np.asarray(times_s)[:: max(len(np.asarray(times_s)) // n, 1)])
    figure = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.04)
    side = min(400, (WIDEST_PX - 170) // len(names))  # px of each matrix
    for at, matrix in enumerate(values, start=1):
        figure.add_trace(
            go.Heatmap(
                z=matrix,
                x=labels,
                y=labels,
                coloraxis="coloraxis",
                hovertemplate="%{y} reads %{x}: %{z:.4f}<extra></extra>",
            ),
            1,
            at,
        )
        figure.update_xaxes(title_text="read from", type="category", row=1, col=at)
        figure.update_yaxes(autorange="reversed", type="category", row=1, col=at)
    figure.update_yaxes(title_text="reading frame", row=1, col=1)
    figure.update_layout(
        coloraxis={"colorscale": SCALE, "cmin": min(0.0, *(float(v.min()) for v in values)), "colorbar": {"title": of}},
        title=title,
        height=min(460, 200 + side),
        width=170 + side * len(names),
    )
    return tidy(figure)


def film_strip(frames: np.ndarray, maps: ArrayLike, times_s: ArrayLike | None = None, title: str = "") -> go.Figure:
    """All frames of a clip in a row, and below them the same frames covered by their maps."""
    T, H, W, _ = frames.shape
    strip = np.concatenate([np.concatenate(list(frames), axis=1), np.concatenate(list(blend(frames, maps)), axis=1)])
    figure = go.Figure(go.Image(source=data_uri(strip), hoverinfo="skip"))
    figure.update_xaxes(
        tickmode="array", tickvals=[(t + 0.5) * W for t in range(T)], ticktext=frame_names(T, times_s), showgrid=False
    )
    figure.update_yaxes(visible=False, scaleanchor="x")
    # At most 320 px per frame, so that a clip of one frame does not fill the page.
    strip_px = min(WIDEST_PX - 20, 320 * T)
    figure.update_layout(title=title, width=max(strip_px, 460) + 20, height=round(strip_px / T * 2 * H / W) + 100)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 50, "b": 50})
    return tidy(figure)


def head_statistics(table: pd.DataFrame, title: str = "") -> go.Figure:
    """Attention distance and entropy of every head over the blocks, from `AttentionMaps.statistics`."""
    axes = [axis for axis in ("space", "time") if (table["axis"] == axis).any()]
    units = {"space": "patches", "time": "frames"}
    names = [f"{statistic} in {axis}" for axis in axes for statistic in ("distance", "entropy")]
    figure = make_subplots(1, len(names), subplot_titles=names, horizontal_spacing=0.08)
    for at, axis in enumerate(axes):
        rows = table[table["axis"] == axis]
        for offset, column in enumerate(("distance", "entropy")):
            figure.add_trace(
                go.Scatter(
                    x=rows["block"],
                    y=rows[column],
                    mode="markers",
                    marker={"color": PALETTE[at], "size": 9, "opacity": 0.7},
                    customdata=rows["head"],
                    hovertemplate="block %{x}, head %{customdata}: %{y:.3f}<extra></extra>",
                    showlegend=False,
                ),
                1,
                2 * at + offset + 1,
            )
        figure.update_yaxes(title_text=units[axis], row=1, col=2 * at + 1)
        figure.update_yaxes(title_text="1 = uniform", row=1, col=2 * at + 2)
    figure.update_xaxes(title_text="block", dtick=1)
    figure.update_yaxes(rangemode="tozero", title_standoff=0)
    figure.update_layout(title=title, height=340)
    return tidy(figure)


def curves(lines: Mapping[str, tuple[ArrayLike, ArrayLike]], x: str, y: str, title: str = "") -> go.Figure:
    """Named lines of points (x, y), for example deletion and insertion curves."""
    figure = go.Figure(
        [
            go.Scatter(x=np.asarray(xs), y=np.asarray(ys), name=name, mode="lines+markers", line={"color": colour})
            for (name, (xs, ys)), colour in zip(lines.items(), PALETTE * 4, strict=False)
        ]
    )
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y, height=380)
    return tidy(figure)


def frame_names(n: int, times_s: ArrayLike | None) -> list[str]:
    """Names of the frames of a clip: their times, with a number where a short video repeats its last frame."""
    if times_s is None:
        return [f"frame {t}" for t in range(n)]
    names = [f"{t:.2f} s" for t in np.asarray(times_s)]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _picture_axes(figure: go.Figure, frames: np.ndarray) -> None:
    figure.update_xaxes(visible=False, range=[0, frames.shape[2]], constrain="domain")
    figure.update_yaxes(visible=False, range=[frames.shape[1], 0], scaleanchor="x")
