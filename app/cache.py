"""The caches that several pages share: models, frames, clips, predictions and uploads, identified by their content.

A file that is overwritten in place keeps its name, so every cached value belongs to a `Content`. Caches that only one
page needs are in the module of that page.
"""

import hashlib
import os
import re
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import streamlit as st
from machine.jobs import begin, watch
from memory import kept
from turns import heavy

import endofm_lab as lab
from endofm_lab.data.samples import sample_video
from endofm_lab.files import atomic_path, cache_folder, fingerprint_of
from endofm_lab.folders.background import FINISHED
from endofm_lab.model.loading.locate import built_model
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import prediction_steps
from endofm_lab.prediction import VideoPrediction, load_prediction
from endofm_lab.video.clips import Clip
from endofm_lab.video.images import IMAGE_SUFFIXES
from endofm_lab.video.reader import VideoInfo

VIDEO_ENDINGS = ["mp4", "avi", "webm", "mkv", "mov", "mpg", "mpeg", "png", "jpg", "jpeg"]


class Content(NamedTuple):
    """A file, a folder or the name of a model, and a stamp that changes with its content."""

    path: str
    stamp: str


def content_of(path: str | Path, folder_of: tuple[str, ...] = ()) -> Content:
    """A path with the fingerprint of its content, or with an empty stamp if nothing can be read.

    A folder is read only if a file directly in it has one of the endings ``folder_of``, because a typed path may be the
    root of a disk.
    """
    try:
        at = Path(path)
        if at.is_file() or (at.is_dir() and holds(at, folder_of)):
            return Content(str(path), fingerprint_of(at))
    except (OSError, ValueError):  # no permission, or an invalid path: opening it gives the error message
        pass
    return Content(str(path), "")


def holds(folder: Path, endings: tuple[str, ...]) -> bool:
    """Whether a folder directly contains a file whose name has one of the endings."""
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(endings) for entry in entries)


def video_content(path: str | Path) -> Content:
    """A video file or a folder of frames."""
    return content_of(path, tuple(IMAGE_SUFFIXES))


def model_content(name: str) -> Content:
    """A model by name, file or folder; of a built model the folder, whose stamp changes when it is built again."""
    return content_of(built_model(name) or name, ("card.json",))


@st.cache_resource(max_entries=3, show_spinner="Loading the model ...")
def model(chosen: Content) -> VideoModel:
    """A model by name or path."""
    return lab.load_model(chosen.path)


@st.cache_data(show_spinner="Drawing the generated sample ...")
def sample(name: str) -> str:
    """The path of a generated sample video."""
    return str(sample_video(name))


@st.cache_data(max_entries=20, show_spinner=False)
def video_info(video: Content) -> VideoInfo:
    """Size, rate and length of a video, and whether it says of itself that it is generated."""
    with lab.open_video(video.path) as reader:
        return reader.info


@st.cache_data(max_entries=20, show_spinner=False)
def frame_times(video: Content) -> np.ndarray:
    """The presentation time of every frame in seconds."""
    with lab.open_video(video.path) as reader:
        return reader.times_s


@kept(128)
def frame(video: Content, index: int) -> np.ndarray:
    """One frame (H, W, 3) uint8. The reader is opened per call: it must not be shared between threads."""
    with lab.open_video(video.path) as reader:
        return reader.read([index])[0]


@kept(256)
def clip(video: Content, chosen: Content, start_s: float) -> Clip:
    """The clip of a model that starts at ``start_s``; near the end of the video its last whole clip."""
    spec = model(chosen).card.clip
    with lab.open_video(video.path) as reader:
        last_s = max(0.0, reader.info.duration_s - spec.span_s(reader.info))
    return lab.read_clip(video.path, spec, start_s=min(start_s, last_s))


def keep_upload(name: str, content: bytes) -> str:
    """Store an upload under its hash, so that its name cannot point to another folder; return the path."""
    ending = re.sub(r"[^a-z0-9]", "", Path(name).suffix.lower())[:5]
    path = cache_folder("uploads") / f"{hashlib.sha256(content).hexdigest()[:24]}.{ending or 'bin'}"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return str(path)


def prediction(video: Content, chosen: Content, every_frame: bool) -> VideoPrediction:
    """The prediction of a video, which is computed with a progress bar unless it is in the cache.

    Predictions of several sessions take turns. They are kept on disk in parts: leaving the page or a click on Cancel
    stops the work, coming back goes on with it.
    """
    network = model(chosen)
    key = hashlib.sha256(f"{video} {chosen} {network.card.fingerprint} {every_frame} {lab.__version__}".encode())
    folder = cache_folder("predictions") / key.hexdigest()[:24]
    if not (folder / "prediction.json").exists():
        _predict(video, chosen, every_frame, folder)
    return load_prediction(folder)


def _predict(video: Content, chosen: Content, every_frame: bool, folder: Path) -> None:
    """Fill the folder of a prediction, unless the reader has cancelled that, or it is filled in the background."""
    if (job := watch(folder)) is not None and job.state != FINISHED:
        st.stop()
    if st.session_state.get("cancelled prediction") == folder.name:
        st.info("The prediction was cancelled. The clips that were finished are kept.")
        st.button(
            "Go on", on_click=lambda: st.session_state.pop("cancelled prediction", None), icon=":material/play_arrow:"
        )
        st.stop()
    name = f"prediction {folder.name}"  # a page may show the predictions of two models

    def behind() -> None:
        command = ["predict", str(Path(video.path).absolute()), "--model", chosen.path, "--out", str(folder)]
        begin([*command, *(["--every-frame"] if every_frame else [])], folder, f"Prediction of {name_of(video)}")

    with heavy(name, lambda: st.session_state.update({"cancelled prediction": folder.name}), behind) as bar:
        if (folder / "prediction.json").exists():  # another session had asked for the same
            return
        with closing(prediction_steps(video.path, model(chosen), every_frame=every_frame, out=folder)) as steps:
            for done, total in steps:
                bar.progress(done / total, text=f"Predicting: {done} of {total} clips")


def name_of(video: Content) -> str:
    """The name of a video's file; the file of an upload is named by a hash."""
    path = Path(video.path)
    return "an uploaded video" if path.parent == cache_folder("uploads") else path.name


def clicked(point: dict) -> list[int | float]:
    """The ``customdata`` of a clicked point as a list; a browser may send a list, a dict or a single number."""
    data = point["customdata"]
    if isinstance(data, dict):
        data = [data[key] for key in sorted(data, key=int)]
    return data if isinstance(data, list) else [data]
