"""A tour of a minute: a few steps over the pages of the app, at the top of the page until the user ends it."""

import streamlit as st

# Page, title and text of every step.
STEPS = (
    (
        "prediction",
        "A video with its scores",
        "A model looks at short clips of the video. Play it, or click a marker in the timeline. A table lists the "
        "findings, which you confirm or reject.",
    ),
    (
        "attention",
        "Why this answer",
        "Maps show where the model looks in a clip, and which parts its answer is based on. Each map can be tested "
        "before you believe it.",
    ),
    (
        "embeddings",
        "A map of many clips",
        "Clips that look alike to the model are close to each other. The map shows groups, outliers and shortcuts.",
    ),
    (
        "data",
        "Data that can be trusted",
        "A manifest lists the clips of a data set. The audit looks for patients and pictures that two splits share.",
    ),
    (
        "training",
        "Learning from video",
        "Start a small training that needs no labels, and watch its curves. It continues when you close the page.",
    ),
)


def start() -> None:
    """Begin the tour at the next run of the page."""
    st.session_state["tour"] = 0


def show() -> None:
    """Show the current step of the tour, if it has begun, with buttons that lead on."""
    at = st.session_state.get("tour")
    if at is None:
        return
    page, title, text = STEPS[at]
    if st.session_state.get("page of the tour") != at:
        st.session_state["page of the tour"] = at
        st.switch_page(f"screens/{page}.py")
    with st.container(border=True):
        st.markdown(f"**Tour, {at + 1} of {len(STEPS)}: {title}.** {text}")
        row = st.container(horizontal=True)
        if at > 0:
            row.button("Back", key="tour back", on_click=_move, args=(at - 1,))
        if at + 1 < len(STEPS):
            row.button("Next", key="tour next", type="primary", on_click=_move, args=(at + 1,))
        row.button("End the tour", key="tour end", on_click=_move, args=(None,))


def _move(to: int | None) -> None:
    st.session_state["tour"] = to
    if to is None:
        st.session_state.pop("page of the tour", None)
