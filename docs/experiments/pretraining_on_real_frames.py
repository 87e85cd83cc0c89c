"""Does pre-training on unlabelled real frames help? One table: surgical phase on a patient that was not seen.

    python -m docs.experiments.pretraining_on_real_frames DATA --weights VIT_S.safetensors --out RUNS --steps 100

DATA is a folder with ``cholect50/``, ``sinus/`` and ``laparoscopy/``. Networks learn without labels from the videos
VID68, VID70, VID74 of CholecT50 (one frame per second, with gaps), a sinus endoscopy and a laparoscopy; kNN and linear
probe then learn phases from every second labelled frame of the three, and are asked about every one of VID75. Rows that
are done are not computed again; a row that was stopped goes on.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from endofm_lab.data.manifest import Manifest, read_manifest, write_manifest
from endofm_lab.files import read_json, write_json
from endofm_lab.model.loading.load import initialise, load_model
from endofm_lab.model.transformer import PRESETS as BACKBONES
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.pretraining.config import PretrainConfig, tiny
from endofm_lab.pretraining.health import ProbeData, encode, load_probe, probe, with_interval
from endofm_lab.pretraining.trainer import pretrain
from endofm_lab.reports.pretraining import health_of
from endofm_lab.training.loop import LOG, read_log
from endofm_lab.video.transforms import IMAGENET

FPS = 25  # of folders of frames, whatever was between the pictures
INPUT = replace(IMAGENET, size_px=112)
TRAIN, HELD_OUT = ("VID68", "VID70", "VID74"), "VID75"
OBJECTIVES = ("dino", "masked", "vcl")


def unlabelled(data: Path, out: Path) -> Path:
    """Rows of 32 frames, every 16, of everything but the held-out video."""
    rows = []
    for folder in (*(data / "cholect50" / name for name in TRAIN), data / "sinus" / "seq_002603"):
        n = len(list(folder.glob("*.jpg")))
        for first in range(0, n - 16, 16):
            rows.append((folder, first / FPS, min(first + 32, n) / FPS))
    rows += [(data / "laparoscopy" / "endo.mp4", start, start + 1.28) for start in np.arange(0, 8.7, 0.64).round(2)]
    table = pd.DataFrame(rows, columns=["video", "start_s", "end_s"])
    table["patient"] = [Path(video).stem for video in table["video"]]
    table["video"] = table["video"].map(lambda path: str(Path(path).resolve()))
    table["dataset"] = [Path(video).parent.name for video in table["video"]]
    write_manifest(table.assign(label="", split="pretrain"), out)
    return out


def labelled(data: Path, out: Path) -> Path:
    """A row per labelled frame: the four frames around it."""
    frames, rows = pd.read_csv(data / "cholect50" / "frames.csv"), []
    for video, table in frames.groupby("video"):
        files = sorted(path.name for path in (data / "cholect50" / str(video)).glob("*.jpg"))
        place = {name: n for n, name in enumerate(files)}
        labelled_frames = table[table["phase"].notna()]
        held_out = video == HELD_OUT
        for frame in labelled_frames[:: 1 if held_out else 2].itertuples():
            first = min(max(place[Path(frame.file).name] - 2, 0), len(files) - 4)
            rows.append(
                {
                    "video": str((data / "cholect50" / str(video)).resolve()),
                    "start_s": first / FPS,
                    "end_s": (first + 4) / FPS,
                    "label": frame.phase,
                    "patient": video,
                    "dataset": "cholect50",
                    "split": "test" if held_out else "train",
                }
            )
    write_manifest(pd.DataFrame(rows), out)
    return out


def settings(manifest: Path, out: Path, objective: str, start: str, steps: int, backbone: str) -> PretrainConfig:
    """A run: clips of 16 frames, six views. Weights that are good already are moved gently."""
    base = tiny(manifest, out)
    views = replace(
        base.views,
        clip_s=16 / FPS,
        short_side_px=144,
        global_frames=(4, 4),
        global_shift=4,
        global_px=INPUT.size_px,
        local_px=48,
    )
    fresh = start == "scratch"
    return replace(
        base,
        objective=objective,
        initialisation=start,
        backbone=replace(BACKBONES[backbone], image_px=INPUT.size_px, frames=4, drop_path=0.0),
        views=views,
        dino=replace(base.dino, prototypes=1024, momentum=0.99 if fresh else 0.996),
        steps=steps,
        batch=8,
        lr=(5e-4 if fresh else 3e-5) * 256 / 8,
        warmup_epochs=steps / 10 / 11,
        precision="bfloat16",
        save_every=20,
        trackers=(),
    )


def untrained(config: PretrainConfig) -> VideoTransformer:
    """The network of a run before its first step."""
    torch.manual_seed(config.seed)
    backbone = VideoTransformer(config.backbone)
    initialise(backbone, config.initialisation)
    return backbone


def measured(path: Path, features: np.ndarray, data: ProbeData) -> dict:
    """Probe features, and keep what comes out."""
    write_json(path, probe(features, data, n_resamples=1000))
    return read_json(path)


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Print the table after every row; return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="of an image transformer of the backbone's width")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--backbone", default="small")
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES))
    parser.add_argument("--most", type=int, help="labelled frames to use, for a trial")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    corpus = unlabelled(options.data, options.out / "unlabelled.csv")
    manifest = read_manifest(labelled(options.data, options.out / "labelled.csv"))
    if options.most:
        rows = manifest.table.iloc[:: math.ceil(len(manifest) / options.most)].reset_index(drop=True)
        manifest = Manifest(rows, manifest.root, manifest.path)
    data, table = load_probe(manifest, n_frames=4, size_px=INPUT.size_px), []  # one patient is asked: no intervals
    print(
        f"{len(read_manifest(corpus))} unlabelled clips; {int((~data.held_out).sum())} labelled frames of other "
        f"patients, {int(data.held_out.sum())} of them of {HELD_OUT}, which is held out; chance is 1 / "
        f"{len(set(data.labels[data.held_out]))}"
    )

    def add(name: str, path: Path, features: object, minutes: float = math.nan, health: str = "") -> None:
        numbers = read_json(path) if path.exists() else measured(path, features(), data)  # type: ignore[operator]
        cells = {p: with_interval(numbers, p) for p in ("knn", "linear")}
        table.append({"features": name, **cells, "minutes": round(minutes, 1), "health": health})
        print(pd.DataFrame(table).to_string(index=False), flush=True)

    small = data.frames[:, :, ::7, ::7].astype(np.float32).mean(axis=1)  # every seventh pixel, mean over the frames
    add("raw pixels (16 x 16)", options.out / "pixels.json", lambda: small.reshape(len(small), -1))
    for start in ("scratch", *([str(options.weights)] if options.weights else [])):
        origin = "random" if start == "scratch" else "ViT-S weights"
        config = settings(corpus, options.out / "none", "dino", start, options.steps, options.backbone)
        path = options.out / f"{origin.split()[0]}_before.json"
        add(f"{origin}, as it starts", path, lambda config=config: encode(untrained(config), data.frames, INPUT))
        for objective in options.objectives:
            run = options.out / f"{origin.split()[0]}_{objective}"
            config = settings(corpus, run, objective, start, options.steps, options.backbone)
            for _ in pretrain(config):
                pass
            minutes = sum(record["step_s"] + record["data_s"] for record in read_log(run / LOG)) / 60
            add(
                f"{origin}, {objective}, {options.steps} steps", run / "phases.json",
                lambda run=run: encode(load_model(run / "model").backbone, data.frames, INPUT),
                minutes, health_of(run).state,
            )  # fmt: skip
    return pd.DataFrame(table)


if __name__ == "__main__":
    main()
