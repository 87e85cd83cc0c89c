"""Figures of a prediction: timelines of scores, masks and boxes, and a frame with its mask and boxes."""

import base64
import io

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from endofm_lab.data.labels import is_finding
from endofm_lab.figures.style import MASK_RGB, UNFAMILIAR, color_of, tidy
from endofm_lab.prediction import VideoPrediction
from endofm_lab.study.stretches import DEFAULT, Thresholds


def timeline(prediction: VideoPrediction, time_s: float | None = None, threshold: float | None = None) -> go.Figure:
    """One row per classification head: a marker per clip and class at the clip's middle, and a line at ``time_s``.

    A band shows `VideoPrediction.score_spread` if clips in between were run. A line marks the ``threshold`` in heads
    that distinguish findings from normal. Stretches that look unlike what the model learned are grey, and the markers
    of such clips are hollow.
    Markers can be clicked: their ``customdata`` is the clip's number and its start and end in seconds.
    """
    heads = list(prediction.scores)
    figure = make_subplots(
        rows=max(len(heads), 1), cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=heads
    )
    middle = prediction.times_s.mean(axis=1)
    clips = np.column_stack([np.arange(len(middle)), prediction.times_s])
    symbols = (
        "circle" if prediction.familiar is None else np.where(prediction.familiar, "circle", "circle-open").tolist()
    )
    for row, head in enumerate(heads, start=1):
        for k, name in enumerate(prediction.classes[head]):
            group = {"legendgroup": f"{head} {name}"}  # a click in the legend hides a line together with its band
            if head in prediction.score_spread:
                band = _band(middle, prediction.score_spread[head][:, k], color_of(name, k))
                figure.add_trace(band.update(group), row=row, col=1)
            figure.add_trace(
                go.Scatter(
                    x=middle,
                    y=prediction.scores[head][:, k],
                    name=name,
                    mode="lines+markers",
                    legendgrouptitle_text=head if k == 0 else None,
                    **group,
                    line={"color": color_of(name, k), "width": 2},
                    marker={"size": 8, "symbol": symbols},
                    customdata=clips.tolist(),  # as lists: Plotly returns rows of arrays as dicts
                    hovertemplate="%{fullData.name}: %{y:.3f}<br>clip %{customdata[0]}: "
                    "%{customdata[1]:.2f} s to %{customdata[2]:.2f} s<extra></extra>",
                ),
                row=row,
                col=1,
            )
        figure.update_yaxes(range=[-0.04, 1.04], title_text="score", row=row, col=1)
        if threshold is not None and not all(map(is_finding, prediction.classes[head])):
            figure.add_hline(y=threshold, line={"color": "#444444", "dash": "dash", "width": 1}, row=row, col=1)
    _shade_unfamiliar(figure, prediction)
    if time_s is not None:
        figure.add_vline(x=time_s, line={"color": "#444444", "dash": "dot", "width": 2})
    figure.update_xaxes(title_text="time in the video (s)", row=max(len(heads), 1), col=1)
    figure.update_layout(height=120 + 190 * max(len(heads), 1), hovermode="closest")
    return tidy(figure).update_layout(legend={"groupclick": "togglegroup", "tracegroupgap": 0})


def _band(middle: np.ndarray, bounds: np.ndarray, colour: str) -> go.Scatter:
    """The area between the lowest and the highest scores ``bounds`` (N, 2) of clips around the times ``middle``."""
    return go.Scatter(
        x=np.concatenate([middle, middle[::-1]]),
        y=np.concatenate([bounds[:, 0], bounds[::-1, 1]]),
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )


def _shade_unfamiliar(figure: go.Figure, prediction: VideoPrediction) -> None:
    """Shade the stretches that look unlike what the model learned, in every row, with an entry in the legend."""
    times_s = prediction.frame_times_s
    stretches = prediction.unfamiliar_stretches()
    for first, last in stretches:
        after = times_s[last + 1] if last + 1 < len(times_s) else prediction.video.duration_s
        figure.add_vrect(x0=times_s[first], x1=after, fillcolor=UNFAMILIAR, opacity=0.35, line_width=0, layer="below")
    if stretches:
        patch = {"size": 14, "symbol": "square", "color": UNFAMILIAR}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=patch, name="unfamiliar")


