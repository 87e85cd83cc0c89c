"""The cores and the memory that this process may use, and how its threads wait for each other.

A container or a batch system often gives a process fewer cores and less memory than the machine has: affinity masks and
control groups (cgroups) set the limits. OpenMP threads that spin while they wait slow down every other process, and
their own one as soon as another process computes: a training step then takes four to nine times as long on two cores.
"""

import math
import os
import sys
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use, at least 1: the smaller of its affinity mask and its control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(_CGROUP)
    return max(1, min(allowed, math.ceil(quota))) if quota else allowed


def memory_mb() -> int:
    """Memory that this process may use, in MB: the smaller of the machine's and its control group's limit."""
    limit = _memory_limit(_CGROUP)
    total = psutil.virtual_memory().total
    return int(min(total, limit) if limit else total) // 2**20


def free_memory_mb() -> int:
    """Memory that is free for this process now, in MB, within its control group's limit."""
    limit, free = _memory_limit(_CGROUP), psutil.virtual_memory().available
    if limit:
        free = min(free, max(0, limit - _memory_used(_CGROUP)))
    return free // 2**20


def let_threads_sleep() -> bool:
    """Make OpenMP threads sleep while they wait, use one per core, and return whether these settings take effect.

    Both settings are environment variables that torch reads when it is loaded, so this function must run before. Values
    that the user has set are kept. It is called when `endofm_lab` is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if cores() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    return "torch" not in sys.modules


def _cpu_quota(root: Path) -> float | None:
    """Number of cores whose time a control group allows (version 2, then 1); None without a limit."""
    quota = _read(root / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        return int(quota[0]) / int(quota[1])
    old, period = (_read(root / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(old) / int(period) if old and period and int(old) > 0 else None


def _memory_limit(root: Path) -> int | None:
    """Bytes that a control group allows (version 2, then 1); None without a limit."""
    text = _read(root / "memory.max").strip() or _read(root / "memory" / "memory.limit_in_bytes").strip()
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _memory_used(root: Path) -> int:
    text = _read(root / "memory.current").strip() or _read(root / "memory" / "memory.usage_in_bytes").strip()
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> str:
    """The text of a small file; empty if the file does not exist or may not be read."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
