"""The CPU budget is what the process may use, not what the host has."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cpu import CpuBudget, cpu_budget
from service.settings import Settings


def cgroup(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_without_a_quota_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert cpu_budget(cgroup(tmp_path, cpu_dot_max="max 100000\n"), affinity=6).cores == 6


def test_a_quota_of_control_groups_version_2_counts(tmp_path: Path) -> None:
    budget = cpu_budget(cgroup(tmp_path, cpu_dot_max="250000 100000\n"), affinity=8)
    assert budget == CpuBudget(2, "cgroup quota of 2.5 cores")


def test_a_quota_of_control_groups_version_1_counts(tmp_path: Path) -> None:
    folder = cgroup(tmp_path, cpu__cpu_dot_cfs_quota_us="300000", cpu__cpu_dot_cfs_period_us="100000")
    assert cpu_budget(folder, affinity=8).cores == 3


def test_less_than_one_core_still_plans_with_one(tmp_path: Path) -> None:
    assert cpu_budget(cgroup(tmp_path, cpu_dot_max="50000 100000"), affinity=8).cores == 1


def test_the_affinity_mask_wins_when_it_is_smaller(tmp_path: Path) -> None:
    assert cpu_budget(cgroup(tmp_path, cpu_dot_max="800000 100000"), affinity=2).cores == 2


@pytest.mark.parametrize(("cores", "asked", "workers"), [(1, 0, 1), (2, 0, 2), (8, 2, 2), (2, 4, 4), (256, 0, 64)])
def test_there_is_a_worker_for_each_core(cores: int, asked: int, workers: int) -> None:
    assert Settings(workers=asked).plan(CpuBudget(cores, "test")).workers == workers
