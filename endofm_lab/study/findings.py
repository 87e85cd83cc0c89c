"""The findings of a study: smoothed scores, segments of one class, best frames, and the effect of smoothing."""

from pathlib import Path

import numpy as np
import pandas as pd

from endofm_lab.data.labels import is_finding
from endofm_lab.errors import UserError
from endofm_lab.files import reading
from endofm_lab.metrics.phases import true_runs
from endofm_lab.metrics.smoothing import median_smooth, smoothing_effect, stay_transition
from endofm_lab.study.study import DUPLICATE, UNREADABLE, Study


def smooth_scores(study: Study, head: str, width: int = 9) -> np.ndarray:
    """Scores (N, K) of a head, each the running median over ``width`` frames; a width of 1 leaves them unchanged.

    An unreadable frame takes the scores of the last readable frame before it; unreadable frames at the start take
    those of the first readable frame.
    """
    scores = pd.DataFrame(study.scores[head]).ffill().bfill().to_numpy(np.float64)
    if study.kinds[head] == "multiclass":
        return median_smooth(scores, width)
    return np.column_stack([median_smooth(np.column_stack([p, 1 - p]), width)[:, 0] for p in scores.T])


def segments(study: Study, head: str, width: int = 9) -> pd.DataFrame:
    """Segments of one class in order of time: class, start_s, end_s, n_frames, mean_score, best_frame.

    A multi-class head assigns every frame to the class with the highest smoothed score, so that every frame is in one
    segment. In a multi-label head a class has a segment wherever its smoothed score is at least 0.5.
    """
    smooth, times_s = smooth_scores(study, head, width), study.times_s
    end_s = study.video.duration_s if study.finished else times_s[-1] + 1 / float(study.video.fps)
    ends_s = np.append(times_s[1:], max(end_s, times_s[-1]))
    best = smooth.argmax(1)
    rows = []
    for k, name in enumerate(study.classes[head]):
        inside = best == k if study.kinds[head] == "multiclass" else smooth[:, k] >= 0.5
        for start, stop in true_runs(inside):
            scores = study.scores[head][start:stop, k]
            if np.isnan(scores).all():
                continue
            mean, best_frame = np.nanmean(scores), start + np.nanargmax(scores)
            rows.append((name, times_s[start], ends_s[stop - 1], stop - start, mean, best_frame))
    columns = ["class", "start_s", "end_s", "n_frames", "mean_score", "best_frame"]
    return pd.DataFrame(rows, columns=columns).sort_values(["start_s", "class"], ignore_index=True)


def top_frames(study: Study, head: str, n: int = 4, apart_s: float = 2.0, unfamiliar: bool = False) -> pd.DataFrame:
    """The ``n`` frames with the highest scores of every finding: finding, rank, frame, time_s, score.

    They are at least ``apart_s`` apart. Near-duplicates, unreadable frames and classes that are not findings
    (`is_finding`) are left out, and frames that look unlike what the model learned, unless ``unfamiliar`` is set.
    """
    rows = []
    hidden = study.unfamiliar_frames() & (not unfamiliar)
    candidates = np.flatnonzero((study.state != DUPLICATE) & (study.state != UNREADABLE) & ~hidden)
    for k, name in enumerate(study.classes[head]):
        if not is_finding(name):
            continue
        scores = study.scores[head][candidates, k]
        taken: list[int] = []
        for at in candidates[np.argsort(-scores, kind="stable")]:
            if all(abs(study.times_s[at] - study.times_s[neighbour]) >= apart_s for neighbour in taken):
                taken.append(int(at))
                rows.append((name, len(taken), int(at), study.times_s[at], study.scores[head][at, k]))
                if len(taken) == n:
                    break
    return pd.DataFrame(rows, columns=["finding", "rank", "frame", "time_s", "score"])


