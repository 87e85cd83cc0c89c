"""Five encoders on four tasks, killed and started again: the numbers are those of a benchmark never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import endofm_lab as lab
from endofm_lab.integrity import check_folder
from endofm_lab.pretraining.config import tiny, with_settings
from endofm_lab.runs.run import read_run, run_folders

VIT = "vit_small_patch14_dinov2_224.safetensors"
TASKS = """
tasks:
  findings: {manifest: PHANTOM, clips: 1, methods: [knn, linear]}
  outlines: {manifest: PHANTOM, task: segmentation}
  boxes: {manifest: PHANTOM, task: detection}
  phases: {manifest: EXAMINATIONS, task: phases, step_s: 4.0, methods: [tcn]}
methods:
  knn: knn
  linear: linear probe
  head: {method: frozen, steps: 2, batch: 2, validate_every: 2}
  tcn: {method: temporal, kind: tcn, width: 8, layers: 3, steps: 6, validate_every: 3}
degradations: [blur]
encoders:
"""


def encoders(phantom, folder):
    """The entries of five encoders; the image weights only where they are."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.VideoMAEConfig(image_size=32, patch_size=8, num_frames=4, **sizes)
    transformers.VideoMAEModel(config).save_pretrained(folder / "videomae")
    small = {"views.global_frames": [2, 2], "views.global_px": 32, "batch": 4, "steps": 2, "probe": None}
    settings = with_settings(tiny(phantom, folder / "pretraining"), small)
    for _ in lab.pretrain(settings, start=lab.build_backbone("micro", image_px=32, frames=2)):
        pass
    entries = {
        "demo": "demo",
        "pretrained": str(folder / "pretraining" / "model"),
        "random": "{start: scratch, size: micro, image_px: 32, n_frames: 2, seed: 3}",
        "videomae": str(folder / "videomae"),
    }
    weights = Path(os.environ.get("ENDOFM_LAB_WEIGHTS", "")) / VIT
    if weights.is_file():
        entries["vit-s"] = f"{{start: {weights}, image_px: 28, n_frames: 2}}"
    return "".join(f"  {name}: {value}\n" for name, value in entries.items())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_encoders_on_four_tasks_killed_and_resumed_give_the_same_numbers(phantom, tmp_path):
    examinations = lab.write_phantom(tmp_path / "examinations", "examinations-tiny", progress=False)
    text = TASKS.replace("PHANTOM", str(phantom)).replace("EXAMINATIONS", str(examinations))
    (tmp_path / "benchmark.yaml").write_text(text + encoders(phantom, tmp_path))
    whole, out = tmp_path / "whole", tmp_path / "out"
    result = list(lab.benchmark(tmp_path / "benchmark.yaml", whole))[-1]["result"]
    n_cells = len(result["rows"])
    assert n_cells >= 4 * 5 and {row["task"] for row in result["rows"]} == {"findings", "outlines", "boxes", "phases"}

    command = [
        sys.executable,
        "-m",
        "endofm_lab.cli.main",
        "benchmark",
        str(tmp_path / "benchmark.yaml"),
        "--out",
        str(out),
    ]
    for n_done in (n_cells // 3, 2 * n_cells // 3):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while len(run_folders(out / "runs")) < n_done and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
    times = {path: (path / "report.json").stat().st_mtime_ns for path in run_folders(out / "runs")}
    assert n_cells // 3 <= len(times) < n_cells
    assert subprocess.run([*command, "--json"], capture_output=True, check=True).stdout

    assert check_folder(out).whole
    for path, written in times.items():
        assert (path / "report.json").stat().st_mtime_ns == written, "a finished cell is not computed again"
    for folder in [*run_folders(whole / "runs"), *run_folders(whole / "degraded")]:
        again = out / folder.relative_to(whole)
        assert (folder / "predictions.parquet").read_bytes() == (again / "predictions.parquet").read_bytes()
        assert read_run(folder).samples(n=20).values.keys() == read_run(again).samples(n=20).values.keys()
    rows = [json.loads((folder / "benchmark.json").read_text())["rows"] for folder in (whole, out)]
    for first, second in zip(*rows, strict=True):
        for name in ("task", "encoder", "method", "value", "low", "high", "rank", "metrics", "degraded", "trained"):
            assert first[name] == second[name], name
