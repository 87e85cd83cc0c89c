"""Page Views: the views of a clip in self-supervised learning, in space and in time, with all their parameters."""

import json
from dataclasses import replace
from pathlib import Path

import cache
import errors
import pandas as pd
import streamlit as st
from cache import Content
from choose import choose_video
from memory import kept
from turns import soon

import endofm_lab as lab
from endofm_lab.figures.style import STILL, marked
from endofm_lab.figures.views import in_space, in_time, seen
from endofm_lab.pretraining.config import PRESETS
from endofm_lab.pretraining.views import MultiView, Views, ViewSpec

RECIPES = {
    "Endo-FM, as published": "endo-fm",
    "For lessons (tiny)": "tiny",
    "Minute-long clips": "long-video",
}


@kept(64)
def drawn(video: Content, spec: ViewSpec, seed: int) -> Views:
    """The views of a random clip of a video; the same seed gives the same views."""
    with soon("Drawing the views ..."):
        return MultiView(spec).of_video(video.path, seed)


def whole_numbers(text: str, name: str) -> tuple[int, ...]:
    """The numbers in a text such as "2, 4, 8"."""
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise lab.UserError(f"{name} is {text!r}. Give whole numbers, for example 2, 4, 8.") from None


def choose_spec() -> ViewSpec:
    """The chosen preset with the user's changes. Each preset has its own widgets, which start with its values."""
    recipe = RECIPES[st.sidebar.selectbox("Recipe", list(RECIPES))]
    spec = PRESETS[recipe](Path(), Path()).views

    def text(numbers: tuple[int, ...]) -> str:
        return ", ".join(map(str, numbers))

    with st.sidebar.expander("Time", expanded=True):
        clip_s = st.number_input("Clip (s)", 0.1, 300.0, spec.clip_s, 0.5, key=f"{recipe} clip_s")
        global_frames = st.text_input("Frames of the global views", text(spec.global_frames), key=f"{recipe} global")
        local_frames = st.text_input("Frames of the local views", text(spec.local_frames), key=f"{recipe} local")
        shift = st.number_input("Frames between global windows", 0, 100, spec.global_shift, key=f"{recipe} shift")
        window = st.slider("Window of a local view", 0.05, 1.0, spec.local_window, key=f"{recipe} window")
    with st.sidebar.expander("Space"):
        global_scale = st.slider("Area of a global view", 0.01, 1.0, spec.global_scale, key=f"{recipe} global area")
        local_scale = st.slider("Area of a local view", 0.01, 1.0, spec.local_scale, key=f"{recipe} local area")
        global_px = st.select_slider("Global view (px)", range(32, 321, 16), spec.global_px, key=f"{recipe} global px")
        local_px = st.select_slider("Local view (px)", range(32, 321, 16), spec.local_px, key=f"{recipe} local px")
        flip = st.slider("Mirrored", 0.0, 1.0, spec.flip, key=f"{recipe} flip")
    with st.sidebar.expander("Colour"):
        chosen = {
            name: st.slider(name.capitalize(), 0.0, 1.0, getattr(spec, name), key=f"{recipe} {name}")
            for name in ("jitter", "brightness", "contrast", "saturation", "grey")
        }
        blur = st.toggle("Blur, as in DINO", key=f"{recipe} blur", help="Has no effect in the released code")
        solarise = st.toggle("Invert bright parts, as in DINO", key=f"{recipe} solarise")
    return replace(
        spec,
        clip_s=clip_s,
        global_frames=whole_numbers(global_frames, "Frames of the global views"),
        local_frames=whole_numbers(local_frames, "Frames of the local views"),
        global_shift=int(shift),
        local_window=window,
        global_scale=global_scale,
        local_scale=local_scale,
        global_px=global_px,
        local_px=local_px,
        flip=flip,
        blur=(1.0, 0.1, 0.5) if blur else spec.blur,
        solarise=(0.0, 0.2, 0.0) if solarise else spec.solarise,
        **chosen,
    )


def choose_seed() -> int:
    """The chosen seed; a button moves to the next seed."""
    number, button, _ = st.columns([1, 1, 3], vertical_alignment="bottom")
    button.button("Draw again", icon=":material/casino:", on_click=next_seed, help="The next seed")
    return int(number.number_input("Seed", 0, 2**31 - 1, key="views_seed", help="The same seed gives the same views"))


def next_seed() -> None:
    """Draw new views with the next seed."""
    st.session_state["views_seed"] = st.session_state.get("views_seed", 0) + 1


def show(views: Views, spec: ViewSpec, generated: bool) -> None:
    """Show where the views are in the clip, and their pictures."""
    first_s, last_s = float(views.times_s[0]), float(views.times_s[-1])
    middle_s = round((first_s + last_s) / 2, 2)
    at_s = st.slider("Time in the video (s)", first_s, last_s, middle_s, 0.01, key=f"time {first_s} {last_s}")
    left, right = st.columns(2)
    left.plotly_chart(marked(in_space(views, at_s), generated), width="stretch", config=STILL)
    right.plotly_chart(in_time(views, at_s), width="stretch", config=STILL)
    label = "Generated picture. " if generated else ""
    st.caption(f"{label}Solid lines: views whose window contains {at_s:.2f} s. Dots: the frames that a view shows.")
    teacher = [n for n, draw in enumerate(views.draws) if draw.kind == "global"]
    tabs = st.tabs(["The teacher sees", "The student sees", "In numbers"])
    with tabs[0]:
        st.plotly_chart(marked(seen(views, spec.input, teacher), generated), width="content", config=STILL)
    with tabs[1]:
        st.plotly_chart(marked(seen(views, spec.input), generated), width="content", config=STILL)
        pairs = len(teacher) * (len(views.draws) - 1)
        st.caption(
            f"For each view, the student predicts the teacher's output for every other global view: {pairs} pairs, "
            f"of which {len(teacher)} are between the global views (dynamic motion matching); the others are "
            "cross-view matching."
        )
    with tabs[2]:
        descriptions = views.describe()
        table = pd.DataFrame(descriptions).drop(columns="kind").set_index("name")
        st.dataframe(table.map(lambda cell: str(cell) if isinstance(cell, tuple | list) else cell))
        st.download_button("As JSON", json.dumps(descriptions, indent=2), "views.json", "application/json")


st.title("Views")
video = choose_video()
if video is None:
    st.info("Choose a video in the sidebar: a generated sample, a file or folder on this machine, or an upload.")
    st.stop()
st.markdown(
    "Two networks look at different parts of one clip and have to agree. The **teacher** sees the two global views, "
    "the **student** all of them. No label is needed: that is how Endo-FM learns."
)
seed = choose_seed()
try:
    spec = choose_spec()
    show(drawn(video, spec, seed), spec, cache.video_info(video).generated)
except errors.SHOWN as error:
    errors.show(error)
