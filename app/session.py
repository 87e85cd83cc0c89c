"""The session that all pages share and that the page's address stores: video, model, clip, frame and settings.

The session is in `st.session_state` under a key that belongs to no widget, because Streamlit forgets the value of a
widget as soon as a page does not show this widget. Widgets show and change a field of the session, see `field`.

Any web page can link to an address of this app. So a path in an address is opened only if it was typed in this app
before; otherwise the page shows the path and asks the user.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import streamlit as st
from texts import plain

from endofm_lab.data.samples import SAMPLES
from endofm_lab.files import cache_folder, read_json, write_json
from endofm_lab.study.stretches import DEFAULT

SAMPLE, FILE, UPLOAD = "Generated sample", "File or folder on this machine", "Upload"
SOURCES = {"sample": SAMPLE, "file": FILE, "upload": UPLOAD}  # by their names in the address
VIDEO_FIELDS = ("source", "sample", "path", "upload")
PATH_FIELDS = ("path", "model", "second_model", "store", "runs", "study", "manifests")
VIEWS = {  # fields that choose among the views of a page
    "view": ("Video", "Study"),
    "look": ("Space", "Time", "Rollout", "Heads", "Attribution", "Two models"),
    "data_view": ("Manifest", "Classes", "Split", "Audit", "Recipes"),
}
TYPED_KEPT = 500  # number of typed paths to remember, the latest ones


@dataclass
class Session:
    """The fields that all pages share.

    Attributes:
        source: source of the video: `SAMPLE`, `FILE` or `UPLOAD`.
        sample: name of a generated sample.
        path: path of a video file or a folder of frames, as typed.
        upload: name of an upload in the cache, made from its hash; empty without an upload.
        model: "demo" or the path of a model, as typed.
        start_s: start in seconds of the clip on the page Attention.
        frame: frame on the page Prediction; None for the frame with the most evidence.
        every_frame: predict masks for every frame.
        threshold: lowest score of a finding, and of a pixel in a mask.
        box_threshold: lowest score of a box.
        uncalibrated: show the scores of the page Prediction without their calibration.
        unfamiliar: show masks and boxes also where the video looks unlike what the model learned.
        store: folder of an embedding store, as typed.
        runs: folder with finished runs, as typed.
        view: view of the page Prediction, a video or a study.
        study: folder of a study, as typed.
        look: view of the page Attention.
        second_model: second model for comparison on the pages Prediction and Attention, as typed.
        data_view: view of the page Data.
        own_manifests: show manifests of this machine instead of the generated sample.
        manifests: paths of these manifests as typed, one per line.
    """

    source: str = SAMPLE
    sample: str = next(iter(SAMPLES))
    path: str = ""
    upload: str = ""
    model: str = "demo"
    start_s: float = 0.0
    frame: int | None = None
    every_frame: bool = False
    threshold: float = DEFAULT.score
    box_threshold: float = DEFAULT.box
    uncalibrated: bool = False
    unfamiliar: bool = False
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

    After a reload, or when the user goes back or forward, the address differs from the address that the session wrote;
    then the address is used. After a change of page the address is empty; then the session is used.
    """
    session: Session = st.session_state.setdefault("the session", Session())
    address = st.query_params.to_dict()
    if address and address != st.session_state.get("the written address"):
        read_address(session, address)
    write_address(session)
    return session


def change(**values: Any) -> None:
    """Change fields of the session. Another video starts with its own opening frame and its first clip."""
    session = current()
    if any(name in VIDEO_FIELDS and getattr(session, name) != value for name, value in values.items()):
        values = {"frame": None, "start_s": 0.0} | values
    for name, value in values.items():
        setattr(session, name, value)
    remember([value for name, value in values.items() if name in PATH_FIELDS])
    write_address(session)


def fields_of_the_video() -> dict[str, str]:
    """The fields that open the chosen video with the chosen model again."""
    session = current()
    name = {SAMPLE: "sample", FILE: "path", UPLOAD: "upload"}[session.source]
    return {"source": session.source, name: getattr(session, name), "model": session.model}


def typed_paths() -> list[str]:
    """The paths that were typed in this app, the latest path last."""
    file = cache_folder("app") / "typed.json"
    return read_json(file) if file.is_file() else []


def remember(paths: list[str]) -> None:
    """Store typed paths, so that an address with one of them is opened without asking the user."""
    known_paths = typed_paths()
    if new := [path for path in paths if path and path not in known_paths]:
        write_json(cache_folder("app") / "typed.json", [*known_paths, *new][-TYPED_KEPT:])


