"""The findings of a predicted video: stretches of neighbouring clips or frames that score at least a threshold."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from endofm_lab.data.labels import is_finding
from endofm_lab.metrics.calibration import uncalibrated
from endofm_lab.metrics.phases import true_runs
from endofm_lab.model.card import HeadSpec
from endofm_lab.prediction import VideoPrediction

COLUMNS = ["head", "finding", "start_s", "end_s", "frame", "time_s", "score", "lowest", "highest", "first", "last"]


class Thresholds(NamedTuple):
    """The lowest scores that count as a finding.

    Attributes:
        score: of a class in a clip, and of a pixel in a mask.
        box: of a box; 0.3 is the lowest score with which the box heads of the library answer.
    """

    score: float = 0.5
    box: float = 0.3


DEFAULT = Thresholds()


def video_findings(
    prediction: VideoPrediction, thresholds: Thresholds = DEFAULT, unfamiliar: bool = False
) -> pd.DataFrame:
    """The findings that a reader should decide on, sorted by score, the highest first.

    A finding is a stretch of neighbouring clips in which a class reaches the threshold; classes that mean that there is
    no finding are left out (`is_finding`). If no head distinguishes findings from normal, a finding is a stretch of
    neighbouring frames with a mask or a box that reaches its threshold. Findings whose frame looks unlike what the
    model learned are left out, unless ``unfamiliar`` is set.

    Columns: number, head, finding, start_s, end_s, frame (the frame with the most evidence), time_s (of that frame),
    score (the highest), lowest and highest (the score of that clip and of the clips that start a few frames later; NaN
    if these clips were not run), first and last (frames).
    """
    heads = [head for head in prediction.scores if not all(map(is_finding, prediction.classes[head]))]
    rows: list[tuple] = []
    for head in heads:
        rows += _of_clips(prediction, head, thresholds.score)
    if not heads:
        rows = [*_of_masks(prediction, thresholds.score), *_of_boxes(prediction, thresholds.box)]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"lowest": float, "highest": float})
    if not unfamiliar:
        table = table[~table["frame"].isin(prediction.frames[prediction.unfamiliar_frames()])]
    table = table.sort_values(["score", "start_s"], ascending=[False, True], kind="stable", ignore_index=True)
    table.insert(0, "number", np.arange(1, len(table) + 1))
    return table


def disagreements(first: VideoPrediction, second: VideoPrediction, thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """The findings of one prediction of a video during which the other has no finding of this name.

    Columns: those of `video_findings`, numbered anew in order of time; only (0: of the first prediction alone, 1: of
    the second alone) and possible (whether the other model knows a class of this name). Upper and lower case are alike.
    """
    predictions = (first, second)
    tables = [video_findings(prediction, thresholds) for prediction in predictions]
    rows = []
    for only, (table, other, other_prediction) in enumerate(zip(tables, tables[::-1], predictions[::-1], strict=True)):
        names = {name.casefold() for classes in other_prediction.classes.values() for name in classes}
        for _, finding in table.iterrows():
            equal_name = other["finding"].str.casefold() == finding["finding"].casefold()
            overlap = (other["start_s"] < finding["end_s"]) & (other["end_s"] > finding["start_s"])
            if not (equal_name & overlap).any():
                rows.append({**finding, "only": only, "possible": finding["finding"].casefold() in names})
    result = pd.DataFrame(rows, columns=["number", *COLUMNS, "only", "possible"])
    result = result.sort_values(["start_s", "only"], kind="stable", ignore_index=True)
    return result.assign(number=np.arange(1, len(result) + 1))


def without_calibration(prediction: VideoPrediction, heads: Mapping[str, HeadSpec]) -> VideoPrediction:
    """The prediction as the model would have made it without the temperatures of its heads, as its card states them."""
    scores, spread = dict(prediction.scores), dict(prediction.score_spread)
    for head in scores:
        spec = heads[head]
        if spec.temperature is None:
            continue
        exclusive = spec.kind == "multiclass"
        scores[head] = uncalibrated(scores[head], spec.temperature, exclusive).astype(np.float32)
        if head in spread and not exclusive:
            spread[head] = uncalibrated(spread[head], spec.temperature, exclusive=False).astype(np.float32)
        else:  # the bounds of a class do not say what the other classes scored in that clip
            spread.pop(head, None)
    return replace(prediction, scores=scores, score_spread=spread)


def _of_clips(prediction: VideoPrediction, head: str, min_score: float) -> list[tuple]:
    """The stretches of the classes of one head, as rows of `COLUMNS`."""
    times, rows = prediction.times_s, []
    spread = prediction.score_spread.get(head)
    for k, name in enumerate(prediction.classes[head]):
        scores = prediction.scores[head][:, k]
        for start, stop in true_runs(scores >= min_score) if is_finding(name) else []:
            clips = np.arange(start, stop)
            best = clips[scores[clips].argmax()]
            start_s, end_s = times[clips[0], 0], times[clips, 1].max()
            inside = np.flatnonzero((prediction.frame_times_s >= start_s) & (prediction.frame_times_s < end_s))
            if not len(inside):
                continue
            bounds = (np.nan, np.nan) if spread is None else spread[best, k]
            frame = prediction.most_evidence(*times[best])
            rows.append(_row(prediction, (head, name), (start_s, end_s), frame, scores[best], bounds, inside[[0, -1]]))
    return rows


def _of_masks(prediction: VideoPrediction, min_score: float) -> list[tuple]:
    """The stretches of frames with a mask, as rows of `COLUMNS`; the best frame has the largest mask."""
    rows = []
    for head, values in prediction.maps.items():
        highest = np.asarray(values).max(axis=(1, 2, 3)) / 255
        covered = (np.asarray(values) >= 255 * min_score).any(axis=1).mean(axis=(1, 2))
        for start, stop in true_runs(covered > 0):
            at = np.arange(start, stop)
            best = at[covered[at].argmax()]
            rows.append(_of_frames(prediction, head, prediction.classes[head][0], at, best, highest[at].max()))
    return rows


def _of_boxes(prediction: VideoPrediction, min_score: float) -> list[tuple]:
    """The stretches of frames with a box of one class, as rows of `COLUMNS`; the best frame has the surest box."""
    rows = []
    for head in prediction.box_heads:
        boxes = prediction.boxes_xyxy[prediction.boxes_xyxy["head"] == head]
        for label, label_boxes in boxes.groupby("label"):
            scores = label_boxes.groupby("frame")["score"].max().reindex(prediction.frames).fillna(0.0).to_numpy()
            for start, stop in true_runs((scores > 0) & (scores >= min_score)):
                at = np.arange(start, stop)
                best = at[scores[at].argmax()]
                rows.append(_of_frames(prediction, head, str(label), at, best, scores[best]))
    return rows


def _of_frames(
    prediction: VideoPrediction, head: str, label: str, at: np.ndarray, best: int, score: float
) -> tuple[Any, ...]:
    """A row of `COLUMNS` for a stretch of frames, given by their positions in `VideoPrediction.frames`."""
    times = prediction.frame_times_s
    end_s = times[at[-1] + 1] if at[-1] + 1 < len(times) else max(prediction.video.duration_s, times[at[-1]])
    spans = (times[at[0]], end_s)
    return _row(prediction, (head, label), spans, int(prediction.frames[best]), score, (np.nan, np.nan), at[[0, -1]])


def _row(
    prediction: VideoPrediction,
    names: tuple[str, str],
    span_s: tuple[float, float],
    frame: int,
    score: float,
    bounds: Any,
    ends: np.ndarray,
) -> tuple[Any, ...]:
    """A row of `COLUMNS`; ``ends`` are the positions of the first and the last frame in `VideoPrediction.frames`."""
    time_s = float(prediction.frame_times_s[np.searchsorted(prediction.frames, frame)])
    first, last = prediction.frames[ends].tolist()
    end_s = max(float(span_s[1]), float(np.nextafter(time_s, np.inf)))  # a stretch does not contain its end
    return (*names, float(span_s[0]), end_s, frame, time_s, float(score), *map(float, bounds), first, last)
