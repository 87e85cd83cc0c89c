"""The proof that pre-training learns: what a network knows of patients it has not seen, before and after."""

import pytest

from endofm_lab.cli.main import main
from endofm_lab.data.phantom_set import write_phantom
from endofm_lab.files import read_json
from endofm_lab.reports.pretraining import health_of, probe_table
from endofm_lab.training.loop import read_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_tiny_learns_on_the_phantom_what_the_untrained_network_does_not_know(tmp_path):
    manifest, run = write_phantom(tmp_path / "phantom", "demo"), tmp_path / "run"
    assert main(["pretrain", str(manifest), "--preset", "tiny", "--probe", str(manifest), "--out", str(run)]) == 0
    print(probe_table(run).to_string(index=False))
    before, after = (read_json(run / "probe.json")[state] for state in ("untrained", "trained"))
    for name in ("knn", "linear"):
        assert after[f"{name}_low"] > before[name] and after[f"{name}_low"] > after["chance"]
    losses = [record["loss"] for record in read_log(run / "log.jsonl")]
    assert sum(losses[-20:]) < 0.8 * sum(losses[20:40])
    assert health_of(run).state == "healthy"
