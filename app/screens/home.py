"""Page Home: what the app is, three ways into it, recent work on this machine, and the model in use."""

from typing import Any

import errors
import session
import streamlit as st
from guide import tour
from guide.cards import show_card
from guide.glossary import TERMS
from machine.places import Place, places, recent_videos, when
from texts import plain

DOORS = (
    (
        "Look at a video",
        ":material/play_circle:",
        "Open a sample, a file or an upload. See what a model finds in it, when, and why.",
        "screens/prediction.py",
    ),
    (
        "Learn how it works",
        ":material/visibility:",
        "Look inside a video transformer: attention in space and time, and tests of what its maps are worth.",
        "screens/attention.py",
    ),
    (
        "Study a data set",
        ":material/dataset:",
        "Check a table of clips and labels: classes, splits, and patients or pictures that two splits share.",
        "screens/data.py",
    ),
)
# Where a result of a kind is shown: the page, and the field of the session with its folder.
PAGES = {
    "study": ("screens/prediction.py", "study"),
    "store": ("screens/embeddings.py", "store"),
    "run": ("screens/comparison.py", "runs"),
    "pre-training": ("screens/training.py", None),
}
SHOWN = 6


def show_doors() -> None:
    """Show the three ways into the app."""
    row = st.container(horizontal=True)
    for title, icon, text, page in DOORS:
        with row.container(border=True, width=300, height="stretch"):
            if st.button(title, key=f"door {page}", icon=icon, type="primary", width="stretch"):
                session.open_page(page)
            st.markdown(text)


def recent_work() -> list[tuple[float, str, str, str, dict[str, Any], str]]:
    """Recent videos and results, the latest first: time, kind, name, state, fields of the session, page."""
    rows: list[tuple[float, str, str, str, dict[str, Any], str]] = []
    for entry in recent_videos():
        fields = entry["fields"]
        rows.append((entry["time_s"], "Prediction", name_of(fields), "finished", fields, "screens/prediction.py"))
    for kind, (page, _) in PAGES.items():
        results = places(kind)[:SHOWN]
        rows += [(p.time_s, kind.capitalize(), p.path.name, p.state, fields_of(p), page) for p in results]
    return sorted(rows, key=lambda row: row[0], reverse=True)


def name_of(fields: dict[str, str]) -> str:
    """The name of a recent video; the file of an upload is not named, because it may name a patient."""
    if fields["source"] == session.UPLOAD:
        return "an uploaded video"
    return fields["sample"] if fields["source"] == session.SAMPLE else fields["path"]


def fields_of(place: Place) -> dict[str, Any]:
    """The fields of the session that open a result."""
    if place.kind == "study":
        return {"view": "Study", "study": str(place.path)}
    if place.kind == "run":
        return {"runs": str(place.path.parent)}
    return {} if place.kind == "pre-training" else {PAGES[place.kind][1]: str(place.path)}


def show_recent() -> None:
    """Show recent work with a button that opens each."""
    st.subheader("Recent work on this machine", anchor=False)
    rows = recent_work()
    if not rows:
        st.caption("Nothing yet. Predicted videos, studies, embeddings and runs will be listed here.")
    for number, (time_s, kind, name, state, fields, page) in enumerate(rows[:SHOWN]):
        row = st.container(horizontal=True, vertical_alignment="center")
        row.markdown(f"{kind} · **{plain(name)}** · {state} · {when(time_s)}", width="stretch")
        if row.button("Open", key=f"open recent {number}", help=f"Open {kind.lower()} {number + 1} of this list"):
            if kind == "Pre-training":
                st.session_state["run"] = str(next(p.path for p in places("pre-training") if p.path.name == name))
            session.open_page(page, **({"view": "Video"} | fields if kind == "Prediction" else fields))


def show_glossary() -> None:
    """Show all terms with their meaning."""
    with st.expander("Glossary", icon=":material/menu_book:"):
        st.markdown("\n".join(f"- **{term}**: {text}" for term, text in TERMS.items()))


st.title("endofm_lab")
st.markdown(
    "A workbench for models that read endoscopy video. It shows what such a model finds in a video, when and why, and "
    "how far its numbers can be trusted."
)
show_doors()
row = st.container(horizontal=True)
row.button("Take the tour (one minute)", icon=":material/tour:", on_click=tour.start)
try:
    row = st.container(horizontal=True, gap="large")  # on narrow screens the columns are below each other
    left, right = row.container(width="stretch"), row.container(width=360)
    with left:
        show_recent()
    with right:
        st.subheader("Model in use", anchor=False)
        show_card(session.current().model)
        st.subheader("What is generated", anchor=False)
        st.markdown(
            "The sample videos and the data that the demo model learned from were drawn by this software. Every such "
            "picture carries the word **generated** in its pixels. Your own videos carry no such mark."
        )
except errors.SHOWN as error:
    errors.show(error)
show_glossary()
