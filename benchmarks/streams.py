"""How much a stream's answers depend on how it is cut: a series sent whole, in pieces with `state`, and point by point.

    python benchmarks/streams.py --url http://127.0.0.1:8000 [--points 600] [--piece 7]

The series is made: a daily rhythm with noise, spikes, a level shift and missing points, fixed seed. Prints the largest
difference of scores and of expected values, the latter in units of the series' spread.
"""

from __future__ import annotations

import argparse
import math
import random
import time

import httpx
import numpy as np

PATH = "/v1/anomaly-detection"


def series(points: int) -> list[float | None]:
    noise = random.Random(7)
    values: list[float | None] = [
        50 + 20 * math.sin(i / 288 * 2 * math.pi) + noise.gauss(0, 2) + (30 if i > 0.75 * points else 0)
        for i in range(points)
    ]
    values[points // 3], values[points // 3 + 1], values[points // 2] = 160.0, None, -40.0
    return values


def detect(client: httpx.Client, values: list[float | None], size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores and expected values of pieces of `size` points put together, and the seconds per request."""
    scores, expected, state = [], [], None
    begun, requests = time.perf_counter(), 0
    for start in range(0, len(values), size):
        answer = client.post(PATH, json={"values": values[start : start + size], "state": state})
        body = answer.raise_for_status().json()
        scores += body["scores"]
        expected += body["expected"]
        state = body["state"]
        requests += 1
    return np.array(scores), np.array(expected), (time.perf_counter() - begun) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--points", type=int, default=600)
    parser.add_argument("--piece", type=int, default=7)
    arguments = parser.parse_args()
    values = series(arguments.points)
    unit = float(np.nanstd(np.array(values, float)))
    with httpx.Client(base_url=arguments.url, timeout=60) as client:
        whole, forecast, seconds = detect(client, values, len(values))
        print(f"{len(values)} points whole: {seconds * 1e3:.1f} ms, {int((whole >= 0.5).sum())} anomalies")
        for size in (arguments.piece, 1):
            scores, expected, seconds = detect(client, values, size)
            print(
                f"in pieces of {size}: largest difference of scores {np.abs(scores - whole).max():.2e}, "
                f"of expected values {np.abs(expected - forecast).max() / unit:.2e} spreads, "
                f"{seconds * 1e3:.1f} ms a request"
            )


if __name__ == "__main__":
    main()
