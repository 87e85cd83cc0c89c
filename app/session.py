"""What a person works on: source, video, model, clip, frame and settings; kept on every page and in the page's address.

The session lives in `st.session_state` under a key that no widget owns, because Streamlit forgets a widget's value as
soon as a page does not draw that widget. Widgets show a field of the session and change it, see `field`.

Any page of the web can link to an address of this app. So a path in an address is opened only if it was typed in this
app before; otherwise the page shows the path and asks.
"""

import re
from dataclasses import dataclass, fields
from typing import Any

import streamlit as st
from texts import plain

from endofm_lab.data.samples import SAMPLES
from endofm_lab.files import cache_folder, read_json, write_json

SAMPLE, FILE, UPLOAD = "Generated sample", "File or folder on this machine", "Upload"
SOURCES = {"sample": SAMPLE, "file": FILE, "upload": UPLOAD}  # by their names in the address
VIDEO_FIELDS = ("source", "sample", "path", "upload")
PATH_FIELDS = ("path", "model", "second_model", "store", "runs", "study", "manifests")
VIEWS = {  # fields that choose among the views of a page
    "view": ("Video", "Study"),
    "look": ("Space", "Time", "Rollout", "Heads", "Attribution", "Two models"),
    "data_view": ("Manifest", "Classes", "Split", "Audit", "Recipes"),
}
TYPED_KEPT = 500  # paths that were typed, the latest


@dataclass
class Session:
    """What every page shares.

    Attributes:
        source: where the video comes from: `SAMPLE`, `FILE` or `UPLOAD`.
        sample: the name of a generated sample.
        path: a video file or a folder of frames, as it was typed.
        upload: the name of an upload in the cache, made of its hash; empty without one.
        model: "demo", or the path of a model, as it was typed.
        start_s: start of the clip that the page Attention looks into.
        frame: the frame that the page Prediction shows; None: the one with the most evidence.
        every_frame: predict masks for every frame.
        store: the folder of an embedding store, as it was typed.
        runs: a folder with finished runs, as it was typed.
        view: what the page Prediction shows, a video or a study.
        study: the folder of a study, as it was typed.
        look: the view of the page Attention.
        second_model: the model beside the first one on the page Attention, as it was typed.
        data_view: the view of the page Data.
        own_manifests: show manifests of this machine instead of the generated sample.
        manifests: their paths, one per line as they were typed.
    """

    source: str = SAMPLE
    sample: str = next(iter(SAMPLES))
    path: str = ""
    upload: str = ""
    model: str = "demo"
    start_s: float = 0.0
    frame: int | None = None
    every_frame: bool = False
    store: str = ""
    runs: str = ""
    view: str = VIEWS["view"][0]
    study: str = ""
    look: str = VIEWS["look"][0]
    second_model: str = ""
    data_view: str = VIEWS["data_view"][0]
    own_manifests: bool = False
    manifests: str = ""


def current() -> Session:
    """The session of this browser tab.

    A reload, back and forward bring an address that the session has not written: then the address counts. A change of
    page brings an empty address: then the session counts.
    """
    session: Session = st.session_state.setdefault("the session", Session())
    address = st.query_params.to_dict()
    if address and address != st.session_state.get("the written address"):
        read_address(session, address)
    write_address(session)
    return session


def change(**values: Any) -> None:
    """Change fields of the session. Another video begins at its own opening frame and its first clip."""
    session = current()
    if any(name in VIDEO_FIELDS and getattr(session, name) != value for name, value in values.items()):
        values = {"frame": None, "start_s": 0.0} | values
    for name, value in values.items():
        setattr(session, name, value)
    remember([value for name, value in values.items() if name in PATH_FIELDS])
    write_address(session)


def typed_paths() -> list[str]:
    """The paths that were typed in this app, the latest last."""
    file = cache_folder("app") / "typed.json"
    return read_json(file) if file.is_file() else []


