"""The view Study of the page Prediction: a folder written by `endofm-lab study`, and decisions on its findings."""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import session
import streamlit as st
from cache import Content, content_of
from choose import choose_model, choose_video
from machine.jobs import watch
from machine.picking import offer
from machine.starting import new_study
from sections.review import REPORT_HELP, SCORE, TITLE, show_review
from texts import plain

import endofm_lab as lab
from endofm_lab.figures.study import frames_figure, study_timeline
from endofm_lab.figures.style import STILL
from endofm_lab.folders.background import job_of
from endofm_lab.reports.study import calibration, readable, smoothing_words, study_report, summary
from endofm_lab.study.findings import findings, segments, smoothing_table, top_frames
from endofm_lab.study.review import REVIEW, read_review, with_decisions
from endofm_lab.study.study import Study, load_study

UNFAMILIAR_HELP = (
    "Frames that look unlike what the model learned are grey in the timeline. Their scores mean nothing, so findings "
    "there are shown only if you ask for them."
)


def study_content(folder: str) -> Content:
    """The folder of a study, finished or not; decisions and reports do not change its stamp."""
    names = ("study.json", "job.json", "frames.parquet", "parts")
    parts = [content_of(Path(folder) / name, (".parquet",)).stamp for name in names]
    return Content(folder, " ".join(parts))


@st.cache_resource(max_entries=2, show_spinner="Opening the study ...")
def opened(folder: Content) -> Study:
    """A study, finished or not."""
    return load_study(folder.path, unfinished=True)


@st.cache_data(max_entries=20, show_spinner="Looking for findings ...")
def tables(folder: Content, width: int, unfamiliar: bool) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], pd.DataFrame]:
    """Findings to decide on, segments of every head, and the effect of smoothing over ``width`` frames."""
    study = opened(folder)
    return (
        findings(study, width, unfamiliar=unfamiliar),
        {head: segments(study, head, width) for head in study.scores},
        smoothing_table(study, width),
    )


@st.cache_data(max_entries=4, show_spinner=False)
def best_frames(folder: Content, unfamiliar: bool) -> tuple[go.Figure, pd.DataFrame]:
    """The timeline of a study, and the best frames of every finding of every head."""
    study = opened(folder)
    best = [top_frames(study, head, unfamiliar=unfamiliar).assign(head=head) for head in study.scores]
    return study_timeline(study), pd.concat(best)


@st.cache_data(max_entries=40, show_spinner="Reading frames ...")
def pictures(folder: Content, frames: tuple[tuple[int, float], ...]) -> go.Figure:
    """Frames (number, score) of a study between their neighbours."""
    study = opened(folder)
    return frames_figure(study, pd.DataFrame(frames, columns=["frame", "score"]))


def show_study() -> None:
    """Show everything that is in the study's report, and the table of findings with the reader's decisions."""
    placeholder = "a folder written by endofm-lab study"
    text = st.sidebar.text_input("Study", placeholder=placeholder, **session.field("study")).strip()
    offer("study", "study")
    widths = list(range(1, 52, 2))
    width = st.sidebar.select_slider(
        "Smoothing (frames)",
        widths,
        9,
        key="study width",
        persist_state="session",
        help="Width of the running median from which findings and segments are made; 1 does not smooth.",
    )
    st.sidebar.toggle("Findings in unfamiliar frames", help=UNFAMILIAR_HELP, **session.field("unfamiliar"))
    unfamiliar = session.current().unfamiliar
    with st.expander("New study", expanded=not text, icon=":material/add:"):
        left, right = st.columns(2)
        new_study(choose_video(left), choose_model(right))
    if not text:
        st.info(
            "Start a study above, or give the folder of one in the sidebar. Another way to write one is "
            "`endofm-lab study VIDEO --model MODEL --out FOLDER`."
        )
        return
    folder = str(Path(text).expanduser())
    watch(Path(folder))
    if job_of(folder) is not None and not (Path(folder) / "job.json").is_file():
        return
    content = study_content(folder)
    study = opened(content)
    show_summary(study)
    table, segments_of, smoothing = tables(content, width, unfamiliar)
    timeline, best = best_frames(content, unfamiliar)
    st.plotly_chart(timeline, width="stretch", key="study timeline", config=STILL)
    st.caption(plain(calibration(study)))
    show_findings(content, width, table)
    show_best(content, best)
    st.subheader("Segments")
    for head, rows in segments_of.items():
        st.caption(plain(head))
        st.dataframe(readable(rows), hide_index=True, key=f"segments {head}", column_config={"mean score": SCORE})
    st.subheader("Effect of smoothing")
    share = {"share of frames changed": st.column_config.NumberColumn(format="percent")}
    st.dataframe(smoothing, hide_index=True, key="smoothing", column_config=share)
    st.caption(smoothing_words(width))
    show_files(folder, study, width, table)


