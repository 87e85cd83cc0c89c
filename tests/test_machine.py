"""Cores and memory follow affinity and control groups; threads of torch sleep while they wait."""

import os
import subprocess
import sys

import pytest

from endofm_lab import machine


@pytest.fixture
def group(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


def test_cores_are_those_of_the_affinity_mask(group, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    assert machine.cores() == 3


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("max 100000", 8), ("10000 100000", 1), ("", 8)])
def test_cores_are_no_more_than_the_quota_rounded_up(group, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (group / "cpu.max").write_text(quota)
    assert machine.cores() == expected


def test_the_first_version_of_control_groups_is_read_too(group, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (group / "cpu").mkdir()
    (group / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (group / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cores() == 3
    (group / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")  # no limit
    assert machine.cores() == 8


def test_memory_is_no_more_than_the_limit_and_what_is_left_of_it(group):
    whole = machine.memory_mb()
    (group / "memory.max").write_text(f"{512 * 2**20}\n")
    (group / "memory.current").write_text(f"{200 * 2**20}\n")
    assert machine.memory_mb() == 512
    assert machine.free_memory_mb() <= 312
    (group / "memory.max").write_text("max\n")
    assert machine.memory_mb() == whole


def run(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_threads_sleep_while_they_wait_unless_the_user_said_otherwise():
    code = "import endofm_lab, os; print(os.environ['OMP_WAIT_POLICY'])"
    assert run(code) == "PASSIVE"
    assert run(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_a_process_bound_to_one_core_computes_with_one_thread():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity masks")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "import endofm_lab, torch; print(torch.get_num_threads())"
    )
    assert run(code) == "1"
