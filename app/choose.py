"""The choice of a video in the side bar, the same on every page."""

from pathlib import Path

import state
import streamlit as st

from endofm_lab.video.samples import SAMPLES


def choose_video() -> tuple[str | None, bool]:
    """The path of the chosen video, and whether it is generated."""
    source = st.sidebar.radio(
        "Video", ["Generated sample", "File or folder on this machine", "Upload"], key="video source"
    )
    if source == "Generated sample":
        return state.sample(st.sidebar.selectbox("Sample", list(SAMPLES))), True
    if source == "Upload":
        upload = st.sidebar.file_uploader("Video or image", type=state.VIDEO_ENDINGS)
        return (state.keep_upload(upload.name, upload.getvalue()), False) if upload else (None, False)
    typed = st.sidebar.text_input("Path", placeholder="a video file, or a folder of frames", key="video path").strip()
    return (str(Path(typed).expanduser()), False) if typed else (None, False)
