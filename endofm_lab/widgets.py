"""Explorers for JupyterLab: attention, embeddings, views and predictions, with the same figures as the app.

Every action of the mouse is also possible with a slider or a number field. Where widgets do not render (on a web page
or in an export), each explorer shows a still picture and a sentence.
"""

import html
import io
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from PIL import Image

from endofm_lab.data.manifest import folder_fps
from endofm_lab.explain.atlas import Neighbours, fit_pca
from endofm_lab.explain.attention import look
from endofm_lab.explain.embeddings import EmbeddingStore
from endofm_lab.figures.attention import blend, patch_picker, temporal_matrices
from endofm_lab.figures.embeddings import scatter
from endofm_lab.figures.prediction import data_uri, frame_figure, timeline
from endofm_lab.figures.style import CONFIG
from endofm_lab.model.video_model import VideoModel
from endofm_lab.prediction import VideoPrediction
from endofm_lab.pretraining.views import Views
from endofm_lab.video.reader import open_video
from endofm_lab.video.transforms import InputSpec, from_input, to_input

_WIDE = w.Layout(width="100%")

# JupyterLab takes the arrow keys of a drop-down list for its own cells unless the list carries this attribute, and
# ipywidgets gives the handle of a slider no name for screen readers.
_REPAIR = """
function repair(box) {
  for (const part of box.querySelectorAll("select, .noUi-handle")) {
    part.setAttribute("data-lm-suppress-shortcuts", "true");
    const label = part.closest(".widget-inline-hbox")?.querySelector(".widget-label");
    if (part.matches(".noUi-handle") && label) part.setAttribute("aria-label", label.textContent);
  }
}
function render({ el }) {
  let watch, gone = false;
  const start = () => {
    const box = el.closest(".endofm-explorer");
    if (!box) return gone || requestAnimationFrame(start);
    repair(box);
    watch = new MutationObserver(() => repair(box));
    watch.observe(box, { childList: true, subtree: true });
  };
  requestAnimationFrame(start);
  return () => { gone = true; watch?.disconnect(); };
}
export default { render };
"""


class Keys(anywidget.AnyWidget):
    """Nothing to see: it lets the keyboard reach the controls of the explorer around it, and names its sliders."""

    _esm = _REPAIR


def _widget(figure: go.Figure) -> go.FigureWidget:
    """A figure that responds to clicks and cannot be uploaded."""
    widget = go.FigureWidget(figure)
    widget._config = dict(CONFIG)
    return widget


class Explorer(w.VBox):
    """Widgets with a still picture (H, W, 3) and a sentence, which are shown where widgets do not render."""

    def __init__(self, children: list[w.Widget], picture: np.ndarray, sentence: str) -> None:
        super().__init__([*children, Keys()])
        self.add_class("endofm-explorer")
        self._picture, self._sentence = picture, sentence

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        note = html.escape(f"{self._sentence} Open the notebook in JupyterLab and run it to explore.")
        data["text/html"] = (
            f'<figure><img alt="{note}" src="{data_uri(self._picture)}"><figcaption>{note}</figcaption></figure>'
        )
        data["text/plain"] = f"{type(self).__name__}: {self._sentence}"
        return bundle


