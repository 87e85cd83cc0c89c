"""A training step beside another busy process: `pytest -m benchmark -n 0 -s tests/benchmarks/test_busy_neighbour.py`.

Prints how many times longer a step takes beside a process that computes on every core, with threads that sleep while
they wait (as the library sets it) and with threads that spin (OpenMP's own choice). With all cores shared evenly two
times is the least that can be expected. Asserts only that the losses are equal.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.benchmark

STEPS = """
import json, statistics, sys, time
import endofm_lab
import torch
from endofm_lab.model.transformer import build_backbone

torch.manual_seed(0)
backbone = build_backbone("tiny")
optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-4)
clip, times, losses = torch.randn(4, 3, 8, backbone.config.image_px, backbone.config.image_px), [], []
for step in range(12):
    start = time.perf_counter()
    loss = backbone(clip).cls.square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    times.append(time.perf_counter() - start)
    losses.append(loss.item())
print(json.dumps({"median_s": statistics.median(times[2:]), "losses": losses}))
"""
BUSY = "import torch\nx = torch.randn(1500, 1500)\nwhile True: x @ x"


def fresh(code: str, **environment: str) -> subprocess.Popen:
    """A process with none of this one's settings of OpenMP."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return subprocess.Popen([sys.executable, "-c", code], env=kept | environment, stdout=subprocess.PIPE, text=True)


def measured(**environment: str) -> dict:
    """The median step and the losses of a fresh process."""
    output, _ = fresh(STEPS, **environment).communicate()
    return json.loads(output)


def test_a_step_beside_a_busy_process():
    undisturbed = measured()
    neighbour = fresh(BUSY)
    try:
        asleep, spinning = measured(), measured(OMP_WAIT_POLICY="ACTIVE")
    finally:
        neighbour.kill()
        neighbour.wait()
    ratios = [result["median_s"] / undisturbed["median_s"] for result in (asleep, spinning)]
    print(
        f"\nA step alone: {1e3 * undisturbed['median_s']:.0f} ms. Beside a process that computes on every core: "
        f"{ratios[0]:.1f} times as long with threads that sleep, {ratios[1]:.1f} times with threads that spin."
    )
    assert undisturbed["losses"] == asleep["losses"] == spinning["losses"]
