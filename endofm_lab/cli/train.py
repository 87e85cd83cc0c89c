"""Commands for training and testing: `endofm-lab pretrain`, `finetune` and `evaluate`."""

import json
import resource
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from endofm_lab.cli.command import Output, command, computed_on
from endofm_lab.cli.options import Key, Option
from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.finetuning import evaluate as testing
from endofm_lab.finetuning import presets as released
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune as finetuning
from endofm_lab.finetuning.finetune import plan_of
from endofm_lab.finetuning.start import Start
from endofm_lab.metrics.intervals import caution
from endofm_lab.metrics.measure import Measure
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.transformer import PRESETS as BACKBONES
from endofm_lab.model.transformer import BackboneConfig
from endofm_lab.outside import class_named
from endofm_lab.pretraining.config import FROM_SCRATCH, OBJECTIVES, PRESETS, PretrainConfig, explained, to_json
from endofm_lab.pretraining.objective import Objective
from endofm_lab.pretraining.trainer import handed_over, plan, run_config
from endofm_lab.pretraining.trainer import pretrain as pretraining
from endofm_lab.reports.plans import memory_of
from endofm_lab.reports.pretraining import health_of, probe_table, report_run
from endofm_lab.runs.run import REPORT, short_start, unit_of
from endofm_lab.tasks import TASKS, Task
from endofm_lab.training.loop import LOG, read_log
from endofm_lab.training.memory import MemoryEstimate, free_mb
from endofm_lab.training.processes import processes

T = TypeVar("T")


def _pretraining_preset(values: Mapping[Key, Any]) -> PretrainConfig:
    manifest = values["manifest",]
    if (manifest / "config.json").is_file():
        if values["preset",] is not None:
            raise UserError(f"{manifest} is a run, which continues with its own settings. Leave out --preset.")
        return run_config(manifest)
    config = PRESETS[values["preset",] or "endo-fm"](manifest, values["out",])
    backbone = {key: value for key, value in values.items() if key[0] == "backbone"}
    if values["own_encoder",] and any(value != getattr(BackboneConfig(), key[1]) for key, value in backbone.items()):
        raise UserError("--own-encoder has its own configuration. Leave out the options --backbone.*.")
    size = values["size",]
    return config if size is None else replace(config, backbone=BACKBONES[size])


@command(
    PretrainConfig,
    positional=("manifest", "others"),
    names={"split": "rows"},
    choices={"objective": tuple(OBJECTIVES), "preset": tuple(PRESETS), "size": tuple(BACKBONES)},
    presets=_pretraining_preset,
    explain=explained,
)
def pretrain(
    config: PretrainConfig,
    output: Output,
    out: Path | None = None,
    preset: str | None = None,
    size: str | None = None,
    dry_run: bool = False,
    explain: bool = False,
    own_objective: str | None = None,
    own_encoder: str | None = None,
) -> None:
    """Pre-train a video transformer or an image model on unlabelled videos or pictures.

    Ctrl-C saves a checkpoint. The same command continues the run, and so does `endofm-lab pretrain RUN` with the folder
    of the run. A larger --steps or --epochs extends a run whose finished steps would have been the same in the longer
    run: learning rate and weight decay must be constant, and the objective vicreg or features. Other runs are refused.

    For several processes use `accelerate launch --multi_gpu --num_processes 2 -m endofm_lab.cli.main pretrain ...`,
    also on CPUs (with `--cpu` accelerate would start only one process). `--use_fsdp` in place of `--multi_gpu` shards
    weights and optimiser between the processes.

    Args:
        preset: source of all values that are not given: endo-fm (the default) has the published settings, small is for
            one GPU, tiny takes minutes on a laptop, long-video has clips of a minute, images is for image models.
        size: preset of the backbone, in place of the one in --preset.
        dry_run: print the configuration, the clips and the estimated memory, and if that is free, memory and time of up
            to ten steps; write nothing.
        explain: print where the preset differs from the published training, and stop.
        own_objective: an objective of your own.
        own_encoder: an encoder of your own.
    """
    is_run = (Path(config.manifest) / "config.json").is_file()
    if is_run:
        config = replace(config, manifest=run_config(config.manifest).manifest, out=config.manifest)
    elif out is None and not dry_run:
        raise UserError("endofm-lab pretrain needs --out FOLDER (folder of the run).")
    if preset in (None, "endo-fm") and config.initialisation == "scratch" and not (is_run or own_encoder):
        output.say(f"Note: {FROM_SCRATCH}")
    if own_encoder is not None and (size is not None or config.initialisation != "scratch" or config.image_model):
        raise UserError("--own-encoder has its own size and weights. Leave out --start, --size and --image-model.")
    objective, start = _own(own_objective, Objective, "--own-objective"), _own(own_encoder, Encoder, "--own-encoder")  # type: ignore[type-abstract]
    if dry_run:
        _dry_run(config, output, objective, start)
    else:
        run(config, output, objective, start)


