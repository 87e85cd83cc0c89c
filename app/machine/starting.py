"""Forms that start long work in the background: a study, an embedding store, a fine-tuning."""

import re
import time
from pathlib import Path

import cache
import session
import streamlit as st
from cache import Content
from guide.cards import folder_of
from guide.glossary import meaning
from machine.jobs import begin
from machine.picking import offer
from machine.places import folder_for
from texts import plain

from endofm_lab.model.card import read_card

METHODS = {
    "linear-probe": "Linear probe: a minute on frozen features",
    "knn": "Nearest neighbours: without any training",
    "frozen": "The head alone is trained",
    "full": "Everything is trained: hours without a graphics processor",
}


def new_folder(kind: str, name: str) -> Path:
    """The folder of a new result; its name leads nowhere else, and is that of no earlier result."""
    plain_name = re.sub(r"[^\w-]+", "-", name.strip()).strip("-") or kind
    folder, number = folder_for(kind) / plain_name, 1
    while folder.exists():
        number += 1
        folder = folder_for(kind) / f"{plain_name}-{number}"
    return folder


def name_field(what: str) -> str:
    """A field for the name of a new result; by default its time."""
    default = st.session_state.setdefault("time of new results", time.strftime("%Y-%m-%d %H-%M"))
    return st.text_input("Name", default, key=f"name of the {what}")


def new_study(video: Content | None, model: Content) -> None:
    """Offer to start a study of the chosen video with the chosen model."""
    name = name_field("study")
    problem = study_problem(video, model)
    if problem:
        st.info(problem)
    if st.button("Start the study", type="primary", icon=":material/play_arrow:", disabled=bool(problem)) and video:
        out = new_folder("study", name)
        source = str(Path(video.path).absolute())
        begin(["study", source, "--model", full(model.path), "--out", str(out)], out, f"Study {out.name}")
        session.change(study=str(out))
        st.rerun()


def study_problem(video: Content | None, model: Content) -> str:
    """Why a study cannot be started; empty if nothing is known against it."""
    if video is None:
        return "Choose a video first."
    folder = folder_of(model.path)
    if folder is not None and (frames := read_card(folder).clip.n_frames) > 1:
        return (
            f"A study scores single frames, but this model looks at clips of {frames} frames. Choose a frame model, or "
            "use the view Video, which reads whole videos too."
        )
    return ""


def full(path: str) -> str:
    """A path from the root of the disk, because a job may run in another folder; names of models stay."""
    return str(Path(path).expanduser().absolute()) if Path(path).expanduser().exists() else path


def manifest_field(what: str) -> Path | None:
    """A field for a manifest; None while there is no such file."""
    options = [line.strip() for line in session.current().manifests.splitlines() if line.strip()]
    placeholder = "path of a .csv or .parquet file"
    default = options[0] if options else ""
    text = st.text_input(
        "Manifest", default, key=f"manifest of the {what}", placeholder=placeholder, help=MANIFEST_HELP
    )
    path = Path(text.strip()).expanduser()
    if not text.strip() or session.is_remote(text):
        return None
    session.remember([text.strip()])
    return path.absolute()


MANIFEST_HELP = f"{meaning('Manifest')}\n\nThe page Data lists manifests; the first of them is filled in."


def new_store() -> None:
    """Offer to compute the embeddings of a manifest."""
    with st.expander("Make a store", icon=":material/add:"):
        manifest = manifest_field("store")
        model = model_field()
        name = name_field("store")
        if st.button("Start", key="start a store", type="primary", icon=":material/play_arrow:", disabled=not manifest):
            out = new_folder("store", name)
            begin(["embed", str(manifest), "--model", model, "--out", str(out)], out, f"Embeddings {out.name}")
            session.change(store=str(out))
            st.rerun()


def new_run() -> None:
    """Offer to train and test a model on a manifest."""
    with st.expander("Train and test on a manifest", icon=":material/add:"):
        manifest = manifest_field("run")
        start = model_field()
        method = st.selectbox("Method", list(METHODS), format_func=METHODS.__getitem__, help=meaning("Probe", "Head"))
        name = name_field("run")
        if st.button("Start", key="start a run", type="primary", icon=":material/play_arrow:", disabled=not manifest):
            out = new_folder("run", name)
            command = ["finetune", str(manifest), "--start", start, "--method", str(method), "--out", str(out)]
            begin(command, out, f"Fine-tuning {out.name}")
            st.rerun()


def model_field() -> str:
    """The chosen model, with a button that chooses another one."""
    model = session.current().model
    row = st.container(horizontal=True, vertical_alignment="center")
    row.markdown(f"Model: **{plain(model)}**", width="content")
    offer("model", "model", row)
    return full(cache.model_content(model).path)
