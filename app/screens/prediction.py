"""Page Prediction: a video in the viewer, timelines of scores, phases, masks and boxes; or a study."""

from typing import Any

import cache
import errors
import numpy as np
import pandas as pd
import session
import streamlit as st
from cache import Content
from choose import choose_model, choose_video
from components.viewer import viewer
from guide.glossary import meaning
from machine.places import remember_video
from sections.findings import choose_thresholds, show_findings, show_report
from sections.second import show_second
from sections.study import show_study
from texts import plain

from endofm_lab.figures.comparison import ribbons
from endofm_lab.figures.prediction import frame_timeline, timeline
from endofm_lab.figures.style import CONFIG, STILL
from endofm_lab.files import formulas_as_text
from endofm_lab.metrics.smoothing import hmm_filter, hmm_smooth, stay_transition
from endofm_lab.model.card import HeadSpec
from endofm_lab.prediction import VideoPrediction
from endofm_lab.reports.study import readable
from endofm_lab.study.stretches import Thresholds, video_findings
from endofm_lab.study.tracks import track_table, tracked
from endofm_lab.tasks.phases import Phases
from endofm_lab.video.reader import VideoInfo

MASKS_HELP = (
    "Slower. Without this option only the frames in the clips have masks. The scores stay the same, and their "
    "uncertainty is shown: the spread over clips that start a few frames later."
)


UNFAMILIAR_HELP = (
    "Stretches that look unlike what the model learned have no findings, masks and boxes, because there they mean "
    "nothing. These stretches are grey in the timelines."
)


def move_to(frame: int) -> None:
    """Show another frame from the next rerun on."""
    session.change(frame=frame)


def follow_click(chart: Any, prediction: VideoPrediction) -> None:
    """Move the viewer to the clip that was clicked in the timeline."""
    points = chart["selection"]["points"]
    if points:
        start, end = prediction.times_s[int(cache.clicked(points[0])[0])]
        nearest = int(np.abs(prediction.frame_times_s - (start + end) / 2).argmin())
        move_to(int(prediction.frames[nearest]))


def follow_frame(chart: Any) -> None:
    """Move the viewer to the frame that was clicked in the timeline of masks and boxes."""
    points = chart["selection"]["points"]
    if points:
        move_to(int(cache.clicked(points[0])[0]))


def when(video: VideoInfo, time_s: float) -> str:
    """The time of a frame; for images, which have no frame rate, it is an assumption."""
    if video.decoder == "frames":
        return f"{time_s:.3f} s, assuming {float(video.fps):g} frames per second, since images have no frame rate"
    return f"{time_s:.3f} s"


def show_viewer(
    video: Content, about: str, prediction: VideoPrediction, findings: pd.DataFrame, thresholds: Thresholds
) -> int:
    """Show the viewer, and for which frame the page shows numbers; returns the number of this frame.

    ``about`` names the model and the settings of the prediction, ``findings`` are those of `video_findings`.
    """
    last = prediction.video.n_frames - 1
    times = cache.frame_times(video)
    chosen = session.current().frame
    index = prediction.opening_frame() if chosen is None else min(chosen, last)
    unfamiliar = session.current().unfamiliar
    viewer.show(video, about, prediction, index, findings, thresholds, move_to, unfamiliar)
    label = "Generated picture · " if prediction.video.generated else ""
    nearest = prediction.seen_frame(index)
    exact = "" if nearest == index else f" · mask and boxes of frame {nearest}, the nearest that the model saw"
    st.caption(
        f"{label}This page shows the numbers of frame {index} of {last} · {when(prediction.video, times[index])}{exact}"
    )
    return index


def show_familiarity(prediction: VideoPrediction, generated: bool) -> None:
    """Say above the viewer whether the clips look like what the model learned."""
    trained_on_phantom = bool(prediction.provenance["training_data"].get("generated"))
    if prediction.distance is not None and not prediction.familiar.all():
        sentence = prediction.familiarity_text()
        if trained_on_phantom and not generated:
            sentence += " It was trained on generated video only."
        st.warning(sentence, icon=":material/help:")
    elif trained_on_phantom and not generated:
        st.warning("This model was trained on generated video only. On a real video its scores mean nothing.")
    elif prediction.distance is None:
        st.caption(prediction.familiarity_text())
    if prediction.quality is not None and (prediction.quality >= 0.5).any():
        st.caption(prediction.quality_text())


