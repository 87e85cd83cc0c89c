"""The widgets that choose a video and a model, the same on every page."""

from pathlib import Path
from typing import Any

import cache
import session
import streamlit as st
from cache import Content
from machine.picking import offer
from streamlit.delta_generator import DeltaGenerator

from endofm_lab.data.samples import SAMPLES
from endofm_lab.files import cache_folder
from endofm_lab.model.loading.locate import models_folder


def choose_video(at: DeltaGenerator = st.sidebar) -> Content | None:
    """The chosen video, or None if no video is chosen yet; the widgets are shown in ``at``."""
    source = at.radio("Video", list(session.SOURCES.values()), **session.field("source"))
    if source == session.SAMPLE:
        name = at.selectbox("Sample", list(SAMPLES), **session.field("sample"))
        return cache.video_content(cache.sample(name))
    if source == session.UPLOAD:
        return choose_upload(at)
    placeholder = "a video file, or a folder of frames"
    text = at.text_input("Path", placeholder=placeholder, **session.field("path")).strip()
    offer("path", "video", at)
    return cache.video_content(Path(text).expanduser()) if text else None


def choose_model(at: DeltaGenerator = st.sidebar) -> Content:
    """The chosen model; the widgets are shown in ``at``."""
    names = ", ".join(["demo", *sorted(card.parent.name for card in models_folder().glob("*/card.json"))])
    help_ = f"A name ({names}), the folder of a model, a released checkpoint, or hf://OWNER/NAME"
    name = at.text_input("Model", help=help_, **session.field("model"))
    offer("model", "model", at)
    return cache.model_content(name)


def choose_upload(at: DeltaGenerator) -> Content | None:
    """The uploaded video, which stays in the cache when the page changes or is reloaded."""
    field = {"key": "upload field", "on_change": session.with_value("upload field", take_upload)}
    at.file_uploader("Video or image", type=cache.VIDEO_ENDINGS, **field)
    name = session.current().upload
    if not name:
        return None
    path = cache_folder("uploads") / name
    if not path.is_file():
        st.error("The uploaded video is no longer on this machine. Upload the video again.")
        return None
    if st.session_state.get("upload field") is None:
        at.caption("The last uploaded video is still chosen.")
    return cache.video_content(path)


def take_upload(upload: Any) -> None:
    """Store a new upload, or forget an upload that was removed."""
    st.session_state["name of the upload"] = upload.name if upload else "The uploaded video"
    session.change(upload=Path(cache.keep_upload(upload.name, upload.getvalue())).name if upload else "")
