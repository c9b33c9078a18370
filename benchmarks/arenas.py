"""What ONNX Runtime's memory arena and memory plan give: processor time of a run, and the memory that stays after it.

    python benchmarks/arenas.py                          # graphs of fixed shape of the models that ship
    python benchmarks/arenas.py --seconds 10

Four sessions of each graph, with and without either, run in turns in a thread; random inputs. The time is the median
of all runs, by the thread's own clock; the memory is what three runs leave once glibc has given back what it can.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.runtime.eight_bits import keep_sums_exact
from service.runtime.memory import give_back_freed_memory, keep_freed_memory

GRAPHS = {
    "blood-count/1": 1,
    "camvid-segmenter/1": 1,
    "cifar10-cnn/2": 32,
    "cifar10-cnn/1": 16,
    "nanodet-coco/1": 2,
    "nanodet-fruit/1": 8,
    "house-prices/1": 1,
}
"""Rows of a run, by version folder."""
KINDS = {"arena and plan": (True, True), "plan alone": (False, True), "neither": (False, False), "arena": (True, False)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="the repository")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each graph")
    asked = parser.parse_args()
    keep_freed_memory()
    print(f"| graph, rows | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    with ThreadPoolExecutor(1) as thread:  # as in a server, where the main thread's heap is not used for this
        for name, rows in GRAPHS.items():
            found = thread.submit(measured, asked.models / name / "model.onnx", rows, asked.seconds).result()
            print(f"| {name}, {rows} | {' | '.join(found)} |", flush=True)


def measured(graph: Path, rows: int, seconds: float) -> list[str]:
    """Time and memory of each kind of session."""
    sessions, stays, feeds = {}, {}, {}
    for kind, (arena, plan) in KINDS.items():
        sessions[kind] = session = opened(graph, arena=arena, plan=plan)
        feeds = feeds or inputs(session, rows)
        give_back_freed_memory()
        before = anonymous_mib()
        for _ in range(3):
            session.run(None, feeds)
        give_back_freed_memory()
        stays[kind] = anonymous_mib() - before
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for kind, session in sessions.items():
            begun = time.thread_time()
            session.run(None, feeds)
            times[kind].append(time.thread_time() - begun)
    return [f"{statistics.median(times[kind]) * 1e3:.1f} ms, {stays[kind]:.0f} MiB" for kind in KINDS]


def opened(graph: Path, *, arena: bool, plan: bool) -> Any:
    """A session as the service opens one, but for the memory."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena, options.enable_mem_pattern = arena, plan
    keep_sums_exact(options)
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def inputs(session: Any, rows: int) -> dict[str, np.ndarray]:
    """Random values for every input."""
    drawn, found = np.random.default_rng(0), {}
    for each in session.get_inputs():
        shape = [size if isinstance(size, int) else rows for size in each.shape]
        if "uint8" in each.type:
            found[each.name] = drawn.integers(0, 256, shape).astype(np.uint8)
        else:
            found[each.name] = drawn.normal(size=shape).astype(np.float32)
    return found


def anonymous_mib() -> float:
    """Memory of this process that is no file."""
    found = re.search(r"^Anonymous:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