def ask_for_paths() -> None:
    """Show the paths in the address that were never typed in this app, each with a button that opens it."""
    current()
    untyped: dict[str, str] = st.session_state.setdefault("the untyped paths", {})
    for name, path in list(untyped.items()):
        with st.container(border=True):
            st.warning(
                "A link or bookmark wants to open a path that was not typed in this app. Open it only if you know it."
            )
            st.code(path, language=None)
            row = st.container(horizontal=True)
            row.button("Leave it out", key=f"leave {name}", on_click=lambda name=name: untyped.pop(name, None))
            row.button(
                "Open this path",
                key=f"open {name}",
                on_click=lambda name=name: name in untyped and change(**{name: untyped.pop(name)}),
                help="The path is remembered on this machine, and you will not be asked again.",
            )


def field(name: str, shown: Any = None) -> dict[str, Any]:
    """The arguments of a widget that changes a field of the session and shows its value, or ``shown`` if given."""
    # The key contains the page: a key that widgets on two pages share would lose its value when the page changes.
    key = f"session {name} {st.session_state.get('the page', '')}".strip()
    value = getattr(current(), name) if shown is None else shown
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value
    return {"key": key, "on_change": with_value(key, lambda value: change(**{name: value}))}


def with_value(key: str, act: Callable[[Any], None]) -> Callable[[], None]:
    """A callback of the widget ``key`` that calls ``act`` with its value.

    A value can arrive after the user has gone to another page; Streamlit has forgotten the widget by then, and nothing
    is done.
    """

    def callback() -> None:
        if key in st.session_state:
            act(st.session_state[key])

    return callback


def is_address_of_a_video() -> bool:
    """Whether the address of the page Home was written for the page Prediction, whose address this was once."""
    return bool(st.query_params) and "home" not in st.query_params


def write_address(session: Session) -> None:
    """Show the session in the address: the source, and every other field that does not have its default value."""
    address = address_of(session)
    if st.session_state.get("the page") == "":
        address["home"] = "yes"
    st.session_state["the written address"] = address
    if st.query_params.to_dict() != address:
        st.query_params.from_dict(address)


def open_page(page: str, **values: Any) -> NoReturn:
    """Go on to another page with changed fields, which the address of that page shows at once."""
    change(**values)
    st.switch_page(page, query_params=address_of(current()))


def address_of(session: Session) -> dict[str, str]:
    """The address of a page other than Home."""
    address = {"source": next(name for name, source in SOURCES.items() if source == session.source)}
    for setting in fields(Session):
        value = getattr(session, setting.name)
        if setting.name != "source" and value != setting.default:
            address[setting.name] = "yes" if value is True else str(value)
    return address


def read_address(session: Session, address: dict[str, str]) -> None:
    """Set the session from an address. The page names every part that cannot be read, and leaves it out.

    Paths that were never typed are stored separately for `ask_for_paths`.
    """
    trusted = {getattr(Session, name) for name in PATH_FIELDS}.union(typed_paths())
    untyped = {name: address[name] for name in PATH_FIELDS if name in address and address[name] not in trusted}
    address = {name: text for name, text in address.items() if name not in untyped or is_remote(text)}
    st.session_state["the untyped paths"] = {name: path for name, path in untyped.items() if not is_remote(path)}
    for setting in fields(Session):
        value: Any = setting.default
        if setting.name in address:
            try:
                value = value_of(setting.name, address[setting.name])
            except ValueError as error:
                st.toast(plain(error), icon=":material/link_off:")
        setattr(session, setting.name, value)


def is_remote(path: str) -> bool:
    """Whether opening a path would contact another machine, which would learn who the user is (a Windows share)."""
    return any(line.strip().replace("\\", "/").startswith("//") for line in path.splitlines())


def value_of(name: str, text: str) -> Any:
    """The value of a field from its text in an address.

    Raises:
        ValueError: the text is not a possible value of the field.
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
        case "threshold" | "box_threshold" if re.fullmatch(r"0\.[0-9]{1,2}", text) and float(text) > 0:
            return float(text)
        case "every_frame" | "own_manifests" | "uncalibrated" | "unfamiliar" if text == "yes":
            return True
    raise ValueError(f"The address of this page has {text[:80]!r} for {name}, which is not possible. It was left out.")
