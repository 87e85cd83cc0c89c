"""`endofm-lab pretrain`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from endofm_lab import NOTICE
from endofm_lab.errors import UserError

if TYPE_CHECKING:
    from endofm_lab.pretraining.config import PretrainConfig


def pretrain(
    manifest: Annotated[Path | None, tyro.conf.Positional] = None,
    out: Path | None = None,
    preset: Literal["endo-fm", "small", "tiny", "long-video"] = "endo-fm",
    resume: Path | None = None,
    objective: Literal["dino", "masked", "vcl"] | None = None,
    initialisation: str | None = None,
    probe: Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    precision: Literal["float32", "bfloat16", "float16"] | None = None,
    set: tuple[str, ...] = (),
    dry_run: bool = False,
) -> None:
    """Pre-train a video transformer on unlabelled video. Ctrl-C saves; `--resume RUN` goes on.

    With several processes: `accelerate launch --multi_gpu --num_processes 2 -m endofm_lab.cli.main pretrain ...`, on
    CPUs too (`--cpu` would start one); `--use_fsdp` in place of `--multi_gpu` shares weights and optimiser among them.

    Args:
        manifest: table of videos; rows of the splits val and test are not learned from.
        out: folder of the run.
        preset: endo-fm is the published recipe, small one GPU, tiny minutes on a laptop, long-video minute-long clips.
        resume: folder of a run to go on with; nothing else may be given.
        objective: dino, masked (dino and masked tokens), vcl (contrast of videos).
        initialisation: "scratch", a file of weights, a model's folder, or a hub id.
        probe: labelled manifest to measure what the features know.
        steps: updates, instead of the preset's.
        batch: clips per update, of all processes together.
        seed: of everything random.
        workers: processes that load data.
        precision: of the computation.
        set: any other setting, as KEY=VALUE: views.global_px=112 dino.prototypes=4096 (values as in JSON).
        dry_run: print the configuration, the steps, and memory and time from ten measured steps; write nothing.
    """
    from endofm_lab.pretraining.config import PRESETS, with_settings
    from endofm_lab.pretraining.trainer import run_config

    if resume is not None:
        if manifest is not None or out is not None or set:
            raise UserError("--resume goes on with a run as it is: give nothing but its folder.")
        config = run_config(resume)
    else:
        if manifest is None or (out is None and not dry_run):
            raise UserError("give a manifest and --out RUN, or --resume RUN.")
        given: dict[str, Any] = {
            "objective": objective, "initialisation": initialisation, "steps": steps, "batch": batch, "seed": seed,
            "workers": workers, "precision": precision, "probe": str(probe) if probe else None,
        }  # fmt: skip
        settings = {key: value for key, value in given.items() if value is not None} | dict(map(_setting, set))
        config = with_settings(PRESETS[preset](manifest, out or Path("run")), settings)
    if dry_run:
        _dry_run(config)
    else:
        run(config)


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--set takes KEY=VALUE, not {text!r}.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def run(config: "PretrainConfig") -> None:
    """Pre-train in the terminal: progress, and at the end the report, the health and what the features know."""
    from tqdm import tqdm

    from endofm_lab.pretraining.trainer import pretrain as start
    from endofm_lab.reports.pretraining import health_of, probe_table, report_run
    from endofm_lab.training.loop import LOG, read_log
    from endofm_lab.training.processes import processes

    main = processes().is_main_process
    bar = tqdm(unit="step", disable=not main, mininterval=2)
    try:
        for record in start(config):
            if bar.total is None:
                described = json.loads((config.out / "config.json").read_text(encoding="utf-8"))
                bar.total, bar.n = described["steps"], record["step"]
                if main:
                    bar.write(f"Initialisation: {described['initialisation']['words']}")
            bar.update(record["step"] + 1 - bar.n)
            bar.set_postfix({"loss": f"{record['loss']:.3f}", "health": record["health"]}, refresh=False)
    finally:
        bar.close()
        if main and read_log(config.out / LOG):
            print(f"Report: {report_run(config.out)}")
            print(f"Health: {health_of(config.out)}")
            if len(probed := probe_table(config.out)):
                print(f"Probe (balanced accuracy, 95 % interval over patients):\n{probed.to_string(index=False)}")
    if main:
        print(f"Model: {config.out / 'model'}. {NOTICE}")


def _dry_run(config: "PretrainConfig") -> None:
    """Ten steps in a folder that is thrown away."""
    import resource
    import statistics
    import tempfile
    from dataclasses import replace

    import torch

    from endofm_lab.pretraining.config import to_json
    from endofm_lab.pretraining.trainer import pretrain as start

    with tempfile.TemporaryDirectory() as folder:
        trial = replace(config, out=Path(folder) / "run", trackers=(), save_every=10**9, probe=None)
        running = start(trial)
        seconds = []
        for record in running:
            seconds.append(record["step_s"] + record["data_s"])
            if len(seconds) == 10:
                break
        described = json.loads((trial.out / "config.json").read_text(encoding="utf-8"))
        running.close()
    print(json.dumps(to_json(config), indent=2))
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step_s = statistics.median(seconds[1:] or seconds)
    print(f"\n{described['n_clips']} clips of {described['n_files']} videos; initialisation: ", end="")
    print(described["initialisation"]["words"])
    print(f"{described['steps']} steps, {described['steps_per_epoch']} per epoch, {config.batch} clips each")
    print(f"memory: {peak / 1e9:.1f} GB at the peak ({'GPU' if gpu else 'process'}, measured)")
    print(
        f"time: {step_s:.2f} s per step (median of {len(seconds)}), {described['steps'] * step_s / 3600:.2f} h in all"
    )
