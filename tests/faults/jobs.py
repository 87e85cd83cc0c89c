"""Every job that goes on when it is called again, on inputs so small that each takes about a second.

A job is a function of the folder that it works in; what it needs is made once by `Inputs`.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from endofm_lab import predict
from endofm_lab.benchmarking.run import benchmark
from endofm_lab.data import phantom_set
from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.demo.config import DemoConfig
from endofm_lab.demo.model import build_demo_model
from endofm_lab.demo.training import train_demo
from endofm_lab.explain.embeddings import embed
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.evaluate import evaluate
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.pretraining.trainer import pretrain
from endofm_lab.study import study
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.fit import fit_temporal
from endofm_lab.temporal.networks import NetworkConfig
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.video.reader import write_video
from tests.pretraining.runs import micro

TIMED = ("time", "command", "seconds", "features_s", "peak_mb", "interrupted", "run_sha256")  # of a report with a time
COSTS = ("costs.json", "benchmark.html")  # seconds and memory among the numbers
LABELS = ("normal", "polyp")


class Inputs:
    """What the jobs read: a frame model, a video, pictures with labels, clips; written once below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "model"
        self.video = root / "video.mp4"
        torch.manual_seed(0)
        model = build_frame_model(
            "vit_micro", {"finding": HeadSpec("multiclass", LABELS), "mask": HeadSpec("mask", ("m",))}
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        save_model(model, self.model)
        random = np.random.default_rng(0)
        write_video(self.video, random.integers(0, 255, (20, 48, 64, 3)).astype(np.uint8), Fraction(10))
        self.pictures = self._pictures(root / "pictures", random)
        self.clips = self._clips(root / "clips", random)
        self.features = embed(self.pictures, self.model, root / "features", progress=False, step_s=1.0).path

    def _pictures(self, folder: Path, random: np.random.Generator) -> Path:
        """Twelve pictures of two classes, each of its own patient, in three splits."""
        folder.mkdir()
        rows = []
        for number in range(12):
            name, label = f"{number:02d}.png", LABELS[number % 2]
            pixels = random.integers(0, 120, (64, 64, 3)) + 100 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            split = ("train", "val", "test")[number // 4]
            rows.append((name, 0.0, 0.0, label, f"p{number}", "made", split))
        columns = ["video", "start_s", "end_s", "label", "patient", "dataset", "split"]
        return write_manifest(pd.DataFrame(rows, columns=columns), folder / "manifest.csv").path or Path()

    def _clips(self, folder: Path, random: np.random.Generator) -> Path:
        """Four short videos to learn from, with motion and masks as the phantom has them."""
        sizes = {"kills": phantom_set.PhantomSet(train=1, val=0, test=0, n_frames=16, size_px=48)}
        phantom_set.PRESETS.update(sizes)
        return phantom_set.write_phantom(folder, "kills", progress=False)


def _predict(inputs: Inputs, out: Path) -> None:
    predict.predict_video(inputs.video, inputs.model, out=out, batch_clips=4, progress=False)


def _embed(inputs: Inputs, out: Path) -> None:
    embed(inputs.pictures, inputs.model, out, batch_clips=4, progress=False)


def _instants(inputs: Inputs, out: Path) -> None:
    embed(inputs.clips, inputs.model, out, batch_clips=2, progress=False, step_s=0.25)


def _temporal(inputs: Inputs, out: Path) -> None:
    network = NetworkConfig(width=8, layers=2)
    list(fit_temporal(TemporalConfig(inputs.pictures, inputs.features, out, network, steps=4, validate_every=2)))


def _study(inputs: Inputs, out: Path) -> None:
    study.run_study(inputs.video, inputs.model, out, batch=4, progress=False)


def _evaluate(inputs: Inputs, out: Path) -> None:
    evaluate(inputs.model, inputs.pictures, out, head="finding", clips=1)


def _finetune(start: Start, **settings: Any) -> Callable[[Inputs, Path], None]:
    def run(inputs: Inputs, out: Path) -> None:
        config = FinetuneConfig(inputs.pictures, out, start=start, steps=4, batch=2, validate_every=2, clips=1)
        list(finetune(replace(config, **settings)))

    return run


def _benchmark(inputs: Inputs, out: Path) -> None:
    tasks = {"pictures": {"manifest": str(inputs.pictures), "clips": 1}}
    methods = ["knn", "linear probe"]
    source = {"encoders": {"own": str(inputs.model)}, "tasks": tasks, "methods": methods, "degradations": ["darkness"]}
    list(benchmark(source, out))


def _pretrain(inputs: Inputs, out: Path) -> None:
    list(pretrain(micro(inputs.clips, out, steps=4, batch=2)))


def _prepare(inputs: Inputs, out: Path) -> None:
    prepare("private-folder", inputs.clips.parent / "videos", out, cut="encode", workers=1)


def _phantom(inputs: Inputs, out: Path) -> None:
    phantom_set.write_phantom(out, "kills", progress=False)


def _demo(inputs: Inputs, out: Path) -> None:
    config = DemoConfig(order_steps=1, small_steps=1, steps=1, frame_steps=(1,), batch=2)
    model = build_demo_model(n_frames=4)
    for _ in train_demo(model, read_manifest(inputs.clips), config, Checkpoints(out)):
        pass
    Checkpoints(out).save(config.total_steps, model.state_dict(), {}, {})  # what `demo train` stores as the model


JOBS: dict[str, Callable[[Inputs, Path], None]] = {
    "predict": _predict,
    "embed": _embed,
    "instants": _instants,
    "temporal": _temporal,
    "study": _study,
    "evaluate": _evaluate,
    "finetune": _finetune(Start("scratch", size="micro", n_frames=1, stride=1)),
    "frame model": _finetune(Start("scratch", size="timm:vit_micro")),
    "adaptation": _finetune(
        Start("scratch", size="timm:vit_micro"), balanced=True, augmentation="strong", optimiser="adabelief"
    ),
    "linear probe": _finetune(Start("scratch", size="timm:vit_micro"), method="linear probe"),
    "benchmark": _benchmark,
    "pretrain": _pretrain,
    "prepare": _prepare,
    "phantom": _phantom,
    "demo train": _demo,
}


def small_parts() -> None:
    """Several parts where a small job would have one; for a process of its own."""
    study.PART_FRAMES, predict.PART_BATCHES = 8, 1


def _untimed(value: Any) -> Any:
    """JSON without the moment, the process and the command of who made it."""
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if key not in TIMED}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Tensors as shape and bytes, wherever they are in a state of an optimiser."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return sorted((str(key), _plain(item)) for key, item in value.items())
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a finished job by name, without times that were taken and the record of who asked."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name in ("hashes.json", "journal.jsonl", *COSTS):
            continue
        content = path.read_bytes()
        if path.name == "log.jsonl":
            records = [json.loads(line) for line in content.decode().splitlines()]
            content = json.dumps(
                [{k: v for k, v in r.items() if k not in ("data_s", "step_s")} for r in records]
            ).encode()
        if path.name == "benchmark.csv":
            content = pd.read_csv(path).drop(columns=list(TIMED), errors="ignore").to_csv().encode()
        if path.suffix == ".json":
            content = json.dumps(_untimed(json.loads(content))).encode()
        if path.suffix == ".pt":  # its bytes number the tensors as they came; what counts is what they hold
            content = repr(_plain(torch.load(path, weights_only=True))).encode()
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes
