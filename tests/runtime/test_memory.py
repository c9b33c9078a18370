"""What the operating system is told of memory, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from service.runtime.memory import BUSY_S, IDLE_CPU_S, IDLE_S, FreedMemory

PROGRAM = """
import numpy as np
import onnxruntime  # a library with much code

from service.runtime.memory import let_go_of_files


def resident_kib(kind):
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(kind))


kept = np.arange(1_000_000) * 2.0
before, numbers = resident_kib("Rss"), resident_kib("Anonymous")
let_go_of_files()
after = resident_kib("Rss")
assert kept.sum() == 999_999 * 1_000_000.0
assert resident_kib("Anonymous") >= numbers - 64
print(before - after)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_files_are_let_go_and_come_back() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 5 * 1024  # KiB of code and constants that had been read


RUNS = """
import resource
import sys

from service.runtime.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()


def run():
    blocks = [bytearray(10 * 2**20) for _ in range(4)]
    for block in blocks:
        block[::4096] = bytes(len(block[::4096]))


for _ in range(3):
    run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_run_finds_the_memory_of_the_one_before() -> None:
    def faults(way: str, **variables: str) -> float:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        found = subprocess.run(
            [sys.executable, "-c", RUNS, way], env=environment | variables, capture_output=True, text=True, timeout=60
        )
        assert found.returncode == 0, found.stderr
        return float(found.stdout)

    assert faults("leave") > 1000  # of 10,240 pages
    assert faults("keep") < 100
    assert faults("keep", MALLOC_ARENA_MAX="2") < 100
    # Who runs the server has the last word.
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > 1000
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072") > 1000


def test_memory_is_given_back_once_after_work() -> None:
    used = [0.0]
    freed, now_s = FreedMemory(lambda: used[0]), 0.0
    due = []
    for work_s in (1.0, 0.0, 0.0, IDLE_CPU_S / 2, 0.5, 0.5, IDLE_CPU_S / 2, 0.0):
        used[0] += work_s
        now_s += IDLE_S
        due.append(freed.is_due(now_s))
    assert due == [False, True, False, False, False, False, True, False]


def test_a_process_is_idle_only_after_a_while() -> None:
    used = [0.0]
    freed = FreedMemory(lambda: used[0])
    used[0] = 1.0
    assert not freed.is_due(IDLE_S)
    assert not freed.is_due(IDLE_S * 1.9)
    assert freed.is_due(IDLE_S * 2)


def test_a_process_that_always_works_gives_memory_back_now_and_then() -> None:
    used = [0.0]
    freed, due = FreedMemory(lambda: used[0]), []
    for look in range(1, 40):
        used[0] += 1.0
        if freed.is_due(look * IDLE_S):
            due.append(look * IDLE_S)
    assert due == [IDLE_S + BUSY_S, IDLE_S + 2 * BUSY_S, IDLE_S + 3 * BUSY_S]


HEAPS_OF_THREADS = """
import sys
import threading
from pathlib import Path

import numpy as np

from service.runtime.memory import give_back_freed_memory, keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
together = threading.Barrier(8)


def work():
    together.wait()
    kept = [np.ones(2**20, np.uint8) for _ in range(20)]
    together.wait()
    del kept
    together.wait()


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) / 256


before = resident_mib()
for _ in range(2):
    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
busy = resident_mib()
give_back_freed_memory()
print(busy - before, resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_several_threads_have_freed_is_bounded_and_given_back() -> None:
    """Eight threads with 20 MiB each, in blocks that are kept: two heaps keep at most 64 MiB at the end of each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", HEAPS_OF_THREADS, "keep"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    busy, idle = map(float, found.stdout.split())
    assert busy < 145  # MiB of 160
    assert idle < 80  # mostly 10; now and then the end of one of the two heaps stays
