"""The prediction page's other view: a folder written by `endofm-lab study`, and decisions on its findings."""

from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import session
import streamlit as st
from cache import Content, content_of
from texts import plain

import endofm_lab as lab
from endofm_lab.figures.study import clock, frames_figure, study_timeline
from endofm_lab.figures.style import STILL, marked
from endofm_lab.reports.study import calibration, readable, smoothing_words, summary
from endofm_lab.study.findings import findings, segments, smoothing_table, top_frames
from endofm_lab.study.review import CONFIRM, OPEN, REJECT, decide, read_review, with_decisions
from endofm_lab.study.study import Study, load_study

SCORE = st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="%.3f")
SAID = {CONFIRM: "confirmed", REJECT: "rejected", OPEN: "open"}


def study_content(folder: str) -> Content:
    """The folder of a study, finished or not, without the decisions and the report in it."""
    names = ("study.json", "job.json", "frames.parquet", "parts")
    parts = [content_of(Path(folder) / name, (".parquet",)).stamp for name in names]
    return Content(folder, " ".join(parts))


@st.cache_resource(max_entries=2, show_spinner="Opening the study ...")
def opened(folder: Content) -> Study:
    """A study, finished or not."""
    return load_study(folder.path, unfinished=True)


@st.cache_data(max_entries=20, show_spinner="Looking for findings ...")
def tables(folder: Content, width: int) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], pd.DataFrame]:
    """Findings to decide on, segments of every head, and what smoothing over ``width`` frames changes."""
    found = opened(folder)
    return (
        findings(found, width),
        {head: segments(found, head, width) for head in found.scores},
        smoothing_table(found, width),
    )


@st.cache_data(max_entries=4, show_spinner=False)
def best_frames(folder: Content) -> tuple[go.Figure, pd.DataFrame]:
    """The time line of a study, and the best frames of every finding of every head."""
    found = opened(folder)
    return study_timeline(found), pd.concat([top_frames(found, head).assign(head=head) for head in found.scores])


@st.cache_data(max_entries=40, show_spinner="Reading frames ...")
def pictures(folder: Content, frames: tuple[tuple[int, float], ...]) -> go.Figure:
    """Frames (number, score) of a study between their neighbours."""
    found = opened(folder)
    return marked(frames_figure(found, pd.DataFrame(frames, columns=["frame", "score"])), found.video.generated)


def show_study() -> None:
    """Everything that the study's report shows, and the table of findings with the reader's decisions."""
    placeholder = "a folder written by endofm-lab study"
    typed = st.sidebar.text_input("Study", placeholder=placeholder, **session.field("study")).strip()
    widths = list(range(1, 52, 2))
    width = st.sidebar.select_slider(
        "Smoothing (frames)",
        widths,
        9,
        key="study width",
        persist_state="session",
        help="Running median that findings and segments are cut from; 1: none.",
    )
    if not typed:
        st.info("Give the folder of a study in the side bar. `endofm-lab study VIDEO --model M --out FOLDER` makes it.")
        return
    folder = str(Path(typed).expanduser())
    content = study_content(folder)
    study = opened(content)
    show_summary(study)
    found, stretches, smoothing = tables(content, width)
    timeline, best = best_frames(content)
    st.plotly_chart(timeline, width="stretch", key="study timeline", config=STILL)
    st.caption(plain(calibration(study)))
    show_review(content, width, found)
    show_best(content, best)
    st.subheader("Segments")
    for head, table in stretches.items():
        st.caption(plain(head))
        st.dataframe(readable(table), hide_index=True, key=f"segments {head}", column_config={"mean score": SCORE})
    st.subheader("What smoothing changes")
    share = {"share of frames changed": st.column_config.NumberColumn(format="percent")}
    st.dataframe(smoothing, hide_index=True, key="smoothing", column_config=share)
    st.caption(smoothing_words(width))
    show_files(folder, study)


def show_summary(study: Study) -> None:
    """What was read; what is missing comes first."""
    if not study.finished:
        st.warning(
            f"This study is **not finished**: {len(study.times_s):,} of {study.video.n_frames:,} frames are below. The "
            "same `endofm-lab study` command goes on."
        )
    if study.provenance["training_data"].get("generated"):
        st.warning("This model was trained on generated video only: on a real one its scores mean nothing yet.")
    st.markdown(plain(summary(study)))
    if len(study.unreadable):
        with st.expander(f"{len(study.unreadable):,} frames could not be read", icon=":material/broken_image:"):
            st.dataframe(readable(study.unreadable), hide_index=True, key="unreadable")


def show_review(content: Content, width: int, found: pd.DataFrame) -> None:
    """The findings with what was decided, one of them in pictures, and the buttons to decide on it."""
    st.subheader("To confirm or reject")
    folder = content.path
    try:
        table = with_decisions(found, read_review(folder))
    except lab.UserError as error:
        st.error(plain(error))
        return
    if table.empty:
        st.info("No finding scores at least 0.5.")
        return
    anew = st.session_state.get("review of") != (folder, width)
    if anew or st.session_state.get("finding", len(table)) >= len(table):
        st.session_state["review of"] = (folder, width)
        st.session_state["finding"] = next_open(table, 0)
    shown = readable(table).assign(decision=table["decision"].map(SAID))
    st.dataframe(
        shown[["number", "decision", "finding", "score", "at", "head", "from", "to", "remark"]],
        hide_index=True,
        key="findings",
        on_select=follow_row,
        selection_mode="single-row",
        column_config={"score": SCORE},
    )
    n_open = int((table["decision"] == OPEN).sum())
    st.caption(
        f"Stretches whose best frame scores at least 0.5, best first: {len(table)}, **{n_open} open**. Mark a row to "
        "see it. Decisions are added to review.csv in the study's folder at once; none is overwritten."
    )
    names = [f"{row.number}: {row.finding} at {clock(row.time_s)}, {SAID[row.decision]}" for row in table.itertuples()]
    which, remark = st.columns(2, vertical_alignment="bottom")
    row = st.container(horizontal=True)
    at = which.selectbox("Finding", range(len(table)), format_func=lambda n: names[n], key="finding")
    chosen = table.iloc[at].to_dict()
    field = f"remark {folder} {chosen['head']} {chosen['finding']} {chosen['frame']}"
    remark.text_input("Remark", chosen["remark"], key=field, placeholder="kept with the decision")
    following = next_open(table, at + 1, but=at)
    for text, decision in (("Confirm", CONFIRM), ("Reject", REJECT), ("Undo", OPEN)):
        row.button(
            text,
            disabled=decision == chosen["decision"] == OPEN,
            type="primary" if decision == chosen["decision"] != OPEN else "secondary",
            on_click=keep,
            args=(folder, chosen, decision, field, at if decision == OPEN else following),
        )
    if chosen["decided_at"]:
        decision = SAID[chosen["decision"]].capitalize()
        st.caption(f"{decision} since {plain(chosen['decided_at'][:16]).replace('T', ' ')} UTC.")
    show_frames(content, [(int(chosen["frame"]), float(chosen["score"]))], "found")


def next_open(table: pd.DataFrame, start: int, but: int | None = None) -> int:
    """The first finding without a decision from ``start`` on, round the end; ``but`` itself if there is none."""
    open_ = [at for at in table.index[table["decision"] == OPEN] if at != but]
    return next((at for at in open_ if at >= start), open_[0] if open_ else but or 0)


def follow_row() -> None:
    """Show the finding whose row was marked."""
    rows = st.session_state["findings"]["selection"]["rows"]
    if rows:
        st.session_state["finding"] = rows[0]


def keep(folder: str, chosen: dict[str, Any], decision: str, field: str, following: int) -> None:
    """Store a decision on the finding that the reader saw, and go on to the next open one."""
    try:
        decide(folder, chosen, decision, st.session_state[field])
        st.session_state["finding"] = following
    except lab.UserError as error:
        st.error(plain(error))


def show_frames(content: Content, frames: list[tuple[int, float]], key: str) -> None:
    """Frames between their neighbours; where the video is gone, that."""
    try:
        figure = pictures(content, tuple(frames))
    except lab.VideoError as error:
        st.warning(f"The frames cannot be shown: {plain(error)}")
        return
    st.plotly_chart(figure, width="content", theme=None, key=key, config=STILL)


def show_best(content: Content, best: pd.DataFrame) -> None:
    """The best frames of one finding."""
    st.subheader("Best frames")
    if best.empty:
        st.info("The model knows no finding, only what is normal.")
        return
    names = list(dict.fromkeys(zip(best["head"], best["finding"], strict=True)))
    name = st.selectbox("Class", names, format_func=lambda name: f"{name[1]} ({name[0]})", key="best")
    own = best[(best["head"] == name[0]) & (best["finding"] == name[1])]
    show_frames(content, list(zip(own["frame"].tolist(), own["score"].tolist(), strict=True)), "best frames")
    st.caption("Outlined: the frame with its score; beside it, half a second and a second before and behind.")


def show_files(folder: str, study: Study) -> None:
    """The report as it was written, and where the numbers come from."""
    with st.expander("Model and provenance"):
        about = study.provenance
        st.markdown(f"**{plain(about['model_name'])}** · {plain(about['initialisation']['words'])}")
        st.json({k: v for k, v in about.items() if k != "initialisation"}, expanded=False)
        report = Path(folder) / "report.html"
        if report.is_file():
            st.download_button("Report", report.read_bytes(), "report.html", "text/html")
