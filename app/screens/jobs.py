"""Page Jobs: what runs in the background on this machine, its place in the queue, and what it came to."""

import errors
import streamlit as st
from machine.jobs import LOOK_EVERY_S, open_result, show_job

from endofm_lab.folders.background import LIVE, list_jobs


def show_jobs() -> None:
    """Show all jobs, the latest first."""
    try:
        for job in list_jobs():
            show_job(job)
            open_result(job)
    except errors.SHOWN as error:
        errors.show(error)


st.title("Jobs")
st.markdown(
    "Long work runs in processes of its own, one after the other. It continues when you close this page or stop the "
    "app, and after a stop it goes on where it was."
)
try:
    jobs = list_jobs()
except errors.SHOWN as error:
    errors.show(error)
    st.stop()
if not jobs:
    st.info(
        "No job was started yet. Studies, embeddings, fine-tuning and pre-training are started on the pages that show "
        "their results."
    )
else:
    st.fragment(show_jobs, run_every=LOOK_EVERY_S if any(job.state in LIVE for job in jobs) else None)()