def show_summary(study: Study) -> None:
    """Show the summary of the study; warnings come first."""
    if not study.finished:
        st.warning(
            f"This study is **not finished**: {len(study.times_s):,} of {study.video.n_frames:,} frames are shown. The "
            "same `endofm-lab study` command continues it."
        )
    if study.provenance["training_data"].get("generated"):
        st.warning("This model was trained on generated video only. On a real video its scores mean nothing.")
    if study.unfamiliar_frames().any():
        st.warning(plain(study.familiarity_text()), icon=":material/help:")
    st.markdown(plain(summary(study)))
    if len(study.unreadable):
        with st.expander(f"{len(study.unreadable):,} frames could not be read", icon=":material/broken_image:"):
            st.dataframe(readable(study.unreadable), hide_index=True, key="unreadable")


def show_findings(content: Content, width: int, rows: pd.DataFrame) -> None:
    """Show the findings with their decisions, and the pictures of the chosen finding."""
    st.subheader("To confirm or reject")
    if rows.empty and not (Path(content.path) / REVIEW).exists():
        hidden = opened(content).unfamiliar_frames().any() and not session.current().unfamiliar
        other = " in frames that look like what the model learned. A switch in the sidebar shows the others."
        st.info(f"No finding scores at least 0.5{other if hidden else '.'}")
        return
    about = (
        "segments whose best frame scores at least 0.5, the highest score first. Select a row to see its frames. Every "
        "decision is immediately added to review.csv in the study's folder; earlier decisions are not overwritten."
    )
    chosen = show_review(content.path, rows, f"{content.path} {width}", about)
    if chosen is not None:
        show_frames(content, [(int(chosen["frame"]), float(chosen["score"]))], "found")


def show_frames(content: Content, frames: list[tuple[int, float]], key: str) -> None:
    """Show frames between their neighbours, or a warning if the video cannot be opened."""
    try:
        figure = pictures(content, tuple(frames))
    except lab.VideoError as error:
        st.warning(f"The frames cannot be shown: {plain(error)}")
        return
    st.plotly_chart(figure, width="content", theme=None, key=key, config=STILL)


def show_best(content: Content, best: pd.DataFrame) -> None:
    """Show the best frames of the chosen finding."""
    st.subheader("Best frames")
    if best.empty:
        hidden = opened(content).unfamiliar_frames().any() and not session.current().unfamiliar
        if hidden:
            st.info("No frame of a finding looks like what the model learned.")
        else:
            st.info("The classes of this model contain no finding.")
        return
    names = list(dict.fromkeys(zip(best["head"], best["finding"], strict=True)))
    name = st.selectbox("Class", names, format_func=lambda name: f"{name[1]} ({name[0]})", key="best")
    rows = best[(best["head"] == name[0]) & (best["finding"] == name[1])]
    show_frames(content, list(zip(rows["frame"].tolist(), rows["score"].tolist(), strict=True)), "best frames")
    st.caption("Outlined: the frame with its score. Beside it: frames half a second and a second before and after.")


def show_files(folder: str, study: Study, width: int, rows: pd.DataFrame) -> None:
    """Offer the report with all decisions so far, and show where the numbers come from."""
    with st.expander("Model and provenance"):
        provenance = study.provenance
        st.markdown(f"**{plain(provenance['model_name'])}** · {plain(provenance['initialisation']['words'])}")
        st.json({k: v for k, v in provenance.items() if k != "initialisation"}, expanded=False)
    title = st.text_input("Title of the report", key=f"report title {folder}", placeholder=TITLE)
    st.download_button(
        "Report",
        lambda: study_report(study, with_decisions(rows, read_review(folder)), width, title=title),
        "report.html",
        "text/html",
        on_click="ignore",
        icon=":material/description:",
        help=REPORT_HELP,
    )
