"""The memory of a training is estimated before it is allocated, and too much of it is refused in time."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from endofm_lab.cli.main import main
from endofm_lab.errors import UserError
from endofm_lab.model.transformer import PRESETS as BACKBONES
from endofm_lab.pretraining.config import PRESETS
from endofm_lab.reports.plans import memory_of
from endofm_lab.training.memory import TOLERANCE

ROOT = Path(__file__).resolve().parents[2]
PEAK = """
import resource, sys, tempfile, psutil
from dataclasses import replace
from pathlib import Path
from endofm_lab.model.transformer import PRESETS as BACKBONES
from endofm_lab.pretraining.config import PRESETS
from endofm_lab.pretraining.trainer import pretrain
from endofm_lab.reports.plans import memory_of
manifest, size, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
config = replace(PRESETS["tiny"](manifest, Path("none")), backbone=BACKBONES[size], objective="dino", batch=batch,
                 precision="float32", trackers=(), save_every=10**9)
estimate = memory_of(config).total_mb
before = psutil.Process().memory_info().rss / 2**20
with tempfile.TemporaryDirectory() as folder:
    run = pretrain(replace(config, out=Path(folder) / "run"))
    next(run), next(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    run.close()
print((peak - before) / estimate)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "batch"), [("micro", 8), ("tiny", 16), ("small", 4)])
def test_measured_peaks_lie_within_the_tolerance_of_the_estimate(phantom, size, batch):
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(phantom), size, str(batch)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert abs(float(output.stdout) - 1) <= TOLERANCE


def test_the_estimate_grows_with_batch_clip_and_depth_and_falls_with_pieces_and_checkpointing(tmp_path):
    config = replace(PRESETS["tiny"](tmp_path, tmp_path), objective="dino", backbone=BACKBONES["micro"], batch=8)

    def activations(**changes):
        return memory_of(replace(config, **changes)).activations_mb

    base = activations()
    assert activations(batch=16) == pytest.approx(2 * base, rel=0.01)
    assert activations(accumulation=2) == pytest.approx(base / 2, rel=0.01)
    assert activations(backbone=replace(BACKBONES["micro"], depth=2 * BACKBONES["micro"].depth)) > 1.5 * base
    assert activations(views=replace(config.views, global_px=config.views.global_px * 2)) > 1.5 * base
    assert activations(backbone=replace(BACKBONES["micro"], checkpointing=True)) < 0.7 * base
    with pytest.raises(UserError, match="8 does not divide into 3 pieces"):
        memory_of(replace(config, accumulation=3))


@pytest.mark.parametrize(
    "line",
    [
        ["pretrain", "--preset", "tiny", "--size", "micro", "--batch", "8", "--workers", "0"],
        ["finetune", "--out", "RUN", "--start", "scratch", "--size", "micro", "--batch", "2", "--image-px", "32"],
    ],
)
def test_a_dry_run_that_does_not_fit_says_the_plan_and_refuses_and_one_that_fits_measures(
    phantom, tmp_path, monkeypatch, capsys, line
):
    command, *options = [word.replace("RUN", str(tmp_path / "run")) for word in line]
    monkeypatch.setattr("endofm_lab.cli.train.free_mb", lambda device: 20.0)
    assert main([command, str(phantom), *options, "--dry-run"]) == 2
    output = capsys.readouterr()
    assert '"batch"' in output.out and "Estimated memory" in output.out and "at the peak" not in output.out
    assert "20 MB are free: give a smaller --batch" in output.err and output.err.count("\n") == 1
    monkeypatch.undo()
    assert main([command, str(phantom), *options, "--dry-run"]) == 0
    assert "at the peak (" in capsys.readouterr().out and not (tmp_path / "run").exists()
