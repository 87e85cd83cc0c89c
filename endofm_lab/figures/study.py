"""Figures of a study: the scores of all frames over time, and frames between their neighbours."""

from fractions import Fraction

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from endofm_lab.errors import VideoError
from endofm_lab.figures.pictures import mark_generated
from endofm_lab.figures.prediction import data_uri
from endofm_lab.figures.style import UNFAMILIAR, tidy
from endofm_lab.metrics.phases import true_runs
from endofm_lab.study.study import UNREADABLE, Study
from endofm_lab.video.reader import VideoReader, open_video

_BINS = 600  # of the timeline
_ROW_PX = 30  # height of a class in the timeline
_TILE_PX = 150
_GAP_PX = 6
_TEXT_PX = 24  # height of the text below a tile
_MARK = "#D55E00"  # colour of the outline around the frame in question


def clock(time_s: float) -> str:
    """A time as m:ss.cc, or as h:mm:ss.cc from one hour on."""
    minutes, hundredths = divmod(round(time_s * 100), 6000)
    seconds = f"{hundredths // 100:02d}.{hundredths % 100:02d}"
    return f"{minutes}:{seconds}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds}"


def study_timeline(study: Study) -> go.Figure:
    """One heat map per head: the highest score of each class in up to 600 time bins.

    Bins without a readable frame are blank, and bins in which most readable frames look unlike what the model learned
    are covered in grey. The unit of time (seconds, minutes or hours) depends on the video's length.
    """
    heads = list(study.scores)
    n = len(study.times_s)
    unit, unit_s = next(
        (unit, unit_s)
        for unit, unit_s, up_to in (("s", 1, 300), ("min", 60, 3 * 3600), ("h", 3600, np.inf))
        if study.times_s[-1] <= up_to
    )
    starts = np.unique(np.linspace(0, n, min(_BINS, n), endpoint=False).astype(np.int64))
    n_rows = [len(study.classes[head]) for head in heads]
    top, bottom, between = 40, 50, 46  # px: titles and the axis
    inner = sum(n_rows) * _ROW_PX + (len(heads) - 1) * between
    figure = make_subplots(
        rows=len(heads),
        cols=1,
        shared_xaxes=True,
        row_heights=n_rows,
        vertical_spacing=between / inner,
        subplot_titles=heads,
    )
    for row, head in enumerate(heads, start=1):
        filled = np.where(np.isnan(study.scores[head]), -1, study.scores[head])
        highest = np.maximum.reduceat(filled, starts, axis=0)
        figure.add_trace(
            go.Heatmap(
                x=study.times_s[starts] / unit_s,
                y=list(study.classes[head]),
                z=np.where(highest < 0, np.nan, highest).T,
                customdata=np.tile([clock(time_s) for time_s in study.times_s[starts]], (n_rows[row - 1], 1)),
                coloraxis="coloraxis",
                ygap=1,
                hovertemplate="%{y} at %{customdata}: %{z:.3f}<extra></extra>",
            ),
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", type="category", ticksuffix=" ", automargin=True)
    figure.update_xaxes(title_text=f"time ({unit})", row=len(heads), col=1)
    _shade_unfamiliar(figure, study, starts, unit_s)
    bar = {"title": "score", "lenmode": "pixels", "len": max(inner, 110), "yanchor": "middle", "y": 0.5}
    figure.update_layout(
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": "Viridis", "colorbar": bar},
        height=inner + top + bottom,
        margin={"t": top, "b": bottom, "l": 20, "r": 20},
    )
    return tidy(figure)


def _shade_unfamiliar(figure: go.Figure, study: Study, starts: np.ndarray, unit_s: int) -> None:
    """Cover the bins that look unlike what the model learned in every row, with an entry in the legend."""
    ends_s = np.append(study.times_s, study.times_s[-1] + 1 / float(study.video.fps))
    strange = np.add.reduceat(study.unfamiliar_frames().astype(np.int64), starts)
    n_read = np.add.reduceat((study.state != UNREADABLE).astype(np.int64), starts)
    stops = np.append(starts[1:], len(study.times_s))
    runs = true_runs(2 * strange > n_read)
    for first, after in runs:
        edges_s = ends_s[starts[first]], ends_s[stops[after - 1]]
        figure.add_vrect(
            x0=edges_s[0] / unit_s, x1=edges_s[1] / unit_s, fillcolor=UNFAMILIAR, opacity=0.75, line_width=0
        )
    if len(runs):
        patch = {"size": 14, "symbol": "square", "color": UNFAMILIAR}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=patch, name="unfamiliar", showlegend=True)
        figure.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"})


def frames_figure(study: Study, frames: pd.DataFrame, step_s: float = 0.5) -> go.Figure:
    """One row per frame of a table (columns frame and score), which is outlined and shown between its neighbours.

    The neighbours are ``step_s`` and twice ``step_s`` before and after the frame. Neighbours that are unreadable or
    outside the video are left out.

    Raises:
        VideoError: the study's video was moved or cannot be opened.
    """
    offset = max(1, round(step_s * float(study.video.fps)))
    shifts = [-2 * offset, -offset, 0, offset, 2 * offset]
    height = round(_TILE_PX * study.video.height_px / study.video.width_px)
    row_px, column_px = height + _TEXT_PX + _GAP_PX, _TILE_PX + _GAP_PX
    sheet = np.full((len(frames) * row_px, len(shifts) * column_px, 3), 255, np.uint8)
    figure = go.Figure()
    with open_video(study.video.path, _folder_rate(study), check=False) as reader:
        for row, (frame, score) in enumerate(zip(frames["frame"].tolist(), frames["score"].tolist(), strict=True)):
            top = row * row_px + _GAP_PX // 2
            for column, shift in enumerate(shifts):
                at, left = frame + shift, column * column_px + _GAP_PX // 2
                picture = _tile(reader, at, height) if 0 <= at < reader.info.n_frames else None
                if picture is None:
                    continue
                sheet[top : top + height, left : left + _TILE_PX] = picture
                font = {"size": 13, "weight": "bold" if shift == 0 else "normal"}
                text = clock(reader.times_s[at]) + (f" · {score:.3f}" if shift == 0 else "")
                figure.add_annotation(
                    x=left, y=top + height, text=text, showarrow=False, xanchor="left", yanchor="top", font=font
                )
                if shift == 0:
                    edges = {"x0": left - 1, "x1": left + _TILE_PX, "y0": top - 1, "y1": top + height}
                    figure.add_shape(type="rect", **edges, line={"color": _MARK, "width": 3})
    figure.add_trace(go.Image(source=data_uri(sheet), hoverinfo="skip"))
    figure.update_xaxes(visible=False, range=[0, sheet.shape[1]])
    figure.update_yaxes(visible=False, range=[sheet.shape[0], 0], scaleanchor="x")
    figure.update_layout(width=sheet.shape[1], height=sheet.shape[0], margin={"l": 0, "r": 0, "t": 0, "b": 0})
    return tidy(figure)


def _folder_rate(study: Study) -> Fraction | None:
    return study.video.fps if study.video.decoder == "frames" else None


def _tile(reader: VideoReader, frame: int, height: int) -> np.ndarray | None:
    """A frame as a small picture, or None if the frame cannot be read."""
    try:
        picture = reader.read([frame])[0]
    except VideoError:
        return None
    tile = Image.fromarray(picture).resize((_TILE_PX, height))
    if reader.info.generated:
        mark_generated(tile)
    return np.asarray(tile)