def frame_timeline(
    prediction: VideoPrediction,
    time_s: float | None = None,
    thresholds: Thresholds = DEFAULT,
    unfamiliar: bool = False,
) -> go.Figure:
    """The share of each frame that the mask covers (%), and the highest box score of every class in each frame.

    A mask contains the pixels that reach its threshold, and boxes below theirs do not count. There is one row for the
    masks of all mask heads, and one for each box head; a line marks ``time_s``. Frames without a box have the score 0.
    The ``customdata`` of a marker is its frame. Frames that look unlike what the model learned are grey and have no
    values, unless ``unfamiliar`` is set.
    """
    hidden = prediction.unfamiliar_frames() & (not unfamiliar)
    rows: dict[str, dict[str, np.ndarray]] = {}
    for head, values in prediction.maps.items():
        covered = (np.asarray(values) >= 255 * thresholds.score).any(axis=1).mean(axis=(1, 2))  # values are uint8
        rows.setdefault("mask, % of the frame", {})["mask" if len(prediction.maps) == 1 else head] = 100 * covered
    for head in prediction.box_heads:
        boxes = prediction.boxes_xyxy[prediction.boxes_xyxy["head"] == head]
        boxes = boxes[boxes["score"] >= thresholds.box]
        best = boxes.pivot_table(index="frame", columns="label", values="score", aggfunc="max")
        best = best.reindex(prediction.frames).fillna(0.0)
        lines = {f"box: {label}": best[label].to_numpy() for label in best}
        title = "highest box score" if len(prediction.box_heads) == 1 else f"highest box score of {head}"
        rows[title] = lines or {"no box": np.zeros(len(prediction.frames))}
    figure = make_subplots(rows=max(len(rows), 1), cols=1, shared_xaxes=True, vertical_spacing=0.14)
    for row, (title, lines) in enumerate(rows.items(), start=1):
        for k, (name, values) in enumerate(lines.items()):
            colour = f"rgb{MASK_RGB}" if name == "mask" else color_of(name.removeprefix("box: "), k + 1)
            figure.add_scatter(
                x=prediction.frame_times_s,
                y=np.where(hidden, np.nan, values),
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 5},
                customdata=prediction.frames.tolist(),
                hovertemplate="%{fullData.name}: %{y:.3g}<br>frame %{customdata}, %{x:.2f} s<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    _shade_unfamiliar(figure, prediction)
    if time_s is not None:
        figure.add_vline(x=time_s, line={"color": "#444444", "dash": "dot", "width": 2})
    figure.update_xaxes(title_text="time in the video (s)", row=max(len(rows), 1), col=1)
    figure.update_layout(height=80 + 160 * max(len(rows), 1), margin_t=20, hovermode="closest")
    return tidy(figure)


def frame_figure(
    frame: np.ndarray, mask: np.ndarray | None = None, boxes: pd.DataFrame | None = None, title: str = ""
) -> go.Figure:
    """A frame (H, W, 3) uint8 with its mask (H, W) bool as tint and outline, and its boxes (x1, y1, x2, y2 in pixels).

    ``boxes`` has the columns of `VideoPrediction.boxes_xyxy`.
    """
    height, width = frame.shape[:2]
    picture = frame if mask is None else tint(frame, mask)
    figure = go.Figure(go.Image(source=data_uri(picture), hovertemplate="x %{x}, y %{y}<extra></extra>"))
    for _, box in (boxes if boxes is not None else pd.DataFrame()).iterrows():
        colour = color_of(str(box["label"]), 1)
        figure.add_shape(
            type="rect", x0=box["x1"], y0=box["y1"], x1=box["x2"], y1=box["y2"], line={"color": colour, "width": 3}
        )
        figure.add_annotation(
            x=box["x1"],
            y=box["y1"],
            text=f"{box['label']} {box['score']:.2f}",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font={"color": "white", "size": 13},
            bgcolor=colour,
        )
    figure.update_xaxes(visible=False, range=[0, width], constrain="domain")
    figure.update_yaxes(visible=False, range=[height, 0], scaleanchor="x")
    figure.update_layout(title=title, margin={"l": 0, "r": 0, "t": 36 if title else 0, "b": 0}, height=460)
    return tidy(figure)


def tint(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of a frame (H, W, 3) uint8 in which the mask (H, W) bool is lightly tinted and outlined."""
    inner = mask.copy()
    width = max(1, frame.shape[0] // 240)  # outline in pixels
    for _ in range(width):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    out = frame.astype(np.float32)
    colour = np.array(MASK_RGB, dtype=np.float32)
    out[mask] = 0.8 * out[mask] + 0.2 * colour
    out[mask & ~inner] = colour
    return out.astype(np.uint8)


def data_uri(picture: np.ndarray, quality: int = 90) -> str:
    """A uint8 picture (H, W, 3) as a JPEG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
