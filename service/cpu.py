"""How many processor cores this process may really use: affinity and cgroup quota, not the host's count.

Thread pools sized to the host inside a small container are the classic cause of slow inference there.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CpuBudget:
    """Whole cores to plan with, and where the number comes from.

    Attributes:
        cores: at least 1; a fractional quota is rounded down.
        reason: one phrase for the log.
    """

    cores: int
    reason: str


def cpu_budget(cgroup: Path = Path("/sys/fs/cgroup"), *, affinity: int | None = None) -> CpuBudget:
    """The smaller of the affinity mask and the cgroup's quota (version 2, then version 1), in whole cores.

    Args:
        cgroup: where the control groups are mounted.
        affinity: cores in the affinity mask; None asks the operating system.
    """
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    if quota is not None and quota < affinity:
        return CpuBudget(max(1, int(quota)), f"cgroup quota of {quota:g} cores")
    return CpuBudget(affinity, f"{affinity} cores in the affinity mask")


def _quota(cgroup: Path) -> float | None:
    """Cores that the control group grants per period, or None without a limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        return None if limit_us <= 0 else limit_us / int((cgroup / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def processor_kind() -> str:
    """What tells kinds of processors apart: the name, and the instructions it has, which a virtual machine may hide."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    has = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return f"{processor_name()} {hashlib.sha256(has.encode()).hexdigest()[:16]}"


def processor_name() -> str:
    """The processor's name: `platform` knows none on most Linux machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
