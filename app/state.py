"""Everything the app keeps between reruns: models, predictions, frames, uploads."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

import endofm_lab as lab
from endofm_lab.data.audit.audit import Audit
from endofm_lab.data.coverage import Coverage, coverage
from endofm_lab.data.labels import read_mapping
from endofm_lab.data.manifest import Manifest, join_manifests
from endofm_lab.data.prepare.recipes import list_recipes
from endofm_lab.data.splits import Split, holdout, kfold, named_split, official
from endofm_lab.explain.atlas import fit_pca, tsne, umap
from endofm_lab.explain.attention import AttentionMaps, look
from endofm_lab.explain.attribution import METHODS, Attribution
from endofm_lab.explain.embeddings import EmbeddingStore, load_store
from endofm_lab.explain.targets import target_of
from endofm_lab.explain.trust import Curves, deletion_insertion, randomisation_test
from endofm_lab.figures.study import frames_figure, study_timeline
from endofm_lab.files import cache_folder
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import prediction_steps
from endofm_lab.prediction import VideoPrediction, load_prediction
from endofm_lab.pretraining.views import MultiView, Views, ViewSpec
from endofm_lab.reports.audit import picture_at, write_audit_html
from endofm_lab.runs.by_class import by_class
from endofm_lab.runs.compare import Comparison, compare
from endofm_lab.runs.run import REPORT, Run, read_run
from endofm_lab.study.findings import findings, segments, smoothing_table, top_frames
from endofm_lab.study.study import Study, load_study
from endofm_lab.tasks import TASKS
from endofm_lab.video.clips import Clip
from endofm_lab.video.samples import sample_video

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


def study_stamp(folder: str) -> str:
    """Changes when a study goes on or is finished."""
    return " ".join(stamp(str(Path(folder) / name)) for name in ("study.json", "job.json", "parts"))


@st.cache_resource(max_entries=2, show_spinner="Opening the study ...")
def study(folder: str, stamp: str) -> Study:
    """A study, finished or not."""
    return load_study(folder, unfinished=True)


@st.cache_data(max_entries=20, show_spinner="Looking for findings ...")
def study_tables(folder: str, stamp: str, width: int) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], pd.DataFrame]:
    """Findings to decide on, segments of every head, and what smoothing over ``width`` frames changes."""
    found = study(folder, stamp)
    return (
        findings(found, width),
        {head: segments(found, head, width) for head in found.scores},
        smoothing_table(found, width),
    )


@st.cache_data(max_entries=4, show_spinner=False)
def study_best(folder: str, stamp: str) -> tuple[go.Figure, pd.DataFrame]:
    """The time line of a study, and the best frames of every finding of every head."""
    found = study(folder, stamp)
    return study_timeline(found), pd.concat([top_frames(found, head).assign(head=head) for head in found.scores])


@st.cache_data(max_entries=40, show_spinner="Reading frames ...")
def study_frames(folder: str, stamp: str, frames: tuple[tuple[int, float], ...]) -> go.Figure:
    """Frames (number, score) of a study between their neighbours."""
    return frames_figure(study(folder, stamp), pd.DataFrame(frames, columns=["frame", "score"]))


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
    """All attention of that clip, with norms where they can be measured."""
    network = model(model_name, model_stamp)
    seen = clip(path, stamp, model_name, model_stamp, start_s)
    return look(network, lab.to_input(seen.frames, network.card.input), norms=network.backbone.has_video_blocks)


@st.cache_data(max_entries=40, show_spinner=False)
def top_classes(path: str, stamp: str, model_name: str, model_stamp: str, start_s: float) -> dict[str, int]:
    """The class with the highest score in that clip, by its number, of every class head."""
    network = model(model_name, model_stamp)
    seen = clip(path, stamp, model_name, model_stamp, start_s)
    scores = network.predict(lab.to_input(seen.frames, network.card.input))
    heads = network.card.heads
    return {name: int(scores[name][0].argmax()) for name in heads if heads[name].kind in ("multiclass", "multilabel")}


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


@st.cache_data(show_spinner="Drawing the generated data set ...")
def sample_set() -> str:
    """The path of the manifest of a small generated data set."""
    folder = cache_folder("samples") / f"phantom_{lab.__version__}"
    return str(lab.write_phantom(folder, preset="tiny", progress=False))


@st.cache_resource(max_entries=4, show_spinner="Reading the manifests ...")
def manifest(paths: tuple[str, ...], stamps: tuple[str, ...]) -> Manifest:
    """One manifest, or several joined."""
    return join_manifests([lab.read_manifest(path) for path in paths])


@st.cache_resource(max_entries=4, show_spinner="Splitting ...")
def divided(paths: tuple[str, ...], stamps: tuple[str, ...], choice: tuple) -> tuple[Manifest, Split | None]:
    """The manifest with a split, and the split: as it is, an official one by name, a hold-out, or one of k folds."""
    data = manifest(paths, stamps)
    match choice:
        case ("as it is",):
            return data, official(data.table) if (data.table["split"] != "").any() else None
        case ("official", name):
            table = named_split(data.table, name)
            return Manifest(table, data.root, data.path), official(table, name)
        case ("hold-out", shares, seed):
            made = holdout(data.table, dict(shares), seed)
        case ("k-fold", k, fold, seed):
            made = kfold(data.table, k, seed)[fold]
    return Manifest(data.table.assign(split=made.parts), data.root, data.path), made


@st.cache_resource(max_entries=8, show_spinner="Mapping the labels ...")
def covered(paths: tuple[str, ...], stamps: tuple[str, ...], mapping: str, mapping_stamp: str) -> Coverage:
    """What a mapping does to the labels."""
    return coverage(manifest(paths, stamps).table, read_mapping(mapping))


@st.cache_resource(max_entries=8, show_spinner="Auditing ...")
def audited(paths: tuple[str, ...], stamps: tuple[str, ...], choice: tuple, pictures: bool) -> tuple[Audit, str]:
    """The audit of a split, and its page as HTML."""
    found = lab.audit(divided(paths, stamps, choice)[0], pictures=pictures, progress=False)
    key = hashlib.sha256(f"{found.fingerprints} {pictures} {lab.__version__}".encode()).hexdigest()[:24]
    page = cache_folder("audits") / f"{key}.html"
    write_audit_html(found, page)
    return found, page.read_text(encoding="utf-8")


@st.cache_data(max_entries=400, show_spinner=False)
def picture(path: str, stamp: str, start_s: float) -> np.ndarray | None:
    """The picture of a row at a moment, None where it cannot be opened."""
    return picture_at(path, start_s)


@st.cache_data(show_spinner="Reading the recipes ...")
def recipes() -> pd.DataFrame:
    """Name, title, access and licence of every recipe, and its file as text."""
    rows = [
        {
            "recipe": one.name,
            "data set": one.title,
            "access": one.facts["access"],
            "licence": one.facts["licence"] or "not stated",
            "text": one.path.read_text(encoding="utf-8"),
        }
        for one in list_recipes()
    ]
    return pd.DataFrame(rows)


def run_stamp(folder: Path) -> str:
    """Changes when a finished run is written anew."""
    return stamp(str(folder / REPORT))


@st.cache_resource(max_entries=64, show_spinner="Reading the runs ...")
def run(folder: str, stamp: str) -> Run:
    """A finished run."""
    return read_run(folder)


def metric_names(one: Run) -> list[str]:
    """The metrics of a run, the usual one of its task first."""
    return sorted(one.samples(n=1).values, key=lambda name: name != TASKS[one.task].primary)


@st.cache_resource(max_entries=16, show_spinner="Comparing ...")
def compared(folders: tuple[str, ...], stamps: tuple[str, ...], by: str) -> Comparison:
    """The comparison of finished runs."""
    return compare([run(folder, mark) for folder, mark in zip(folders, stamps, strict=True)], by)


@st.cache_data(max_entries=64, show_spinner="Counting class by class ...")
def run_by_class(folder: str, stamp: str) -> pd.DataFrame:
    """A run class by class."""
    return by_class(run(folder, stamp))


def sample_runs() -> None:
    """Two runs on a small generated data set of patients that the demo has not seen, kept with the runs of this app."""
    folder = cache_folder("samples") / f"phantom_unseen_{lab.__version__}"
    with st.spinner("Drawing generated video and measuring two methods on it ..."):
        manifest = lab.write_phantom(folder, preset="tiny", seed=41, progress=False)
        for method in ("linear probe", "knn"):
            out = cache_folder("runs") / f"sample {method}"
            list(finetune(FinetuneConfig(manifest, out, method=method, clips=1)))


def clicked(point: dict) -> list[int | float]:
    """The ``customdata`` of a point that was clicked, as a list: a browser gives a list, a dict or one number."""
    data = point["customdata"]
    if isinstance(data, dict):
        data = [data[key] for key in sorted(data, key=int)]
    return data if isinstance(data, list) else [data]
