"""What a study found: smoothed scores, stretches of one class, best frames, and what smoothing changes."""

from pathlib import Path

import numpy as np
import pandas as pd

from endofm_lab.errors import UserError
from endofm_lab.files import reading
from endofm_lab.metrics.smoothing import median_smooth, smoothing_effect, stay_transition
from endofm_lab.prediction import NORMAL
from endofm_lab.study.study import DUPLICATE, UNREADABLE, Study


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
    end_s = study.video.duration_s if study.finished else times_s[-1] + 1 / float(study.video.fps)
    ends_s = np.append(times_s[1:], max(end_s, times_s[-1]))
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


def findings(study: Study, width: int = 9, min_score: float = 0.5) -> pd.DataFrame:
    """What a reader should decide on: every stretch of a finding whose best frame scores at least ``min_score``.

    Columns: number, head, finding, start_s, end_s, frame (the best one), time_s (its), score; best first.
    """
    rows = []
    for head in study.scores:
        for found in segments(study, head, width).itertuples(index=False):
            name, start_s, end_s, _, _, frame = found
            score = study.scores[head][frame, study.classes[head].index(name)]
            if name.lower() not in NORMAL and score >= min_score:
                rows.append((head, name, start_s, end_s, frame, study.times_s[frame], score))
    columns = ["head", "finding", "start_s", "end_s", "frame", "time_s", "score"]
    table = pd.DataFrame(rows, columns=columns).sort_values("score", ascending=False, kind="stable", ignore_index=True)
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
    """`metrics.smoothing.smoothing_effect` of a study with known labels: one row per method, median and Markov models.

    Args:
        study: with one multi-class head that knows the labels.
        labels: table with the columns frame and label; frames without a row are left out.
        width: of the medians, in frames.
        stay: chance that the Markov model's class stays from one frame to the next.

    Raises:
        UserError: wrong columns, frames outside the study, or labels that no head knows.
    """
    with reading(labels, "Give a CSV file with the columns frame and label."):
        table = pd.read_csv(labels, dtype={"label": str})
    if not {"frame", "label"} <= set(table.columns):
        raise UserError(f"{labels} has the columns {', '.join(table.columns)}; it needs frame and label.")
    empty = pd.to_numeric(table["frame"], errors="coerce").mod(1).ne(0) | table["label"].isna()
    if empty.any():
        line = int(np.flatnonzero(empty)[0])
        raise UserError(
            f"{labels}: row {line + 1} has no whole number of a frame, or no label; fill it in, or delete it."
        )
    table["frame"] = pd.to_numeric(table["frame"]).astype(np.int64)
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
