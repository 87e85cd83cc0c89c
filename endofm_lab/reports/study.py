"""The report of a study: time line, best frames of each finding with neighbours, segments, a table to decide on."""

from pathlib import Path

import pandas as pd

from endofm_lab.figures.study import clock, frames_figure, study_timeline
from endofm_lab.reports.html import Item, write_report
from endofm_lab.study.findings import findings, segments, smoothing_metrics, smoothing_table, top_frames
from endofm_lab.study.review import CONFIRM, REJECT, REVIEW, list_findings
from endofm_lab.study.study import DUPLICATE, UNREADABLE, Study

_SHOWN = 200  # rows of long tables
_SHOWN_UNREADABLE = 50


def write_study_report(study: Study, out: str | Path, width: int = 9, labels: str | Path | None = None) -> Path:
    """Write ``report.html`` into a folder, and add the findings to its ``review.csv``; decisions made there are shown.

    Args:
        study: what `run_study` returned; its video must still be there for the pictures.
        out: the folder.
        width: frames of the running median that the stretches are cut from.
        labels: table of true labels (frame, label) to measure what smoothing does; see `smoothing_metrics`.

    Raises:
        UserError: the video or the labels cannot be read, or somebody changed ``review.csv`` beyond reading.
    """
    out = Path(out)
    sections: list[tuple[str, list[Item]]] = [("What was read", [summary(study)])]
    if len(study.unreadable):
        items = _long(readable(study.unreadable), _SHOWN_UNREADABLE)
        sections.append((f"Frames that could not be read: {len(study.unreadable):,}", items))
    sections.append(("Time line of findings", [calibration(study), study_timeline(study)]))
    for head in study.scores:
        best = top_frames(study, head)
        for finding, frames in best.groupby("finding", sort=False):
            shared = sum(finding in classes for classes in study.classes.values()) > 1
            name = f"{finding} ({head})" if shared else str(finding)
            sections.append((f"{name}: best frames and their neighbours", [frames_figure(study, frames)]))
        sections.append((f"Segments: {head}", _long(readable(segments(study, head, width)), _SHOWN)))
    sections.append(("What smoothing changes", [smoothing_words(width), smoothing_table(study, width)]))
    if labels is not None:
        sections[-1][1].append(smoothing_metrics(study, labels, width))
    review = list_findings(out, findings(study, width))
    boxes = {CONFIRM: "☒ confirm ☐ reject", REJECT: "☐ confirm ☒ reject"}
    shown = readable(review.drop(columns="decided_at"))
    shown["decision"] = review["decision"].map(boxes).fillna("☐ confirm ☐ reject")
    text = (
        f"{len(review)} stretches whose best frame scores at least 0.5, best first. Decide in the app (Prediction, "
        f"Study) or in {REVIEW}."
    )
    sections.append(("To confirm or reject", [text, *_long(shown, _SHOWN)]))
    return write_report(out / "report.html", f"Study report: {study.video.path.name}", sections)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of findings for people: moments as clock times, names without underscores and units."""
    shown = table.copy()
    for name in ("start_s", "end_s", "time_s"):
        if name in shown:
            shown[name] = [clock(time_s) for time_s in shown[name]]
    names = {"start_s": "from", "end_s": "to", "time_s": "at", "n_frames": "frames", "mean_score": "mean score"}
    return shown.rename(columns=names | {"best_frame": "best frame"})


def summary(study: Study) -> str:
    """What was read, with what model, and what was skipped, in sentences."""
    video, frames = study.video, f"{len(study.times_s):,}"
    duplicates, lost = int((study.state == DUPLICATE).sum()), int((study.state == UNREADABLE).sum())
    if not study.finished:
        frames = f"the first {frames} of {video.n_frames:,}"
    if not study.provenance["skip_near_duplicates"]:
        skipped = "Every frame was scored; near-duplicates were not looked for."
    elif duplicates:
        skipped = (
            f"{duplicates:,} near-duplicates were not scored: each takes the scores of the frame that stands for it."
        )
    else:
        skipped = "Near-duplicates were looked for and none was found."
    generated = (
        " The model was trained on generated video." if study.provenance["training_data"].get("generated") else ""
    )
    all_read = f"{lost:,} frames could not be read." if lost else "Every frame could be read."
    return (
        f"{video.path.name}: {frames} frames of {video.width_px} x {video.height_px} px, "
        f"{clock(video.duration_s)} long. {skipped} {all_read} "
        f"Model: {study.provenance['model_name']}.{generated} "
        f"Initialisation: {study.provenance['initialisation']['words']}"
    )


def calibration(study: Study) -> str:
    """What the time line shows, and whether its scores were calibrated."""
    sentences = [
        f"{head}: temperature {t:.2f}" if t else f"{head}: not calibrated, scores may be over-confident"
        for head, t in study.provenance["temperature"].items()
    ]
    return f"Highest score in each stretch of time. Calibration: {'; '.join(sentences)}."


def smoothing_words(width: int) -> str:
    """What the smoothing is."""
    return (
        f"Segments and findings are cut from the running median over {width} frames; time line and best frames show "
        "the scores as they are."
    )


def _long(table: pd.DataFrame, n: int) -> list[Item]:
    """The first rows of a table, and how many there are more."""
    more = len(table) - n
    return [table.head(n), f"... and {more:,} more."] if more > 0 else [table]
