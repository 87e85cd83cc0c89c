"""The viewer as a component: it plays a video in the browser and says where it was paused or moved to.

The component is plain JavaScript. It asks `components.viewer.frames` for frames and overlays, so that the page does
not run again for every frame.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import session
import streamlit as st
from cache import Content
from components.viewer.frames import new_secret, open_for
from components.viewer.overlays import marks

from endofm_lab.prediction import VideoPrediction
from endofm_lab.study.stretches import Thresholds

KEY = "viewer"
_FOLDER = Path(__file__).parent
_SCRIPTS = ("frames.js", "picture.js", "viewer.js")

_component = st.components.v2.component(
    "endofm_lab_viewer",
    html=(_FOLDER / "viewer.html").read_text(encoding="utf-8"),
    css=(_FOLDER / "viewer.css").read_text(encoding="utf-8"),
    js="\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS),
)


def show(
    video: Content,
    about: str,
    prediction: VideoPrediction,
    frame: int,
    findings: pd.DataFrame,
    thresholds: Thresholds,
    move_to: Callable[[int], None],
    unfamiliar: bool = False,
) -> None:
    """Show a video at a frame, with its findings and the overlays of the prediction ``about`` (model and settings).

    ``findings`` are those of `video_findings`; masks and boxes are drawn from the ``thresholds`` on, on frames that
    look unlike what the model learned only if ``unfamiliar`` is set. ``move_to`` is called with the frame at which the
    user paused the video or to which the user moved. Every such message has a number, and the page names the last one
    that it knows: the browser ignores older answers.
    """
    secret = st.session_state.setdefault("secret of the viewer", new_secret())
    base = st.get_option("server.baseUrlPath").strip("/")
    token = open_for(secret, video, about, prediction, unfamiliar)
    at = st.session_state.get(KEY, {}).get("at")
    _component(
        key=KEY,
        data={
            "address": f"{'/' + base if base else ''}/viewer/{token}",
            "video": token,
            "frame": frame,
            "findings": marks(findings),
            "thresholds": {"mask": thresholds.score, "box": thresholds.box},
            "message": at["message"] if at else 0,
        },
        default={"at": None},
        on_at_change=session.with_value(KEY, lambda value: move_to(int(value["at"]["frame"]))),
    )
