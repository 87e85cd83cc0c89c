"""The report of a predicted video: findings with decisions, key frames, timeline, maps, calibration and model card.

It is one HTML file that can be printed. Names of files are not in it, because they may name a patient; what the user
types as its title is.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from endofm_lab.errors import UserError
from endofm_lab.figures.pictures import overlaid
from endofm_lab.figures.prediction import frame_timeline, timeline
from endofm_lab.figures.study import clock
from endofm_lab.figures.style import marked
from endofm_lab.files import atomic_path
from endofm_lab.model.card import ModelCard
from endofm_lab.prediction import VideoPrediction
from endofm_lab.reports.explanation import Explained, attribution_section
from endofm_lab.reports.html import Item, Markup, Section, escape, picture, report_page, verdict
from endofm_lab.reports.study import calibration_of, decision_table
from endofm_lab.study.review import CONFIRM, REJECT, read_review, video_reviews, with_decisions
from endofm_lab.study.stretches import DEFAULT, Thresholds, video_findings
from endofm_lab.video.clips import Clip
from endofm_lab.video.reader import open_video

MOST_FRAMES = 12  # key frames in a report
_PICTURE_PX = 640


class ExplainedClip(NamedTuple):
    """A map of one clip with the result of its test, see `endofm_lab.reports.explanation`."""

    clip: Clip
    explained: Explained


def write_video_report(
    prediction: VideoPrediction,
    card: ModelCard,
    path: str | Path,
    title: str = "",
    thresholds: Thresholds = DEFAULT,
    maps: Sequence[ExplainedClip] = (),
) -> Path:
    """Write `video_report` as one file, atomically; returns its path."""
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(video_report(prediction, card, title, thresholds, maps), encoding="utf-8")
    return path


def video_report(
    prediction: VideoPrediction,
    card: ModelCard,
    title: str = "",
    thresholds: Thresholds = DEFAULT,
    maps: Sequence[ExplainedClip] = (),
) -> str:
    """The report of a video as HTML that needs no network.

    Args:
        prediction: the prediction; the pictures are read from its video, and left out if that cannot be opened.
        card: the card of the model.
        title: what the reader calls the case.
        thresholds: the lowest scores of findings, masks and boxes.
        maps: maps of clips that were computed and tested before.

    Raises:
        UserError: the table with the decisions on this video cannot be read.
    """
    review = read_review(video_reviews(prediction.provenance["video"]))
    findings = with_decisions(video_findings(prediction, thresholds), review)
    sections = [
        ("", _warnings(prediction)),
        ("Video and model", _about(prediction)),
        ("Findings", _findings(findings, thresholds)),
        ("Key frames", [_key_frames(prediction, findings, thresholds)]),
        ("Timeline", _timelines(prediction, thresholds)),
        *(_map(entry, prediction.video.generated) for entry in maps),
        ("Calibration", [calibration_of({head: card.heads[head].temperature for head in prediction.scores})]),
        ("Model card", _card(card)),
        ("Audit of the training data", [card.audit or "The model card states no audit of the training data."]),
    ]
    origin = {name: value for name, value in prediction.provenance.items() if name != "command"}  # may name the file
    return report_page(title.strip() or "Video report", [section for section in sections if section[1]], origin)


def _warnings(prediction: VideoPrediction) -> list[Item]:
    """What the reader must not miss."""
    warnings: list[Item] = []
    if prediction.video.generated:
        warnings.append(verdict("The video is generated. It shows no patient.", "unsure"))
    elif prediction.provenance["training_data"].get("generated"):
        sentence = "This model was trained on generated video only. On a real video its scores mean nothing."
        warnings.append(verdict(sentence, "bad"))
    if prediction.familiar is not None and not prediction.familiar.all():
        hidden = "Masks, boxes and findings of such stretches are not shown; the timeline is grey there."
        warnings.append(verdict(f"{prediction.familiarity_text()} {hidden}", "bad"))
    return warnings


def _about(prediction: VideoPrediction) -> list[Item]:
    """Sentences on the video and the model; the video is named by its content."""
    video, origin = prediction.video, prediction.provenance
    assumed = " (assumed, since images have no frame rate)" if video.decoder == "frames" else ""
    return [
        f"The video has {video.n_frames:,} frames of {video.width_px} x {video.height_px} px at {float(video.fps):.3f} "
        f"per second{assumed} and is {clock(video.duration_s)} long. SHA-256 of its content: {origin['video']}.",
        f"Model: {origin['model_name']}. Initialisation: {origin['initialisation']['words']}",
        f"The model saw {len(prediction.times_s):,} clips. {prediction.familiarity_text()}",
        prediction.quality_text(),
        f"This report was written on "
        f"{datetime.now(UTC).isoformat(sep=' ', timespec='minutes').removesuffix('+00:00')} UTC. It names no file. Its "
        "pictures are as they were recorded, with any text in them.",
    ]


def _findings(findings: pd.DataFrame, thresholds: Thresholds) -> list[Item]:
    """What counts as a finding, and the table of findings with the decisions."""
    boxes = f", and boxes with a score of at least {thresholds.box:.2f}" if thresholds != DEFAULT else ""
    rule = (
        f"Findings are stretches of the video that score at least {thresholds.score:.2f}{boxes}, and that do not look "
        "unlike what the model learned."
    )
    if findings.empty:
        return [f"{rule} There are none."]
    n_open = int((findings["decision"] == "").sum())
    table = decision_table(findings.drop(columns=["first", "last"]))
    table["score"] = [f"{score:.3f}" for score in findings["score"]]
    if findings["lowest"].isna().all():
        return [f"{rule} {n_open} of {len(findings)} are not decided on.", table.drop(columns=["lowest", "highest"])]
    spread = "Lowest and highest: the scores of the clip and of clips that start a few frames later."
    return [f"{rule} {n_open} of {len(findings)} are not decided on. {spread}", table.fillna("")]


def _key_frames(prediction: VideoPrediction, findings: pd.DataFrame, thresholds: Thresholds) -> Item:
    """The best frames of the findings with masks and boxes; without findings, frames that say most."""
    rows = findings.head(MOST_FRAMES).to_dict("records")
    captions = [
        f"{row['number']}: {row['finding']} {row['score']:.3f} at {clock(row['time_s'])} (frame {row['frame']})"
        + {CONFIRM: ", confirmed", REJECT: ", rejected"}.get(row["decision"], "")
        for row in rows
    ]
    frames = [int(row["frame"]) for row in rows] or prediction.telling_frames(3)
    captions = captions or [f"Frame {frame}" for frame in frames]
    figures = [
        f"<figure>{picture(pixels, caption, _PICTURE_PX)}<figcaption>{escape(caption)}</figcaption></figure>"
        for pixels, caption in zip(_pictures(prediction, frames, thresholds), captions, strict=True)
    ]
    return Markup(f'<div class="frames">{"".join(figures)}</div>')


def _pictures(prediction: VideoPrediction, frames: list[int], thresholds: Thresholds) -> list[np.ndarray | None]:
    """Frames with masks and boxes, None for those that cannot be read."""
    try:
        with open_video(prediction.video.path) as reader:
            pictures = list(reader.read(frames))
    except (UserError, OSError):
        return [None] * len(frames)
    overlays: list[np.ndarray | None] = []
    hidden = set(prediction.frames[prediction.unfamiliar_frames()].tolist())
    for frame, pixels in zip(frames, pictures, strict=True):
        nearest = prediction.seen_frame(frame)
        if nearest in hidden:
            overlays.append(overlaid(pixels, None, prediction.boxes_xyxy[:0], prediction.video.generated))
            continue
        masks = [prediction.mask(nearest, thresholds.score, head).any(axis=0) for head in prediction.maps]
        boxes = prediction.boxes(nearest)
        boxes = boxes[boxes["score"] >= thresholds.box]
        mask = np.any(masks, axis=0) if masks else None
        overlays.append(overlaid(pixels, mask, boxes, prediction.video.generated))
    return overlays


def _timelines(prediction: VideoPrediction, thresholds: Thresholds) -> list[Item]:
    """The scores of the clips, and masks and boxes of the frames, over time."""
    items: list[Item] = []
    if prediction.scores:
        items.append(timeline(prediction, threshold=thresholds.score).update_layout(margin_t=40))
    if prediction.score_spread:
        items.append("Bands: the lowest and the highest score of clips that start a few frames later.")
    if prediction.maps or prediction.box_heads:
        items.append(frame_timeline(prediction, thresholds=thresholds))
    return items


def _map(entry: ExplainedClip, generated: bool) -> Section:
    """The section on one map, whose film strip is marked if its pictures are generated."""
    heading, (strip, *items) = attribution_section(*entry)
    return heading, [marked(strip, generated) if isinstance(strip, go.Figure) else strip, *items]


def _card(card: ModelCard) -> list[Item]:
    """The card of the model as tables."""
    data = card.data
    rows = [
        ("name", card.name),
        ("intended use", card.intended_use),
        *(("limit", limit) for limit in card.limits),
        ("trained on", data.get("description")),
        ("kind of data", ("generated video" if data["generated"] else "real video") if "generated" in data else None),
        ("split", data.get("split")),
        ("licence of the data", data.get("licence")),
        ("licence of the weights", card.licence),
        ("SHA-256 of the weights", card.weights_sha256),
    ]
    items: list[Item] = [pd.DataFrame([row for row in rows if row[1]], columns=["item", "value"])]
    if card.metrics:
        metrics = [
            (
                metric["name"],
                f"{metric['value']:.3f}",
                " to ".join(f"{bound:.3f}" for bound in metric.get("interval", [])),
                metric.get("data", ""),
                metric.get("split", ""),
            )
            for metric in card.metrics
        ]
        items.append(pd.DataFrame(metrics, columns=["metric", "value", "95 % interval", "data", "split"]))
    return items