def show_familiarity_of_clip(prediction: VideoPrediction, clip: int) -> None:
    """Say beside the scores of a clip how far it is from what the model learned."""
    if prediction.distance is None:
        return
    distance = prediction.distance[clip]
    words = "unlike what the model learned" if distance > 1 else "familiar to the model"
    st.badge(
        f"{words} (distance {distance:.2f}, limit 1)",
        icon=":material/help:" if distance > 1 else ":material/check:",
        color="gray" if distance > 1 else "green",
    )


def show_scores(prediction: VideoPrediction, heads: dict[str, HeadSpec], time_s: float) -> None:
    """Show the scores of the clip at ``time_s`` with their spread, and whether they are calibrated."""
    clip = prediction.clip_at(time_s)
    start, end = prediction.times_s[clip]
    st.subheader(f"Clip {clip}: {start:.2f} s to {end:.2f} s")
    show_familiarity_of_clip(prediction, clip)
    for head, values in prediction.scores.items():
        table = pd.DataFrame({"class": prediction.classes[head], "score": values[clip]})
        if head in prediction.score_spread:
            table["spread"] = [f"{low:.2f} to {high:.2f}" for low, high in prediction.score_spread[head][clip]]
        st.dataframe(
            table.sort_values("score", ascending=False),
            hide_index=True,
            column_config={
                "class": head,
                "score": st.column_config.ProgressColumn("score", min_value=0.0, max_value=1.0, format="%.3f"),
            },
        )
        st.caption(calibration_in_words(heads[head].temperature, session.current().uncalibrated))
    if prediction.score_spread:
        st.caption("Spread: the lowest and the highest score of this clip and of clips that start a few frames later.")
    if not prediction.classes:
        st.info("Only the backbone of this model was loaded. Without a head it gives no scores, masks or boxes.")
    elif not prediction.scores:
        kinds = " and ".join(
            {"map": "masks", "boxes": "boxes"}[answer] for answer in sorted({h.answer for h in heads.values()})
        )
        st.info(f"This model predicts {kinds} for each frame. They are shown in the picture, and over time below.")


def calibration_in_words(temperature: float | None, switched_off: bool) -> str:
    """Whether scores are calibrated."""
    if temperature is None:
        return "Not calibrated: these scores rank the classes, but they are not probabilities."
    if switched_off:
        return f"Calibration is switched off: these are the scores without the temperature {temperature:.2f}."
    return f"Calibrated on validation patients: temperature {temperature:.2f}."


def show_phases(prediction: VideoPrediction) -> None:
    """Show the phase at the end of every clip: as scored, smoothed with past clips only, and with the whole video."""
    head = Phases.head_name
    scores, names = prediction.scores[head].astype(np.float64), prediction.classes[head]
    ends_s = prediction.times_s[:, 1]
    step_s = float(np.median(np.diff(ends_s)))
    st.subheader("Phases")
    lasts_s = st.number_input(
        "Typical length of a phase (s)",
        min_value=2 * step_s,
        value=max(float(ends_s[-1]) / len(names), 4 * step_s),
        help="Expected by the smoother: the longer it is, the more short interruptions are taken for errors.",
    )
    transition = stay_transition(len(names), 1 - step_s / lasts_s)
    answers = {
        "as scored": scores.argmax(axis=1),
        "smoothed, past only": hmm_filter(scores, transition).argmax(axis=1),
        "smoothed, whole video": hmm_smooth(scores, transition).argmax(axis=1),
    }
    figure = ribbons([prediction.times_s[0, 0], *ends_s], answers, names)
    st.plotly_chart(figure, width="stretch", key="phases", config=STILL)
    st.caption(
        "Smoothing with the past only works during the examination; smoothing with the whole video needs a finished "
        "recording."
    )


def show_tracks(prediction: VideoPrediction, thresholds: Thresholds) -> None:
    """Show one row per finding that was followed through the video by its boxes, if there is one."""
    boxes = tracked(prediction, thresholds.box)
    if not session.current().unfamiliar:
        boxes = boxes[~boxes["frame"].isin(prediction.frames[prediction.unfamiliar_frames()])]
    if len(boxes):
        st.dataframe(readable(track_table(boxes)), hide_index=True, key="tracks")
        st.caption("Tracks: boxes that follow each other through the video; gaps of up to a second are bridged.")


