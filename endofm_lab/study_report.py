"""The report of a study: time line, best frames of each finding with neighbours, segments, a table to decide on."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from endofm_lab.errors import UserError, VideoError
from endofm_lab.figures.prediction import data_uri
from endofm_lab.figures.style import tidy
from endofm_lab.files import atomic_path
from endofm_lab.report import Item, write_report
from endofm_lab.study import DUPLICATE, UNREADABLE, Study
from endofm_lab.tasks.smoothing import median_smooth, smoothing_effect, stay_transition
from endofm_lab.video.reader import VideoReader, open_video

NORMAL = frozenset({"normal", "normal clean mucosa", "background"})  # classes that are no finding
REVIEW = "review.csv"

_BINS = 600  # of the time line
_TILE_PX = 150
_SHOWN_UNREADABLE = 50


def smooth_scores(study: Study, head: str, width: int = 9) -> np.ndarray:
    """Scores (N, K) of a head, each the running median over ``width`` frames; 1 leaves them as they are.

    Frames that cannot be read take the scores of the last one before them (the first ones: of the next).
    """
    scores = pd.DataFrame(study.scores[head]).ffill().bfill().to_numpy(np.float64)
    if study.kinds[head] == "multiclass":
        return median_smooth(scores, width)
    return np.column_stack([median_smooth(np.column_stack([p, 1 - p]), width)[:, 0] for p in scores.T])


def segments(study: Study, head: str, width: int = 9) -> pd.DataFrame:
    """Stretches of one class: class, start_s, end_s, n_frames, mean_score, best_frame; in order of time.

    For a multi-class head the class with the highest smoothed score (every frame is in one stretch), for a multi-label
    head each class while its smoothed score is at least 0.5.
    """
    smooth, times_s = smooth_scores(study, head, width), study.times_s
    ends_s = np.append(times_s[1:], max(study.video.duration_s, times_s[-1]))
    best = smooth.argmax(1)
    rows = []
    for k, name in enumerate(study.classes[head]):
        inside = best == k if study.kinds[head] == "multiclass" else smooth[:, k] >= 0.5
        for start, stop in _runs(inside):
            own = study.scores[head][start:stop, k]
            if np.isnan(own).all():
                continue
            rows.append(
                (name, times_s[start], ends_s[stop - 1], stop - start, np.nanmean(own), start + np.nanargmax(own))
            )
    columns = ["class", "start_s", "end_s", "n_frames", "mean_score", "best_frame"]
    return pd.DataFrame(rows, columns=columns).sort_values(["start_s", "class"], ignore_index=True)


def _runs(inside: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def top_frames(study: Study, head: str, n: int = 4, apart_s: float = 2.0) -> pd.DataFrame:
    """The ``n`` best scored frames of every finding, at least ``apart_s`` apart: finding, rank, frame, time_s, score.

    Near-duplicates and unreadable frames take no part; nor do classes that are no finding (`NORMAL`).
    """
    rows = []
    candidates = np.flatnonzero((study.state != DUPLICATE) & (study.state != UNREADABLE))
    for k, name in enumerate(study.classes[head]):
        if name.lower() in NORMAL:
            continue
        scores = study.scores[head][candidates, k]
        taken: list[int] = []
        for at in candidates[np.argsort(-scores, kind="stable")]:
            if all(abs(study.times_s[at] - study.times_s[other]) >= apart_s for other in taken):
                taken.append(int(at))
                rows.append((name, len(taken), int(at), study.times_s[at], study.scores[head][at, k]))
                if len(taken) == n:
                    break
    return pd.DataFrame(rows, columns=["finding", "rank", "frame", "time_s", "score"])


def study_timeline(study: Study) -> go.Figure:
    """One map per head: the highest score of each class in up to 600 stretches of time; unreadable is blank."""
    heads = list(study.scores)
    figure = make_subplots(rows=len(heads), cols=1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=heads)
    n = len(study.times_s)
    starts = np.unique(np.linspace(0, n, min(_BINS, n), endpoint=False).astype(np.int64))
    for row, head in enumerate(heads, start=1):
        filled = np.where(np.isnan(study.scores[head]), -1, study.scores[head])
        highest = np.maximum.reduceat(filled, starts, axis=0)
        figure.add_trace(
            go.Heatmap(
                x=study.times_s[starts] / 60,
                y=study.classes[head],
                z=np.where(highest < 0, np.nan, highest).T,
                zmin=0,
                zmax=1,
                colorscale="Viridis",
                colorbar={"title": "score"},
                showscale=row == 1,
                hovertemplate="%{y} at %{x:.2f} min: %{z:.3f}<extra></extra>",
            ),
            row=row,
            col=1,
        )
    figure.update_xaxes(title_text="time (min)", row=len(heads), col=1)
    figure.update_layout(height=110 + sum(60 + 26 * len(study.classes[head]) for head in heads))
    return tidy(figure)


def frames_figure(study: Study, frames: pd.DataFrame, step_s: float = 0.5) -> go.Figure:
    """One row per frame of `top_frames`: the frame between its neighbours at ``step_s`` and twice that."""
    offset = max(1, round(step_s * float(study.video.fps)))
    shifts = [-2 * offset, -offset, 0, offset, 2 * offset]
    height = round(_TILE_PX * study.video.height_px / study.video.width_px)
    sheet = np.full((len(frames) * (height + 24), len(shifts) * (_TILE_PX + 6), 3), 255, np.uint8)
    figure = go.Figure()
    with open_video(study.video.path, _folder_rate(study), check=False) as reader:
        for row, (frame, score) in enumerate(zip(frames["frame"].tolist(), frames["score"].tolist(), strict=True)):
            top = row * (height + 24)
            for column, shift in enumerate(shifts):
                at, left = frame + shift, column * (_TILE_PX + 6)
                picture = _tile(reader, at, height) if 0 <= at < len(study.times_s) else None
                if picture is None:
                    continue
                sheet[top : top + height, left : left + _TILE_PX] = picture
                text = f"{study.times_s[at]:.2f} s" + (f", <b>{score:.3f}</b>" if shift == 0 else "")
                figure.add_annotation(
                    x=left, y=top + height, text=text, showarrow=False, xanchor="left", yanchor="top", font={"size": 12}
                )
    figure.add_trace(go.Image(source=data_uri(sheet), hoverinfo="skip"))
    figure.update_xaxes(visible=False, range=[0, sheet.shape[1]])
    figure.update_yaxes(visible=False, range=[sheet.shape[0], 0], scaleanchor="x")
    figure.update_layout(width=sheet.shape[1] + 20, height=sheet.shape[0] + 20, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    return tidy(figure)


def _folder_rate(study: Study) -> Fraction | None:
    return study.video.fps if study.video.decoder == "frames" else None


def _tile(reader: VideoReader, frame: int, height: int) -> np.ndarray | None:
    """A frame as a small picture, or None if it cannot be read."""
    try:
        picture = reader.read([frame])[0]
    except VideoError:
        return None
    return np.asarray(Image.fromarray(picture).resize((_TILE_PX, height)))


def review_table(study: Study, width: int = 9, min_score: float = 0.5) -> pd.DataFrame:
    """What a reader should decide on: every stretch of a finding whose best frame scores at least ``min_score``.

    Columns: number, head, finding, start_s, end_s, frame, time_s, score, decision and remark (both empty), best first.
    """
    rows = []
    for head in study.scores:
        for found in segments(study, head, width).itertuples(index=False):
            name, start_s, end_s, _, _, frame = found
            score = study.scores[head][frame, study.classes[head].index(name)]
            if name.lower() not in NORMAL and score >= min_score:
                rows.append((head, name, start_s, end_s, frame, study.times_s[frame], score, "", ""))
    columns = ["head", "finding", "start_s", "end_s", "frame", "time_s", "score", "decision", "remark"]
    table = pd.DataFrame(rows, columns=columns).sort_values("score", ascending=False, ignore_index=True)
    table.insert(0, "number", np.arange(1, len(table) + 1))
    return table


def smoothing_table(study: Study, width: int = 9) -> pd.DataFrame:
    """What the running median changes, per head: stretches before and after, and the share of frames it changes."""
    rows = []
    for head in study.scores:
        raw, smooth = smooth_scores(study, head, 1), smooth_scores(study, head, width)
        before, after = len(segments(study, head, 1)), len(segments(study, head, width))
        changed = (
            (raw.argmax(1) != smooth.argmax(1))
            if study.kinds[head] == "multiclass"
            else ((raw >= 0.5) != (smooth >= 0.5))
        )
        rows.append((head, before, after, float(changed.mean())))
    return pd.DataFrame(rows, columns=["head", "stretches before", f"after median {width}", "share of frames changed"])


def smoothing_metrics(study: Study, labels: str | Path, width: int = 9, stay: float = 0.98) -> pd.DataFrame:
    """`tasks.smoothing.smoothing_effect` of a study with known labels: a row per method, from median to Markov models.

    Args:
        study: with one multi-class head that knows the labels.
        labels: table with the columns frame and label; frames without a row are left out.
        width: of the medians, in frames.
        stay: chance that the Markov model's class stays from one frame to the next.

    Raises:
        UserError: wrong columns, frames outside the study, or labels that no head knows.
    """
    table = pd.read_csv(labels)
    if not {"frame", "label"} <= set(table.columns):
        raise UserError(f"{labels} has the columns {', '.join(table.columns)}; it needs frame and label.")
    outside = table.loc[(table["frame"] < 0) | (table["frame"] >= len(study.times_s)), "frame"]
    if len(outside):
        raise UserError(
            f"{labels} names frame {outside.iloc[0]}; the study's frames are 0 to {len(study.times_s) - 1}."
        )
    known = [h for h in study.scores if study.kinds[h] == "multiclass" and set(table["label"]) <= set(study.classes[h])]
    if not known:
        raise UserError(
            f"{labels} has the labels {', '.join(sorted(set(table['label'])))}, which no head of the model has."
        )
    head = known[0]
    table = table.sort_values("frame")
    scores = smooth_scores(study, head, 1)[table["frame"]]
    target = table["label"].map(study.classes[head].index).to_numpy()
    effect = smoothing_effect(
        np.zeros(len(table), np.int64), target, scores, stay_transition(len(study.classes[head]), stay), width
    )
    return effect.rename_axis("method").reset_index()


def write_study_report(study: Study, out: str | Path, width: int = 9, labels: str | Path | None = None) -> Path:
    """Write ``report.html`` and ``review.csv`` into a folder; atomic.

    Args:
        study: what `run_study` returned; its video must still be there for the pictures.
        out: the folder.
        width: frames of the running median that the stretches are cut from.
        labels: table of true labels (frame, label) to measure what smoothing does; see `smoothing_metrics`.
    """
    out = Path(out)
    review = review_table(study, width)
    with atomic_path(out / REVIEW) as temporary:
        review.to_csv(temporary, index=False)
    sections: list[tuple[str, list[Item]]] = [("What was read", [_summary(study)])]
    if len(study.unreadable):
        more = len(study.unreadable) - _SHOWN_UNREADABLE
        items: list[Item] = [study.unreadable.head(_SHOWN_UNREADABLE)]
        sections.append(("Frames that could not be read", [*items, f"... and {more:,} more."] if more > 0 else items))
    sections.append(("Time line of findings", [_calibration(study), study_timeline(study)]))
    for head in study.scores:
        best = top_frames(study, head)
        for finding, frames in best.groupby("finding", sort=False):
            sections.append((f"{finding}: best frames and their neighbours", [frames_figure(study, frames)]))
        sections.append((f"Segments: {head}", [segments(study, head, width).head(200)]))
    sections.append(("What smoothing changes", [smoothing_table(study, width)]))
    if labels is not None:
        sections[-1][1].append(smoothing_metrics(study, labels, width))
    shown = review.drop(columns=["decision", "remark"]).head(200)
    shown["confirm"], shown["reject"] = "☐", "☐"
    text = f"{len(review)} stretches whose best frame scores at least 0.5, best first; also in {REVIEW}, with columns "
    sections.append(("To confirm or reject", [text + "for the decision and a remark.", shown]))
    return write_report(out / "report.html", f"Study report: {study.video.path.name}", sections)


def _summary(study: Study) -> str:
    n, video = len(study.times_s), study.video
    duplicates, lost = int((study.state == DUPLICATE).sum()), int((study.state == UNREADABLE).sum())
    skipped = (
        f" {duplicates:,} near-duplicates were not scored: each takes the scores of the frame that stands for it."
        if study.provenance["skip_near_duplicates"]
        else " Every frame was scored; near-duplicates were not looked for."
    )
    generated = (
        " The model was trained on generated video." if study.provenance["training_data"].get("generated") else ""
    )
    return (
        f"{video.path.name}: {n:,} frames of {video.width_px} x {video.height_px} px, "
        f"{video.duration_s / 60:.1f} minutes."
        f"{skipped} {lost:,} frames could not be read. Model: {study.provenance['model_name']}."
        f"{generated} {study.provenance['initialisation']['words']}"
    )


def _calibration(study: Study) -> str:
    said = [
        f"{head}: temperature {t:.2f}" if t else f"{head}: not calibrated, scores may be over-confident"
        for head, t in study.provenance["temperature"].items()
    ]
    return f"Highest score in each stretch of time. Calibration: {'; '.join(said)}."
