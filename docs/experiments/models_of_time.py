"""Models of time against methods that see single instants or short clips.

    python -m docs.experiments.models_of_time OUT

The program draws examinations of 72 patients, embeds a frame every two seconds with the demo model, and fits every
method on 24 patients; 8 choose the step, 40 are tested. Networks have three seeds. A call that was stopped continues;
at the end there is a table with intervals over patients, and the paired differences of the best methods.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.phantom_set import write_phantom
from endofm_lab.explain.embeddings import embed, load_store
from endofm_lab.metrics.intervals import Difference
from endofm_lab.model.loading.load import load_model
from endofm_lab.runs.run import REPORT, Run, read_run
from endofm_lab.tasks.examples import examples_of
from endofm_lab.tasks.labels import class_head, class_targets
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.fit import fit_temporal
from endofm_lab.temporal.inputs import InputConfig
from endofm_lab.temporal.model import load_temporal
from endofm_lab.temporal.networks import NetworkConfig
from endofm_lab.temporal.recordings import labelled_recordings
from endofm_lab.temporal.training import answers
from endofm_lab.video.clips import ClipSpec

SEEDS = (0, 1, 2)
CLIP = NetworkConfig("tcn", layers=2, stages=1)  # seven instants
GRU, TRANSFORMER = NetworkConfig("gru", layers=1), NetworkConfig("transformer", layers=2)
NETWORKS = {"tcn": NetworkConfig("tcn"), "gru": GRU, "tcn++": NetworkConfig("tcn++"), "transformer": TRANSFORMER}


def phantom_methods() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> what the method sees, and its settings."""
    linear = NetworkConfig("linear")
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "linear, one frame": ("clip", {"network": linear}),
        "linear, mean of 14 s": ("clip", {"network": linear, "inputs": InputConfig(average_s=14.0)}),
        "convolution over 14 s": ("clip", {"network": CLIP}),
    }
    for name, network in NETWORKS.items():
        methods[f"{name}, causal"] = ("past", {"network": network})
        methods[f"{name}, offline"] = ("whole", {"network": replace(network, offline=True)})
    return methods


def phantom(out: Path) -> None:
    """The examinations of the phantom."""
    manifest = write_phantom(out / "examinations", "examinations")
    model = load_model("demo")
    model.card = replace(model.card, clip=ClipSpec(n_frames=1, stride=1))
    features = embed(manifest, model, out / "features", batch_clips=64, step_s=2.0, tokens="both").path
    runs: dict[str, Run] = {}
    groups = {name: group for name, (group, _) in phantom_methods().items()}
    for name, (_, settings) in phantom_methods().items():
        folder = out / "runs" / name.replace(", ", "-").replace(" ", "-")
        seeds = (0,) if settings["network"].kind == "linear" else SEEDS
        config = TemporalConfig(manifest, features, folder, seeds=seeds, **settings)
        runs[name] = _fitted(config)
        if name in ("linear, one frame", "tcn, causal", "tcn, offline"):
            runs[f"{name}, smoothed"] = _smoothed(runs[name], config)
            groups[f"{name}, smoothed"] = "past" if groups[name] == "clip" else groups[name]
        print(name, runs[name].values().set_index("metric")["value"].round(3).to_dict(), flush=True)
    _phantom_table(out, runs, groups)


def _fitted(config: TemporalConfig) -> Run:
    """The finished run of a configuration; notes the seconds of processor time of each training."""
    started = time.process_time()
    if not (config.out / REPORT).is_file():
        for _ in fit_temporal(config):
            pass
        seconds = (time.process_time() - started) / len(config.seeds)
        (config.out.parent / f"{config.out.name}.seconds.json").write_text(json.dumps(seconds))
    return read_run(config.out)


def _smoothed(run: Run, config: TemporalConfig) -> Run:
    """The run with answers that its own models have smoothed."""
    store, manifest = load_store(config.features), read_manifest(config.manifest)
    head = class_head(manifest, "label")
    examples = examples_of(manifest, "test", class_targets(manifest, "test", head, "label"))
    recordings, tables = labelled_recordings(manifest, store, examples), []
    for seed in run.seeds:
        model = load_temporal(config.out / f"seed-{seed}" / "model")
        model.card = replace(model.card, smooth=True)
        tables.append(answers(model, recordings).assign(seed=seed))
    return replace(run, method=f"{run.method}, smoothed", predictions=pd.concat(tables, ignore_index=True))


def _phantom_table(out: Path, runs: dict[str, Run], groups: dict[str, str]) -> None:
    """Print every method, and the paired differences of the best ones."""
    shown = ("accuracy", "balanced_accuracy", "jaccard", "segment_f1", "edit_score")
    samples = {name: run.samples() for name, run in runs.items()}
    rows = []
    for name, sample in samples.items():
        cells = {metric: str(sample.interval(metric)) for metric in shown}
        seconds = json.loads((out / "runs" / f"{runs[name].run}.seconds.json").read_text())
        rows.append({"method": name, **cells, "processor s": round(seconds)})
    print(pd.DataFrame(rows).to_string(index=False))
    for metric in ("accuracy", "jaccard"):
        best = {
            g: max((n for n in runs if groups[n] == g), key=lambda n: samples[n].values[metric])
            for g in groups.values()
        }
        for first, second in (("clip", "past"), ("past", "whole")):
            gap = samples[best[second]].minus(samples[best[first]], metric)
            print(f"{metric}: {best[second]} minus {best[first]}: {_text(gap)}")


def _text(gap: Difference) -> str:
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], p {gap.p_value:.3f}, {gap.units} patients"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    phantom(parser.parse_args().out)
