"""Does a first stage on other endoscopy help an image model? The two-stage recipe, on real frames and on the phantom.

    python -m docs.experiments.adaptation_of_frame_models tools DATA --out RUNS --weights FILE
    python -m docs.experiments.adaptation_of_frame_models phantom PHANTOM/manifest.csv --out RUNS --weights FILE

Tools: the instrument in a single frame of CholecT50 (the grasper only where it is alone; frames with two others are
left out), learned from VID68 and VID70, epochs chosen on VID75, asked on VID74. Stage one sees no frame of VID74: the
frames of the other three, Kvasir-SEG and a sinus endoscopy. Phantom: the finding in a frame, learned from eight
patients; stage one sees the other training patients.

Stage one is either supervised (phases, "polyp", "sinus"; phantom: is there a finding or not, as a data set with coarser
classes has it) or masked image modelling of a frozen teacher's features. Stage two has the same epochs in every row;
"longer" gives the network that was not adapted the steps of both stages. Intervals are over minutes of the operation or
patients, of all seeds together; differences to the network that was not adapted are paired.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

import endofm_lab as lab
from endofm_lab.data.manifest import Manifest, read_manifest, write_manifest
from endofm_lab.files import read_json, write_json
from endofm_lab.metrics.classification import balanced_accuracy
from endofm_lab.metrics.intervals import bootstrap_difference, bootstrap_interval
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.frame import build_frame_backbone, frame_input
from endofm_lab.model.precision import automatic_dtype
from endofm_lab.model.video_model import VideoModel, build_frame_model
from endofm_lab.pretraining.adapt import BEST, AdaptConfig, MaskedFeatures, adapt_masked, adapt_supervised, frame_scores
from endofm_lab.pretraining.frames import FrameCorpus

PX, VIT = 112, "vit_small_patch14_dinov2"
STAGES = ("not adapted, longer", "supervised stage", "masked stage")
PRECISION: Literal["float32", "bfloat16"] = "bfloat16" if automatic_dtype() is torch.bfloat16 else "float32"


@dataclass(frozen=True)
class Question:
    """Manifests of both stages; ``group`` names the column that intervals are over."""

    first: Manifest
    second: Manifest
    group: str


def tools(data: Path, out: Path) -> Question:
    """Instruments of CholecT50, and everything else that is there."""
    frames = pd.read_csv(data / "cholect50" / "frames.csv")
    frames = frames[frames["labelled"] == 1]
    others = (
        frames["instruments"].fillna("").map(lambda names: [n for n in names.split("|") if n not in ("", "grasper")])
    )
    alone = frames["instruments"].eq("grasper")
    common = {
        "video": [str((data / "cholect50" / file).resolve()) for file in frames["file"]],
        "patient": frames["video"],
        "dataset": "cholect50",
        "group": [
            f"{video} minute {second // 60}" for video, second in zip(frames["video"], frames["second"], strict=True)
        ],
    }
    split = frames["video"].map({"VID68": "train", "VID70": "train", "VID75": "val", "VID74": "test"})
    second = pd.DataFrame(common).assign(
        label=[names[0] if len(names) == 1 else "grasper" if a else "" for names, a in zip(others, alone, strict=True)],
        split=split,
    )
    first = pd.DataFrame(common).assign(label=frames["phase"], split=split)
    first = first[first["split"] != "test"]
    stills = sorted((data / "kvasir-seg" / "images").iterdir())[::5]  # as many as there are of a frequent phase
    polyps = pd.DataFrame({"video": [str(path.resolve()) for path in stills], "dataset": "kvasir-seg"})
    polyps = polyps.assign(patient=[f"polyp {n}" for n in range(len(polyps))], label="polyp", group="kvasir")
    polyps["split"] = np.where(np.arange(len(polyps)) % 5 == 0, "val", "train")
    sinus = sorted((data / "sinus" / "seq_002603").glob("*.jpg"))[::2]
    noses = pd.DataFrame({"video": [str(path.resolve()) for path in sinus], "patient": "sinus", "dataset": "sinus"})
    noses = noses.assign(label="sinus", split="train", group="sinus")
    both = pd.concat([first, polyps, noses], ignore_index=True)
    return Question(
        _written(both, out / "first.csv"), _written(second[second["label"] != ""], out / "second.csv"), "group"
    )


def phantom(manifest: Path, out: Path) -> Question:
    """Findings of a phantom set."""
    source = read_manifest(manifest)
    table = source.table.assign(video=[str(source.resolve(video)) for video in source.table["video"]])
    table = table.drop(columns=["masks", "boxes"])
    patients = sorted(table.loc[table["split"] == "train", "patient"].unique())
    few, coarse = set(patients[:8]), table["label"].where(table["label"] == "normal", "finding")
    first = table[~table["patient"].isin(few) & (table["split"] != "test")].assign(label=coarse)
    second = table[table["patient"].isin(few) | (table["split"] != "train")]
    return Question(write_manifest(first, out / "first.csv"), write_manifest(second, out / "second.csv"), "patient")


def _written(table: pd.DataFrame, path: Path) -> Manifest:
    return write_manifest(table.assign(start_s=0.0, end_s=0.0), path)


def corpora(manifest: Manifest, model: VideoModel, classes: tuple[str, ...]) -> tuple[FrameCorpus, FrameCorpus]:
    """What is learned from, balanced and augmented, and what chooses."""
    spec = model.card.input
    train = FrameCorpus(manifest, "train", spec, classes=classes, augment=True, balanced=True)
    return train, FrameCorpus(manifest, "val", spec, classes=classes)


def network(name: str, weights: str | None, classes: tuple[str, ...], seed: int) -> VideoModel:
    """A frame model with a fresh head of these classes."""
    torch.manual_seed(seed)
    return build_frame_model(name, {"class": HeadSpec("multiclass", classes)}, weights, PX)


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
    first_classes, classes = tuple(question.first.classes), tuple(question.second.classes)
    print(f"Stage one: {len(question.first)} rows of {', '.join(first_classes)}")
    parts = question.second.table.groupby(["split", "label"]).size().unstack(fill_value=0)
    print(f"Stage two:\n{parts.to_string()}")

    def supervised(model: VideoModel, lr: float, out: Path) -> None:
        old = build_frame_model_like(model, first_classes)
        _finish(
            adapt_supervised(
                old,
                *corpora(question.first, old, first_classes),
                AdaptConfig(args.epochs[0], args.batch, lr, seed=0, precision=PRECISION),
                out,
            )
        )
        model.backbone.load_state_dict(old.backbone.state_dict())

    def masked(model: VideoModel, lr: float, out: Path) -> None:
        teacher, _ = build_frame_backbone(VIT, args.weights, PX)
        module = MaskedFeatures(model.backbone, teacher, model.card.input, frame_input(teacher.config))
        train = FrameCorpus(question.first, "train", model.card.input, classes=first_classes, augment=True)
        _finish(adapt_masked(module, train, AdaptConfig(args.epochs[0], args.batch, lr, precision=PRECISION), out))

    def nothing(model: VideoModel, lr: float, out: Path) -> None:
        """Start as it is."""

    def build_frame_model_like(model: VideoModel, classes: tuple[str, ...]) -> VideoModel:
        new = build_frame_model(
            model.card.backbone["architecture"],
            {"class": HeadSpec("multiclass", classes)},
            None,
            PX,
            **model.backbone.config.settings,
        )
        new.backbone.load_state_dict(model.backbone.state_dict())
        return new

    stages: dict[str, Callable[[VideoModel, float, Path], None]] = {
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
        truth = groups = np.array([])
        for stage, adapt in stages.items():
            guesses = []
            for seed in range(args.seeds):
                out = args.out / f"{name} {stage} {seed}".replace(", ", " ").replace(" ", "_")
                model = network(name, weights, classes, seed)
                spec, epochs = model.card.input, args.epochs[1]
                asked = FrameCorpus(question.second, "test", spec, classes=classes)
                if not (out / "answers.json").exists():
                    adapt(model, lr, out / "one")
                    train, val = corpora(question.second, model, classes)
                    if stage == "not adapted, longer":
                        n = len(FrameCorpus(question.first, "train", spec, classes=first_classes, balanced=True))
                        epochs += round(args.epochs[0] * n / len(train))
                    config = AdaptConfig(
                        epochs, args.batch, lr, lr_decay=0.05 ** (1 / epochs), seed=seed, precision=PRECISION
                    )
                    _finish(adapt_supervised(model, train, val, config, out / "two"))
                    best = lab.load_model(out / "two" / BEST)
                    write_json(out / "answers.json", frame_scores(best, asked, "class").argmax(1).tolist())
                guesses.append(np.array(read_json(out / "answers.json")))
            answers[stage] = np.concatenate(guesses)
            truth = np.tile(asked.targets, args.seeds)
            groups = np.tile(asked.table[question.group].to_numpy(str), args.seeds)
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


def _finish(steps) -> None:
    for record in steps:
        if "macro_recall" in record:
            print(
                f"  epoch {record['epoch']}: loss {record['loss']:.3f}, macro recall {record['macro_recall']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
