"""The machine: processes, their memory and time, and what numbers depend on."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.cpu import cpu_budget, processor_name


def process_tree(root: int) -> list[int]:
    """A process and its descendants; empty where there is no /proc, or no such process."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree = [root] if root in parents else []
    for pid in tree:  # grows while it is read
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


WORKER = "gridloop worker"
"""Name of a process of our server that answers."""


def process_name(pid: int) -> str:
    """A process's name, as `top` shows it; empty of one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def memory_mib(pid: int) -> float | None:
    """Proportional set size of a process, shared pages divided among their users; resident size where it is hidden."""
    for file, key in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        with contextlib.suppress(OSError):
            if found := re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE):
                return int(found[1]) / 1024
    return None


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def busy_seconds() -> float:
    """CPU time that everything on the machine has used; NaN where there is no /proc."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    except OSError:
        return math.nan
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process and of all that it started, ended ones included."""
    ended = os.times()
    return cpu_seconds(process_tree(os.getpid())) + ended.children_user + ended.children_system


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    budget = cpu_budget()
    return {
        "cpu": processor_name(),
        "cores": budget.cores,
        "cores_reason": budget.reason,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "gridloop": version("gridloop"),
        "commit": commit(),
    }


def commit() -> str | None:
    """The code's commit, with `+` when files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
