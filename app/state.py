"""Everything the app keeps between reruns: models, predictions, frames, uploads."""

import hashlib
import re
from pathlib import Path

import numpy as np
import streamlit as st

import endofm_lab as lab
from endofm_lab.files import cache_folder
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import prediction_steps
from endofm_lab.prediction import VideoPrediction, load_prediction
from endofm_lab.samples import sample_video

VIDEO_ENDINGS = ["mp4", "avi", "webm", "mkv", "mov", "mpg", "mpeg", "png", "jpg", "jpeg"]


@st.cache_resource(max_entries=3, show_spinner="Loading the model ...")
def model(name: str, stamp: str) -> VideoModel:
    """A model by name or path; ``stamp`` changes when its file does."""
    return lab.load_model(name)


@st.cache_data(show_spinner="Drawing the generated sample ...")
def sample(name: str) -> str:
    """The path of a generated sample video."""
    return str(sample_video(name))


@st.cache_data(max_entries=400, show_spinner=False)
def frame(path: str, stamp: str, index: int) -> np.ndarray:
    """One frame (H, W, 3) uint8. The reader is opened per call: it must not be shared between threads."""
    with lab.open_video(path) as reader:
        return reader.read([index])[0]


@st.cache_data(max_entries=20, show_spinner=False)
def frame_times(path: str, stamp: str) -> np.ndarray:
    """The presentation time of every frame in seconds."""
    with lab.open_video(path) as reader:
        return reader.times_s


def stamp(path: str) -> str:
    """Changes when the file or folder does."""
    about = Path(path).stat() if Path(path).exists() else None
    return f"{about.st_size} {about.st_mtime_ns}" if about else "absent"


def keep_upload(name: str, content: bytes) -> str:
    """Store an upload under its own hash, so that no name can lead anywhere; return the path."""
    ending = re.sub(r"[^a-z0-9]", "", Path(name).suffix.lower())[:5]
    path = cache_folder("uploads") / f"{hashlib.sha256(content).hexdigest()[:24]}.{ending or 'bin'}"
    if not path.exists():
        path.write_bytes(content)
    return str(path)


def prediction(path: str, model_name: str, every_frame: bool) -> VideoPrediction:
    """The prediction of a video, computed with a progress bar if this machine does not hold it yet.

    It is kept on disk in parts: leaving the page stops the work, coming back goes on with it.
    """
    network = model(model_name, stamp(model_name))
    key = hashlib.sha256(f"{path} {stamp(path)} {network.card.fingerprint} {every_frame} {lab.__version__}".encode())
    folder = cache_folder("predictions") / key.hexdigest()[:24]
    if not (folder / "prediction.json").exists():
        bar = st.progress(0.0, text="Predicting ...")
        for done, total in prediction_steps(path, network, every_frame=every_frame, out=folder):
            bar.progress(done / total, text=f"Predicting: {done} of {total} clips")
        bar.empty()
    return load_prediction(folder)
