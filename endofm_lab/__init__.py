"""endofm_lab: a workbench for Endo-FM, a foundation model for endoscopy video. For research, not for diagnosis."""

import importlib
from typing import Any

from endofm_lab.machine import let_threads_sleep

__version__ = "0.1.0"
NOTICE = "For research only. Not a medical device; not for diagnosis."

let_threads_sleep()  # before anything loads torch

# Public name -> module. Imported at first use, so that `import endofm_lab` and `endofm-lab --help` stay quick.
_PUBLIC = {
    "UserError": "errors",
    "VideoError": "errors",
    "CheckpointError": "errors",
    "ManifestError": "errors",
    "open_video": "video.reader",
    "write_video": "video.reader",
    "ClipSpec": "video.clips",
    "read_clip": "video.clips",
    "InputSpec": "video.transforms",
    "to_input": "video.transforms",
    "PhantomSpec": "video.phantom",
    "render": "video.phantom",
    "write_phantom": "data.phantom_set",
    "read_manifest": "data.manifest",
    "write_manifest": "data.manifest",
    "audit": "data.audit.audit",
    "prepare": "data.prepare.prepare",
    "import_table": "data.prepare.own_table",
    "holdout": "data.splits",
    "kfold": "data.splits",
    "coverage": "data.coverage",
    "read_mapping": "data.labels",
    "resolve_device": "model.precision",
    "build_backbone": "model.transformer",
    "load_model": "model.loading.load",
    "save_model": "model.loading.load",
    "inspect_checkpoint": "model.loading.load",
    "pretrain": "pretraining.trainer",
    "PretrainConfig": "pretraining.config",
    "finetune": "finetuning.finetune",
    "FinetuneConfig": "finetuning.config",
    "Start": "finetuning.start",
    "evaluate": "finetuning.evaluate",
    "predict_video": "predict",
    "VideoPrediction": "prediction",
    "load_prediction": "prediction",
    "look": "explain.attention",
    "embed": "explain.embeddings",
    "load_store": "explain.embeddings",
    "fit_familiarity": "explain.familiarity",
    "Neighbours": "explain.atlas",
    "METHODS": "explain.attribution",
    "attribute": "explain.attribution",
    "run_study": "study.study",
    "load_study": "study.study",
    "benchmark": "benchmarking.run",
    "compare": "runs.compare",
    "read_run": "runs.run",
    "resume": "pretraining.trainer",
    "allow": "outside",
    "export": "portable",
    "verbose": "messages",
    "FeatureExtractor": "explain.extractor",
    "VideoModel": "model.video_model",
    "Encoder": "model.encoder",
    "VideoTokens": "model.encoder",
    "Head": "model.head",
    "HeadSpec": "model.card",
    "Task": "tasks.task",
    "Objective": "pretraining.objective",
    "Learner": "pretraining.objective",
    "Measure": "metrics.measure",
    "fit_temporal": "temporal.fit",
    "TemporalConfig": "temporal.config",
    "NetworkConfig": "temporal.networks",
    "InputConfig": "temporal.inputs",
    "load_temporal": "temporal.model",
    "predict_temporal": "temporal.predict",
}

_PACKAGES = ("models",)  # public as a whole: lab.models.build(...)

__all__ = ["NOTICE", "__version__", *_PUBLIC, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"endofm_lab.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"endofm_lab has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"endofm_lab.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
