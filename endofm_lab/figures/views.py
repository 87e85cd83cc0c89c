"""Figures of the views of a clip in self-supervised learning: their crops, their time windows and their pictures."""

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from endofm_lab.figures.prediction import data_uri
from endofm_lab.figures.style import PALETTE, WIDEST_PX, tidy
from endofm_lab.pretraining.views import ViewDraw, Views
from endofm_lab.video.transforms import InputSpec, from_input

# Each global view has its own colour; local views with the same number of frames share a colour.
_GLOBAL, _LOCAL = PALETTE[:2], PALETTE[2:]


def colours(views: Views) -> list[str]:
    """A colour per view."""
    lengths = sorted({len(draw.frames) for draw in views.draws if draw.kind == "local"})
    shades = {length: _LOCAL[n % len(_LOCAL)] for n, length in enumerate(lengths)}
    return [_GLOBAL[n] if draw.kind == "global" else shades[len(draw.frames)] for n, draw in enumerate(views.draws)]


def decoded_at(views: Views, time_s: float) -> int:
    """The index in ``views.frames`` of the decoded frame that is nearest to a time in the video."""
    return int(np.abs(views.times_s[views.frame_numbers] - time_s).argmin())


def in_space(views: Views, time_s: float | None = None, title: str = "") -> go.Figure:
    """The frame nearest to a time (by default the middle of the clip) with the crop of every view.

    Views whose time window contains this frame have a solid outline, the others a faint dotted outline.
    """
    at = decoded_at(views, float(views.times_s.mean()) if time_s is None else time_s)
    frame, number = views.frames[at], int(views.frame_numbers[at])
    height, width = frame.shape[:2]
    figure = go.Figure(go.Image(source=data_uri(frame), hoverinfo="skip"))
    for draw, colour in zip(views.draws, colours(views), strict=True):
        x1, y1, x2, y2 = draw.crop_xyxy
        is_current = draw.window[0] <= number < draw.window[1]
        figure.add_trace(
            go.Scatter(
                x=[x1, x2, x2, x1, x1],
                y=[y1, y1, y2, y2, y1],
                mode="lines",
                line={
                    "color": colour,
                    "width": (4 if draw.kind == "global" else 3) if is_current else 2,
                    "dash": "solid" if is_current else "dot",
                },
                opacity=1.0 if is_current else 0.8,
                name=draw.name,
                hovertemplate=f"%{{fullData.name}}: {x2 - x1} x {y2 - y1} px<extra></extra>",
                showlegend=False,
            )
        )
        figure.add_annotation(
            x=x1, y=y1, text=_short(draw), showarrow=False, xanchor="left", yanchor="top", bgcolor=colour,
            font={"color": "white", "size": 12}, opacity=1.0 if is_current else 0.6, borderpad=1,
        )  # fmt: skip
    figure.update_xaxes(visible=False, range=[0, width], constrain="domain")
    figure.update_yaxes(visible=False, range=[height, 0], scaleanchor="x")
    figure.update_layout(title=title, height=440, margin={"l": 0, "r": 0, "t": 40 if title else 0, "b": 0})
    return tidy(figure)


def in_time(views: Views, time_s: float | None = None, title: str = "") -> go.Figure:
    """A row per view: its time window as a bar, its frames as dots; a line at ``time_s``."""
    figure = go.Figure()
    descriptions = views.describe()
    for draw, description, colour in zip(views.draws, descriptions, colours(views), strict=True):
        start_s, end_s = description["window_s"]
        row = f"{draw.name} · {len(draw.frames)} frames"
        figure.add_trace(
            go.Bar(
                x=[end_s - start_s],
                y=[row],
                base=[start_s],
                orientation="h",
                marker={"color": colour, "opacity": 0.35},
                hovertemplate=f"{draw.name}: {start_s:.2f} s to {end_s:.2f} s<extra></extra>",
                showlegend=False,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=description["times_s"],
                y=[row] * len(draw.frames),
                mode="markers",
                marker={"color": colour, "size": 8},
                hovertemplate="%{x:.3f} s<extra></extra>",
                showlegend=False,
            )
        )
    if time_s is not None:
        figure.add_vline(x=time_s, line={"color": "#444444", "dash": "dot", "width": 2})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="time in the video (s)")
    figure.update_layout(
        title=title,
        height=110 + 30 * len(descriptions),
        bargap=0.35,
        margin={"l": 150, "t": 40 if title else 10, "b": 40},
    )
    return tidy(figure)


def seen(views: Views, spec: InputSpec, indices: list[int] | None = None, title: str = "", most: int = 8) -> go.Figure:
    """A film strip of each view as the network receives it, titled with its size and augmentation.

    Args:
        views: the views of a clip.
        spec: their normalisation (`ViewSpec.input`), which is undone for display.
        indices: indices of the views to show; by default all views.
        title: title of the figure.
        most: largest number of frames per view; longer views are sampled evenly.
    """
    places = list(range(len(views.draws))) if indices is None else indices
    films, names = [], []
    for place in places:
        draw = views.draws[place]
        pictures = from_input(views.tensors[place][None], spec)[0]
        shown = np.unique(np.linspace(0, len(pictures) - 1, min(most, len(pictures))).round().astype(int))
        films.append(_film(pictures[shown], most))
        names.append(f"{draw.name}: {_done(draw)}")
    rows = len(films)
    figure = make_subplots(rows, 1, subplot_titles=names, vertical_spacing=0.26 / rows)
    for row, film in enumerate(films, start=1):
        figure.add_trace(go.Image(source=data_uri(film), hoverinfo="skip"), row, 1)
    figure.update_xaxes(visible=False, constrain="domain", constraintoward="left")
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=12, x=0, xanchor="left")
    figure.update_layout(
        title=title, width=min(112 * most, WIDEST_PX), height=(70 if title else 30) + 140 * rows,
        margin={"l": 10, "r": 0, "t": 70 if title else 30, "b": 0},
    )  # fmt: skip
    return tidy(figure)


def _film(pictures: np.ndarray, places: int, side_px: int = 112) -> np.ndarray:
    """Pictures (n, px, px, 3) side by side on a white strip with room for ``places`` pictures."""
    sheet = np.full((side_px, side_px * places, 3), 255, np.uint8)
    for n, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize((side_px - 2, side_px - 2))
        sheet[1:-1, n * side_px + 1 : (n + 1) * side_px - 1] = np.asarray(small)
    return sheet


def _short(draw: ViewDraw) -> str:
    return draw.name.replace("global ", "G").replace("local ", "L")


def _done(draw: ViewDraw) -> str:
    words = [f"{len(draw.frames)} frames of {draw.size_px} px"]
    if draw.flip:
        words.append("mirrored")
    if draw.grey:
        words.append("grey")
    factors = [(name, getattr(draw, name)) for name in ("brightness", "contrast", "saturation")]
    words += [
        f"{name} x {value:.2f}" for name, value in factors if value != 1 and not (name == "saturation" and draw.grey)
    ]
    if draw.blur_sigma_px:
        words.append(f"blurred by {draw.blur_sigma_px:.1f} px")
    if draw.solarise:
        words.append("bright parts inverted")
    return ", ".join(words)
