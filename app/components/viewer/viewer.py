"""The viewer as a component: it plays a video in the browser and says where it was paused or moved to.

The component is plain JavaScript. It asks `components.viewer.frames` for frames and overlays, so that the page does
not run again for every frame.
"""

from collections.abc import Callable
from pathlib import Path

import streamlit as st
from cache import Content
from components.viewer.frames import new_secret, open_for

from endofm_lab.prediction import VideoPrediction

KEY = "viewer"
_FOLDER = Path(__file__).parent
_SCRIPTS = ("frames.js", "picture.js", "viewer.js")

_component = st.components.v2.component(
    "endofm_lab_viewer",
    html=(_FOLDER / "viewer.html").read_text(encoding="utf-8"),
    css=(_FOLDER / "viewer.css").read_text(encoding="utf-8"),
    js="\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS),
)


def show(video: Content, about: str, prediction: VideoPrediction, frame: int, move_to: Callable[[int], None]) -> None:
    """Show a video at a frame, with the overlays of the prediction ``about`` (its model and settings).

    ``move_to`` is called with the frame at which the user paused the video or to which the user moved. Every such
    message has a number, and the page names the last one that it knows: the browser ignores older answers.
    """
    secret = st.session_state.setdefault("secret of the viewer", new_secret())
    base = st.get_option("server.baseUrlPath").strip("/")
    token = open_for(secret, video, about, prediction)
    at = st.session_state.get(KEY, {}).get("at")
    _component(
        key=KEY,
        data={
            "address": f"{'/' + base if base else ''}/viewer/{token}",
            "video": token,
            "frame": frame,
            "message": at["message"] if at else 0,
        },
        default={"at": None},
        on_at_change=lambda: move_to(int(st.session_state[KEY]["at"]["frame"])),
    )
