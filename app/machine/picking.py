"""Dialogs to choose a video, a folder or a model without typing its path."""

from pathlib import Path

import errors
import session
import streamlit as st
from guide.cards import show_card
from machine.browse import allowed, entries, roots
from machine.places import names_of, places, recent_videos, when
from streamlit.delta_generator import DeltaGenerator
from texts import plain

from endofm_lab.files import cache_folder
from endofm_lab.models.shelf import list_models
from endofm_lab.video.images import IMAGE_SUFFIXES

SHOWN = 60  # entries of a folder at a time
ENDINGS = {  # of the files that are offered; of the other kinds, folders are
    "video": (".mp4", ".avi", ".webm", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".ts", *IMAGE_SUFFIXES),
    "manifest": (".csv", ".parquet"),
    "model": (".pth", ".pt", ".safetensors"),
}
FOLDERS = ("study", "store", "run")


def offer(name: str, kind: str, at: DeltaGenerator = st.sidebar) -> None:
    """A button that opens the dialog to choose the field ``name`` of the session; ``kind`` is what it stands for."""
    label = "Choose runs" if kind == "run" else f"Choose a {kind}"
    icon = ":material/folder_open:"
    at.button(label, key=f"choose {name}", icon=icon, type="tertiary", on_click=open_dialog, args=(name,))
    if st.session_state.get("choosing") == name:
        st.dialog(label, width="large", on_dismiss=close_dialog)(choose)(name, kind)


def open_dialog(name: str) -> None:
    """Open the dialog that chooses a field of the session; it stays open until something is chosen."""
    st.session_state["choosing"] = name
    st.session_state.pop("browsed folder", None)


def close_dialog() -> None:
    """Close the dialog."""
    st.session_state.pop("choosing", None)


def choose(name: str, kind: str) -> None:
    """The content of the dialog: what is known on this machine, and the folders to browse."""
    try:
        list_tab, folder_tab = st.tabs(["Models" if kind == "model" else "On this machine", "Folders"])
        with list_tab:
            if kind == "model":
                show_models(name)
            elif kind in FOLDERS:
                show_known(name, kind)
            else:
                show_recent(name, kind)
        with folder_tab:
            show_folder(name, kind)
    except errors.SHOWN as error:
        errors.show(error)


def take(name: str, value: str) -> None:
    """Choose a value and close the dialog; the field of manifests takes one more line."""
    if name == "manifests":
        lines = session.current().manifests.splitlines()
        value = "\n".join(dict.fromkeys([*lines, value]))
    session.change(**{name: value})
    close_dialog()
    st.rerun()


def show_models(name: str) -> None:
    """Show the cards of the models on this machine, those that are not built last."""
    models = list_models()
    ready = [model for model in models if model.state in ("built", "in the package")]
    for model in ready:
        with st.container(border=True):
            show_card(model.name)
            if st.button(f"Use {model.name}", key=f"use {name} {model.name}"):
                take(name, model.name)
    if others := [model for model in models if model not in ready]:
        with st.expander(f"{len(others)} models that can be built from public data"):
            st.markdown("\n".join(f"- **{plain(m.name)}** ({plain(m.state)}): {plain(m.about)}" for m in others))
            st.caption("`endofm-lab models build NAME` builds one.")


def show_known(name: str, kind: str) -> None:
    """Show the results of a kind with their states and dates."""
    names = names_of(places(kind))
    if not names:
        st.caption(f"There is no {kind} of this app yet.")
    for number, (path, label) in enumerate(names.items()):
        if st.button(plain(label), key=f"known {name} {number}", width="stretch", help=plain(path)):
            take(name, str(Path(path).parent) if kind == "run" else path)


def show_recent(name: str, kind: str) -> None:
    """Show typed paths that exist, and for videos those that were predicted last."""
    files = [(entry["fields"]["path"], when(entry["time_s"])) for entry in recent_videos() if "path" in entry["fields"]]
    paths = dict(files if kind == "video" else ())
    paths |= {path: "" for path in reversed(session.typed_paths()) if is_offered(path, kind) and path not in paths}
    if not paths:
        st.caption("Nothing of this kind was opened in this app yet.")
    for number, (path, time) in enumerate(list(paths.items())[:SHOWN]):
        words = f"{Path(path).name} · {time}" if time else Path(path).name
        if st.button(plain(words), key=f"recent {name} {number}", width="stretch", help=plain(path)):
            take(name, path)


def is_offered(path: str, kind: str) -> bool:
    """Whether a typed path is a file of a kind that is still there."""
    try:
        return (
            path.lower().endswith(ENDINGS[kind]) and not session.is_remote(path) and Path(path).expanduser().is_file()
        )
    except (OSError, ValueError):  # no permission, or a text that is no path
        return False


def show_folder(name: str, kind: str) -> None:
    """Show the folders and files of a folder, which open or choose when they are clicked."""
    tops = [root for root in roots() if root.parent != cache_folder()] or roots()
    folder = allowed(Path(st.session_state.setdefault("browsed folder", str(tops[0]))))
    row = st.container(horizontal=True, vertical_alignment="bottom")
    for root in roots():
        label = plain(root.name or str(root))
        row.button(label, key=f"root {root}", help=plain(root), on_click=open_folder, args=(root,), type="tertiary")
    row = st.container(horizontal=True, vertical_alignment="center")
    at_top = folder in roots()
    row.button("Up", icon=":material/arrow_upward:", disabled=at_top, on_click=open_folder, args=(folder.parent,))
    row.caption(plain(folder))
    part = st.text_input("Show names that contain", key=f"part of names in {folder}").strip().lower()
    listed = [entry for entry in entries(folder, ENDINGS.get(kind, ("/",))) if part in entry.path.name.lower()]
    if kind not in ("manifest",) and st.button("Use this folder", icon=":material/check:", key=f"folder {name}"):
        take(name, str(folder))
    for number, entry in enumerate(listed[:SHOWN]):
        key = f"entry {number} {folder}"
        label = plain(entry.path.name)
        if entry.is_folder:
            icon = ":material/folder:"
            st.button(label, key=key, icon=icon, width="stretch", on_click=open_folder, args=(entry.path,))
        elif st.button(f"{label} · {entry.size_mb:.1f} MB · {when(entry.time_s)}", key=key, width="stretch"):
            take(name, str(entry.path))
    if len(listed) > SHOWN:
        st.caption(f"The first {SHOWN} of {len(listed):,} entries. Type a part of the name to see the others.")
    if not listed:
        st.caption("Nothing here fits.")


def open_folder(folder: Path) -> None:
    """Show another folder in the dialog from the next run on."""
    st.session_state["browsed folder"] = str(folder)
