"""Two processes that `accelerate launch` starts: one run, whether each holds all weights (DDP) or a share (FSDP)."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from endofm_lab.cli.main import main
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import SETTINGS, losses

pytestmark = pytest.mark.slow
KINDS = {"ddp": ["--multi_gpu"], "fsdp": ["--use_fsdp"]}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
COMMAND = ["-m", "endofm_lab.cli.main", "pretrain"]


@pytest.fixture(scope="module")
def single_run(manifest, tmp_path_factory) -> Path:
    """The run of one process, with all its checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert main(["pretrain", str(manifest), "--out", str(out), *SETTINGS, "--keep", "10"]) == 0
    return out


@pytest.fixture(scope="module", params=list(KINDS))
def double_run(request, manifest, tmp_path_factory) -> tuple[list[str], Path]:
    """The same of two processes, and what starts them."""
    launch, out = [*LAUNCH, *KINDS[request.param], *COMMAND], tmp_path_factory.mktemp("runs") / request.param
    subprocess.run([*launch, str(manifest), "--out", str(out), *SETTINGS, "--keep", "10"], check=True, timeout=300)
    return launch, out


def test_two_processes_are_one_process_with_the_same_batch(single_run, double_run):
    _, out = double_run
    single_log, double_log = read_log(single_run / "log.jsonl"), read_log(out / "log.jsonl")
    assert losses(double_log) == pytest.approx(losses(single_log), rel=1e-5)
    for number in ("grad_norm", "centre_norm", "teacher_entropy"):
        assert [r[number] for r in double_log] == pytest.approx([r[number] for r in single_log], rel=1e-5)
    expected = load_file(single_run / "model" / "model.safetensors")
    state = load_file(out / "model" / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    assert max(float((state[name] - t).abs().max()) for name, t in expected.items()) < 1e-4


def test_two_processes_killed_without_warning_and_resumed_have_the_losses_of_the_whole(double_run, manifest, tmp_path):
    launch, whole = double_run
    out, steps = tmp_path / "run", random.Random(0).randint(3, 5)
    process = subprocess.Popen([*launch, str(manifest), "--out", str(out), *SETTINGS])
    end = time.monotonic() + 300
    while len(read_log(out / "log.jsonl")) < steps and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.kill()  # the workers have sessions of their own
        child.wait()
    assert len(read_log(out / "log.jsonl")) < 8
    assert Checkpoints(out / "checkpoints").all() and not (out / "model").exists()
    subprocess.run([*launch, str(out)], check=True, timeout=300)
    assert losses(read_log(out / "log.jsonl")) == losses(read_log(whole / "log.jsonl"))


def test_two_processes_that_are_stopped_save_a_step_that_one_goes_on_from(single_run, double_run, manifest, tmp_path):
    launch, _ = double_run
    out = tmp_path / "run"
    settings = [*SETTINGS, "--save-every", "1000"]
    process = subprocess.Popen([*launch, str(manifest), "--out", str(out), *settings])
    end = time.monotonic() + 300
    while len(read_log(out / "log.jsonl")) < 2 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    process.terminate()  # the launcher hands it on
    process.wait(timeout=100)
    (saved,) = Checkpoints(out / "checkpoints").all()
    assert 2 <= int(saved.name.removeprefix("step-")) < 8
    assert main(["pretrain", str(out)]) == 0
    assert losses(read_log(out / "log.jsonl")) == pytest.approx(losses(read_log(single_run / "log.jsonl")), rel=1e-5)


def test_two_processes_go_on_with_a_run_of_one(single_run, double_run, tmp_path):
    launch, _ = double_run
    out = tmp_path / "run"
    shutil.copytree(
        single_run, out, ignore=shutil.ignore_patterns("model", "report*", "step-00000006", "step-00000008")
    )
    subprocess.run([*launch, str(out)], check=True, timeout=300)
    assert losses(read_log(out / "log.jsonl")) == pytest.approx(losses(read_log(single_run / "log.jsonl")), rel=1e-5)


SCRIPT = """
import dataclasses, json, os, sys
from pathlib import Path
from endofm_lab.pretraining.features import FeatureConfig
from endofm_lab.pretraining.trainer import pretrain
from endofm_lab.pretraining.vicreg import VicregConfig
from endofm_lab.training.processes import processes
from tests.pretraining.runs import micro

manifest, out = Path(sys.argv[1]), Path(sys.argv[2])
checkpointing = dataclasses.replace(micro(manifest, out).backbone, checkpointing=True)
variants = {
    "masked": {"objective": "masked"},
    "vcl": {"objective": "vcl"},
    "vicreg": {"objective": "vicreg", "vicreg": VicregConfig(width=16, hidden=16)},
    "features": {"objective": "features", "features": FeatureConfig("demo")},
    "checkpointing": {"backbone": checkpointing},
    "accumulation": {"accumulation": 2},
    "bfloat16": {"precision": "bfloat16"},
    "probe": {"probe": manifest, "probe_every": 2},
}
for name, settings in variants.items():
    found = []
    for sharded in ("false", "true"):
        os.environ["ACCELERATE_USE_FSDP"] = sharded
        found.append(list(pretrain(micro(manifest, out / f"{name}-{sharded}", steps=4, **settings))))
    if processes().is_main_process:
        (out / f"{name}.json").write_text(json.dumps(found))
"""


def test_weights_in_shards_learn_what_whole_ones_do(manifest, tmp_path):
    """Each objective, with what computes blocks twice, in pieces or in bfloat16, and with a probe of the teacher."""
    (tmp_path / "many.py").write_text(SCRIPT)
    command = [*LAUNCH, *KINDS["fsdp"], str(tmp_path / "many.py"), str(manifest), str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(command, check=True, timeout=600, env=os.environ | {"PYTHONPATH": str(root)})
    results = sorted(tmp_path.glob("*.json"))
    assert len(results) == 8
    for path in results:
        whole, shards = json.loads(path.read_text())
        assert losses(shards) == pytest.approx(losses(whole), rel=1e-2 if path.stem == "bfloat16" else 1e-5), path.stem
        for record, expected in zip(shards, whole, strict=True):
            assert {k: record.get(k) for k in ("knn", "linear")} == {k: expected.get(k) for k in ("knn", "linear")}
    assert "knn" in json.loads((tmp_path / "probe.json").read_text())[1][1]