def remember(paths: list[str]) -> None:
    """Keep paths that were typed: an address that gives them is opened without a question."""
    known = typed_paths()
    if new := [path for path in paths if path and path not in known]:
        write_json(cache_folder("app") / "typed.json", [*known, *new][-TYPED_KEPT:])


def ask_for_paths() -> None:
    """Show the paths of the address that were never typed here, each with a button that opens it."""
    current()
    asked: dict[str, str] = st.session_state.setdefault("the asked paths", {})
    for name, path in list(asked.items()):
        with st.container(border=True):
            st.warning("A link or bookmark asks to open a path that was not typed in this app. Open it if you know it.")
            st.code(path, language=None)
            row = st.container(horizontal=True)
            row.button("Leave it out", key=f"leave {name}", on_click=lambda name=name: asked.pop(name))
            row.button(
                "Open this path",
                key=f"open {name}",
                on_click=lambda name=name: change(**{name: asked.pop(name)}),
                help="Kept on this machine, so that the question is not asked again",
            )


def field(name: str, shown: Any = None) -> dict[str, Any]:
    """The arguments of a widget that shows a field of the session (or ``shown``, where given) and changes the field."""
    # A key of its own on every page: a key that passes from one page's widget to another's loses its value on the way.
    key = f"session {name} {st.session_state.get('the page', '')}".strip()
    value = getattr(current(), name) if shown is None else shown
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value
    return {"key": key, "on_change": lambda: change(**{name: st.session_state[key]})}


def write_address(session: Session) -> None:
    """Show the session in the address: the source, and every other field that is not as it was at first."""
    address = {"source": next(name for name, source in SOURCES.items() if source == session.source)}
    for setting in fields(Session):
        value = getattr(session, setting.name)
        if setting.name != "source" and value != setting.default:
            address[setting.name] = "yes" if value is True else str(value)
    st.session_state["the written address"] = address
    if st.query_params.to_dict() != address:
        st.query_params.from_dict(address)


def read_address(session: Session, address: dict[str, str]) -> None:
    """Take the session from an address. A part that cannot be read is named on the page and left out.

    Paths that were never typed are kept apart for `ask_for_paths`.
    """
    known = {getattr(Session, name) for name in PATH_FIELDS}.union(typed_paths())
    asked = {name: address[name] for name in PATH_FIELDS if name in address and address[name] not in known}
    address = {name: text for name, text in address.items() if name not in asked or is_remote(text)}
    st.session_state["the asked paths"] = {name: path for name, path in asked.items() if not is_remote(path)}
    for setting in fields(Session):
        value: Any = setting.default
        if setting.name in address:
            try:
                value = value_of(setting.name, address[setting.name])
            except ValueError as error:
                st.toast(plain(error), icon=":material/link_off:")
        setattr(session, setting.name, value)


def is_remote(path: str) -> bool:
    """Whether opening a path would ask another machine, which learns who asks (a share of Windows)."""
    return any(line.strip().replace("\\", "/").startswith("//") for line in path.splitlines())


def value_of(name: str, text: str) -> Any:
    """The value of a field from its text in an address.

    Raises:
        ValueError: the field cannot have such a value.
    """
    match name:
        case "source" if text in SOURCES:
            return SOURCES[text]
        case "sample" if text in SAMPLES:
            return text
        case _ if name in PATH_FIELDS and not is_remote(text):
            return text
        case _ if text in VIEWS.get(name, ()):
            return text
        case "upload" if re.fullmatch(r"[0-9a-f]{24}\.[a-z0-9]{1,5}", text):
            return text
        case "start_s" if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?(e-[0-9]+)?", text):
            return float(text)
        case "frame" if re.fullmatch(r"[0-9]{1,9}", text):
            return int(text)
        case "every_frame" | "own_manifests" if text == "yes":
            return True
    raise ValueError(f"The address of this page gives {text[:80]!r} as {name}. That is not possible and was left out.")
