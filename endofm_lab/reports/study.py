"""The report of a study: timeline, best frames of each finding with neighbours, segments, and findings to decide on."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from endofm_lab.figures.study import clock, frames_figure, study_timeline
from endofm_lab.files import atomic_path
from endofm_lab.reports.html import Item, report_page, verdict
from endofm_lab.study.findings import findings, segments, smoothing_metrics, smoothing_table, top_frames
from endofm_lab.study.review import CONFIRM, REJECT, REVIEW, list_findings, read_review, with_decisions
from endofm_lab.study.study import DUPLICATE, UNREADABLE, Study

_SHOWN = 200  # rows of long tables
_SHOWN_UNREADABLE = 50
_HIDDEN = "Findings of such frames are not listed, and the timeline is grey there."


def write_study_report(
    study: Study, out: str | Path, width: int = 9, labels: str | Path | None = None, title: str = ""
) -> Path:
    """Write ``report.html`` with all decisions so far into a folder, and add new findings to its ``review.csv``.

    Args:
        study: a study from `run_study`; the pictures are read from its video.
        out: the folder of the study.
        width: width in frames of the running median from which the segments are made.
        labels: table of true labels (frame, label) to measure the effect of smoothing; see `smoothing_metrics`.
        title: what the reader calls the study; the report names no file.

    Raises:
        UserError: the video, the labels or ``review.csv`` cannot be read.
    """
    out = Path(out)
    table = findings(study, width)
    page = study_report(study, with_decisions(table, read_review(out)), width, labels, title)
    list_findings(out, table)
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / "report.html"


def study_report(
    study: Study, review: pd.DataFrame, width: int = 9, labels: str | Path | None = None, title: str = ""
) -> str:
    """The report of a study as HTML that needs no network; ``review`` is its findings with their decisions.

    See `write_study_report` for the other arguments and the errors.
    """
    sections: list[tuple[str, list[Item]]] = [("Video and model", [*_warnings(study), summary(study)])]
    if len(study.unreadable):
        items = _long(readable(study.unreadable), _SHOWN_UNREADABLE)
        sections.append((f"Frames that could not be read: {len(study.unreadable):,}", items))
    sections.append(("Timeline of findings", [calibration(study), study_timeline(study)]))
    for head in study.scores:
        best = top_frames(study, head)
        for finding, frames in best.groupby("finding", sort=False):
            shared = sum(finding in classes for classes in study.classes.values()) > 1
            name = f"{finding} ({head})" if shared else str(finding)
            sections.append((f"{name}: best frames and their neighbours", [frames_figure(study, frames)]))
        sections.append((f"Segments: {head}", _long(readable(segments(study, head, width)), _SHOWN)))
    sections.append(("Effect of smoothing", [smoothing_words(width), smoothing_table(study, width)]))
    if labels is not None:
        sections[-1][1].append(smoothing_metrics(study, labels, width))
    text = (
        f"{len(review)} findings: segments whose best frame scores at least 0.5, the highest score first. Confirm or "
        f"reject them in the app (page Prediction, view Study) or in {REVIEW}."
    )
    sections.append(("To confirm or reject", [text, *_long(decision_table(review), _SHOWN)]))
    origin = {name: value for name, value in study.provenance.items() if name != "command"}  # may name the file
    return report_page(title.strip() or "Study report", sections, origin)


def _warnings(study: Study) -> list[Item]:
    """What the reader must not miss: that the study looks unlike what the model learned."""
    if not study.unfamiliar_frames().any():
        return []
    return [verdict(f"{study.familiarity_text()} {_HIDDEN}", "bad")]


def decision_table(review: pd.DataFrame) -> pd.DataFrame:
    """Findings with their decisions, as `with_decisions` gives them, for readers: boxes to tick, times, and names."""
    ticked = {CONFIRM: "☒ confirm ☐ reject", REJECT: "☐ confirm ☒ reject"}
    table = readable(review)
    table["decision"] = review["decision"].map(ticked).fillna("☐ confirm ☐ reject")
    if "familiar" in table:
        table["familiar"] = review["familiar"].fillna("")  # empty for decisions on frames outside all findings
    table["decided_at"] = [time.replace("T", " ")[:16] for time in review["decided_at"]]
    return table.rename(columns={"decided_at": "decided at (UTC)", "decided_by": "by"})


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of findings for readers: times as clock times, column names without underscores and units."""
    copy = table.copy()
    for name in ("start_s", "end_s", "time_s"):
        if name in copy:
            copy[name] = [clock(time_s) for time_s in copy[name]]
    names = {"start_s": "from", "end_s": "to", "time_s": "at", "n_frames": "frames", "mean_score": "mean score"}
    return copy.rename(columns=names | {"best_frame": "best frame"})


def summary(study: Study) -> str:
    """Sentences on the video, the model and the number of skipped frames."""
    video, frames = study.video, f"{len(study.times_s):,}"
    duplicates, n_lost = int((study.state == DUPLICATE).sum()), int((study.state == UNREADABLE).sum())
    if not study.finished:
        frames = f"the first {frames} of {video.n_frames:,}"
    if not study.provenance["skip_near_duplicates"]:
        skipped = "Every frame was scored, near-duplicates too."
    elif duplicates:
        skipped = f"{duplicates:,} near-duplicates were not scored: each takes the scores of the frame that it repeats."
    else:
        skipped = "Every frame was scored; none was a near-duplicate."
    generated = (
        " The model was trained on generated video." if study.provenance["training_data"].get("generated") else ""
    )
    all_read = f"{n_lost:,} frames could not be read." if n_lost else "Every frame could be read."
    return (
        f"{frames[0].upper()}{frames[1:]} frames of {video.width_px} x {video.height_px} px, "
        f"{clock(video.duration_s)} long. {skipped} {all_read} {study.familiarity_text()} "
        f"Model: {study.provenance['model_name']}.{generated} "
        f"Initialisation: {study.provenance['initialisation']['words']}"
    )


def calibration(study: Study) -> str:
    """Sentences on the content of the timeline and the calibration of its scores."""
    return f"The timeline shows the highest score in each time bin. {calibration_of(study.provenance['temperature'])}"


def calibration_of(temperatures: Mapping[str, float | None]) -> str:
    """Sentences on the calibration of heads, given their temperatures."""
    sentences = [
        f"{head}: temperature {temperature:.2f}"
        if temperature
        else f"{head}: not calibrated, scores may be overconfident"
        for head, temperature in temperatures.items()
    ]
    return (
        f"Calibration: {'; '.join(sentences)}." if sentences else "The model gives no scores of whole clips or frames."
    )


def smoothing_words(width: int) -> str:
    """A sentence on the parts of the report that are smoothed."""
    return (
        f"Segments and findings are made from the running median over {width} frames; the timeline and the best frames "
        "show the scores without smoothing."
    )


def _long(table: pd.DataFrame, n: int) -> list[Item]:
    """The first ``n`` rows of a table, and the number of rows that are not shown."""
    hidden = len(table) - n
    return [table.head(n), f"... and {hidden:,} more."] if hidden > 0 else [table]
