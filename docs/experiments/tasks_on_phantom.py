"""What each way of fine-tuning reaches on a phantom: every task, a table with intervals for each.

    endofm-lab phantom PHANTOM --preset demo
    python -m docs.experiments.tasks_on_phantom PHANTOM/manifest.csv RUNS --start PRETRAINED --steps 200

Fine-tuning, head on frozen backbone (or the probes) and scratch get equal steps. The default start is the demo model,
whose training knew the phantom's labels: give the model of a pre-training run for an honest comparison. For the
phases, the clips of a patient are joined to a longer video: in, then out. Runs that are finished are not computed
again; one that was stopped goes on.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from endofm_lab.cli.train import record_text
from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.model.loading.load import load_model
from endofm_lab.runs.compare import compare
from endofm_lab.runs.run import read_run
from endofm_lab.video.reader import open_video, write_video

TASKS = ("classification", "motion", "segmentation", "detection", "phases")


def operations(manifest: Path, out: Path) -> Path:
    """One video per patient, all clips that advance before those that withdraw: its two phases."""
    source, rows = read_manifest(manifest), []
    for patient, clips in source.table.groupby("patient"):
        frames: list[np.ndarray] = []
        for motion, part in clips.groupby("motion"):  # in alphabetical order
            start = len(frames)
            for video in part["video"]:
                with open_video(source.resolve(video)) as reader:
                    fps = reader.info.fps
                    frames += list(reader.read(range(reader.info.n_frames)))
            row = {"video": f"{patient}.mp4", "start_s": start / fps, "end_s": len(frames) / fps, "label": motion}
            rows.append({**row, "patient": patient, "dataset": "phantom", "split": clips["split"].iloc[0]})
        if not (out / f"{patient}.mp4").is_file():
            write_video(out / f"{patient}.mp4", frames, fps)
    table = pd.DataFrame(rows).astype({"start_s": float, "end_s": float})
    return write_manifest(table, out / "manifest.csv").path


def configs(task: str, manifest: Path, out: Path, start: Start, steps: int) -> Iterator[FinetuneConfig]:
    """The runs that are compared, equal in steps and in the size of the network."""
    config = load_model(start.source).backbone.config
    size = "tiny" if config.width == 192 else "micro"
    scratch = Start("scratch", size=size, image_px=start.image_px or config.image_px, n_frames=config.frames, stride=4)
    kind = "classification" if task == "motion" else task
    full = FinetuneConfig(
        manifest, out / "full", task=kind, start=start, label="motion" if task == "motion" else "label",
        steps=steps, batch=8, lr=1e-3, validate_every=max(1, steps // 4), clips=1, step_s=0.25, precision="bfloat16",
    )  # fmt: skip
    yield full
    yield replace(full, out=out / "scratch", start=scratch, layer_decay=1.0)
    if kind == "classification":
        yield replace(full, out=out / "linear-probe", method="linear probe")
        yield replace(full, out=out / "knn", method="knn")
        yield replace(full, out=out / "attentive-probe", method="attentive probe")
        yield replace(full, out=out / "ST-Adapter", method="ST-Adapter")
    else:
        yield replace(full, out=out / "frozen", method="frozen")


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--start", default="demo")
    parser.add_argument("--image-px", type=int)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", choices=TASKS, nargs="+", default=TASKS)
    args = parser.parse_args()
    for task in args.only:
        folders = []
        start = Start(args.start, image_px=args.image_px)
        manifest = operations(args.manifest, args.runs / "operations") if task == "phases" else args.manifest
        for config in configs(task, manifest, args.runs / task, start, args.steps):
            for record in finetune(config):
                print(*record_text(record), sep="\n")
            folders.append(config.out)
        print(compare([read_run(folder) for folder in folders]).to_markdown(), flush=True)


if __name__ == "__main__":
    main()
