"""Jobs in the background as pages show them: how far they are, and buttons that stop them and let them go on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import errors
import session
import streamlit as st
from texts import plain
from turns import place_in_words

from endofm_lab.folders.background import (
    CAN_GO_ON,
    FAILED,
    LIVE,
    LOST,
    RUNNING,
    STOPPED,
    WAITING,
    Job,
    is_running,
    job_of,
    list_jobs,
    printed,
    remove,
    resume,
    start,
    stop,
)

LOOK_EVERY_S = 3.0
WORDS = {
    LOST: "Its process ended without a word: it was killed, or the machine was switched off. Finished work is kept.",
    STOPPED: "It was stopped. Finished work is kept.",
}


def show_line() -> None:
    """Show in the sidebar of every page how many jobs there are, with a link to them; without live jobs nothing."""
    if any(job.state in LIVE for job in list_jobs()):
        with st.sidebar:
            st.fragment(_line, run_every=LOOK_EVERY_S)()


def _line() -> None:
    states = [job.state for job in list_jobs()]
    n_running, n_waiting = states.count(RUNNING), states.count(WAITING)
    words = ", ".join(f"{n} {state}" for n, state in ((n_running, "running"), (n_waiting, "waiting")) if n)
    st.page_link(
        "screens/jobs.py", label=f"Jobs: {words}" if words else "Jobs: all have ended", icon=":material/hourglass:"
    )


def show_job(job: Job) -> None:
    """Show one job with its state and its buttons."""
    key = str(job.out)
    with st.container(border=True):
        row = st.container(horizontal=True, vertical_alignment="center")
        row.markdown(f"**{plain(job.title)}** · {job.state}", width="stretch")
        if job.state in LIVE:
            row.button("Stop", key=f"stop {key}", icon=":material/stop:", on_click=_act, args=(stop, job.out))
        if job.state in CAN_GO_ON:
            row.button(
                "Go on", key=f"resume {key}", icon=":material/play_arrow:", on_click=_act, args=(resume, job.out)
            )
        if job.state not in LIVE:
            row.button("Remove", key=f"remove {key}", icon=":material/close:", on_click=_act, args=(remove, job.out))
        out, error = st.session_state.get("job with an error", (None, None))
        if out == job.out:
            errors.show(error)
        _show_progress(job)
        st.caption(plain(job.out))


def _show_progress(job: Job) -> None:
    if job.state == WAITING:
        st.caption(place_in_words(job.before))
    elif job.state == RUNNING:
        if (progress := job.progress) is None:
            st.caption("It has begun. How far it is will be shown after the first part.")
        else:
            st.progress(min(1.0, progress[0] / max(1, progress[1])), text=f"{progress[0]:,} of {progress[1]:,}")
    elif job.state == FAILED:
        st.error(plain(printed(job.out, 1).removeprefix("Error: ")))
    elif job.state in WORDS:
        st.caption(WORDS[job.state])


def _act(act: Callable[..., object], out: Path) -> None:
    """Do what a button says; what went wrong is shown in the box of the job."""
    st.session_state.pop("job with an error", None)
    try:
        act(out)
    except errors.SHOWN as error:
        st.session_state["job with an error"] = (out, error)


# Where the result of a command is shown: the page, and the fields of the session for its folder.
RESULTS: dict[str, tuple[str, Callable[[Path], dict[str, str]]]] = {
    "study": ("screens/prediction.py", lambda out: {"view": "Study", "study": str(out)}),
    "embed": ("screens/embeddings.py", lambda out: {"store": str(out)}),
    "models": ("screens/models.py", lambda out: {"model": out.name}),
    "finetune": ("screens/comparison.py", lambda out: {"runs": str(out.parent)}),
}


def open_result(job: Job) -> None:
    """Offer to open the result of a job on the page that shows it."""
    page, fields = RESULTS.get(job.command[0], ("", None))
    if fields is not None and job.out.is_dir() and st.button("Open the result", key=f"open {job.out}"):
        session.open_page(page, **fields(job.out))


def begin(command: Sequence[str], out: Path, title: str) -> None:
    """Start a job and say where it is shown; an error is shown as a sentence."""
    try:
        start(command, out, title)
        st.toast(f"{plain(title)} was started. The page Jobs shows how far it is.", icon=":material/hourglass:")
    except errors.SHOWN as error:
        errors.show(error)


def watch(out: Path) -> Job | None:
    """Show the live or unfinished job of a folder where its result will be shown; returns the job, if there is one."""
    job = job_of(out)
    if job is not None and (job.state in LIVE or job.state in CAN_GO_ON):
        st.fragment(_watched, run_every=LOOK_EVERY_S if job.state in LIVE else None)(out)
    return job


def _watched(out: Path) -> None:
    job = job_of(out)
    if job is None or not (is_running(out) or job.state in CAN_GO_ON):
        st.rerun()
    show_job(job)
