"""What fine-tuning reaches on real data within half an hour each on two cores, with image weights and without.

    python -m docs.experiments.tasks_on_real_data DATA RUNS --weights VIT_S.safetensors --only kvasir-segmentation

DATA holds ``kvasir-seg/`` and ``cholect50/``. Kvasir-SEG has one fixed split 70/10/20 in which near-duplicate pictures
stay together, and each such group counts as a sequence, because patients are unknown. CholecT50 leaves one of its four
videos out in turn; a second one chooses, two are learned from. Runs that are finished are not computed again; one that
was stopped goes on. At the end a table of each question, and for CholecT50 the metrics over all four videos.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from endofm_lab.cli.train import record_text
from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.data.splits import holdout
from endofm_lab.data.units import group_ids
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.runs.compare import compare
from endofm_lab.runs.run import read_run
from endofm_lab.tasks import TASKS

# Left out -> who chooses; irrigator and cleaning do not occur in every video, but always in the two that are left.
CHOOSES = {"VID68": "VID70", "VID70": "VID75", "VID74": "VID70", "VID75": "VID70"}


def kvasir_seg(data: Path, out: Path) -> Path:
    """The pictures with masks and boxes and the fixed split."""
    prepare("kvasir-seg", data / "kvasir-seg", out / "prepared", kind="csv")
    table = read_manifest(out / "prepared" / "manifest.csv").table.copy()
    place = {name: row for row, name in enumerate(table["image"])}
    pairs = json.loads((data / "kvasir-seg" / "near_duplicate_pairs.json").read_text())
    links = np.array([[place[a], place[b]] for a, b in pairs])
    table["sequence"] = [f"near-duplicates {number}" for number in group_ids(table, links)]
    table["split"] = holdout(table, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0).parts
    return write_manifest(table, out / "prepared" / "split.csv").path  # beside boxes.csv


def cholect50_boxes(data: Path, out: Path) -> Iterator[tuple[str, Path]]:
    """Instrument tips, frame by frame: a manifest per video that is left out."""
    prepare("cholect50", data / "cholect50", out / "prepared", kind="csv")
    table = read_manifest(out / "prepared" / "manifest.csv").table.copy()
    for video in CHOOSES:
        folds = table.assign(split=_parts(table["sequence"], video))
        yield video, write_manifest(folds, out / "prepared" / f"without-{video}.csv").path


def cholect50_phases(data: Path, out: Path) -> Iterator[tuple[str, Path]]:
    """Phases: a row per stretch of frames with the same one. Frames count as one second each, gaps are not filled."""
    rows = []
    for video, frames in pd.read_csv(data / "cholect50" / "frames.csv").groupby("video"):
        files = sorted(path.name for path in (data / "cholect50" / str(video)).glob("*.jpg"))
        phase = dict(zip(frames["file"].map(lambda file: Path(file).name), frames["phase"], strict=True))
        labels = pd.Series([phase.get(name) for name in files]).fillna("")
        for _, stretch in labels.groupby((labels != labels.shift()).cumsum()):
            if stretch.iloc[0]:
                row = {"start_s": stretch.index[0], "end_s": stretch.index[-1] + 1, "label": stretch.iloc[0]}
                path = (data / "cholect50" / str(video)).resolve()
                rows.append({**row, "video": str(path), "patient": video, "dataset": "cholect50", "fps": 1})
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    for video in CHOOSES:
        fold = table.assign(split=_parts(table["patient"], video))
        yield video, write_manifest(fold, out / f"without-{video}.csv").path


def _parts(videos: pd.Series, left_out: str) -> list[str]:
    return ["test" if v == left_out else "val" if v == CHOOSES[left_out] else "train" for v in videos]


# Steps with image weights, steps from scratch, and side of the pictures in pixels (None: that of the weights).
# Kvasir-SEG: half an hour per run on two cores. CholecT50: less, since a question has twelve runs.
BUDGETS = {
    "kvasir-segmentation": (600, 1500, None),
    "kvasir-detection": (600, 1500, None),
    "cholect50-phases": (60, 120, 112),
    "cholect50-detection": (80, 200, 154),
}


def configs(question: str, manifest: Path, out: Path, weights: str | None) -> Iterator[FinetuneConfig]:
    """The runs of one question. Budgets are for two cores with bfloat16 in hardware."""
    dataset, task = question.split("-")
    base = FinetuneConfig(manifest, out, task=task, precision="bfloat16", step_s=4.0)  # type: ignore[arg-type]
    frames = {"n_frames": 1, "stride": 1} if task != "phases" else {"n_frames": 4, "stride": 1}
    steps, scratch_steps, px = BUDGETS[question]
    if weights is not None:
        image = Start(weights, image_px=px, **frames)
        often = max(20, steps // (2 if question == "cholect50-detection" else 10))  # its validation takes half a minute
        trained = replace(base, start=image, steps=steps, batch=8, lr=3e-4, validate_every=often)
        trained = replace(trained, batch=4) if task == "phases" else trained
        yield replace(trained, out=out / "image-weights", layer_decay=0.75)
        if dataset == "cholect50":
            yield replace(trained, out=out / "ST-Adapter", method="ST-Adapter", lr=1e-3)
    scratch = Start("scratch", size="tiny", image_px=192 if dataset == "kvasir" else 16 * (px // 16), **frames)
    yield replace(
        base, out=out / "scratch", start=scratch, steps=scratch_steps, batch=16, lr=1e-3, layer_decay=1.0,
        validate_every=100,
    )  # fmt: skip


def guessed(tables: list[pd.DataFrame]) -> float:
    """Share of all instants that have the phase that is longest in the other videos."""
    right = 0
    for nth, table in enumerate(tables):
        remaining = pd.concat([video_table["target"] for at, video_table in enumerate(tables) if at != nth])
        right += int((table["target"] == remaining.mode()[0]).sum())
    return right / sum(map(len, tables))


def run(config: FinetuneConfig) -> None:
    """Finish a run, from where it is."""
    for record in finetune(config):
        print(*record_text(record), sep="\n")


def main() -> None:
    """Run what is asked for and print the tables."""
    questions = ("kvasir-segmentation", "kvasir-detection", "cholect50-phases", "cholect50-detection")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--weights", help="of an image transformer; without them, from scratch alone")
    parser.add_argument("--only", choices=questions, nargs="+", default=questions)
    args = parser.parse_args()
    for question in args.only:
        dataset, task = question.split("-")
        out = args.runs / question
        if dataset == "kvasir":
            manifests = iter([("", kvasir_seg(args.data, args.runs / "kvasir-seg"))])
        else:
            make = cholect50_phases if task == "phases" else cholect50_boxes
            manifests = make(args.data, args.runs / dataset / task)
        folds: dict[str, list[Path]] = {}
        for fold, manifest in manifests:
            for config in configs(question, manifest, out / fold, args.weights):
                run(config)
                folds.setdefault(config.out.name, []).append(config.out)
        if dataset == "kvasir":
            print(compare([read_run(paths[0]) for paths in folds.values()]).to_markdown())
            continue
        for name, paths in folds.items():
            tables = [read_run(path).predictions for path in paths]
            rows = pd.concat(tables, ignore_index=True)
            patients, metrics = TASKS[task].measured(rows.assign(row=range(len(rows))))
            values = {key: float(np.ravel(v)[0]) for key, v in metrics(np.ones((1, len(patients)))).items()}
            print(name, "over", len(paths), "videos:", {key: round(value, 3) for key, value in values.items()})
        if task == "phases":
            print(f"the longest phase of the other videos, guessed always: accuracy {guessed(tables):.3f}")


if __name__ == "__main__":
    main()
