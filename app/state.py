"""Everything the app keeps between reruns: models, predictions, frames, uploads."""

import hashlib
import re
from pathlib import Path

import numpy as np
import streamlit as st

import endofm_lab as lab
from endofm_lab.explain.atlas import fit_pca, tsne, umap
from endofm_lab.explain.attention import AttentionMaps, look
from endofm_lab.explain.attribution import METHODS, Attribution
from endofm_lab.explain.embeddings import EmbeddingStore, load_store
from endofm_lab.explain.targets import target_of
from endofm_lab.explain.trust import Curves, deletion_insertion, randomisation_test
from endofm_lab.files import cache_folder
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import prediction_steps
from endofm_lab.prediction import VideoPrediction, load_prediction
from endofm_lab.pretrain.views import MultiView, Views, ViewSpec
from endofm_lab.samples import sample_video
from endofm_lab.video.clips import Clip

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


@st.cache_data(max_entries=20, show_spinner=False)
def clip(path: str, stamp: str, model_name: str, model_stamp: str, start_s: float) -> Clip:
    """The clip that a model would see from a moment on; near the end the last whole one."""
    spec = model(model_name, model_stamp).card.clip
    with lab.open_video(path) as reader:
        last_s = max(0.0, reader.info.duration_s - spec.span_s(reader.info))
    return lab.read_clip(path, spec, start_s=min(start_s, last_s))


@st.cache_resource(max_entries=4, show_spinner="Drawing the views ...")
def views(path: str, stamp: str, spec: ViewSpec, seed: int) -> Views:
    """The views of a random clip of a video; the same for the same seed."""
    return MultiView(spec).of_video(path, seed)


@st.cache_resource(max_entries=4, show_spinner="Looking inside ...")
def attention(path: str, stamp: str, model_name: str, model_stamp: str, start_s: float) -> AttentionMaps:
    """All attention of that clip."""
    network = model(model_name, model_stamp)
    seen = clip(path, stamp, model_name, model_stamp, start_s)
    return look(network, lab.to_input(seen.frames, network.card.input))


@st.cache_data(max_entries=40, show_spinner="Attributing ...")
def attribution(
    path: str, stamp: str, model_name: str, model_stamp: str, start_s: float, head: str, label: str, method: str
) -> Attribution:
    """The map of one method for one class."""
    network = model(model_name, model_stamp)
    seen = clip(path, stamp, model_name, model_stamp, start_s)
    return METHODS[method](network, lab.to_input(seen.frames, network.card.input), target_of(network, head, label))


@st.cache_data(max_entries=40, show_spinner="Testing the map ...")
def trust(
    path: str, stamp: str, model_name: str, model_stamp: str, start_s: float, head: str, label: str, method: str
) -> tuple[Curves, float]:
    """Deletion and insertion of that map, and its rank correlation with maps of shuffled weights."""
    network = model(model_name, model_stamp)
    seen = clip(path, stamp, model_name, model_stamp, start_s)
    x = lab.to_input(seen.frames, network.card.input)
    values = attribution(path, stamp, model_name, model_stamp, start_s, head, label, method).values
    curves = deletion_insertion(network, x, target_of(network, head, label), values)
    return curves, randomisation_test(network, x, head, label, METHODS[method], seeds=2)


@st.cache_resource(max_entries=4, show_spinner=False)
def store(path: str, stamp: str) -> EmbeddingStore:
    """An embedding store; its vectors stay on disk."""
    return load_store(path)


@st.cache_data(max_entries=8, show_spinner="Drawing the map ...")
def projection(path: str, stamp: str, method: str) -> np.ndarray:
    """(N, 2) of the readable rows of a store, by "PCA", "t-SNE" or "UMAP"."""
    found = store(path, stamp)
    vectors = found.vectors[found.usable()]
    if method == "PCA":
        return fit_pca(vectors, 2).project(vectors)
    return tsne(vectors) if method == "t-SNE" else umap(vectors)