def show_provenance(prediction: VideoPrediction) -> None:
    """Show where the video, the model and the numbers come from."""
    provenance = prediction.provenance
    with st.expander("Model and provenance"):
        st.markdown(
            f"**{plain(provenance['model_name'])}** · Initialisation: {plain(provenance['initialisation']['words'])}"
        )
        video = prediction.video
        assumed = " (assumed)" if video.decoder == "frames" else ""
        st.markdown(
            f"Video: {video.width_px} x {video.height_px} px, {video.n_frames} frames, "
            f"{float(video.fps):.3f} per second{assumed}, {plain(video.codec)}, read with {plain(video.decoder)}."
        )
        st.json({k: v for k, v in provenance.items() if k != "initialisation"}, expanded=False)
        st.download_button(
            "Scores as CSV",
            formulas_as_text(prediction.table()).to_csv(index=False),
            file_name="clips.csv",
            mime="text/csv",
        )


st.title("Prediction", help=meaning("Finding", "Calibration", "Familiarity", "Threshold"))
view = st.segmented_control(
    "View", session.VIEWS["view"], label_visibility="collapsed", required=True, **session.field("view")
)
if view == "Study":
    try:
        show_study()
    except errors.SHOWN as error:
        errors.show(error)
    st.stop()
video, chosen = choose_video(), choose_model()
every_frame = st.sidebar.toggle(
    "Uncertainty, and masks for every frame",
    help=MASKS_HELP,
    **session.field("every_frame"),
)
st.sidebar.toggle("Findings, masks and boxes in unfamiliar clips", help=UNFAMILIAR_HELP, **session.field("unfamiliar"))
if video is None:
    st.info("Choose a video in the sidebar: a generated sample, a file or folder on this machine, or an upload.")
    st.stop()
try:
    with st.container():  # for the progress bar, so that the viewer stays when the bar goes
        generated = cache.video_info(video).generated
        prediction = cache.prediction(video, chosen, every_frame)
        heads = cache.model(chosen).card.heads
    remember_video(session.fields_of_the_video())
    calibrated = prediction
    prediction, thresholds = choose_thresholds(calibrated, heads)
    findings = video_findings(prediction, thresholds, session.current().unfamiliar)
    if generated:
        st.caption("The video below is **generated**. It shows no patient.")
    show_familiarity(prediction, generated)
    row = st.container(horizontal=True, gap="medium")  # on narrow screens the columns are below each other
    left, right = row.container(width="stretch"), row.container(width=360)
    with left:
        shown = show_viewer(video, f"{chosen} {every_frame}", prediction, findings, thresholds)
    time_s = float(cache.frame_times(video)[shown])
    with right:
        show_scores(prediction, heads, time_s)
        if st.button("What did the model look at in this clip?", icon=":material/visibility:"):
            session.change(start_s=float(prediction.times_s[prediction.clip_at(time_s), 0]))
            st.switch_page("screens/attention.py")
    show_findings(prediction, findings, thresholds, time_s, move_to)
    show_report(calibrated, cache.model(chosen).card, thresholds, (video, chosen))
    if prediction.scores:
        spread = bool(prediction.score_spread)
        st.plotly_chart(
            timeline(prediction, time_s, thresholds.score),
            width="stretch",
            key="timeline",
            on_select=session.with_value("timeline", lambda chart: follow_click(chart, prediction)),
            selection_mode="points",
            config=CONFIG,
        )
        st.caption(
            "Click a marker to move the viewer to that clip."
            + (" Bands: the lowest and the highest score of clips that start a few frames later." * spread)
        )
    if Phases.head_name in prediction.scores and len(prediction.times_s) > 2:
        show_phases(prediction)
    if any(head.answer != "clip" for head in heads.values()):
        st.plotly_chart(
            frame_timeline(prediction, time_s, thresholds, session.current().unfamiliar),
            width="stretch",
            key="frames",
            on_select=session.with_value("frames", follow_frame),
            selection_mode="points",
            config=CONFIG,
        )
        st.caption(
            "Masks and boxes of every frame that the model saw. Click a marker to move the viewer to that frame."
        )
        show_tracks(prediction, thresholds)
    show_second(video, calibrated, thresholds, time_s, move_to)
    show_provenance(prediction)
except errors.SHOWN as error:
    errors.show(error)