def findings(study: Study, width: int = 9, min_score: float = 0.5, unfamiliar: bool = False) -> pd.DataFrame:
    """The findings that a reader should decide on: every segment whose best frame scores at least ``min_score``.

    Findings whose best frame looks unlike what the model learned are left out, unless ``unfamiliar`` is set.

    Columns: number, head, finding, start_s, end_s, frame (the best frame), time_s (of that frame), score, and familiar
    ("yes", "no" or "unknown": whether the best frame looks like what the model learned); sorted by score, the highest
    first.
    """
    rows = []
    strange = study.unfamiliar_frames()
    for head in study.scores:
        for name, start_s, end_s, _, _, frame in segments(study, head, width).itertuples(index=False):
            score = study.scores[head][frame, study.classes[head].index(name)]
            if is_finding(name) and score >= min_score and (unfamiliar or not strange[frame]):
                familiar = "unknown" if study.distance is None else "no" if strange[frame] else "yes"
                rows.append((head, name, start_s, end_s, frame, study.times_s[frame], score, familiar))
    columns = ["head", "finding", "start_s", "end_s", "frame", "time_s", "score", "familiar"]
    table = pd.DataFrame(rows, columns=columns).sort_values("score", ascending=False, kind="stable", ignore_index=True)
    table.insert(0, "number", np.arange(1, len(table) + 1))
    return table


def smoothing_table(study: Study, width: int = 9) -> pd.DataFrame:
    """The effect of the running median per head: segments before and after, and the share of frames that change."""
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
    columns = ["head", "segments before", f"segments after, median of {width}", "share of frames changed"]
    return pd.DataFrame(rows, columns=columns)


def smoothing_metrics(study: Study, labels: str | Path, width: int = 9, stay: float = 0.98) -> pd.DataFrame:
    """`metrics.smoothing.smoothing_effect` of a study whose labels are given: a row per method (median, Markov models).

    Args:
        study: has a multi-class head whose classes include all the labels.
        labels: table with the columns frame and label; frames without a row are left out.
        width: width of the running medians in frames.
        stay: probability that the Markov model's class stays the same from one frame to the next.

    Raises:
        UserError: wrong columns, frames outside the study, or labels that are classes of no head.
    """
    with reading(labels, "Give a CSV file with the columns frame and label."):
        table = pd.read_csv(labels, dtype={"label": str})
    if not {"frame", "label"} <= set(table.columns):
        raise UserError(f"{labels} has the columns {', '.join(table.columns)}. It needs the columns frame and label.")
    empty = pd.to_numeric(table["frame"], errors="coerce").mod(1).ne(0) | table["label"].isna()
    if empty.any():
        line = int(np.flatnonzero(empty)[0])
        raise UserError(
            f"{labels}: Row {line + 1} has no label, or its frame is not a whole number. Fill it in, or delete the row."
        )
    table["frame"] = pd.to_numeric(table["frame"]).astype(np.int64)
    outside = table.loc[(table["frame"] < 0) | (table["frame"] >= len(study.times_s)), "frame"]
    if len(outside):
        raise UserError(
            f"{labels} names frame {outside.iloc[0]}, but the study has the frames 0 to {len(study.times_s) - 1}. "
            "Give the labels of this study."
        )
    present = set(table["label"])
    heads = [name for name in study.scores if study.kinds[name] == "multiclass" and present <= set(study.classes[name])]
    if not heads:
        raise UserError(
            f"{labels} has the labels {', '.join(sorted(present))}, but no multi-class head of the model has them all. "
            "Name them as the model names its classes."
        )
    head = heads[0]
    table = table.sort_values("frame")
    scores = smooth_scores(study, head, 1)[table["frame"]]
    target = table["label"].map(study.classes[head].index).to_numpy()
    effect = smoothing_effect(
        np.zeros(len(table), np.int64), target, scores, stay_transition(len(study.classes[head]), stay), width
    )
    return effect.rename_axis("method").reset_index()
