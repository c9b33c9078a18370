"""How long the comparison's work takes in process, alone: bytes to answer bytes with no HTTP, by ONNX Runtime's threads.

    python benchmarks/peers/alone.py HARNESS [--seconds 3]

HARNESS is the folder of the comparison, whose own application code is timed. One connection to Gridloop is to be
compared with the better of the two: `run.py HARNESS ... --targets gridloop --conns 1`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

THREADS = (1, 2)


def main() -> None:
    """Print a line per workload, and one JSON document at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    sys.path[:0] = [str(options.harness / "common")]
    import benchapp
    import orjson  # as L1 does; `json` would take longer than a small inference
    import wire

    found: dict[str, dict[int, float]] = {}
    for workload in ("W1", "W2", "W3", "W4"):
        model, is_image = benchapp.MODEL_OF[workload], benchapp.IS_IMAGE[workload]
        name, before, after = benchapp.INPUT_OF[model], benchapp.PRE[workload], benchapp.POST[workload]
        bodies = [wire.body(workload, number) for number in range(16)]
        for threads in THREADS:
            session = benchapp.session(workload, threads)
            taken = []
            end = time.perf_counter() + options.seconds
            while (begun := time.perf_counter()) < end:
                body = bodies[len(taken) % 16]
                tensor = before(body if is_image else orjson.loads(body))
                (output,) = session.run(None, {name: tensor[None]})
                orjson.dumps(after(output[0]))
                taken.append(time.perf_counter() - begun)
            found.setdefault(workload, {})[threads] = round(statistics.median(taken[5:]) * 1e3, 3)
        print(
            workload,
            "  ".join(f"{threads} threads: {ms:.2f} ms" for threads, ms in found[workload].items()),
            flush=True,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