class AttentionExplorer(Explorer):
    """Where a model looks in a clip: choose frame, block and head; click a patch to make it the query instead of CLS.

    Args:
        model: a video or image model.
        frames: (T, H, W, 3) uint8, the frames of the clip.
        times_s: (T,) times of the frames, for the labels.
    """

    def __init__(self, model: VideoModel, frames: np.ndarray, times_s: ArrayLike | None = None) -> None:
        self.frames, self.times_s = frames, times_s
        self.maps = look(model, to_input(frames, model.card.input))
        T, h, wide = self.maps.grid
        self.frame = w.IntSlider(0, 0, T - 1, description="Frame", layout=_WIDE)
        self.block = w.IntSlider(self.maps.blocks - 1, 0, self.maps.blocks - 1, description="Block", layout=_WIDE)
        self.head = w.Dropdown(options=["mean", "max", *range(self.maps.heads)], description="Head")
        reader = "CLS" if self.maps.has_cls else "mean"
        self.query = w.ToggleButtons(options=[(reader, "CLS"), ("patch", "patch")], description="Query")
        self.step = len(frames) // T  # frames of a token
        self.row = w.BoundedIntText(h // 2, 0, h - 1, description="Row")
        self.column = w.BoundedIntText(wide // 2, 0, wide - 1, description="Column")
        self.sentence = w.HTML()
        self.picture = _widget(patch_picker(frames[0], self._map()[0]))
        self.picture.data[1].on_click(self._clicked)
        self.picture.layout.width = 480  # with the matrix beside it, WIDEST_PX
        parts: list[w.Widget] = [self.frame, self.block, w.HBox([self.head, self.query, self.row, self.column])]
        figures: list[w.Widget] = [self.picture]
        self.matrix = None
        if self.maps.kind != "space_only":
            self.matrix = _widget(temporal_matrices({"which frame reads which": self._matrix()}, times_s))
            self.matrix.layout.width = 380
            figures.append(self.matrix)
        picture = np.concatenate(list(blend(frames, self.maps.rollout())), axis=1)
        super().__init__(
            [*parts, self.sentence, w.HBox(figures)], picture, f"Attention rollout of a clip of {T} frames."
        )
        for control in (self.frame, self.block, self.head, self.query, self.row, self.column):
            control.observe(self._draw, names="value")
        self._draw()

    @property
    def patch(self) -> tuple[int, int] | None:
        """The patch (row, column) that is the query; None if CLS is the query."""
        return (self.row.value, self.column.value) if self.query.value == "patch" else None

    def _map(self) -> np.ndarray:
        return self.maps.in_space(self.block.value, self.head.value, self.patch).numpy()

    def _matrix(self) -> np.ndarray:
        return self.maps.in_time(self.block.value, self.head.value, self.patch).numpy()

    def _clicked(self, _: Any, points: Any, __: Any) -> None:
        if points.point_inds:
            row, column = divmod(points.point_inds[0], self.maps.grid[2])
            self.row.value, self.column.value, self.query.value = row, column, "patch"

    def _draw(self, _: Any = None) -> None:
        t, values = self.frame.value, self._map()
        at = t * self.step
        fresh = patch_picker(self.frames[at], values[t], self.patch)
        with self.picture.batch_update():
            self.picture.data[0].source = data_uri(blend(self.frames, values)[at])
            self.picture.data[1].text = fresh.data[1].text
            self.picture.layout.shapes = fresh.layout.shapes
        if self.matrix is not None:
            self.matrix.data[0].z = self._matrix()
        query = self.maps.reader if self.patch is None else f"the patch in row {self.patch[0]}, column {self.patch[1]}"
        time = "" if self.times_s is None else f" ({np.asarray(self.times_s)[at]:.2f} s)"
        self.sentence.value = (
            f"Frame {at}{time}: where <b>{query}</b> looks in block {self.block.value}, head {self.head.value}."
        )


class EmbeddingExplorer(Explorer):
    """A map of embedded clips: a lasso shows the selected pictures, a click or a row number shows the neighbours.

    Args:
        store: an embedding store from `embed` or `load_store`.
        color: column whose values colour the markers.
        points: (N, 2) positions of the usable rows; by default their first two principal components.
        shown: largest number of pictures shown at a time.
    """

    def __init__(
        self, store: EmbeddingStore, color: str = "label", points: ArrayLike | None = None, shown: int = 12
    ) -> None:
        usable = store.usable()
        vectors = np.asarray(store.vectors[usable])
        self.rows = store.rows[usable].reset_index(drop=True)
        self.root, self.shown = Path(store.about["root"]), shown
        self.finder = Neighbours(vectors, self.rows)
        places = fit_pca(vectors, 2).project(vectors) if points is None else np.asarray(points)
        columns = [c for c in self.rows.columns if c not in ("video", "masks", "boxes", "error")]
        self.color = w.Dropdown(options=columns, value=color, description="Colour")
        self.not_same = w.Dropdown(options=[("recorded together", "recording"), ("nothing", None)])
        self.not_same.description = "Leave out"
        self.row = w.BoundedIntText(0, 0, len(self.rows) - 1, description="Row")
        self.ask = w.Button(description="Neighbours of row", layout=w.Layout(width="auto"))
        self.sheet = w.HTML("Draw a lasso around markers, click a marker, or enter a row number.")
        self.chosen: list[int] = []
        self._places = places
        self.map = _widget(go.Figure())
        self.color.observe(self._recolour, names="value")
        self.ask.on_click(lambda _: self.show_neighbours(self.row.value))
        self._recolour()
        first = [self._thumbnail(n) for n in range(min(6, len(self.rows)))]
        super().__init__(
            [w.HBox([self.color, self.not_same, self.row, self.ask]), self.map, self.sheet],
            np.concatenate(first, axis=1),
            f"A map of {len(self.rows)} clips embedded by {store.about['model_name']}. Only the first six are shown.",
        )

    def show(self, rows: list[int], captions: list[str] | None = None) -> None:
        """Show the pictures of rows."""
        self.chosen = rows
        texts = captions or [str(self.rows["label"][n]) or "no label" for n in rows]
        cells = [
            f'<figure style="display:inline-block;margin:4px"><img alt="{html.escape(text)}" '
            f'src="{data_uri(self._thumbnail(n))}"><figcaption>{n}: {html.escape(text)}</figcaption></figure>'
            for n, text in list(zip(rows, texts, strict=True))[: self.shown]
        ]
        limit = f", of which the first {self.shown} are shown" if len(rows) > self.shown else ""
        self.sheet.value = f'<p class="endofm-count">{len(rows)} clips{limit}</p>{"".join(cells)}'

    def show_neighbours(self, row: int) -> None:
        """Show the pictures of a row and of its nearest neighbours."""
        near = self.finder.of(row, self.shown - 1, self.not_same.value)
        captions = ["chosen", *(f"{s:.2f} {self.rows['label'][n]}" for n, s in near.itertuples(index=False))]
        self.show([row, *near["row"].tolist()], captions)

    def _recolour(self, _: Any = None) -> None:
        fresh = scatter(self._places, self.rows, self.color.value)
        self.map.data = []
        self.map.add_traces(fresh.data)
        self.map.update_layout(fresh.layout)
        for trace in self.map.data:
            trace.on_selection(self._selected)
            trace.on_click(self._clicked)

    def _selected(self, trace: Any, points: Any, __: Any) -> None:
        # Every trace reports its selection separately, so only the rows of this trace are replaced.
        trace_rows = {int(n) for n in trace.customdata}
        inside = [int(trace.customdata[i]) for i in points.point_inds]
        rows = sorted([n for n in self.chosen if n not in trace_rows] + inside)
        if rows:
            self.show(rows)

    def _clicked(self, trace: Any, points: Any, __: Any) -> None:
        if points.point_inds:
            self.row.value = int(trace.customdata[points.point_inds[0]])
            self.show_neighbours(self.row.value)

    def _thumbnail(self, row: int, side_px: int = 112) -> np.ndarray:
        entry: pd.Series = self.rows.iloc[row]
        path = self.root / entry["video"]  # an absolute path stays unchanged
        with open_video(path, fps=folder_fps(path, entry)) as reader:
            frame = reader.read([int(np.abs(reader.times_s - entry["time_s"]).argmin())])[0]
        return np.asarray(Image.fromarray(frame).resize((side_px, side_px)))


class ViewsExplorer(Explorer):
    """What student and teacher see of a clip: choose a view and one of its frames; the crop is marked in the video.

    Args:
        views: views from `MultiView.of_video`.
        spec: normalisation of the views (`ViewSpec.input`).
    """

    def __init__(self, views: Views, spec: InputSpec) -> None:
        self.views = views
        self.pictures = [from_input(v[None], spec)[0] for v in views.tensors]
        self.view = w.Dropdown(options=[(d.name, n) for n, d in enumerate(views.draws)], description="View")
        self.frame = w.IntSlider(0, 0, len(self.pictures[0]) - 1, description="Frame", layout=_WIDE)
        self.view_picture, self.source, self.sentence = w.Image(format="png"), w.Image(format="png"), w.HTML()
        row = np.concatenate([np.asarray(Image.fromarray(p[0]).resize((112, 112))) for p in self.pictures], axis=1)
        children = [self.view, self.frame, self.sentence, w.HBox([self.source, self.view_picture])]
        super().__init__(children, row, f"The first frames of the {len(self.pictures)} views of a clip.")
        self.view.observe(self._draw, names="value")
        self.frame.observe(self._draw, names="value")
        self._draw()

    def _draw(self, _: Any = None) -> None:
        draw, pictures = self.views.draws[self.view.value], self.pictures[self.view.value]
        self.frame.max = len(pictures) - 1
        t = min(self.frame.value, len(pictures) - 1)
        at = int(np.abs(self.views.frame_numbers - draw.frames[t]).argmin())
        source = self.views.frames[at].copy()
        x1, y1, x2, y2 = draw.crop_xyxy
        line = max(2, source.shape[0] // 120)
        outline = np.zeros(source.shape[:2], bool)
        outline[y1:y2, x1:x2] = True
        outline[y1 + line : y2 - line, x1 + line : x2 - line] = False
        source[outline] = (0, 229, 255)
        self.source.value, self.view_picture.value = _png(source), _png(pictures[t])
        time_s = float(self.views.times_s[draw.frames[t]])
        self.sentence.value = (
            f"<b>{draw.name}</b>: frame {t} of {len(pictures)}, {time_s:.2f} s, {draw.size_px} px"
            f"{', mirrored' if draw.flip else ''}{', grey' if draw.grey else ''}. "
            f"{'Teacher and student see this view.' if draw.kind == 'global' else 'Only the student sees this view.'}"
        )


class PredictionExplorer(Explorer):
    """The timeline of a prediction and the frames of its video: move the slider, or click a marker.

    Args:
        prediction: a prediction from `predict_video`.
        path: path of the video, if it was moved after the prediction.
    """

    def __init__(self, prediction: VideoPrediction, path: str | Path | None = None) -> None:
        self.prediction = prediction
        self.path = Path(path) if path is not None else Path(prediction.video.path)
        last = prediction.video.n_frames - 1
        self.frame = w.IntSlider(prediction.seen_frame(last // 2), 0, last, description="Frame", layout=_WIDE)
        self.sentence = w.HTML()
        with open_video(self.path) as reader:
            self.times_s, first = reader.times_s, reader.read([self.frame.value])[0]
        self.picture = _widget(self._figure())
        self.line = _widget(timeline(prediction))
        for trace in self.line.data:
            trace.on_click(self._clicked)
        children = [self.frame, self.sentence, self.picture, self.line]
        super().__init__(
            children,
            first,
            f"Prediction of {len(prediction.times_s)} clips by {prediction.provenance.get('model_name', 'a model')}.",
        )
        self.frame.observe(self._draw, names="value")
        self._draw()

    def _figure(self) -> go.Figure:
        index = self.frame.value
        nearest = self.prediction.seen_frame(index)
        with open_video(self.path) as reader:
            picture = reader.read([index])[0]
        return frame_figure(picture, *self.prediction.overlay(nearest))

    def _clicked(self, _: Any, points: Any, __: Any) -> None:
        if points.point_inds:
            middle = float(self.prediction.times_s[points.point_inds[0]].mean())
            self.frame.value = int(np.abs(self.times_s - middle).argmin())

    def _draw(self, _: Any = None) -> None:
        fresh = self._figure()
        with self.picture.batch_update():
            self.picture.data[0].source = fresh.data[0].source
            self.picture.layout.shapes = fresh.layout.shapes
            self.picture.layout.annotations = fresh.layout.annotations
        time_s = float(self.times_s[self.frame.value])
        clip = self.prediction.clip_at(time_s)
        scores = "; ".join(
            f"{head}: {self.prediction.classes[head][int(values[clip].argmax())]} {values[clip].max():.2f}"
            for head, values in self.prediction.scores.items()
        )
        self.sentence.value = html.escape(f"Frame {self.frame.value}, {time_s:.3f} s, clip {clip}. {scores}")


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
