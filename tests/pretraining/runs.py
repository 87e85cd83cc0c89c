"""A few small phantom videos, and settings of runs that learn from them in seconds."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pandas as pd

from endofm_lab.data.manifest import write_manifest
from endofm_lab.model.transformer import PRESETS as BACKBONES
from endofm_lab.pretraining.config import PretrainConfig, tiny
from endofm_lab.pretraining.dino import DinoConfig
from endofm_lab.pretraining.vcl import ContrastConfig
from endofm_lab.pretraining.views import ViewSpec
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video

# Of `endofm-lab pretrain`: eight steps of the smallest network.
SETTINGS = [
    "--preset", "tiny", "--objective", "dino", "--precision", "float32", "--steps", "8", "--batch", "4",
    "--size", "micro", "--views.global-px", "32", "--views.local-px", "16", "--dino.prototypes", "32",
    "--save-every", "2", "--trackers", "--views.global-frames", "2", "4", "--views.local-frames", "2", "2",
]  # fmt: skip


def write_clips(root: Path) -> Path:
    """The manifest of twelve clips of six patients: eight to train, four to validate."""
    rows = []
    for patient in range(6):
        for finding in ("normal", "polyp"):
            spec = PhantomSpec(patient, patient, patient % 3, finding, n_frames=16, size_px=48, fps=Fraction(8))
            name = f"{patient}_{finding}.mkv"
            write_video(root / name, render(spec).frames, spec.fps, codec="ffv1")
            split = "train" if patient < 4 else "val"
            row = {"video": name, "start_s": 0, "end_s": 2, "label": finding, "patient": f"p{patient}"}
            rows.append(row | {"dataset": "phantom", "split": split})
    write_manifest(pd.DataFrame(rows), root / "manifest.csv")
    return root / "manifest.csv"


def micro(manifest: Path, out: Path, **settings) -> PretrainConfig:
    views = ViewSpec(
        clip_s=2.0, global_frames=(2, 4), local_frames=(2, 2), global_shift=2, local_window=0.25, global_px=32,
        local_px=16,
    )  # fmt: skip
    config = replace(
        tiny(manifest, out),
        objective="dino",
        precision="float32",
        backbone=replace(BACKBONES["micro"], drop_path=0.2),
        views=views,
        dino=DinoConfig(prototypes=32, hidden=32, bottleneck=16, momentum=0.9),
        contrast=ContrastConfig(hidden=32, width=16, queue=16, momentum=0.9),
        steps=6,
        batch=4,
        warmup_epochs=1,
        save_every=2,
        trackers=(),
    )
    return replace(config, **settings)


def losses(records):
    return [record["loss"] for record in records]
