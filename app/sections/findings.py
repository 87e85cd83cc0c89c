"""The findings of a video on the page Prediction: their thresholds, the decisions on them, and the report."""

from collections.abc import Callable

import cache
import pandas as pd
import session
import streamlit as st
from cache import Content
from sections.review import REPORT_HELP, TITLE, show_review

from endofm_lab.figures.study import clock
from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.prediction import VideoPrediction
from endofm_lab.reports.video import ExplainedClip, video_report
from endofm_lab.study.review import REVIEW, video_reviews
from endofm_lab.study.stretches import Thresholds, without_calibration

MOST_MAPS = 3  # in a report, the latest ones


def choose_thresholds(prediction: VideoPrediction, heads: dict[str, HeadSpec]) -> tuple[VideoPrediction, Thresholds]:
    """Show the sliders of thresholds and the switch of the calibration; returns the prediction as it is to be shown."""
    if prediction.scores or prediction.maps:
        st.sidebar.slider(
            "Threshold",
            0.01,
            0.99,
            step=0.01,
            help="The lowest score of a finding, and the lowest probability of a pixel in a mask.",
            **session.field("threshold"),
        )
    if prediction.box_heads:
        help_ = "The lowest score of a box that is shown."
        st.sidebar.slider("Threshold of boxes", 0.3, 0.99, step=0.01, help=help_, **session.field("box_threshold"))
    if any(heads[head].temperature is not None for head in prediction.scores):
        help_ = "Shows the scores that the model gives without the temperature that was fitted on validation patients."
        if st.sidebar.toggle("Without calibration", help=help_, **session.field("uncalibrated")):
            prediction = without_calibration(prediction, heads)
    chosen = session.current()
    return prediction, Thresholds(chosen.threshold, chosen.box_threshold)


def show_findings(
    prediction: VideoPrediction,
    findings: pd.DataFrame,
    thresholds: Thresholds,
    time_s: float,
    move_to: Callable[[int], None],
) -> None:
    """Show the table of findings with the reader's decisions; choosing a finding moves the viewer to its frame.

    ``time_s`` is the time of the frame that the viewer shows.
    """
    st.subheader("Findings")
    folder = video_reviews(prediction.provenance["video"])
    if findings.empty and not (folder / REVIEW).exists():
        hidden = prediction.unfamiliar_frames().any() and not session.current().unfamiliar
        st.info(
            "Nothing reaches the threshold in clips that look like what the model learned. The others can be shown by "
            "a switch in the sidebar."
            if hidden
            else "Nothing reaches the threshold. A lower threshold shows less certain findings."
        )
        return
    inside = findings.index[(findings["start_s"] <= time_s) & (time_s < findings["end_s"])]
    about = (
        "stretches of the video that reach the threshold, the highest score first. Select a row to move the viewer to "
        "its frame. Every decision is stored with the content of the video, and earlier decisions are not overwritten."
    )
    chosen = show_review(
        str(folder),
        findings,
        f"{folder} {prediction.provenance['model']} {thresholds} {session.current().uncalibrated}",
        about,
        at_first=int(inside[0]) if len(inside) else None,
        chosen=lambda finding: move_to(int(finding["frame"])),
    )
    if chosen is not None and not chosen["start_s"] <= time_s < chosen["end_s"]:
        row = st.container(horizontal=True, vertical_alignment="center")
        row.caption(f"The viewer shows the frame at {clock(time_s)}, which is not in this finding.", width="content")
        row.button("Show this finding", on_click=move_to, args=(int(chosen["frame"]),))


def show_report(
    prediction: VideoPrediction, card: ModelCard, thresholds: Thresholds, key: tuple[Content, Content]
) -> None:
    """Offer the report of the video; ``key`` is the video and the model, whose tested maps are in the report."""
    row = st.container(horizontal=True, vertical_alignment="bottom")
    field = f"report title {prediction.provenance['video']}"  # another video has no title yet
    title = row.text_input("Title of the report", key=field, placeholder=TITLE, width=300)
    tested = st.session_state.get("tested maps", {})
    maps = [(clip[2], explained) for (clip, *_), explained in tested.items() if clip[:2] == key][-MOST_MAPS:]

    def page() -> str:
        clips = [ExplainedClip(cache.clip(*key, start_s), explained) for start_s, explained in maps]
        return video_report(prediction, card, title, thresholds, clips)

    row.download_button(
        "Report",
        page,
        "report.html",
        "text/html",
        on_click="ignore",
        icon=":material/description:",
        help=f"{REPORT_HELP} Maps of this video that were tested on the page Attention are in it.",
    )