def run(
    config: PretrainConfig, output: Output, objective: Objective | None = None, start: Encoder | None = None
) -> None:
    """Pre-train in the terminal: show the progress, and at the end the report, the health and the probe.

    A run that is continued has the objective and the start that it was begun with, unless others are given.
    """
    main, out, has_result = processes().is_main_process, Path(config.out), True
    bar = tqdm(unit="step", disable=not (main and output.progress), mininterval=2)
    try:
        parts = handed_over(out) if (out / "config.json").is_file() else (None, None)
        for record in pretraining(config, objective or parts[0], start or parts[1]):
            if bar.total is None:
                description = json.loads((out / "config.json").read_text(encoding="utf-8"))
                bar.total, bar.n = description["steps"], record["step"]
                if main and output.progress:
                    bar.write(f"Initialisation: {description['initialisation']['words']}")
                    for line in mixture_lines(description):
                        bar.write(line)
                    bar.write(computed_on(description.get("provenance", {})))
            bar.update(record["step"] + 1 - bar.n)
            bar.set_postfix({"loss": f"{record['loss']:.3f}", "health": record["health"]}, refresh=False)
    except UserError:
        has_result = bar.total is not None  # a run that made some steps is reported, as after Ctrl-C
        raise
    finally:
        bar.close()
        if main and has_result and read_log(out / LOG):
            output.say(f"Report: {report_run(out)}", f"Health: {health_of(out)}")
            if len(table := probe_table(out)):
                output.say(f"Probe (balanced accuracy, 95 % interval over units):\n{table.to_string(index=False)}")
    if main:
        output.result({"out": out, "model": out / "model", **read_json(out / "report.json")})
        output.written(out / "model")


def mixture_lines(description: Mapping[str, Any]) -> list[str]:
    """A line for each of several manifests: its clips, and its share of what is shown."""
    return [
        f"{part['share']:.1%} of what is shown: {part['manifest']} ({part['n_clips']} clips)"
        for part in description.get("manifests", ())
    ]


