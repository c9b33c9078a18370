"""What else the machine does during a measurement, and measuring again because of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import BenchmarkFailed
from measuring.machine import busy_seconds, own_seconds

QUIET_CORES = 0.15
"""Cores that other programs may use during a measurement (count)."""

RETRIES = 2
"""Times that a noisy measurement is made again (count)."""


@dataclass(frozen=True)
class Noise:
    """What else the machine did during a measurement.

    Attributes:
        other_cores: used by programs that are not part of the benchmark.
        stolen_cores: taken by the hypervisor.
    """

    other_cores: float = 0.0
    stolen_cores: float = 0.0

    @property
    def is_quiet(self) -> bool:
        return not self.total > QUIET_CORES  # NaN, where there is no /proc, is taken as quiet

    @property
    def total(self) -> float:
        return self.other_cores + self.stolen_cores


def _stolen_seconds() -> float:
    try:
        return int(Path("/proc/stat").read_text().split("\n")[0].split()[8]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], Noise]]:
    """Watch the machine in the block; what is yielded tells its noise afterwards."""
    wall, busy, own, stolen = time.perf_counter(), busy_seconds(), own_seconds(), _stolen_seconds()
    noise = Noise()
    yield lambda: noise
    wall = time.perf_counter() - wall
    others = busy_seconds() - busy - (own_seconds() - own)
    noise = Noise(max(0.0, others) / wall, max(0.0, _stolen_seconds() - stolen) / wall)


def calmest(attempts: Iterator[tuple[Any, Noise]], may_repeat: Callable[[], bool]) -> tuple[Any, Noise, int]:
    """The first quiet attempt, else the calmest of those that there was time for; and how many were made."""
    best: tuple[Any, Noise] | None = None
    for made, attempt in enumerate(attempts, start=1):
        if best is None or attempt[1].total < best[1].total:
            best = attempt
        if best[1].is_quiet or made > RETRIES or not may_repeat():
            return *best, made
    raise BenchmarkFailed("nothing was measured")
