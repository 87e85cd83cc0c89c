"""What a person works on: source, video, model, clip, frame and settings; kept on every page and in the page's address.

The session lives in `st.session_state` under a key that no widget owns, because Streamlit forgets a widget's value as
soon as a page does not draw that widget. Widgets show a field of the session and change it, see `field`.
"""

import re
from dataclasses import dataclass, fields
from typing import Any

import streamlit as st
from texts import plain

from endofm_lab.data.samples import SAMPLES

SAMPLE, FILE, UPLOAD = "Generated sample", "File or folder on this machine", "Upload"
SOURCES = {"sample": SAMPLE, "file": FILE, "upload": UPLOAD}  # by their names in the address
VIDEO_FIELDS = ("source", "sample", "path", "upload")


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
    write_address(session)


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
    for one in fields(Session):
        value = getattr(session, one.name)
        if one.name != "source" and value != one.default:
            address[one.name] = "yes" if value is True else str(value)
    st.session_state["the written address"] = address
    if st.query_params.to_dict() != address:
        st.query_params.from_dict(address)


def read_address(session: Session, address: dict[str, str]) -> None:
    """Take the session from an address. A part that cannot be read is named on the page and left out."""
    for one in fields(Session):
        value: Any = one.default
        if one.name in address:
            try:
                value = value_of(one.name, address[one.name])
            except ValueError as error:
                st.toast(plain(error), icon=":material/link_off:")
        setattr(session, one.name, value)


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
        case "path" | "model" | "store" | "runs":
            return text
        case "upload" if re.fullmatch(r"[0-9a-f]{24}\.[a-z0-9]{1,5}", text):
            return text
        case "start_s" if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?(e-[0-9]+)?", text):
            return float(text)
        case "frame" if re.fullmatch(r"[0-9]{1,9}", text):
            return int(text)
        case "every_frame" if text == "yes":
            return True
    raise ValueError(f"The address of this page gives {text[:80]!r} as {name}. That is not possible and was left out.")