def _dry_run(config: PretrainConfig, output: Output, objective: Objective | None, start: Encoder | None) -> None:
    """The plan and the estimated memory; if that is free, up to ten steps in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(config, out=f"{folder}/run", trackers=(), save_every=10**9, probe=None)
        planned = plan(trial if config.out is None else config, objective, start)
        output.say(
            json.dumps(to_json(config), indent=2),
            f"\n{planned['n_clips']} clips of {planned['n_files']} videos",
            *mixture_lines(planned),
            f"{planned['steps']} steps, {planned['steps_per_epoch']} per epoch, {config.batch} clips each",
        )
        estimate = memory_of(config, objective, start)
        check_memory(estimate, planned["device"], output, _SMALLER_PRETRAINING)
        description, measured = _measured(pretraining(trial, objective, start), Path(trial.out) / "config.json")
    hours = planned["steps"] * measured["step_s"] / 3600
    plain = {**planned, "config": to_json(config), "initialisation": description["initialisation"]}
    output.result({**plain, "estimate": estimate.to_json(), **measured, "hours": hours})
    output.say(f"Initialisation: {description['initialisation']['words']}", *measured_lines(measured))
    output.say(f"{hours:.2f} h in all")


_SMALLER_PRETRAINING = (
    "give a smaller --batch, the same batch in pieces by --accumulation, recompute blocks by --backbone.checkpointing, "
    "or choose a smaller --size"
)


def check_memory(estimate: MemoryEstimate, device: str, output: Output, advice: str) -> None:
    """Show the estimated memory beside what is free, and refuse a training that does not fit.

    Raises:
        UserError: more is needed than is free.
    """
    free = free_mb(torch.device(device))
    output.say(estimate.text(), f"free on {device}: {free / 1024:.1f} GB")
    estimate.refuse_if_too_large(free, advice)


def _measured(records: Iterator[dict[str, Any]], config: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What up to ten steps tell of a run, at most for half a minute: its configuration, and memory and time."""
    seconds: list[float] = []
    for record in records:
        if "step_s" in record:
            seconds.append(record["step_s"] + record["data_s"])
        if len(seconds) == 10 or sum(seconds) > 30:
            break
    description = read_json(config) if config is not None else {}
    getattr(records, "close", lambda: None)()
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step_s = statistics.median(seconds[1:] or seconds) if seconds else 0.0
    return description, {"memory_gb": peak / 1e9, "step_s": step_s, "steps_measured": len(seconds)}


def measured_lines(measured: Mapping[str, Any]) -> list[str]:
    """Memory and time of the measured steps, as lines for people."""
    kind = "GPU" if torch.cuda.is_available() else "process"
    return [
        f"memory: {measured['memory_gb']:.1f} GB at the peak ({kind}, measured)",
        f"time: {measured['step_s']:.2f} s per step (median of {measured['steps_measured']})",
    ]


def _finetuning_dry_run(config: FinetuneConfig, output: Output, task: Task | None, start: Encoder | None) -> None:
    """The plan of a fine-tuning and its estimated memory; if that is free, up to ten steps in a folder thrown away."""
    planned = plan_of(config, task, start)
    estimate = planned.pop("estimate")
    output.say(json.dumps(planned["config"], indent=2), *(f"{k}: {v}" for k, v in planned.items() if k != "config"))
    check_memory(
        estimate, planned["device"], output, "give a smaller --batch, --image-px or --n-frames, or --method frozen"
    )
    with tempfile.TemporaryDirectory() as folder:
        _, measured = _measured(finetuning(replace(config, out=f"{folder}/run"), task, start=start))
    output.result({**planned, "estimate": estimate.to_json(), **measured})
    output.say(*measured_lines(measured))


# Options that the released recipes leave open; all others are fixed by the recipe.
_OPEN = {"source", "label", "seeds", "split_name", "clips", "size", "shared_patients", "precision", "workers", "device"}


def _finetuning_preset(values: Mapping[Key, Any]) -> FinetuneConfig | None:
    if values["preset",] is None:
        return None
    build = released.preset_named(values["preset",]).build
    return build(values["manifest",], values["out",], values["start", "source"])


def _is_fixed(option: Option) -> bool:
    return option.key[-1] not in _OPEN


@command(
    FinetuneConfig,
    positional=("manifest",),
    flat=("start",),
    presets=_finetuning_preset,
    fixed=_is_fixed,
    choices={"task": tuple(TASKS), "preset": tuple(released.PRESETS)},
    explain=lambda name: released.preset_named(name or "").explained(name or ""),
)
def finetune(
    config: FinetuneConfig,
    output: Output,
    preset: str | None = None,
    dry_run: bool = False,
    explain: bool = False,
    metrics: tuple[str, ...] = (),
    own_task: str | None = None,
    own_encoder: str | None = None,
) -> None:
    """Train on the train rows of a manifest, choose on val, test once on test, and write a run to compare with others.

    Args:
        preset: a released recipe: polypdiag, cvc-12k or kumc; options that contradict it are refused.
        dry_run: print the configuration, the rows and the estimated memory, and if that is free, memory and time of up
            to ten steps; write nothing.
        explain: print where the preset differs from the released recipe, and stop.
        metrics: metrics of your own.
        own_task: a task of your own.
        own_encoder: an encoder of your own.
    """
    if own_encoder is not None and (config.start.source != Start().source or config.start.size is not None):
        raise UserError("--own-encoder has its own size and weights. Leave out --start and --size.")
    task, start = _own(own_task, Task, "--own-task"), _own(own_encoder, Encoder, "--own-encoder")  # type: ignore[type-abstract]
    if dry_run:
        _finetuning_dry_run(config, output, task, start)
        return
    for record in finetuning(config, task, start=start, metrics=_own_metrics(metrics)):
        output.say(*record_text(record, config.chosen_by or (task or config.configured_task).chosen_by))
    show_run(Path(config.out), output)


