"""`endofm-lab finetune`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from endofm_lab import NOTICE


def finetune(
    manifest: Annotated[Path, tyro.conf.Positional],
    out: Path,
    task: Literal["classification", "segmentation", "detection", "phases"] = "classification",
    method: Literal["full", "frozen", "ST-Adapter", "attentive probe", "linear probe", "knn"] = "full",
    head: Literal["light", "transunet", "stft"] = "light",
    start: str = "demo",
    size: str | None = None,
    image_px: int | None = None,
    n_frames: int | None = None,
    stride: int | None = None,
    preset: Literal["polypdiag"] | None = None,
    label: str = "label",
    several_labels: bool = False,
    seeds: tuple[int, ...] = (0,),
    steps: int = 300,
    batch: int = 8,
    lr: float = 5e-4,
    layer_decay: float = 0.75,
    validate_every: int = 50,
    clips: int = 3,
    step_s: float = 1.0,
    smoother: Literal["none", "causal", "offline"] = "causal",
    shared_patients: Literal["refuse", "accept"] = "refuse",
    split_name: str = "manifest",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    workers: int = 0,
) -> None:
    """Train on a manifest's train rows, choose on val, test once on test, and write a run for `endofm-lab compare`.

    Args:
        manifest: table of clips with the splits train, val and test.
        out: folder of the run.
        task: what is asked.
        method: full trains everything, frozen the head alone, ST-Adapter the head and small modules between the layers
            of a frozen image transformer; the probes and knn say what frozen features know.
        head: light reads patch tokens; transunet (masks) and stft (boxes, each frame with the clip's others as its
            supports) are the heads of the paper.
        start: "scratch", "demo", a model's folder, a file of weights (also of an image transformer), or an image model
            of timm as timm:NAME, which sees every frame alone.
        size: of the backbone, for a start from scratch: micro, tiny, small, base, or timm:NAME; also timm:NAME for a
            file of timm's weights that shall stay that image model.
        image_px: side of the pictures; by default that of the start.
        n_frames: frames per clip; by default those of the start.
        stride: frames apart; by default the spacing of the start.
        preset: the released recipe of PolypDiag; of the options above and below only manifest, out and start count.
        label: column that holds the class.
        several_labels: cells of that column hold several labels, joined by "|".
        seeds: one training for each.
        steps: updates.
        batch: clips per update.
        lr: learning rate at its highest.
        layer_decay: factor on the learning rate from a layer to the one below.
        validate_every: steps between validations.
        clips: per row at validation and test, for classification.
        step_s: seconds from one answer to the next, for phases.
        smoother: of answers over time, for phases: causal sees the past only.
        shared_patients: refuse a manifest with a patient in two splits, or accept it and say so in the run.
        split_name: "manifest" for the column `split`, or NAME for `split_NAME`, such as released lists.
        precision: of the training's arithmetic.
        workers: processes that load data.
    """
    from endofm_lab.finetuning.config import FinetuneConfig, polypdiag
    from endofm_lab.finetuning.finetune import finetune as run
    from endofm_lab.finetuning.start import Start

    if preset is not None:
        config = polypdiag(manifest, out, start)
    else:
        config = FinetuneConfig(
            manifest,
            out,
            task=task,
            method=method,
            head=head,
            start=Start(start, size, image_px, n_frames, stride),
            label=label,
            several_labels=several_labels,
            seeds=seeds,
            steps=steps,
            batch=batch,
            lr=lr,
            layer_decay=layer_decay,
            validate_every=validate_every,
            clips=clips,
            step_s=step_s,
            smoother=smoother,
            shared_patients=shared_patients,
            split_name=split_name,
            precision=precision,
            workers=workers,
        )
    for record in run(config):
        show(record)
    print_run(out)


def show(record: dict[str, Any]) -> None:
    """Print what a reader wants of a record: start and end, candidates, validations and every tenth step."""
    if "initialisation" in record:
        print(f"Initialisation: {record['initialisation']}\nSplit {record['split']}\nAudit: {record['audit']}")
    elif "validation" in record or record["step"] % 10 == 0:
        shown = ("seed", "step", "l2", "k", "loss", "lr", "step_s", "chosen", "validation")
        values = {name: record[name] for name in shown if name in record}
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()), flush=True)


def print_run(folder: Path) -> None:
    """Print what a finished run reached on test."""
    from endofm_lab.files import read_json
    from endofm_lab.metrics.intervals import caution
    from endofm_lab.runs.run import unit_of

    report = read_json(folder / "report.json")
    unit = unit_of(report)
    print(f"\n{report['method']}; {report['initialisation']}")
    for name, metric in report["metrics"].items():
        if metric["value"] is None:
            print(f"{name:<28} not defined on this test set")
            continue
        low, high = metric["low"], metric["high"]
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        spread = "" if metric["seed_std"] is None else f" ±{metric['seed_std']:.3f} over seeds"
        print(f"{name:<28} {metric['value']:.3f}{interval}{spread}   ({unit['words']})")
    if few := caution(unit["n"], unit["words"]):
        print(few)
    print(f"Audit: {report['audit']['verdict']}")
    print(f"Written to {folder}. {NOTICE}")
