"""Measure a detector on made series: several spikes, level shifts, and gaps in a rhythm.

    python benchmarks/made_series.py --onnx models/series-gru/2/model.onnx [--onnx OTHER.onnx]
    python benchmarks/made_series.py --url http://127.0.0.1:8000

Prints a row for each measurement, a column for each detector:

- of four spikes of 10 or 20 standard deviations of the noise, 10, 25 or 50 points apart, in noise, counts, a wandering level and
  rhythms of 24 and 48 points: the share of each that is found, false alarms a series, and how much wider the band is in the nine
  points after the first (median);
- of level shifts: how many are found, alarms in the first 20 points and after them, and the forecast error from 30 points after
  it on, beside the error before it;
- of gaps of 3 to 24 points in rhythms of 24 points (hours of a day) and 288 (five minutes): in how many of 12 series there is an
  alarm, in the gap or the hundred points after it, that is not there without the gap.

All series have fixed seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SPIKES = 4
FIRST_SPIKE = 300
"""Points before the first spike (count)."""

PERIODS = {"rhythm of 24": 24, "rhythm of 48": 48}
KINDS = ("noise", "counts", "wandering", *PERIODS)
SERIES_PER_KIND = 8
GAP_SERIES = 12


@dataclass(frozen=True)
class Judged:
    """What a detector says of a series: float64 (points,) each; NaN where it has no band."""

    scores: Floats
    expected: Floats
    spread: Floats

    @property
    def alarms(self) -> npt.NDArray[np.bool_]:
        """At sensitivity 0.5."""
        return self.scores >= 0.5


Detector = Callable[[Floats], Judged]


def calm(kind: str, points: int, rng: np.random.Generator) -> tuple[Floats, float]:
    """A series without incidents, and the standard deviation of what cannot be foreseen in it."""
    noise = rng.standard_normal(points)
    if kind == "counts":
        return rng.poisson(40, points).astype(np.float64), 40**0.5
    if kind == "wandering":
        level = np.zeros(points)
        for i in range(1, points):
            level[i] = 0.9 * level[i - 1] + noise[i]
        return 30 + level, 2.3
    if kind in PERIODS:
        return 100 + 20 * np.sin(2 * np.pi * np.arange(points) / PERIODS[kind]) + noise, 1.0
    return 50 + noise, 1.0


def spiked(kind: str, seed: int, deviations: float, apart: int) -> tuple[Floats, list[int]]:
    """A series with four spikes up or down, each within a quarter of `deviations`, and where they are."""
    rng = np.random.default_rng(seed)
    values, deviation = calm(kind, FIRST_SPIKE + SPIKES * apart + 150, rng)
    at = [FIRST_SPIKE + apart * k for k in range(SPIKES)]
    signs = np.ones(SPIKES) if kind == "counts" else rng.choice([-1.0, 1.0], SPIKES)
    values[at] += signs * rng.uniform(0.8, 1.25, SPIKES) * deviations * deviation
    return values, at


def shifted(kind: str, seed: int) -> Floats:
    """A series whose level rises for good by 15 deviations at point 400."""
    values, deviation = calm(kind, 700, np.random.default_rng(seed))
    values[400:] += 15 * deviation
    return values


def gapped(period: int, gap: int, seed: int) -> tuple[Floats, slice]:
    """A rhythm, and where it is to be missing."""
    rng = np.random.default_rng(seed)
    points = period * (12 if period < 100 else 5)
    phase = rng.uniform(0, 2 * np.pi)
    values = 100 + 20 * np.sin(2 * np.pi * np.arange(points) / period + phase) + rng.standard_normal(points)
    start = int(rng.integers(points // 2, points - 3 * gap - 60))
    return values, slice(start, start + gap)


def measure(detect: Detector) -> Iterator[tuple[str, str]]:
    """Name and figures of each measurement."""
    for deviations in (10, 20):
        for apart in (10, 25, 50):
            found, false, wider = np.zeros(SPIKES), 0, []
            cases = [spiked(kind, seed, deviations, apart) for kind in KINDS for seed in range(SERIES_PER_KIND)]
            for values, at in cases:
                judged = detect(values)
                found += judged.alarms[at]
                false += int(judged.alarms[FIRST_SPIKE - 50 :].sum() - judged.alarms[at].sum())
                after, before = judged.spread[at[0] + 1 : at[0] + 10], judged.spread[at[0] - 50 : at[0]]
                wider.append(np.median(after) / np.median(before))
            shares = " ".join(f"{share:.2f}" for share in found / len(cases))
            yield (
                f"4 spikes of {deviations} deviations, {apart} points apart: found, false alarms a series, band",
                f"{shares} · {false / len(cases):.2f} · × {np.median(wider):.2f}",
            )
    shifts = [shifted(kind, seed) for kind in ("noise", "wandering", "rhythm of 48") for seed in range(SERIES_PER_KIND)]
    rows = []
    for values in shifts:
        judged = detect(values)
        error = np.abs(judged.expected - values)
        alarms = judged.alarms
        rows.append(
            [
                alarms[400:410].any(),
                alarms[400:420].sum(),
                alarms[420:].sum(),
                error[430:].mean() / error[300:400].mean(),
            ]
        )
    hit, soon, later, worse = np.mean(rows, 0)
    yield (
        "level shifts: found, alarms in 20 points, later, error",
        f"{hit:.2f} · {soon:.2f} · {later:.2f} · × {worse:.2f}",
    )
    for period in (24, 288):
        for gap in (3, 6, 12, 24):
            alarmed = 0
            for seed in range(GAP_SERIES):
                values, missing = gapped(period, gap, seed)
                whole = detect(values).alarms
                values[missing] = np.nan
                new = detect(values).alarms & ~whole
                alarmed += bool(new[missing.start : missing.stop + 100].any())
            yield f"gap of {gap} in a rhythm of {period}: series with a new alarm", f"{alarmed} of {GAP_SERIES}"


def of_graph(file: Path) -> Detector:
    """A model's graph, run in this process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    states = [i for i in session.get_inputs() if i.name not in ("values", "sequence_lens")]
    fresh = {i.name: np.zeros((1, i.shape[1]), dtypes[i.type]) for i in states}

    def detect(values: Floats) -> Judged:
        lens = np.array([len(values)], np.int32)
        outputs = session.run(
            ["expected", "spread", "novelty"], {"values": values[None], "sequence_lens": lens} | fresh
        )
        expected, spread, novelty = (output[0] for output in outputs)
        error = np.abs(values - expected)
        scores = np.where(np.isnan(values), 0.0, np.fmax(error / (error + spread), novelty))
        return Judged(scores, expected, spread)

    return detect


def of_service(url: str) -> Detector:
    """A running service."""
    import httpx

    client = httpx.Client(base_url=url, timeout=60)

    def detect(values: Floats) -> Judged:
        body = {"values": [None if np.isnan(value) else value for value in values.tolist()]}
        answer = client.post("/v1/anomaly-detection", json=body).raise_for_status().json()
        expected, upper = (np.array(answer[name], np.float64) for name in ("expected", "upper"))
        return Judged(np.array(answer["scores"]), expected, upper - expected)

    return detect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--onnx", type=Path, action="append", default=[], metavar="FILE", help="a graph, run in process"
    )
    parser.add_argument("--url", action="append", default=[], help="base address of a running service")
    options = parser.parse_args()
    detectors = {str(file): of_graph(file) for file in options.onnx} | {url: of_service(url) for url in options.url}
    if not detectors:
        parser.error("name a graph with --onnx or a service with --url")
    print("| | " + " | ".join(detectors) + " |\n" + "|---" * (1 + len(detectors)) + "|")
    for rows in zip(*(measure(detect) for detect in detectors.values()), strict=True):
        print(f"| {rows[0][0]} | " + " | ".join(figures for _, figures in rows) + " |", flush=True)


if __name__ == "__main__":
    main()