def _own(name: str | None, base: type[T], option: str) -> T | None:
    """An object of the class that an option names, with its default settings; None without a name.

    Raises:
        UserError: the class is not allowed, not there, of another kind, or has settings without a default.
    """
    if name is None:
        return None
    kind: Any = class_named(name, base, option)
    try:
        return kind(kind.Config()) if issubclass(kind, Encoder) else kind()
    except TypeError as error:
        raise UserError(
            f"{name} cannot be made with its default settings ({error}). Give them defaults, or call the library in "
            "Python with an object."
        ) from error


def _own_metrics(names: Sequence[str]) -> list[type[Measure]]:
    """The classes that --metrics names.

    Raises:
        UserError: a class is not allowed, not there, or not a metric.
    """
    return [class_named(name, Measure, "--metrics") for name in names]


def record_text(record: dict[str, Any], chosen_by: str = "") -> list[str]:
    """A record as lines for people: the start, candidates, validations and every tenth step; nothing for others.

    ``chosen_by`` is the metric of the validation rows, if it is known.
    """
    if "initialisation" in record:
        start = {name: record[name] for name in ("initialisation", "trained", "split", "audit", "device")}
        return [f"{name.capitalize()}: {words}" for name, words in start.items()]
    if "validation" not in record and record["step"] % 10:
        return []
    shown = ("seed", "step", "l2", "k", "loss", "lr", "step_s", "chosen", "validation")
    validation = f"validation {record.get('chosen_by', chosen_by)}".rstrip()
    values = {validation if name == "validation" else name: record[name] for name in shown if name in record}
    if isinstance(choice := values.get("chosen"), dict):
        values["chosen"] = ", ".join(f"{name} {value}" for name, value in choice.items())
    return ["  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())]


def show_run(folder: Path, output: Output) -> None:
    """Print the test metrics of a finished run."""
    report = read_json(folder / REPORT)
    unit = unit_of(report)
    output.result({"out": folder, **report})
    output.say(f"\n{report['method']}; {short_start(report['initialisation'])}")
    for name, metric in report["metrics"].items():
        output.say(f"{name:<28} {_metric_text(metric, unit['words'])}")
    if warning := caution(unit["n"], unit["words"]):
        output.say(warning)
    output.say(f"Audit: {report['audit']['verdict']}", computed_on(report.get("provenance", {})))
    output.written(folder)


def _metric_text(metric: Mapping[str, Any], units: str) -> str:
    """A metric with its interval and the number of units that were resampled."""
    if metric["value"] is None:
        return "not defined on this test set"
    low, high = metric["low"], metric["high"]
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    spread = "" if metric["seed_std"] is None else f" ±{metric['seed_std']:.3f} over seeds"
    return f"{metric['value']:.3f}{interval}{spread}   ({units})"


@command(testing.evaluate, positional=("model", "manifest"))
def evaluate(
    model: str,
    out: Path,
    settings: dict[str, Any],
    output: Output,
    manifest: Path | None = None,
    metrics: tuple[str, ...] = (),
) -> None:
    """Test a model on the rows of a manifest whose split is "test", and write a run for `endofm-lab compare`.

    Args:
        model: a run of `endofm-lab finetune` (with its manifest and settings), or anything that --model takes.
        manifest: table of clips; may be left out for a run.
        metrics: metrics of your own.
    """
    testing.evaluate(model, manifest, out, metrics=_own_metrics(metrics), **settings)
    show_run(out, output)
