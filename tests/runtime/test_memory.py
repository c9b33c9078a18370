"""What the operating system is told of memory, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

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
