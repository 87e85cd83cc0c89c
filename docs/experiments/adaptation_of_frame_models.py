"""Does a first stage on other endoscopy help an image model? The two-stage recipe, on real frames and on the phantom.

    python -m docs.experiments.adaptation_of_frame_models tools DATA --out RUNS --weights FILE
    python -m docs.experiments.adaptation_of_frame_models phantom PHANTOM/manifest.csv --out RUNS --weights FILE

Tools: the instrument in a single frame of CholecT50 (the grasper only where it is alone; frames with two others are
left out), learned from VID68 and VID70, epochs chosen on VID75, asked on VID74. Stage one learns from no frame of
VID74, but from those of VID68 and VID70, Kvasir-SEG and a sinus endoscopy. Rows of a class that training lacks are left
out. Phantom: the finding in a frame, learned from eight patients; stage one sees the other training patients.

Stage one is either supervised (phases, "polyp", "sinus"; phantom: is there a finding or not, as a data set with coarser
classes has it) or masked image modelling of a frozen teacher's features. Stage two has the same epochs in every row;
"longer" gives the network that was not adapted the steps of both stages. Intervals are over patients, of all seeds
together; the one test patient of the tools has none. Differences to the network that was not adapted are paired.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from endofm_lab.data.manifest import Manifest, read_manifest, write_manifest
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.metrics.classification import balanced_accuracy
from endofm_lab.metrics.intervals import bootstrap_difference, bootstrap_interval
from endofm_lab.model.precision import automatic_dtype
from endofm_lab.pretraining.config import images
from endofm_lab.pretraining.features import FeatureConfig
from endofm_lab.pretraining.trainer import MODEL, pretrain
from endofm_lab.runs.run import read_run

PX, VIT = 112, "vit_small_patch14_dinov2"
STAGES = ("not adapted, longer", "supervised stage", "masked stage")
PRECISION: Literal["float32", "bfloat16"] = "bfloat16" if automatic_dtype() is torch.bfloat16 else "float32"


@dataclass(frozen=True)
class Question:
    """Manifests of both stages."""

    first: Manifest
    second: Manifest


def tools(data: Path, out: Path) -> Question:
    """Instruments of CholecT50, and everything else that is there."""
    frames = pd.read_csv(data / "cholect50" / "frames.csv")
    frames = frames[frames["labelled"] == 1]
    other_tools = (
        frames["instruments"].fillna("").map(lambda names: [n for n in names.split("|") if n not in ("", "grasper")])
    )
    only_grasper = frames["instruments"].eq("grasper")
    common = {
        "video": [str((data / "cholect50" / file).resolve()) for file in frames["file"]],
        "patient": frames["video"],
        "dataset": "cholect50",
    }
    split = frames["video"].map({"VID68": "train", "VID70": "train", "VID75": "val", "VID74": "test"})
    second = pd.DataFrame(common).assign(
        label=[
            names[0] if len(names) == 1 else "grasper" if a else ""
            for names, a in zip(other_tools, only_grasper, strict=True)
        ],
        split=split,
    )
    first = pd.DataFrame(common).assign(label=frames["phase"], split=split)
    stills = sorted((data / "kvasir-seg" / "images").iterdir())[::5]  # as many as there are of a frequent phase
    polyps = pd.DataFrame({"video": [str(path.resolve()) for path in stills], "dataset": "kvasir-seg"})
    polyps = polyps.assign(patient="", label="polyp")
    polyps["split"] = np.where(np.arange(len(polyps)) % 5 == 0, "val", "train")
    sinus = sorted((data / "sinus" / "seq_002603").glob("*.jpg"))[::2]
    noses = pd.DataFrame({"video": [str(path.resolve()) for path in sinus], "patient": "sinus", "dataset": "sinus"})
    noses = noses.assign(label="sinus", split="train")
    table = pd.concat([first, polyps, noses], ignore_index=True)
    return Question(_written(table, out / "first.csv"), _written(second[second["label"] != ""], out / "second.csv"))


def phantom(manifest: Path, out: Path) -> Question:
    """Findings of a phantom set."""
    source = read_manifest(manifest)
    table = source.table.assign(video=[str(source.resolve(video)) for video in source.table["video"]])
    table = table.drop(columns=["masks", "boxes"])
    patients = sorted(table.loc[table["split"] == "train", "patient"].unique())
    chosen, coarse = set(patients[:8]), table["label"].where(table["label"] == "normal", "finding")
    first = table[~table["patient"].isin(chosen)].assign(label=coarse)
    second = table[table["patient"].isin(chosen) | (table["split"] != "train")]
    return Question(write_manifest(first, out / "first.csv"), write_manifest(second, out / "second.csv"))


def _written(table: pd.DataFrame, path: Path) -> Manifest:
    """The rows whose class occurs in training, as a manifest."""
    table = table[table["label"].isin(set(table.loc[table["split"] == "train", "label"]))]
    return write_manifest(table.assign(start_s=0.0, end_s=0.0), path)


def epoch_steps(manifest: Manifest, batch: int) -> int:
    """Steps in which every class is drawn as often as the most frequent one has rows."""
    counts = manifest.rows("train")["label"].value_counts()
    return math.ceil(len(counts) * int(counts.max()) / batch)


def trained(
    manifest: Manifest, out: Path, start: Start, steps: int, epoch: int, batch: int, lr: float, decay: float, seed: int
) -> Path:
    """Fine-tune by the paper's recipe, and return the folder of the model; a run that was stopped goes on."""
    config = FinetuneConfig(
        manifest.path,
        out,
        start=start,
        balanced=True,
        augmentation="strong",
        seeds=(seed,),
        steps=steps,
        batch=batch,
        lr=lr,
        lr_decay=decay,
        weight_decay=2e-4,
        layer_decay=1.0,
        optimiser="adabelief",
        validate_every=epoch,
        clips=1,
        chosen_by="balanced_accuracy",
        precision=PRECISION,
    )
    for record in finetune(config):
        if "validation" in record and "step" in record:
            print(
                f"  step {record['step'] + 1}: loss {record['loss']:.3f}, macro recall {record['validation']:.3f}",
                flush=True,
            )
    return out / f"seed-{seed}" / "model"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("tools", "phantom"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", help="of a DINOv2-like ViT-S/14: the masked stage's teacher, and a row of its own")
    parser.add_argument("--only", choices=("eva", "vit"), help="the small EVA-02 from scratch, or the ViT-S")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="rows besides the first")
    parser.add_argument("--epochs", type=int, nargs=2, default=(8, 8), help="of the first and the second stage")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    question = (tools if args.question == "tools" else phantom)(args.data, args.out)
    print(f"Stage one: {len(question.first)} rows of {', '.join(question.first.classes)}")
    parts = question.second.table.groupby(["split", "label"]).size().unstack(fill_value=0)
    print(f"Stage two:\n{parts.to_string()}")

    first_epoch, second_epoch = epoch_steps(question.first, args.batch), epoch_steps(question.second, args.batch)

    def supervised(start: Start, lr: float, seed: int, out: Path) -> Start:
        steps = args.epochs[0] * first_epoch
        return Start(str(trained(question.first, out, start, steps, first_epoch, args.batch, lr, 0.95, seed)))

    def masked(start: Start, lr: float, seed: int, out: Path) -> Start:
        preset = images(question.first.path, out)
        config = replace(
            preset,
            image_model=(start.size or "").removeprefix("timm:"),
            initialisation=start.source,
            features=FeatureConfig(args.weights, VIT),
            views=replace(preset.views, global_px=PX, global_scale=(0.5, 1.0)),
            epochs=args.epochs[0],
            batch=args.batch,
            lr=lr * 256 / args.batch,
            seed=seed,
            precision=PRECISION,
            workers=0,
            trackers=(),
        )
        for _ in pretrain(config):
            pass
        return Start(str(out / MODEL))

    def nothing(start: Start, lr: float, seed: int, out: Path) -> Start:
        """Start as it is."""
        return start

    stages: dict[str, Callable[[Start, float, int, Path], Start]] = {
        "not adapted": nothing,
        "not adapted, longer": nothing,
        "supervised stage": supervised,
    }
    if args.weights:
        stages["masked stage"] = masked
    stages = {name: adapt for name, adapt in stages.items() if name in ("not adapted", *args.stages)}
    networks = [("eva02_mini", None, 1e-3)] if args.only != "vit" else []
    if args.weights and args.only != "eva":
        networks.append((VIT, args.weights, 5e-5))
    rows = []
    for name, weights, lr in networks:
        answers: dict[str, np.ndarray] = {}
        for stage, adapt in stages.items():
            tables = []
            for seed in range(args.seeds):
                out = args.out / f"{name} {stage} {seed}".replace(", ", " ").replace(" ", "_")
                start = Start(weights or "scratch", size=f"timm:{name}", image_px=PX)
                steps = args.epochs[1] * second_epoch + (stage == STAGES[0]) * args.epochs[0] * first_epoch
                decay = 0.05 ** (second_epoch / steps)
                start = adapt(start, lr, seed, out / "one")
                trained(question.second, out / "two", start, steps, second_epoch, args.batch, lr, decay, seed)
                tables.append(read_run(out / "two").predictions.sort_values("row"))
            table = pd.concat(tables)
            truth = table["target"].to_numpy()
            answers[stage] = table.filter(like="score_").to_numpy().argmax(axis=1)
            groups = table["patient"].to_numpy()
            value = bootstrap_interval(balanced_accuracy, groups, truth, answers[stage])
            base = (truth, answers["not adapted"])
            gain = bootstrap_difference(balanced_accuracy, groups, base, (truth, answers[stage]))
            rows.append(
                {
                    "network": name if weights is None else "ViT-S weights",
                    "first stage": stage,
                    "balanced accuracy": str(value),
                    "less not adapted": str(gain),
                }
            )
            print(pd.DataFrame(rows).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
