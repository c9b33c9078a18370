"""Train, calibrate and export `series-gru`, the streaming anomaly detector: one recurrent model for every series.

    python models/series-gru/train.py --data DIR                # train (resumes), calibrate the threshold, evaluate, export, check
    python models/series-gru/train.py --data DIR --stage export # the same without training, from the checkpoint or the published graph
    python models/series-gru/train.py --data DIR --stage search # look for better constants of the novelty (printed, not kept)

DIR holds four folders of public data:
- `kpi_aiops/kpi_aiops.npz`: the AIOps challenge 2018, https://github.com/NetManAIOps/KPI-Anomaly-Detection (MIT), in the
  regular-grid form of https://github.com/CSTCloudOps/datasets: arrays `value`, `label`, `offsets`, `kpi_id`, `interval_s`;
- `ms_cloud_monitoring/ms_cloud_monitoring.zip`: https://github.com/microsoft/cloud-monitoring-dataset (MIT);
- `ett/ETTh1.csv.xz`, `ETTh2`, `ETTm1`, `ETTm2`: https://github.com/zhouhaoyi/ETDataset (CC BY-ND 4.0), electricity load and oil
  temperature, into which incidents are put to choose constants;
- `nab/nab.zip`: https://github.com/numenta/NAB, used for one thing: the benchmark figures of the card. Nothing is trained or
  tuned on it.
Needs numpy, onnx and onnxruntime, and torch to train. One CPU thread.

How it works. A stream is described by running statistics of its own past (levels and scales at several half-lives). They make
a GRU's inputs free of unit and offset; the GRU answers with a mix of those levels as the forecast of the next point.

Two things alarm. *Novelty*: the latest three points together are unlike any three of the last 2,048 points; their distance
to the nearest such window, raised where the forecast was wrong too and lowered where the stream is restless just now, must
exceed the root mean square of such distances and the slowly forgotten largest of them, by more in a stream that alarms often.
Where the stream has a period, the mean of the last 24 points is compared in the same way with those at about the same hour of
earlier periods. *Surprise*: the forecast error as such exceeds a bar set by the statistics of earlier
surprises, a slowly sinking peak of them, and the errors of the last thousands of points. So one incident alarms once or a few
times, and a nervous stream needs more to alarm. Everything at point i is computed from points up to i.

Nothing is learnt from a *spike*, a point far from all just before it: for what follows it is a missing point, unless the stream has
often shown such. After missing points the band is wider for a while, and what spans them is neither compared nor learnt.

Letters: N series, T points, H hidden units, K running statistics.

References:
    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014 (GRU).
    Salinas et al., "DeepAR", Int. J. Forecasting 36, 2020 (one global recurrent forecaster, scaled inputs).
    Koenker, Bassett, "Regression quantiles", Econometrica 46, 1978 (the pinball loss of the error quantiles).
    Kingma, Ba, "Adam", ICLR 2015 (exponential moving averages with bias correction).
    Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017 (a bar from the stream's own peaks).
    Ahmad et al., "Unsupervised real-time anomaly detection for streaming data", Neurocomputing 262, 2017 (NAB; adaptation to
    how surprising a stream usually is).
    Bollerslev, "Generalized autoregressive conditional heteroskedasticity", J. Econometrics 31, 1986 (a scale that follows
    the latest steps).
    Crane, Sornette, "Robust dynamic classes revealed by measuring the response function of a social system", PNAS 105, 2008
    (attention comes in bursts that fade by a power law, as in the made-up mentions).
    Burnaev, Ishimtsev, "Conformalized density- and distance-based anomaly detection in time-series data", arXiv:1608.04585,
    2016 (the distance of the latest window to its nearest earlier ones).
    Hillis, Steele, "Data parallel algorithms", CACM 29, 1986 (prefix sums by doubling, as used in the ONNX graph).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import lzma
import os
import re
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
PUBLISHED = HERE / "2" / "model.onnx"
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
import nab  # noqa: E402  the scorer of the benchmark, also used on the validation series
from weights import Weights  # noqa: E402


@dataclass(frozen=True)
class Config:
    data: str = ""
    """Folder with the data sets."""
    work: str = str(HERE / "work")
    """Where checkpoints go."""
    stage: str = "all"
    """all, export (from the checkpoint, no training) or search (constants of the novelty)."""
    seed: int = 7
    hidden: int = 48
    batch: int = 128
    """Series a step."""
    window: int = 256
    """Points a step: the gradient is cut there, the hidden state goes on."""
    length: int = 4096
    """Points of a training series."""
    epochs: int = 22
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    synthetic: int = 400
    """Synthetic series in the training pool."""
    trials: int = 600
    """Trials of `--stage search`."""


QUANTILES = (0.9, 0.99, 0.999)
"""The error quantiles that the GRU learns beside the forecast."""

LEVELS = ("last", "L3", "L20", "L150", "L1000")
"""What the forecast mixes: the last value, and exponential averages with these half-lives (points)."""

HALF_LIFE = {
    "L3": 3.0, "L20": 20.0, "L150": 150.0, "L1000": 1000.0,  # of the values
    "D300": 300.0, "H300": 300.0, "D20": 20.0, "H20": 20.0,  # of |difference| (D) and of its square root (H)
    "S150": 150.0, "S1000": 1000.0,  # of the distance to L150 and L1000
}  # fmt: skip

INPUTS = 15
TINY = 1e-280
HUGE = 1e300
"""Values are clipped here."""
BLIND = 1e304
"""Half-width of the band where nothing can be said yet."""
LARGE = 1e130
"""Larger jumps and errors count as this much in what is remembered of them, so that its squares stay finite, and sums of them that grow."""
MEMORY = 2048
"""How far back a window may have its like (points)."""
WINDOW = 3
"""Length of the windows that are compared (points)."""
NEAREST_LAG = 2
"""How far back a window's like must lie at least (points), or a smooth series would always be like itself."""
BLOCK = 64
"""Points whose windows the graph compares in one go: bounds the memory of a long run."""
STRETCH = 24
"""Length of the means that are compared with those of other days at the same hour (points)."""
HISTORY = MEMORY + STRETCH
"""Points of the past that the windows and stretches of the next point reach back to."""
PERIOD_EVERY = 128
"""The period is looked for again after so many points that are not missing."""
SHORTEST_PERIOD = 8
PERIODS_SEEN = 3
"""Periods that a stream must have shown before one is believed in; it bounds the longest, MEMORY / PERIODS_SEEN (points)."""
QUIET = 32
"""A stream whose values were all the same so far has no scale: only after this many of them is a change an alarm (points)."""


@dataclass(frozen=True)
class Adaptation:
    """The constants which turn forecast errors and novelty into comparable scores. Those of the bar were found by random search, by the
    NAB-like score on training and validation pieces; `ageing`, the far_ ones, `peak_half_life` and `over_peak` last, alone; those of the
    novelty one at a time, in the middle of where the score is flat; `threshold` so that the bar adds few alarms to the novelty's.

    The surprise of a point is l = log(error / yardstick). The bar for it is
    max(habit, floor, peak + over_peak, long_peak_weight * long_peak + over_long_peak)
    + youth / (1 + age / youth_age) + ageing * log(1 + age / 1000) - recent_weight * recent + level_weight * distance from the
    usual level, with habit = mean_weight * mean + deviations * deviation.
    A score of 0.5 is where the error reaches max(yardstick * exp(bar), far_weight * far) * exp(threshold).
    """

    # the yardstick: a weighted sum of scales
    d20: float = 0.734
    d300: float = 0.0
    s1000: float = 0.186
    s150: float = 0.0233
    h300: float = 0.0
    q99: float = 0.0
    q999: float = 0.0389
    # usual surprise of the stream: mean and deviation of l, clipped, with a prior worth `prior` points
    low: float = -3.32
    high: float = 3.68
    half_life: float = 823.0
    prior: float = 0.438
    prior_mean: float = 0.324
    prior_deviation: float = 0.49
    mean_weight: float = 1.22
    deviations: float = 1.87
    floor: float = 0.484
    # the long memory: root mean square of the errors themselves, which hears the large ones; each capped at `far_cap` usual distances
    far_weight: float = 3.47
    far_half_life: float = 3050.0
    far_cap: float = 20.0
    # sinking peaks of (l - peak_base), capped
    peak_base: float = 0.784
    peak_cap: float = 6.24
    peak_half_life: float = 287.0
    over_peak: float = 1.14
    long_peak_half_life: float = 258.0
    long_peak_weight: float = 0.233
    over_long_peak: float = -0.937
    # recent surprise, youth of the stream, distance from its usual level
    recent_half_life: float = 590.0
    recent_weight: float = -4.04
    youth: float = 2.0
    youth_age: float = 10.0
    ageing: float = 0.0978
    level_weight: float = -0.0923
    # a spike is so many usual jumps away from each of the last points, or so many usual bends off their line and this many jumps
    # away; usual is the power mean of order 1/2, which hears few outliers, and a share of the plain mean
    spike_jump: float = 4.0
    spike_bend: float = 3.0
    spike_bend_jump: float = 1.5
    tail_share: float = 0.5
    spike_half_life: float = 300.0
    spike_youth: float = 64.0
    # it is not learnt from, unless there were so many in the last thousands of points, those of the last hundreds not counted
    spikes_known: float = 1.5
    spike_memory: float = 5000.0
    burst: float = 200.0
    # missing points are forgotten by these factors per point that is there; where the latter two are, nothing is judged by the novelty
    # or learnt for the bar, and how much wider the band is there (usual distances from the usual level)
    gap_keep: float = 0.5
    stretch_gap_keep: float = 0.88
    gap_settled: float = 0.4
    stretch_gap_settled: float = 2.0
    gap_width: float = 4.0
    gap_scale: float = 3.0
    # where the default sensitivity lies
    threshold: float = 1.2
    # the novelty of the latest window: weight of its steps beside its values, floor in usual distances from the usual level,
    # share of the last point's surprise, and of how restless the stream is just now
    roughness: float = 0.5
    grain: float = 0.1
    echo: float = 0.3
    restlessness: float = 0.45
    # it must lie so far above the largest novelty lately, which is forgotten at this rate per point, and above the root mean
    # square of novelties; more in a young stream (all logarithms)
    forgetting: float = 0.006
    excess: float = 0.18
    over_usual: float = 1.47
    usual_half_life: float = 1000.0
    novelty_youth: float = 15.0
    # the second novelty, of the mean of the last STRETCH points beside those of earlier periods at the same hour: least autocorrelation
    # of a period, how much of a period the hour may be off, and what of its bar differs from the first's
    period_strength: float = 0.3
    period_share: float = 0.85
    hour: float = 0.04
    rhythm_excess: float = 0.15
    over_usual_rhythm: float = 1.6
    rhythm_youth: float = 50.0
    # a stream with many alarms so far needs more: how long they are remembered (points), how much each weighs, and how far below
    # the bar (logarithm) a point begins to count as part of one
    alarm_half_life: float = 5000.0
    alarm_weight: float = 0.12
    alarm_ramp: float = 0.35
    # how steeply its score rises with it
    slope: float = 3.0


# ------------------------------------------------------------------------------------------------------------- data


@dataclass
class Labelled:
    """A series with its labels. `name` starts with its source: kpi/, ms/, syn/, job/, ops/, inj/ or mnt/."""

    name: str
    values: np.ndarray  # float64 (T,), NaN = missing
    anomalous: np.ndarray  # bool (T,)
    step_s: int = 300


def read_kpi(data: Path) -> list[Labelled]:
    z = np.load(data / "kpi_aiops" / "kpi_aiops.npz")
    value, label, offsets = z["value"].astype(np.float64), z["label"].astype(bool), z["offsets"]
    rows = zip(z["kpi_id"], offsets[:-1], offsets[1:], z["interval_s"], strict=True)
    return [Labelled(f"kpi/{str(k)[:8]}", value[a:b], label[a:b], int(s)) for k, a, b, s in rows]


def read_microsoft(data: Path) -> list[Labelled]:
    out = []
    with zipfile.ZipFile(data / "ms_cloud_monitoring" / "ms_cloud_monitoring.zip") as z:
        for name in sorted(n for n in z.namelist() if n.endswith(".csv")):
            rows = list(csv.DictReader(io.TextIOWrapper(z.open(name), encoding="utf-8-sig")))
            values = np.array([float(r["Value"] or "nan") for r in rows])
            anomalous = np.array([int(r["Label"]) for r in rows], dtype=bool)
            minutely = rows[1]["TimeStamp"][14:16] == "01"
            out.append(Labelled(f"ms/{Path(name).stem}", values, anomalous, 60 if minutely else 3600))
    return out


def split_of(index: int) -> str:
    """Whole series go to one split, in turns: the GRU learns from the first, the constants were chosen on the first two,
    and the figures of the card come from the third."""
    return ("train", "validation", "test")[index % 3]


def aggregate(s: Labelled, k: int) -> Labelled:
    """Means of k successive points; anomalous if one of them is."""
    n = len(s.values) // k * k
    if k == 1:
        return s
    return Labelled(s.name, s.values[:n].reshape(-1, k).mean(1), s.anomalous[:n].reshape(-1, k).any(1), s.step_s * k)


POINTS_PER_WINDOW = 3150
"""NAB has one window in so many points."""

SHARES = {"kpi": 0.19, "ms": 0.09, "syn": 0.12, "job": 0.12, "ops": 0.17, "inj": 0.17, "mnt": 0.14}
"""What each source weighs in the NAB-like score; the Microsoft pieces are few."""


def nab_like_windows(anomalous: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Windows as NAB makes them: a tenth of the series shared by its incidents, centred on each; overlapping ones merge."""
    n = len(anomalous)
    edge = np.diff(np.concatenate([[0], anomalous.astype(int), [0]]))
    incidents: list[list[int]] = []
    for start, end in zip(np.flatnonzero(edge == 1), np.flatnonzero(edge == -1) - 1, strict=True):
        if incidents and start - incidents[-1][1] <= n // 50:
            incidents[-1][1] = end
        else:
            incidents.append([start, end])
    width = max(int(0.1 * n / max(len(incidents), 1)), 4)
    windows: list[list[int]] = []
    for start, end in incidents:
        low, high = max(start - width // 2, 0), min(end + width // 2, n - 1)
        if windows and low <= windows[-1][1]:
            windows[-1][1] = high
        else:
            windows.append([low, high])
    return tuple((a, b) for a, b in windows)


def synthetic(rng: np.random.Generator, shortest: int = 1000, longest: int = 5000) -> Labelled:
    """A made-up series with 0 to 4 labelled incidents: seasons, noise, counts, on/off, walks, counters, constants, utilisation."""
    n = int(rng.integers(shortest, longest))
    t = np.arange(n)
    kinds = ["season", "noise", "ar", "count", "onoff", "walk", "spiky", "counter", "constant", "utilisation"]
    kind = rng.choice(kinds, p=[0.22, 0.1, 0.16, 0.12, 0.06, 0.06, 0.12, 0.04, 0.04, 0.08])
    noise = rng.choice([0.02, 0.05, 0.1, 0.3])
    period = rng.choice([24, 48, 96, 144, 288, 288, 288, 1440])
    shocks = rng.standard_t(rng.choice([2.5, 4, 30]), n)

    def autoregressive(x: np.ndarray, phi: float) -> np.ndarray:
        out, last = np.empty(n), 0.0
        for i in range(n):
            last = out[i] = phi * last + x[i]
        return out * np.sqrt(1 - phi**2)

    harmonics = range(1, int(rng.integers(2, 6)))
    season = sum(rng.normal() / k * np.sin(2 * np.pi * k * t / period + rng.uniform(0, 6.3)) for k in harmonics)
    season = season / (np.std(season) + 1e-9)
    if kind == "season":
        weekend = 1 + rng.uniform(0, 0.6) * (np.sin(2 * np.pi * t / (7 * period)) > 0.6)
        x = season * weekend + noise * autoregressive(shocks, rng.uniform(0, 0.98))
        if rng.random() < 0.3:
            x = np.where(np.sin(2 * np.pi * t / period) > rng.uniform(-0.5, 0.8), 1.0, 0.0) + noise * shocks * (
                rng.random() < 0.7
            )
        if rng.random() < 0.3:
            x = np.exp(0.7 * x)
    elif kind == "noise":
        x = shocks
    elif kind == "ar":
        x = autoregressive(shocks, rng.uniform(0.8, 0.995)) + 0.3 * rng.normal() * season
    elif kind == "count":
        rate = rng.uniform(-1, 4) + 0.6 * season * rng.uniform(0, 1) + 0.3 * autoregressive(shocks, 0.9)
        x = rng.poisson(np.exp(rate).clip(0, 1e5)).astype(np.float64)
    elif kind == "onoff":
        flips = rng.random(n) < rng.choice([0.002, 0.01, 0.05])
        x = np.cumsum(flips) % 2 + noise * shocks * rng.integers(0, 2)
    elif kind == "walk":
        x = np.cumsum(shocks)
    elif kind == "spiky":
        spikes = (rng.random(n) < rng.choice([0.005, 0.02, 0.05])) * rng.lognormal(1, 0.6, n)
        x = 0.1 * shocks + spikes + 0.5 * rng.integers(0, 2) * season
    elif kind == "counter":
        x = np.cumsum(rng.poisson(np.exp(1 + 0.5 * season)).astype(np.float64))
        if rng.random() < 0.5:
            x = x % (x[-1] / rng.integers(2, 8))
    elif kind == "constant":
        x = np.full(n, rng.normal() * 100)
    else:
        x = np.clip(50 + 10 * season + autoregressive(shocks, 0.97) * 8, 0, 100)
        x = np.where(rng.random(n) < 0.02, rng.uniform(0, 100, n), x)

    anomalous = np.zeros(n, dtype=bool)
    deviation = np.std(x) + (1e-9 if kind != "constant" else 1.0)
    roughness = np.median(np.abs(np.diff(x))) * 1.5 + 0.05 * deviation
    for _ in range(rng.choice([0, 1, 2, 3, 4], p=[0.15, 0.3, 0.3, 0.15, 0.1])):
        a = int(rng.integers(int(0.17 * n), n - 20))
        length = min(int(rng.integers(3, max(n // 30, 4))), n - a)
        size = (rng.uniform(1.2, 4) * deviation + 4 * roughness) * rng.choice([-1, 1])
        incident = rng.choice(
            ["spike", "shift", "burst", "flat", "drift", "noise", "pattern"],
            p=[0.28, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12],
        )
        if incident == "spike":
            length = int(rng.integers(1, 4))
            x[a : a + length] += size
        elif incident == "shift":
            x[a:] += size
        elif incident == "burst":
            x[a : a + length] += size
        elif incident == "flat":
            x[a : a + length] = x[a] if rng.random() < 0.5 else x.min()
        elif incident == "drift":
            x[a : a + length] += size * np.linspace(0, 1.5, length)
        elif incident == "noise":
            x[a : a + length] += rng.normal(size=length) * size
        else:
            x[a : a + length] = x[a : a + length][::-1].copy() + 0.5 * size
        anomalous[a : a + length] = True
    if rng.random() < 0.25:
        for _ in range(int(rng.integers(1, 6))):
            a = int(rng.integers(0, n))
            x[a : a + int(rng.integers(1, n // 20))] = np.nan
        x[rng.random(n) < rng.choice([0, 0.01, 0.1])] = np.nan
    if rng.random() < 0.2:
        x = np.round(x / (deviation + 1e-9) * rng.choice([2, 5, 20]))
    x = x * 10.0 ** rng.uniform(-3, 5) + rng.choice([0, 0, 1e3]) * rng.normal()
    return Labelled(f"syn/{kind}", x, anomalous)


def routine(rng: np.random.Generator, shortest: int = 2000, longest: int = 6000) -> Labelled:
    """A made-up series of jobs that come back: on/off, bursts or ramps once a period, nearly alike, and 0 to 2 labelled incidents."""
    n = int(rng.integers(shortest, longest))
    period = int(rng.choice([24, 48, 96, 144, 288]))
    job = np.zeros(n)
    for _ in range(int(rng.integers(1, 4))):
        start, length, height = (
            int(rng.integers(0, period)),
            int(rng.choice([1, 2, 6, 12, 36, 100])),
            rng.lognormal(0, 0.5),
        )
        shape = rng.choice(["block", "ramp"])
        for a in range(start, n, period):
            a = max(a + int(rng.integers(-2, 3)) * int(rng.random() < 0.5), 0)
            here = height * (1 + 0.05 * rng.normal())
            part = job[a : a + min(length, period)]
            part += here if shape == "block" else here * np.linspace(0, 1, length + 1)[1 : len(part) + 1]
    noise = rng.choice([0.0, 0.01, 0.03, 0.1])
    x = job + noise * (rng.standard_normal(n) if rng.random() < 0.7 else rng.uniform(0, 2, n))
    anomalous = np.zeros(n, dtype=bool)
    for _ in range(int(rng.choice([0, 1, 2], p=[0.4, 0.4, 0.2]))):
        a, length = int(rng.integers(int(0.25 * n), n - period)), int(rng.integers(2, period))
        what = rng.choice(["higher", "missing", "between"])
        if what == "higher":
            x[a : a + length] = x[a : a + length] * rng.uniform(1.5, 3) + job.max() * 0.3
        elif what == "missing":
            x[a : a + period] = x.min()
            length = period
        else:
            x[a : a + length] = job.max() * rng.uniform(0.5, 1.5) * rng.choice([-1, 1])
        anomalous[a : a + length] = True
    return Labelled("job/routine", x * 10.0 ** rng.uniform(-3, 5), anomalous)


def daily_shape(rng: np.random.Generator, period: int) -> np.ndarray:
    """One day of a made-up rhythm: waves, a plateau, peaks or blocks; mean 0, deviation 1."""
    t = np.arange(period) / period
    kind = rng.choice(["waves", "plateau", "peaks", "blocks"], p=[0.4, 0.25, 0.2, 0.15])
    if kind == "waves":
        day = sum(rng.normal() / k**1.3 * np.sin(2 * np.pi * (k * t + rng.random())) for k in range(1, 6))
    elif kind == "plateau":
        rise = rng.uniform(0.2, 0.5)
        fall, width = rise + rng.uniform(0.15, 0.45), rng.choice([0.003, 0.01, 0.04])
        day = 1 / (1 + np.exp(-(t - rise) / width)) - 1 / (1 + np.exp(-(t - fall) / width))
    elif kind == "peaks":
        day = np.zeros(period)
        for _ in range(int(rng.integers(1, 4))):
            away = (t - rng.random() + 0.5) % 1 - 0.5
            day += rng.uniform(0.4, 1) * np.exp(-0.5 * (away / rng.uniform(0.01, 0.06)) ** 2)
    else:
        blocks = rng.normal(size=rng.integers(3, 9))
        day = blocks[np.arange(period) * len(blocks) // period]
    return (day - day.mean()) / (day.std() + 1e-9)


def autoregression(rng: np.random.Generator, n: int, phi: float, shocks: np.ndarray | None = None) -> np.ndarray:
    """x_t = phi x_(t-1) + shock, scaled to the deviation of the shocks."""
    out, last = rng.standard_normal(n) if shocks is None else shocks.copy(), 0.0
    for i in range(n):
        last = out[i] = phi * last + out[i]
    return out * np.sqrt(1 - phi**2)


INCIDENTS = {
    "daily": ("gain", "gain", "absent", "phase", "spike", "level", "noise", "flat", "reverse"),
    "week": ("gain", "absent", "phase", "level", "spike", "reverse", "gain"),
    "cpu": ("level", "spike", "noise", "flat", "drift", "temporary"),
    "temperature": ("drift", "drop", "level", "noise", "spike", "flat"),
    "mentions": ("spike", "burst", "burst", "flat"),
    "price": ("spike", "level", "temporary", "drop", "noise"),
    "speed": ("drop", "gain", "phase", "spike", "temporary"),
    "sessions": ("rate", "level", "noise", "burst"),
    "latency": ("spike", "temporary", "burst", "drift", "noise"),
}
"""Kinds of made-up operations series, and the incidents that fit each."""


def operations(rng: np.random.Generator) -> Labelled:
    """A made-up series of a kind that operators watch, with 0 to 4 incidents that fit it, some of them faint: a day that does not
    come, comes late, flat or backwards; level shifts, drifts, bursts, changes of noise or of rhythm, flat lines."""
    n = int(rng.choice([1500, 2500, 4032, 6000, 10000], p=[0.1, 0.15, 0.5, 0.15, 0.1]))
    kind = str(rng.choice(list(INCIDENTS), p=[0.18, 0.14, 0.16, 0.09, 0.13, 0.1, 0.08, 0.06, 0.06]))
    period = int(rng.choice([24, 48, 144, 288, 288, 288]))
    if n < 12 * period:
        period = int(rng.choice([24, 48, 96]))
    t = np.arange(n)
    day = t // period
    seasonal = kind in ("daily", "week", "speed") or (kind != "sessions" and rng.random() < 0.5)
    strength = 1.0 if kind in ("daily", "week", "speed") else rng.uniform(0.3, 1) * seasonal

    anomalous = np.zeros(n, dtype=bool)
    season_gain, noise_gain, rate = np.ones(n), np.ones(n), np.ones(n)
    phase, level, extra, flat = np.zeros(n, dtype=int), np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool)
    starts: list[int] = []
    for _ in range(int(rng.choice([0, 1, 2, 3, 4], p=[0.15, 0.35, 0.3, 0.13, 0.07]))):
        a = int(rng.integers(int(0.17 * n), n - max(20, n // 40)))
        if any(abs(a - other) <= n // 15 for other in starts):
            continue
        starts.append(a)
        incident, sign, size = str(rng.choice(INCIDENTS[kind])), rng.choice([-1, 1]), rng.uniform(1, 3.5)
        if incident in ("gain", "absent", "phase", "reverse") and not seasonal:
            incident = "level"
        length = int(min(max(rng.choice([period // 4, period // 2, period, period]), 6), n // 8))
        if incident in ("absent", "reverse"):
            a = a // period * period
        if incident in ("absent", "phase"):
            length = period * int(rng.integers(1, 3))
        elif incident == "reverse":
            length = period
        elif incident in ("spike", "drop"):
            length = int(rng.integers(1, 5 if incident == "spike" else max(4, period // 8)))
        elif incident == "burst":
            length = int(rng.integers(3, max(8, period // 6)))
        elif incident == "drift":
            length *= 2
        elif incident == "flat":
            length = int(rng.integers(6, max(10, period // 2)))
        length = min(length, n - a)
        span = slice(a, a + length)
        if incident == "gain":
            season_gain[span] = rng.choice([rng.uniform(1.5, 2.5), rng.uniform(0.2, 0.5)])
        elif incident == "absent":
            season_gain[span] = 0
            level[span] -= rng.choice([0, 1, 0.5])
        elif incident == "phase":
            phase[span] = int(period * rng.uniform(0.15, 0.5))
        elif incident == "reverse":
            phase[span] = -1
        elif incident == "level":
            level[a:] += sign * size
        elif incident == "temporary":
            level[span] += sign * size
        elif incident == "spike":
            extra[span] += sign * rng.uniform(1, 2.5)
        elif incident == "burst":
            extra[span] += rng.uniform(1, 3) * np.exp(-np.arange(length) / length * 3)
        elif incident == "drop":
            extra[span] -= rng.uniform(1.5, 3)
        elif incident == "drift":
            level[span] += sign * size * np.linspace(0, 1.5, length)
        elif incident == "noise":
            noise_gain[span] = rng.choice([rng.uniform(2.5, 5), 0.1])
        elif incident == "flat":
            flat[span] = True
        else:
            rate[span] = rng.choice([4, 0.05])
        anomalous[span] = True

    shape = daily_shape(rng, period)
    of_week = np.ones(7)
    if kind == "week" or rng.random() < 0.3:
        of_week[5:] = rng.uniform(0.1, 0.9, 2)
        of_week *= 1 + 0.1 * rng.standard_normal(7)
    season = np.where(phase < 0, shape[::-1][t % period], shape[(t + np.maximum(phase, 0)) % period])
    if rng.random() < 0.7:
        season = season - shape.min()  # nights are zero, so that days differ in size
    of_day = 1 + rng.choice([0, 0.05, 0.15]) * rng.standard_normal(day[-1] + 1)
    season = season * season_gain * of_day[day] * of_week[day % 7]
    noise = rng.choice([0.01, 0.03, 0.1, 0.3])
    if kind in ("daily", "week"):
        phi = rng.choice([0, 0, 0.5, 0.95])
        base = rng.uniform(-1.7, 1.7, n) if phi == 0 and rng.random() < 0.5 else autoregression(rng, n, phi)
        x = season + noise * base * noise_gain + level * rng.uniform(0.6, 1) + extra * (1 + 3 * noise)
    elif kind == "cpu":
        core = (
            autoregression(rng, n, rng.choice([0, 0.3, 0.8, 0.97]), rng.standard_t(rng.choice([3, 30]), n)) * noise_gain
        )
        spikes = (rng.random(n) < rng.choice([0, 0.002, 0.01, 0.03])) * rng.lognormal(1.2, 0.4, n)
        x = core + spikes + level * 3 + strength * season * 2 + extra * 10
        if rng.random() < 0.4:
            x += (t % int(rng.choice([12, 60, 144, 288])) < rng.choice([1, 2, 6])) * rng.uniform(3, 12)
        x = np.clip(x * rng.uniform(0.3, 5) + rng.choice([2, 20, 40, 60]), 0, 100)
        if rng.random() < 0.3:
            x = np.round(x, rng.choice([0, 1, 3]))
    elif kind == "temperature":
        slow = 3 * autoregression(rng, n, 0.999) + 2 * autoregression(rng, n, 0.98)
        x = 70 + 3 * (slow + 0.2 * rng.standard_normal(n) * noise_gain + level * 5 + strength * season * 2 + extra * 6)
    elif kind == "mentions":
        mean = np.exp(rng.uniform(0, 5) + 0.6 * strength * season + 0.2 * autoregression(rng, n, 0.95))
        echo, kick = 0.0, np.minimum((rng.random(n) < rng.choice([0.001, 0.004])) * rng.pareto(1.8, n), 15)
        for i in range(n):
            echo = 0.8 * echo + kick[i]
            mean[i] *= 1 + echo
        mean *= 1 + 6 * np.maximum(extra, 0) * rng.uniform(0.8, 4)
        x = rng.poisson(np.clip(mean, 0, 1e7) * rng.gamma(8, 1 / 8, n)).astype(np.float64)
    elif kind == "price":
        tails = 0.3 * rng.standard_t(5, n) * noise_gain * rng.choice([0.2, 0.5, 1])
        x = np.exp(tails + 0.3 * strength * season + 0.15 * autoregression(rng, n, 0.995) + 0.25 * level + 0.9 * extra)
    elif kind == "speed":
        jam = 8 * np.maximum(season, 0) + 3 * np.abs(autoregression(rng, n, 0.7)) * noise_gain + 12 * np.abs(extra)
        x = np.round(np.maximum(rng.uniform(60, 80) - jam + 1.5 * rng.standard_normal(n) + 6 * level, 0))
        kept = rng.random(n) < rng.uniform(0.5, 1)  # sensors report when they like
        x, anomalous, flat = x[kept], anomalous[kept], flat[kept]
    elif kind == "sessions":
        busy, a = np.zeros(n), 0
        while a < n:
            a += int(rng.exponential(rng.choice([period / 4, period]) / rate[min(a, n - 1)])) + 1
            length = int(rng.exponential(period / 8)) + 1
            busy[a : a + length] = rng.uniform(0.5, 1.5)
            a += length
        x = busy * (5 + rng.poisson(8, n) * noise_gain) + 5 * np.maximum(level, 0) + 20 * np.maximum(extra, 0)
        x += noise * rng.random(n)
    else:
        x = rng.gamma(rng.choice([2, 8, 30]), 1, n)
        slow = 0.3 * strength * season + 0.3 * level + 0.8 * np.abs(extra) + 0.1 * autoregression(rng, n, 0.99)
        x = x / x.mean() * np.exp(slow) * noise_gain**0.3
        x += np.minimum((rng.random(n) < rng.choice([0, 0.002, 0.01])) * rng.pareto(2, n), 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]])))
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        x[a:b] = rng.choice([x[a], x[a], x.min(), np.median(x)])
    if rng.random() < 0.1:
        x[rng.random(len(x)) < 0.02] = np.nan
    return Labelled(f"ops/{kind}", x * 10.0 ** rng.uniform(-2, 4), anomalous)


def mentions(rng: np.random.Generator) -> Labelled:
    """A made-up stream of how often something is spoken of, per five minutes: counts more scattered than Poisson's, with days, weeks
    and slow changes of interest; bursts of heavy-tailed size which fade by a power law and set off others, as talk among people
    does; and 0 to 4 labelled incidents, news that count among the larger bursts. Long, and mostly bursts that are no incident."""
    n, period = int(rng.choice([4032, 8000, 16000], p=[0.25, 0.35, 0.4])), 288
    t = np.arange(n)
    of_week = np.ones(7)
    of_week[5:] = rng.uniform(0.4, 1.0, 2)
    of_week = np.roll(of_week, rng.integers(7))
    log_rate = rng.uniform(0.5, 5.5) + rng.uniform(0.1, 0.7) * daily_shape(rng, period)[t % period]
    log_rate += np.log(of_week)[t // period % 7]
    log_rate += 0.3 * autoregression(rng, n, 0.9995) + 0.15 * autoregression(rng, n, 0.97)
    base = np.exp(log_rate)
    usual = float(np.median(base))
    extra = np.zeros(n)

    def burst(a: int, size: float, hold: float, rise: int) -> None:
        k = np.arange(n - a)
        fading = (1 + np.maximum(k - rise, 0) / hold) ** -rng.uniform(1.2, 2.2)
        extra[a:] += size * np.minimum((k + 1) / rise, 1.0) * fading

    tail, a_day = rng.uniform(1.2, 2.5), rng.choice([0.3, 1.0, 3.0])
    due = [(int(a), usual * min(0.7 * (1 + rng.pareto(tail)), 80.0))
           for a in np.flatnonzero(rng.random(n) < a_day / period * base / base.mean())]  # fmt: skip
    sizes = [0.0]
    while due:
        a, size = due.pop()
        sizes.append(size)
        burst(a, size, rng.uniform(0.5, 6), int(rng.integers(1, 4)))
        later = a + 1 + int(rng.exponential(12))
        if rng.random() < 0.35 and later < n:
            due.append((later, size * rng.uniform(0.2, 0.9)))
    if rng.random() < 0.3:  # posts that come by the clock
        extra[int(rng.integers(period)) :: period // int(rng.choice([1, 2, 24]))] += usual * rng.uniform(0.3, 3)

    scatter = rng.choice([1.5, 4.0, 12.0])  # the shape of the negative binomial
    large = max(float(np.quantile(sizes, 0.97)), 2 * usual, 4 * np.sqrt(usual + usual**2 / scatter))
    anomalous = np.zeros(n, dtype=bool)
    starts: list[int] = []
    for _ in range(int(rng.choice([0, 1, 2, 3, 4], p=[0.1, 0.25, 0.3, 0.2, 0.15]))):
        a = int(rng.integers(n // 10, n - n // 20))
        if any(abs(a - other) < n // 15 for other in starts):
            continue
        starts.append(a)
        hold, rise = rng.uniform(3, 40), int(rng.choice([1, 2, 6, 15]))
        burst(a, large * rng.lognormal(0.4, 0.5), hold, rise)
        anomalous[a : a + rise + int(2 * hold)] = True
    mean = np.clip((base + extra) * rng.gamma(scatter, 1 / scatter, n), 0, 1e7)
    return Labelled("mnt/mentions", rng.poisson(mean).astype(np.float64), anomalous)


def with_incidents(rng: np.random.Generator, name: str, values: np.ndarray, period: int) -> Labelled:
    """A calm stretch of a real series with 0 to 3 incidents put into it. `period`: points of a day."""
    x, n = values.copy(), len(values)
    anomalous = np.zeros(n, dtype=bool)
    spread = np.nanstd(x) + 1e-12
    rough = np.nanmedian(np.abs(np.diff(x))) + 0.02 * spread
    starts: list[int] = []
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.15, 0.4, 0.3, 0.15]))):
        a = int(rng.integers(int(0.17 * n), n - n // 20))
        if any(abs(a - other) < n // 12 for other in starts):
            continue
        starts.append(a)
        sign, length = rng.choice([-1, 1]), int(min(max(period * rng.choice([0.1, 0.3, 1]), 5), n // 15, n - a))
        incident = str(
            rng.choice(["spike", "temporary", "shift", "flat", "noise", "calm", "drift", "swap", "reverse", "scale"])
        )
        if incident == "spike":
            length = int(rng.integers(1, 4))
        part = x[a : a + length]
        if incident == "spike":
            part += sign * (rng.uniform(1.5, 4) * spread + 6 * rough)
        elif incident == "temporary":
            part += sign * (rng.uniform(1, 3) * spread + 2 * rough)
        elif incident == "shift":
            x[a:] += sign * (rng.uniform(1, 3) * spread + 2 * rough)
        elif incident == "flat":
            part[:] = part[0]
        elif incident == "noise":
            part += rng.standard_normal(length) * (rng.uniform(3, 6) * rough + 0.2 * spread)
        elif incident == "calm":
            part[:] = np.convolve(np.pad(part, 8, "edge"), np.ones(17) / 17, "valid")
        elif incident == "drift":
            part += sign * np.linspace(0, rng.uniform(1.5, 4), length) * spread
        elif incident == "swap":
            b = max(a - int(period * rng.uniform(0.3, 0.7)), 0)
            part[:] = x[b : b + length].copy()
        elif incident == "reverse":
            part[:] = part[::-1].copy()
        else:
            part[:] = np.nanmean(x) + (part - np.nanmean(x)) * rng.choice([0.2, 2.5])
        anomalous[a : a + length] = True
    return Labelled(f"inj/{name}", x, anomalous)


def disturbed(config: Config, split: str, rng: np.random.Generator) -> list[Labelled]:
    """Calm stretches of the split's KPIs and of electricity load and oil temperature (a third of the time each), with incidents."""
    out = []
    for i, series in enumerate(read_kpi(Path(config.data))):
        if split_of(i) != split:
            continue
        for minutes, wanted in ((5, 4), (15, 2), (60, 1)):
            coarse = aggregate(series, max(60 * minutes // series.step_s, 1))
            for _ in range(60):
                n = min(int(rng.choice([1500, 4032, 4032, 8000])), len(coarse.values) - 1)
                if n < 1000 or not wanted:
                    break
                a = int(rng.integers(0, len(coarse.values) - n))
                labelled = coarse.anomalous[a : a + n]
                if labelled.mean() <= 0.002:
                    calm = coarse.values[a : a + n][~labelled]
                    out.append(with_incidents(rng, coarse.name, calm, 24 * 60 // minutes))
                    wanted -= 1
    for name, period in (("ETTh1", 24), ("ETTh2", 24), ("ETTm1", 96), ("ETTm2", 96)):
        with lzma.open(Path(config.data) / "ett" / f"{name}.csv.xz", "rt") as file:
            columns = np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.float64)
        third = len(columns) // 3
        for column in columns.T:
            n = int(rng.choice([1500, 3000, 4000]))
            a = ("train", "validation", "test").index(split) * third + int(rng.integers(0, third - n))
            out.append(with_incidents(rng, name, column[a : a + n], period))
    return out


def training_pool(config: Config) -> list[Labelled]:
    """Stretches of the training series at several resolutions, and synthetic ones."""
    rng = np.random.default_rng(config.seed)
    data, pool = Path(config.data), []
    sources = [
        s for every in (read_kpi(data), read_microsoft(data)) for i, s in enumerate(every) if split_of(i) == "train"
    ]
    for series in sources:
        kpi = series.name.startswith("kpi/")
        for k in (1, 2, 5, 10, 30, 60) if kpi else (1,):
            coarse = aggregate(series, k)
            n = min(config.length, len(coarse.values))
            if kpi and n < 1000:
                continue
            for _ in range((8 if k <= 10 else 3) if kpi else 3):
                a = int(rng.integers(0, len(coarse.values) - n + 1))
                pool.append(Labelled(series.name, coarse.values[a : a + n], coarse.anomalous[a : a + n]))
    for _ in range(config.synthetic):
        s = synthetic(rng)
        pool.append(Labelled(s.name, s.values[: config.length], s.anomalous[: config.length]))
    return pool


def nab_like_corpus(config: Config, split: str) -> list[Labelled]:
    """Pieces of one split's series that resemble NAB's: 1,000 to 20,000 points, KPIs at 5, 15 and 60 minutes, and incidents about
    as rare as there; and synthetic ones, with random incidents, with recurring jobs, and streams of mentions. A long memory, which hides the second of two incidents, would look worse than it is on denser pieces."""
    data = Path(config.data)
    rng = np.random.default_rng({"train": 1, "validation": 2, "test": 3}[split])
    pieces: list[Labelled] = []
    for i, series in enumerate(read_kpi(data)):
        if split_of(i) != split:
            continue
        for minutes, wanted in ((5, 5), (15, 2), (60, 1)):
            coarse = aggregate(series, max(60 * minutes // series.step_s, 1))
            for _ in range(200):
                n = int(rng.choice([2500, 4032, 4032, 4032, 10000, 16000] if minutes == 5 else [1200, 2000, 4000]))
                n = min(n, len(coarse.values) - 1)
                if n < 1000:
                    break
                a = int(rng.integers(0, len(coarse.values) - n))
                piece = Labelled(coarse.name, coarse.values[a : a + n], coarse.anomalous[a : a + n])
                incidents = len(nab_like_windows(piece.anomalous))
                if incidents > max(1, round(n / 2000)) or (incidents == 0 and rng.random() < 0.8):
                    continue
                pieces.append(piece)
                wanted -= 1
                if not wanted:
                    break
    for i, series in enumerate(read_microsoft(data)):
        if split_of(i) == split and len(series.values) >= 1000:
            for coarse in (series, aggregate(series, 5)) if series.step_s == 60 else (series,):
                if len(nab_like_windows(coarse.anomalous)) <= max(4, len(coarse.values) // 2000):
                    pieces.append(coarse)
    pieces += [synthetic(rng, 2000, 12000) for _ in range(30)]
    rng = np.random.default_rng({"train": 20, "validation": 21, "test": 22}[split])
    pieces += [routine(rng) for _ in range(35)]
    rng = np.random.default_rng({"train": 31, "validation": 32, "test": 33}[split])
    pieces += [operations(rng) for _ in range(70)] + disturbed(config, split, rng)
    rng = np.random.default_rng({"train": 41, "validation": 42, "test": 43}[split])
    return pieces + [mentions(rng) for _ in range(30)]


def stack(series: list[Labelled]) -> np.ndarray:
    """float64 (N, T), short ones filled with NaN at the end."""
    values = np.full((len(series), max(len(s.values) for s in series)), np.nan)
    for row, s in zip(values, series, strict=True):
        row[: len(s.values)] = s.values
    return values


# ------------------------------------------------------------------------------------------- running statistics


def average_before(v: np.ndarray, counted: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential average of the counted values before each point, bias-corrected as in Adam; 0 before the first."""
    a = 0.5 ** (1 / half_life)
    out = np.empty_like(v)
    total, n = np.zeros(len(v)), np.zeros(len(v))
    for t in range(v.shape[1]):
        out[:, t] = total / np.where(n > 0, 1 - a**n, 1.0)
        total = np.where(counted[:, t], a * total + (1 - a) * v[:, t], total)
        n += counted[:, t]
    return out


def before(x: np.ndarray, first: float = 0.0) -> np.ndarray:
    """Shift (N, T) by one point: what was there a point ago."""
    return np.concatenate([np.full((len(x), 1), first), x[:, :-1]], 1)


SPIKE_LAGS = (2, 3, 4)
"""A spike is unlike the points so far back: it may last two points, and the point after it is none."""
SPIKE_LINES = ((1, 2), (1, 3), (2, 4), (3, 6))
"""It is off the lines through these earlier points, of which one at least holds no point of another spike."""


def spikes(x: np.ndarray, valid: np.ndarray, c: Adaptation) -> np.ndarray:
    """Points so far from all just before them that the stream should not learn from them, unless it often shows such; bool (N, T).

    Which they are depends on the values alone, not on what was alarmed before, so that the graph can look for all at once.
    """

    def ago(y: np.ndarray, k: int) -> np.ndarray:
        return np.concatenate([np.zeros_like(y[:, :k]), y[:, :-k]], 1)

    def away(k: int) -> np.ndarray:
        return np.abs(x - ago(x, k))

    steps = valid & ago(valid, 1)
    bends = steps & ago(valid, 2)

    def off_line(near: int, far: int) -> np.ndarray:
        slope = (ago(x, near) - ago(x, far)) / (far - near)
        return np.abs(x - ago(x, near) - near * slope)

    def usual(v: np.ndarray, counted: np.ndarray) -> np.ndarray:
        v = np.minimum(v, LARGE)
        root, plain = (average_before(part, counted, c.spike_half_life) for part in (np.sqrt(v), v))
        return root**2 + c.tail_share * plain

    jump, usual_bend = usual(away(1), steps), usual(off_line(1, 2), bends)
    nearest = np.min([np.where(ago(valid, k), away(k), HUGE) for k in SPIKE_LAGS], 0)
    compared = valid & np.any([ago(valid, k) for k in SPIKE_LAGS], 0)
    old_enough = before(np.cumsum(steps, 1)) >= c.spike_youth
    bend = np.min([np.where(ago(valid, i) & ago(valid, j), off_line(i, j), HUGE) for i, j in SPIKE_LINES], 0)
    bent = (bend > c.spike_bend * usual_bend) & (nearest > c.spike_bend_jump * jump) & (bend < HUGE)
    far = (nearest > c.spike_jump * jump) | bent
    found = far & compared & old_enough & (jump > 0)
    slow, fast = (decayed_before(found, 0.5 ** (1 / h)) for h in (c.spike_memory, c.burst))
    return found & (slow - fast < c.spikes_known)


def decayed_before(v: np.ndarray, keep: float | np.ndarray) -> np.ndarray:
    """y_t = keep_t * y_(t-1) + v_t, what it was before each point; float64 (N, T)."""
    keep = np.broadcast_to(keep, v.shape)
    out, total = np.empty(v.shape), np.zeros(len(v))
    for t in range(v.shape[1]):
        out[:, t] = total
        total = keep[:, t] * total + v[:, t]
    return out


def running_statistics(values: np.ndarray, c: Adaptation) -> dict[str, np.ndarray]:
    """Describe each point's past.

    Args:
        values: float64 (N, T), NaN = missing.
    Returns:
        float64 or bool (N, T) each: `valid`, there is a value, and `learnt`, it is no spike either; `gap` and `stretch_gap`, how many
        points were missing lately; `seen` to `unit` from points before i only. Levels are relative to `anchor`, the
        stream's first value, so that a large offset costs no precision.
    """
    valid = ~np.isnan(values)
    x = np.clip(np.where(valid, values, 0.0), -HUGE, HUGE)
    n = len(x)
    anchor = np.where(valid.any(1), x[np.arange(n), valid.argmax(1)], 0.0)[:, None]
    d = np.where(valid, x - anchor, 0.0)
    learnt = valid & ~spikes(d, valid, c)
    at = np.maximum.accumulate(np.where(learnt, np.arange(d.shape[1]), -1), 1)
    last = before(np.where(at >= 0, np.take_along_axis(d, np.maximum(at, 0), 1), 0.0))
    seen = before(np.cumsum(learnt, 1))
    moved = learnt & (seen > 0)
    delta = np.where(moved, d - last, 0.0)
    gap = decayed_before(~valid, np.where(valid, c.gap_keep, 1.0))
    stretch_gap = decayed_before(~valid, np.where(valid, c.stretch_gap_keep, 1.0))
    s = {"valid": valid, "learnt": learnt, "d": d, "anchor": np.broadcast_to(anchor, d.shape), "delta": delta, "seen": seen,
         "last": last, "gap": gap, "stretch_gap": stretch_gap}  # fmt: skip
    size = np.abs(delta) / (1 + gap)  # over a gap it is many steps in one
    for name in LEVELS[1:]:
        s[name] = average_before(d, learnt, HALF_LIFE[name])
    for name in ("D300", "D20"):
        s[name] = average_before(size, moved, HALF_LIFE[name])
    for name in ("H300", "H20"):
        s[name] = average_before(np.sqrt(size), moved, HALF_LIFE[name]) ** 2
    for name, level in (("S150", "L150"), ("S1000", "L1000")):
        s[name] = average_before(np.abs(d - s[level]), learnt, HALF_LIFE[name])
    s["step"] = s["H300"] + 0.2 * s["D300"] + 0.02 * s["S1000"]  # 0 while nothing has ever moved
    s["rounding"] = 1e-15 * np.abs(anchor + last) + TINY  # a few units in the last place of the values themselves
    s["unit"] = s["step"] + s["rounding"]
    return s


def gru_inputs(s: dict[str, np.ndarray]) -> np.ndarray:
    """float32 (N, T, INPUTS): free of the series' unit and offset, mostly within -3..3."""
    unit, last = s["unit"], s["last"]

    def signed(x: np.ndarray) -> np.ndarray:
        return np.arcsinh(np.clip(x, -1e6, 1e6)) / 3

    def ratio(x: np.ndarray) -> np.ndarray:
        return np.log(np.clip(x / unit, 1e-4, 1e4)) / 3

    wide = s["S1000"] + unit
    columns = [signed((last - s[level]) / unit) for level in LEVELS[1:]]
    columns += [
        signed(before(s["delta"]) / unit),
        signed((s["L20"] - s["L1000"]) / wide),
        signed((last - s["L1000"]) / wide),
    ]
    columns += [ratio(s[k]) for k in ("D20", "H20", "D300", "H300", "S150", "S1000")]
    columns += [before(~s["learnt"]), np.log1p(s["seen"]) / 5 - 1]
    return np.stack(columns, -1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ model


OUTPUTS = len(LEVELS) + 1 + 1 + len(QUANTILES)
"""What the head answers for a point: weights of the levels, an offset, the error's scale and its quantiles."""


def forecaster(hidden: int) -> object:
    """The GRU and its head as a torch module, which only training needs."""
    import torch
    from torch import nn

    class Forecaster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(INPUTS, hidden, batch_first=True)
            self.head = nn.Linear(hidden + INPUTS, OUTPUTS)

        def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            """x (N, T, INPUTS), h (1, N, H) -> weights (N, T, 5), offset (N, T) in units, log scale (N, T) and log quantiles
            (N, T, 3) of the error in units, h."""
            y, h = self.gru(x, h)
            o = self.head(torch.cat([y, x], -1))
            k = len(LEVELS)
            log_scale = 6 * torch.tanh(o[..., k + 1] / 6)
            # each quantile lies above the one before; the scale itself is learned by the likelihood alone
            log_quantiles = log_scale[..., None].detach() + torch.cumsum(nn.functional.softplus(o[..., k + 2 :]), -1)
            return torch.softmax(o[..., :k], -1), 3 * torch.tanh(o[..., k] / 3), log_scale, log_quantiles, h

    return Forecaster()


def forecast(x: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same without torch: x (N, T, INPUTS) -> weights of the levels (N, T, 5), offset (N, T) and log quantiles (N, T, 3), float64."""
    o = weights.run(x).astype(np.float64)
    k = len(LEVELS)
    mix = np.exp(o[..., :k] - o[..., :k].max(-1, keepdims=True))
    log_quantiles = 6 * np.tanh(o[..., k + 1, None] / 6) + np.cumsum(np.logaddexp(o[..., k + 2 :], 0), -1)
    return mix / mix.sum(-1, keepdims=True), 3 * np.tanh(o[..., k] / 3), log_quantiles


def train(config: Config, checkpoint: Path) -> Weights:
    """Fit the forecaster: Student-t likelihood (3 degrees of freedom) of the next point, pinball loss of the error quantiles.
    Labelled anomalies and the two points behind them teach nothing."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    pool = training_pool(config)
    values = stack(pool)
    taboo = np.zeros(values.shape, dtype=bool)
    for row, s in zip(taboo, pool, strict=True):
        row[: len(s.anomalous)] = s.anomalous
    taboo = taboo | np.roll(taboo, 1, 1) | np.roll(taboo, 2, 1)
    s = running_statistics(values, Adaptation())
    inputs = torch.from_numpy(gru_inputs(s))

    def in_units(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.clip(x / s["unit"], -1e5, 1e5).astype(np.float32))

    target = in_units(s["d"] - s["last"])
    levels = torch.stack([in_units(s[k] - s["last"]) for k in LEVELS], -1)
    weight = torch.from_numpy((s["valid"] & (s["seen"] > 1) & (s["H300"] > 0) & ~taboo).astype(np.float32))
    quantile, share = torch.tensor(QUANTILES), torch.tensor([1.0, 3.0, 10.0])
    print(f"{len(pool)} training series, {int(weight.sum()):,} points", flush=True)

    model = forecaster(config.hidden)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["epoch"]
    started = time.process_time()
    for epoch in range(first, config.epochs):
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(config.seed + epoch))
        totals = np.zeros(3)
        for b in range(0, len(pool), config.batch):
            rows = order[b : b + config.batch]
            done = (epoch + b / len(pool)) / config.epochs
            rate = (
                config.learning_rate * min(1.0, 0.1 + epoch + b / len(pool)) * float(0.51 + 0.5 * np.cos(np.pi * done))
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            h = None
            for a in range(0, values.shape[1], config.window):
                now = slice(a, a + config.window)
                w = weight[rows, now]
                if w.sum() < 100:
                    break
                mix, offset, log_scale, log_quantiles, h = model(inputs[rows, now], h)
                h = h.detach()
                error = target[rows, now] - (mix * levels[rows, now]).sum(-1) - offset
                likelihood = log_scale + 2 * torch.log1p((error * torch.exp(-log_scale)) ** 2 / 3)
                over = torch.log(error.detach().abs() + 1e-4)[..., None] - log_quantiles
                pinball = (torch.maximum(quantile * over, (quantile - 1) * over) * share).sum(-1)
                loss = ((likelihood + pinball) * w).sum() / w.sum()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                totals += [float((likelihood * w).sum().detach()), float((pinball * w).sum().detach()), float(w.sum())]
        spent = time.process_time() - started
        print(
            f"epoch {epoch + 1}: likelihood {totals[0] / totals[2]:.4f} pinball {totals[1] / totals[2]:.4f} {spent:.0f} s",
            flush=True,
        )
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "epoch": epoch + 1,
            "hidden": config.hidden,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
    return Weights.from_checkpoint(model.state_dict())


# --------------------------------------------------------------------------------------------------- adaptation


def surprise(values: np.ndarray, model: Weights, c: Adaptation) -> dict[str, np.ndarray]:
    """Forecast each point and measure its error by the stream's yardstick.

    Returns:
        float64 (N, T): `expected`, `yardstick`, `surprise` (log error / yardstick; meaningless where not `judged`), `error`
        (capped at so many times the usual distance from the usual level), `level` (distance of the last value from that level), and bool (N, T) `judged`: a valid point with enough past.
    """
    s = running_statistics(values, c)
    mix, offset, log_quantiles = forecast(gru_inputs(s), model)
    expected = (
        s["last"] + sum(mix[..., k] * (s[name] - s["last"]) for k, name in enumerate(LEVELS)) + s["step"] * offset
    )
    unit = s["unit"]
    yardstick = c.d20 * s["D20"] + c.d300 * s["D300"] + c.s1000 * s["S1000"] + c.s150 * s["S150"] + c.h300 * s["H300"]
    yardstick += (
        unit * (c.q99 * np.exp(log_quantiles[..., 1]) + c.q999 * np.exp(log_quantiles[..., 2]) + 1e-6) + s["rounding"]
    )
    known = (s["seen"] > 1) & ((s["H300"] > 0) | (s["seen"] >= QUIET))
    error = np.abs(s["d"] - expected)
    return {
        "expected": np.where(s["seen"] > 0, s["anchor"] + expected, 0.0),
        "yardstick": yardstick,
        "surprise": np.log(np.clip(error / yardstick, 1e-6, 1e6)),
        "error": np.minimum(np.minimum(error, c.far_cap * (s["S1000"] + unit)), LARGE),
        "level": np.minimum(np.abs(s["last"] - s["L1000"]) / (s["S1000"] + unit), 5.0),
        "known": known,
        "judged": known & s["valid"],
        "settled": known & s["learnt"] & (s["gap"] < c.gap_settled),
        "unsure": c.gap_width * -np.expm1(-s["gap"] / c.gap_scale) * (s["S1000"] + unit),
        "statistics": s,
    }


def bar(s: dict[str, np.ndarray], c: Adaptation) -> tuple[np.ndarray, np.ndarray]:
    """How surprising each point would have to be to alarm, and how large its error, from the points before it: float64 (N, T) each."""
    l, judged, level = s["surprise"], s["settled"], s["level"]
    a, slow, fast = 0.5 ** (1 / c.half_life), 0.5 ** (1 / c.recent_half_life), 0.5 ** (1 / c.peak_half_life)
    slower, longer = 0.5 ** (1 / c.long_peak_half_life), 0.5 ** (1 / c.far_half_life)
    x = np.where(judged, np.clip(l, c.low, c.high), 0.0)
    rise = np.where(judged, np.clip(l - c.peak_base, 0.0, c.peak_cap), 0.0)
    energy = np.where(judged, s["error"] ** 2, 0.0)
    gain, gain_recent, gain_far = (np.where(judged, g, 1.0) for g in (a, slow, longer))
    zero = np.zeros(len(l))
    total, squares, n, peak, long_peak, recent, far = (zero,) * 7
    out, least = np.empty_like(l), np.empty_like(l)
    for t in range(l.shape[1]):
        weight = (1 - a**n) / (1 - a) + c.prior
        mean = (total + c.prior * c.prior_mean) / weight
        square = (squares + c.prior * (c.prior_mean**2 + c.prior_deviation**2)) / weight
        deviation = np.sqrt(np.maximum(square - mean**2, 1e-4))
        b = np.maximum(c.mean_weight * mean + c.deviations * deviation, c.floor)
        b = np.maximum(b, np.where(peak > 0, peak + c.over_peak, -np.inf))
        b = np.maximum(b, np.where(long_peak > 0, c.long_peak_weight * long_peak + c.over_long_peak, -np.inf))
        b = b + c.youth / (1 + n / c.youth_age) + c.ageing * np.log1p(n / 1000)
        out[:, t] = b - c.recent_weight * recent + c.level_weight * level[:, t]
        least[:, t] = c.far_weight * np.sqrt(far / np.maximum(1 - longer**n, 1e-12))
        total = gain[:, t] * total + x[:, t]
        squares = gain[:, t] * squares + x[:, t] ** 2
        recent = gain_recent[:, t] * recent + (1 - slow) * rise[:, t]
        far = gain_far[:, t] * far + (1 - longer) * energy[:, t]
        peak = np.maximum(fast * peak, rise[:, t])
        long_peak = np.maximum(slower * long_peak, rise[:, t])
        n = n + judged[:, t]
    return out, least


def nearest_window(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """How unlike the latest window is to each earlier one of the last MEMORY points: the distance to the nearest.

    The squared distance of two windows is the sum over their points of the squared difference of the values and, weighted, of
    the steps between them, so that a smooth series is not like itself merely because it is smooth.

    Returns:
        float64 (N, T), squared distances in the unit of the series, infinite where no earlier window can be compared.
    """
    y = np.where(
        s["learnt"], s["d"], s["last"]
    )  # a missing point repeats the one before, and so does a spike once it is past
    step = np.diff(y, prepend=y[:, :1])
    odd = np.where(s["valid"], s["d"], s["last"]) - y  # the spike itself, in its own window
    n = y.shape[1]
    weight, reach = step_weight(s, c), s["seen"] - WINDOW + 1
    best = np.full(y.shape, np.inf)

    def sums(x: np.ndarray, lag: int) -> np.ndarray:
        """Over windows: entry k belongs to the window that ends at point lag + WINDOW - 1 + k."""
        e = np.clip(x[:, lag:] - x[:, : n - lag], -CLIPPED, CLIPPED)
        own = np.clip(x[:, lag:] + odd[:, lag:] - x[:, : n - lag], -CLIPPED, CLIPPED)[:, WINDOW - 1 :]
        return own**2 + sum(e[:, k : e.shape[1] - WINDOW + 1 + k] ** 2 for k in range(WINDOW - 1))

    for lag in range(NEAREST_LAG, min(MEMORY, n - WINDOW) + 1):
        now = slice(lag + WINDOW - 1, None)
        distance = sums(y, lag) + weight[:, now] * sums(step, lag)
        best[:, now] = np.minimum(best[:, now], np.where(reach[:, now] >= lag, distance, np.inf))
    return best


def step_weight(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """What a squared difference of steps weighs beside one of values, (N, T): as if both spread equally, times `roughness`."""
    return c.roughness * np.minimum(((s["S1000"] + s["unit"]) / (s["D300"] + 0.1 * s["unit"])) ** 2, 1e6)


def period(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """The period of each stream as its past shows it, by the first high peak of the autocorrelation.

    Looked for after every PERIOD_EVERY points, in the last MEMORY ones, whose largest deviations are clipped. The lag must lie behind the
    first that is no more correlated.

    Returns:
        float64 (N, T), points; 0 where none is known.
    """
    y = np.where(s["learnt"], s["d"], s["last"])
    out = np.zeros(y.shape)
    lag = np.arange(MEMORY // PERIODS_SEEN + 2)
    for row, values in enumerate(y):
        seen = s["seen"][row]
        for t in np.flatnonzero(s["learnt"][row] & (seen >= PERIOD_EVERY) & (seen % PERIOD_EVERY == 0)):
            m = int(min(seen[t], MEMORY))
            x = np.clip(values[t - m : t] - values[t - 1], -CLIPPED, CLIPPED)
            x = x - x.mean()
            x = np.clip(x / (np.abs(x).mean() or 1.0), -3.0, 3.0)
            spectrum = np.abs(np.fft.rfft(x - x.mean(), 2 * MEMORY)) ** 2
            r = np.fft.irfft(spectrum)[: len(lag)] * m / np.maximum(m - lag, 1)
            r = r / (r[0] if r[0] > 0 else 1.0)
            allowed = (lag <= m // PERIODS_SEEN) & (np.cumsum(r < 0.1) > 0)
            best = np.where(allowed, r, -1.0).max()
            peak = np.zeros(len(lag), dtype=bool)
            peak[1:-1] = (r[1:-1] > r[:-2] + 1e-9) & (r[1:-1] >= r[2:] - 1e-9)
            high = r >= max(c.period_share * best, c.period_strength)
            found = allowed & peak & high & (lag >= SHORTEST_PERIOD)
            out[row, t + 1 :] = found.argmax()  # 0 where there is none
    return out


def nearest_stretch(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """How unlike the mean of the last STRETCH points is to each such mean of earlier periods at about the same hour: the distance to
    the nearest; float64 (N, T), in the unit of the series, infinite before there are two earlier ones."""
    y = np.where(s["learnt"], s["d"], s["last"])
    n = y.shape[1]
    if n < STRETCH:
        return np.full(y.shape, np.inf)
    mean = np.zeros_like(y)
    mean[:, STRETCH - 1 :] = sum(y[:, k : n - STRETCH + 1 + k] for k in range(STRETCH)) / STRETCH
    reach, periods = np.minimum(s["seen"] - STRETCH + 1, MEMORY), period(s, c)
    best = np.full(y.shape, np.inf)
    for row, of in enumerate(periods):
        for p in np.unique(of[of > 0]):
            off = np.floor(c.hour * p + 1.5)
            at = np.flatnonzero((of == p) & (reach[row] >= 2 * p + off))
            for centre in np.arange(p, MEMORY - off + 1, p):
                at = at[reach[row, at] >= centre + off]
                for lag in range(int(max(centre - off, NEAREST_LAG)), int(centre + off) + 1):
                    best[row, at] = np.minimum(best[row, at], np.abs(mean[row, at] - mean[row, at - lag]))
    return best


def novelty(surprised: dict, c: Adaptation, distances: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """0..1, at least 0.5 where the latest window is so unlike all earlier ones, or the latest stretch so unlike all at its hour, measured
    by what novelties the stream showed so far and lately, that it alarms; float64 (N, T). Takes what `surprise` returns."""
    s, judged = surprised["statistics"], surprised["judged"]
    windows, stretches = distances or (nearest_window(s, c), nearest_stretch(s, c))
    restless = (s["D20"] + 0.1 * s["unit"]) / (s["D300"] + 0.1 * s["unit"])  # the steps lately beside those of long
    factor = np.exp(c.echo * np.clip(surprised["surprise"], -2.0, 2.0)) * restless**-c.restlessness

    def of(
        distance: np.ndarray, settled: np.ndarray, excess: float, over_usual: float, youth: float, own_age: bool
    ) -> np.ndarray:
        compared = np.isfinite(distance) & judged & settled
        size = (np.where(compared, distance, 0.0) + c.grain * (s["S1000"] + s["unit"])) * factor
        size = np.where(compared, np.clip(size, 1 / CLIPPED, CLIPPED), 0.0)
        learnt = compared & s["learnt"]
        seen = before(np.cumsum(learnt, 1)) if own_age else s["seen"]
        return over_bar(size, learnt, excess, over_usual, youth / (seen + 1.0), c)

    after_spike = before(s["valid"] & ~s["learnt"]) > 0
    gap = (s["gap"] < c.gap_settled) & ~(after_spike & s["learnt"])
    stretch_gap = (s["stretch_gap"] < c.stretch_gap_settled) & s["learnt"]
    return np.maximum(
        of(np.sqrt(windows / WINDOW), gap, c.excess, c.over_usual, c.novelty_youth, own_age=False),
        of(stretches, stretch_gap, c.rhythm_excess, c.over_usual_rhythm, c.rhythm_youth, own_age=True),
    )


def over_bar(
    size: np.ndarray, learnt: np.ndarray, excess: float, over_usual: float, youth: np.ndarray, c: Adaptation
) -> np.ndarray:
    """From novelties (N, T), 0 where there is none, to 0..1, at least 0.5 where one is above the bar that those `learnt` before it set."""
    keep, slow = np.exp(-c.forgetting), 0.5 ** (1 / c.usual_half_life)
    slower = 0.5 ** (1 / c.alarm_half_life)
    (peak, power, n, alarms), out = np.zeros((4, len(size))), np.zeros_like(size)
    for t in range(size.shape[1]):
        usual = np.sqrt(power / np.maximum(1 - slow**n, 1e-12))
        known = (peak > 0) & (size[:, t] > 0)
        needed = np.maximum(peak * np.exp(excess), usual * np.exp(over_usual)) * np.exp(youth[:, t])
        ratio = np.where(known, np.minimum(size[:, t] / np.where(known, needed, 1.0), 1e6), 0.0)
        odds = (ratio * (1.0 + alarms) ** -c.alarm_weight) ** c.slope
        out[:, t] = odds / (1.0 + odds)
        counts = np.clip(np.log(np.maximum(ratio, 1e-6)) + c.alarm_ramp, 0.0, 1.0)
        alarms = np.where(known & learnt[:, t], slower * alarms + counts, alarms)
        heard = np.where(learnt[:, t], size[:, t], 0.0)
        peak = np.maximum(keep * peak, heard)
        power = np.where(learnt[:, t], slow * power + (1 - slow) * np.minimum(heard, LARGE) ** 2, power)
        n = n + learnt[:, t]
    return out


def detect(values: np.ndarray, model: Weights, c: Adaptation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference of the exported graph: values (N, T) -> expected, spread and novelty, float64 (N, T)."""
    s = surprise(values, model, c)
    height, least = bar(s, c)
    width = np.maximum(s["yardstick"] * np.exp(np.clip(height, -6.0, 12.0)), least)
    spread = np.clip(width * np.exp(c.threshold) + s["unsure"], TINY, HUGE)
    return s["expected"], np.where(s["known"], spread, BLIND), novelty(s, c)


def score(values: np.ndarray, expected: np.ndarray, spread: np.ndarray, novelty: np.ndarray) -> np.ndarray:
    """0..1, at least 0.5 where a point leaves the band or its window is novel; 0 for missing points. Nothing overflows."""
    missing = np.isnan(values)
    error = np.abs(np.where(missing, expected, values) - expected)
    return np.where(missing, 0.0, np.maximum(error / (error + spread), novelty))


# -------------------------------------------------------------------------------------------------------- export


class GraphWriter:
    """Write an ONNX graph as if its operators were functions: each call adds a node and returns its output's name."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix  # names inside a Loop must differ from those around it
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def constant(self, value: object, dtype: type = np.float64) -> str:
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"{self.prefix}constant_{len(self.constants)}")
        return self.constants[key].name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def __call__(
        self, op: str, *inputs: str | float, outputs: int = 1, name: str = "", **attributes: object
    ) -> str | list[str]:
        """Numbers among the inputs become float64 constants."""
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        made = [
            name or f"{self.prefix}{op}_{len(self.nodes)}" + (f"_{k}" if outputs > 1 else "") for k in range(outputs)
        ]
        self.nodes.append(helper.make_node(op, names, made, **attributes))
        return made[0] if outputs == 1 else made

    @property
    def initializers(self) -> list[onnx.TensorProto]:
        return list(self.constants.values())


def doubling(kind: str, channels: int, end: str) -> onnx.GraphProto:
    """The body of a Loop that solves a recurrence along time in log2(T) steps, shifting by 1, 2, 4, ...

    "sum": v_t + g_t y_(t-1), with v and g float64 (N, T, channels). "peak": max(v_t, g y_(t-1)), with g float64 (channels,).
    `end` names the length of time in the graph around it, int64 (1,).
    """
    b = GraphWriter("loop_")
    pads = b("Concat", b.ints(0), "shift", b.ints(0, 0, 0, 0), axis=0)
    stop = b("Neg", "shift")

    def shifted(x: str) -> str:
        return b("Slice", b("Pad", x, pads), b.ints(0), stop, b.ints(1))

    if kind == "sum":
        v, g = b("Add", "v", b("Mul", "g", shifted("v"))), b("Mul", "g", shifted("g"))
    else:
        v, g = b("Max", "v", b("Mul", "g", shifted("v"))), b("Mul", "g", "g")
    shift = b("Add", "shift", "shift")
    for made, name in (
        (b("Squeeze", b("Less", shift, end)), "more"),
        (v, "next_v"),
        (g, "next_g"),
        (shift, "next_shift"),
    ):
        b("Identity", made, name=name)
    info, double = helper.make_tensor_value_info, TensorProto.DOUBLE
    like_v, like_g = [None, None, channels], [None, None, channels] if kind == "sum" else [channels]
    return helper.make_graph(
        b.nodes,
        f"doubling_{kind}",
        [info("step", TensorProto.INT64, []), info("go_on", TensorProto.BOOL, []), info("v", double, like_v), info("g", double, like_g),
         info("shift", TensorProto.INT64, [1])],
        [info("more", TensorProto.BOOL, []), info("next_v", double, like_v), info("next_g", double, like_g),
         info("next_shift", TensorProto.INT64, [1])],
        b.initializers,
    )  # fmt: skip


UNCOMPARED = 1e306
"""Stands for an infinite distance in the graph."""
CLIPPED = 1e140
"""Windows are compared within this distance, so that their weighted squares stay finite; its inverse is the least novelty."""


def nearest_window_nodes(
    g: GraphWriter,
    c: Adaptation,
    *,
    track: str,
    filled: str,
    odd: str,
    last: str,
    seen: str,
    period: str,
    scales: tuple[str, str, str],
    lens: str,
) -> tuple[str, str]:
    """Add `nearest_window` and `nearest_stretch` to a graph: |a - b|^2 = |a|^2 + |b|^2 - 2ab for all pairs of a block of windows and those before them, in
    float64, around the last value before the block.

    Args:
        track: the row's last HISTORY values before this run and those of it, float64 (N, HISTORY + T, 1).
        filled: the values, missing ones and spikes repeated, relative to the anchor, float64 (N, T, 1).
        odd: how far a spike is from what stands in its place, else 0, float64 (N, T, 1).
        last: the value before each, float64 (N, T, 1).
        seen: points before each point, float64 (N, T, 1).
        period: of the stream before each point, 0 where unknown, float64 (N, T, 1).
        scales: S1000, D300 and unit, float64 (N, T, 1) each.
        lens: points of each row, int64 (N, 1, 1).
    Returns:
        Squared distances of windows and distances of stretches (N, T, 2), UNCOMPARED where there are none, and the row's last HISTORY
        values (N, HISTORY, 1).
    """
    int64, double = TensorProto.INT64, TensorProto.DOUBLE
    everything = 2**31
    s1000, d300, unit = scales
    relative = g("Div", g("Add", s1000, unit), g("Add", d300, g("Mul", unit, 0.1)))
    g("Mul", g("Min", g("Mul", relative, relative), 1e6), c.roughness, name="step_weight")
    g("Identity", seen, name="seen_before")
    g("Clip", odd, -CLIPPED, CLIPPED, name="odd_here")
    g("Transpose", last, perm=[0, 2, 1], name="centre")  # (N, 1, T)
    g("Identity", period, name="period_before")
    g("Transpose", track, perm=[0, 2, 1], name="track")
    length = g("Shape", filled, start=1, end=2, name="length")
    blocks = g("Squeeze", g("Div", g("Add", length, g.ints(BLOCK - 1)), g.ints(BLOCK)))

    # Place p of the track is point p - HISTORY of this run. Queries end at places start + HISTORY and on; the windows
    # they are compared with end at places first to last.
    b = GraphWriter("block_")
    one, first_index = b.constant(1, np.int64), b.ints(2)
    start = b("Mul", b("Unsqueeze", "index", b.ints(0)), b.ints(BLOCK))
    end = b("Min", b("Add", start, b.ints(BLOCK)), "length")
    block_seen = b("Slice", "seen_before", start, end, b.ints(1), name="block_seen")  # (N, B, 1)
    most_seen = b("Cast", b("ReduceMax", block_seen, keepdims=0), to=int64)  # in the row with the longest past
    reach = b("Min", b("Max", b("Add", most_seen, b.ints(1)), b.ints(NEAREST_LAG + WINDOW)), b.ints(MEMORY))
    first = b("Sub", b("Add", start, b.ints(HISTORY)), reach)
    beyond = b("Add", end, b.ints(HISTORY))
    origin = b("Sub", first, b.ints(STRETCH))
    part = b(
        "Sub",
        b("Slice", "track", origin, beyond, first_index),
        b("Slice", "centre", start, b("Add", start, b.ints(1)), first_index),
    )
    part = long = b("Clip", part, -CLIPPED, CLIPPED)  # (N, 1, keys + STRETCH)
    part = b("Slice", part, b.ints(STRETCH - WINDOW), b.ints(everything), first_index)  # one more, for the first step
    steps = b(
        "Sub",
        b("Slice", part, b.ints(1), b.ints(everything), first_index),
        b("Slice", part, b.ints(0), b.ints(-1), first_index),
    )
    part = b("Slice", part, b.ints(1), b.ints(everything), first_index)
    both = b("Concat", part, steps, axis=1)  # (N, 2, keys + WINDOW - 1)
    taps = [
        b("Slice", both, b.ints(k), b.ints(k - WINDOW + 1 if k < WINDOW - 1 else everything), first_index)
        for k in range(WINDOW)
    ]
    windows = b("Concat", *taps, axis=1)  # (N, 2 WINDOW, keys): value, step, value, step, ...
    squares = b("Mul", windows, windows)
    kind = np.tile(np.eye(2), (1, WINDOW))  # (2, 2 WINDOW) adds up the values' and the steps' squares
    norms = b("MatMul", b.constant(kind), squares)  # (N, 2, keys)
    table = b("Concat", windows, norms, axis=1)  # (N, 2 WINDOW + 2, keys)
    count = b("Sub", end, start)
    own = b("Transpose", b("Slice", windows, b("Neg", count), b.ints(everything), first_index), perm=[0, 2, 1])
    latest = b.constant([0.0] * (2 * WINDOW - 2) + [1.0, 1.0])  # the last value and the last step of a window
    own = b("Add", own, b("Mul", b("Slice", "odd_here", start, end, b.ints(1)), latest))  # (N, B, 2 WINDOW)
    own_norms = b("MatMul", b("Mul", own, own), b.constant(kind.T))
    weight = b("Slice", "step_weight", start, end, b.ints(1))  # (N, B, 1)
    ones = b("Add", b("Mul", weight, 0.0), 1.0)
    weights = b("Concat", ones, weight, axis=2)  # (N, B, 2)
    own = b("Mul", b("Mul", own, -2.0), b("Concat", *[weights] * WINDOW, axis=2))
    own_norm = b("ReduceSum", b("Mul", own_norms, weights), b.ints(2), keepdims=1)
    factors = b("Concat", own, weights, axis=2)

    # A key may lie too far back for one of the queries or too near to one of them. Between these are most of the keys, which all
    # queries are compared with: nothing is masked there.
    keys = b("Shape", table, start=2, end=3)
    first_query, last = b("Squeeze", b("Sub", keys, count)), b("Squeeze", keys)
    queries_at = b("Unsqueeze", b("Range", first_query, last, one), b.ints(1))  # (B, 1)
    furthest = b("Cast", b("Min", b("Sub", block_seen, float(WINDOW - 1)), float(MEMORY)), to=int64)  # lag, (N, B, 1)
    near = b("Sub", first_query, b.constant(NEAREST_LAG - 1, np.int64))
    far = b("Clip", b("ReduceMax", b("Sub", queries_at, furthest), keepdims=0), b.constant(0, np.int64), near)
    edges = b(
        "Concat",
        b("Slice", table, b.ints(0), b("Unsqueeze", far, b.ints(0)), first_index),
        b("Slice", table, b("Unsqueeze", near, b.ints(0)), b.ints(everything), first_index),
        axis=2,
    )
    edges_at = b("Concat", b("Range", b.constant(0, np.int64), far, one), b("Range", near, last, one), axis=0)
    lag = b("Sub", queries_at, edges_at)  # (B, edges)
    useless = b("Or", b("Less", lag, b.constant(NEAREST_LAG, np.int64)), b("Greater", lag, furthest))
    least = b("ReduceMin", b("Where", useless, UNCOMPARED, b("MatMul", factors, edges)), b.ints(2), keepdims=1)
    between = b("Slice", table, b("Unsqueeze", far, b.ints(0)), b("Unsqueeze", near, b.ints(0)), first_index)
    least = b("Min", least, b("ReduceMin", b("MatMul", factors, between), b.ints(2), keepdims=1))
    least = b("Where", b("Less", least, 0.5 * UNCOMPARED), b("Max", b("Add", least, own_norm), 0.0), UNCOMPARED)

    # Stretches at the same hour: only where a period is known.
    b("Identity", long, name="block_values")
    b("Identity", count, name="block_count")
    b("Slice", "period_before", start, end, b.ints(1), name="block_period")  # (N, B, 1)
    away = b(
        "If",
        b("Greater", b("ReduceMax", "block_period", keepdims=0), 0.0),
        then_branch=nearest_stretch_graph(c),
        else_branch=no_stretch_graph(),
    )
    b("Concat", "found", b("Concat", least, away, axis=2), axis=1, name="next_found")
    b("Identity", "go_on", name="still")
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        b.nodes, "nearest_window",
        [info("index", int64, []), info("go_on", TensorProto.BOOL, []), info("found", double, [None, None, 2])],
        [info("still", TensorProto.BOOL, []), info("next_found", double, [None, None, 2])],
        b.initializers,
    )  # fmt: skip
    none = g("Slice", g("Concat", filled, filled, axis=2), g.ints(0), g.ints(0), g.ints(1))
    nearest = g("Loop", blocks, "", none, body=body)
    kept = g("Add", lens, g.constant(np.arange(HISTORY).reshape(1, -1, 1), np.int64))
    return nearest, g("GatherElements", track, kept, axis=1)


def nearest_stretch_graph(c: Adaptation) -> onnx.GraphProto:
    """One block's distances of stretches, (N, B, 1): sums over 3, 6, 12, 24 points, gathered at the lags close to a multiple of the
    period and at no others, so that a block costs what these lags cost, not what the memory holds. Takes what `nearest_window_nodes`
    names block_*: values (N, 1, keys + STRETCH), count of queries (1,), and the period and the points seen before each query (N, B, 1)."""
    int64, double = TensorProto.INT64, TensorProto.DOUBLE
    b = GraphWriter("stretch_")
    time, everything = b.ints(2), b.ints(2**31)
    sums, width = "block_values", 1
    for times in (3, 2, 2, 2):
        length = b("Sub", b("Shape", sums, start=2, end=3), b.ints((times - 1) * width))
        starts = [b.ints(k * width) for k in range(times)]
        total, *others = [b("Slice", sums, at, b("Add", length, at), time) for at in starts]
        for other in others:
            total = b("Add", total, other)
        sums, width = total, width * times
    if width != STRETCH:
        raise AssertionError(f"the sums are over {width} points")
    means = b("Div", b("Slice", sums, b.ints(1), everything, time), float(STRETCH))  # (N, 1, keys)
    own = b("Transpose", b("Slice", means, b("Neg", "block_count"), everything, time), perm=[0, 2, 1])
    off = b("Floor", b("Add", b("Mul", "block_period", c.hour), 1.5))
    around = b("Add", b("Add", off, off), 1.0)  # lags close to one multiple
    reach = b("Sub", b("Min", b("Sub", "block_seen", float(STRETCH - 1)), float(MEMORY)), off)  # the furthest multiple
    multiples = b("Floor", b("Div", reach, b("Max", "block_period", 1.0)))
    enough = b("And", b("GreaterOrEqual", multiples, 2.0), b("Greater", "block_period", 0.0))
    lags = b("Where", enough, b("Mul", multiples, around), 0.0)  # how many there are, (N, B, 1)

    # The r-th of them, (N, B, most): around the whole period before it, less `off`, and on from there.
    most = b("Max", b("ReduceMax", lags, keepdims=0), 1.0)
    rank = b("Range", b.constant(0.0), most, b.constant(1.0))
    before = b("Floor", b("Div", rank, around))
    lag = b(
        "Add", b("Sub", b("Mul", b("Add", before, 1.0), "block_period"), off), b("Sub", rank, b("Mul", before, around))
    )
    same = b("And", b("Less", rank, lags), b("GreaterOrEqual", lag, float(NEAREST_LAG)))
    keys = b("Shape", means, start=2, end=3)
    at = b("Range", b("Squeeze", b("Sub", keys, "block_count")), b("Squeeze", keys), b.constant(1, np.int64))
    at = b("Where", same, b("Sub", b("Cast", b("Unsqueeze", at, b.ints(1)), to=double), lag), 0.0)
    at = b("Cast", at, to=int64)
    other = b("GatherElements", b("Squeeze", means, b.ints(1)), b("Reshape", at, b.ints(0, -1)), axis=1)
    distance = b("Where", same, b("Abs", b("Sub", own, b("Reshape", other, b("Shape", at)))), UNCOMPARED)
    b("ReduceMin", distance, b.ints(2), keepdims=1, name="stretch_least")
    info = helper.make_tensor_value_info("stretch_least", double, [None, None, 1])
    return helper.make_graph(b.nodes, "nearest_stretch", [], [info], b.initializers)


def no_stretch_graph() -> onnx.GraphProto:
    """The same where no period is known: nothing can be compared."""
    b = GraphWriter("no_stretch_")
    b("Add", b("Mul", "block_period", 0.0), UNCOMPARED, name="no_stretch_least")
    info = helper.make_tensor_value_info("no_stretch_least", TensorProto.DOUBLE, [None, None, 1])
    return helper.make_graph(b.nodes, "no_stretch", [], [info], b.initializers)


PAIRS = 64
"""Points at which the graph looks for periods in one go: bounds the memory of a long run."""


def period_nodes(g: GraphWriter, c: Adaptation, *, track: str, seen: str, due: str) -> str:
    """Add the search of `period` to a graph: autocorrelations as the transform of the power spectrum.

    Args:
        track: the row's last HISTORY values before this run and those of it, float64 (N, HISTORY + T, 1).
        seen: points before each point, float64 (N, T, 1).
        due: at which points it is looked for, from the MEMORY points before, bool (N, T, 1).
    Returns:
        float64 (N, T, 1), the period found there, 0 where none was found or looked for.
    """
    int64, double = TensorProto.INT64, TensorProto.DOUBLE
    g("Squeeze", track, g.ints(2), name="values_of_all")
    g("Transpose", g("NonZero", due), perm=[1, 0], name="places")  # (pairs, 3)
    g("Identity", seen, name="seen_of_all")
    pairs = g("Shape", "places", start=0, end=1)
    turns = g("Squeeze", g("Div", g("Add", pairs, g.ints(PAIRS - 1)), g.ints(PAIRS)))

    b = GraphWriter("period_")
    one = b.ints(1)
    start = b("Mul", b("Unsqueeze", "turn", b.ints(0)), b.ints(PAIRS))
    places = b("Slice", "places", start, b("Add", start, b.ints(PAIRS)), b.ints(0))  # (P, 3)
    m = b("Min", b("Unsqueeze", b("GatherND", "seen_of_all", places), one), float(MEMORY))  # (P, 1)
    row, point, _ = b("Split", places, b.ints(1, 1, 1), outputs=3, axis=1)
    point = b("Add", point, b.constant(np.arange(MEMORY)[None] + HISTORY - MEMORY, np.int64))  # (P, MEMORY)
    row = b("Add", row, b("Mul", point, b.constant(0, np.int64)))
    x = b(
        "GatherND",
        "values_of_all",
        b("Concat", b("Unsqueeze", row, b.ints(2)), b("Unsqueeze", point, b.ints(2)), axis=2),
    )
    inside = b("GreaterOrEqual", b("Add", m, b.constant(np.arange(MEMORY)[None])), float(MEMORY))

    def centred(x: str) -> str:
        return b("Where", inside, b("Sub", x, mean(x)), 0.0)

    def mean(x: str) -> str:
        return b("Div", b("ReduceSum", b("Where", inside, x, 0.0), one, keepdims=1), m)

    x = b("Clip", b("Sub", x, b("Slice", x, b.ints(-1), b.ints(MEMORY), one)), -CLIPPED, CLIPPED)
    x = centred(x)
    scale = mean(b("Abs", x))
    x = centred(b("Clip", b("Div", x, b("Where", b("Greater", scale, 0.0), scale, 1.0)), -3.0, 3.0))
    long = b.constant(2 * MEMORY, np.int64)
    spectrum = b("DFT", b("Unsqueeze", x, b.ints(2)), long, axis=1)  # (P, 2 MEMORY, 2)
    power = b("ReduceSumSquare", spectrum, b.ints(2), keepdims=1)
    lags = np.arange(MEMORY // PERIODS_SEEN + 2, dtype=np.float64)[None]
    r = b("Slice", b("DFT", power, long, axis=1), b.ints(0, 0), b.ints(lags.size, 1), b.ints(1, 2))
    r = b("Squeeze", r, b.ints(2))  # (P, lags)
    r = b("Div", b("Mul", r, m), b("Max", b("Sub", m, b.constant(lags)), 1.0))
    r0 = b("Slice", r, b.ints(0), b.ints(1), one)
    r = b("Div", r, b("Where", b("Greater", r0, 0.0), r0, 1.0))
    fell = b("CumSum", b("Cast", b("Less", r, 0.1), to=double), b.constant(1, np.int64))
    allowed = b("LessOrEqual", b.constant(lags), b("Floor", b("Div", m, float(PERIODS_SEEN))))
    allowed = b("And", allowed, b("Greater", fell, 0.0))
    best = b("ReduceMax", b("Where", allowed, r, -1.0), one, keepdims=1)
    high = b("GreaterOrEqual", r, b("Max", b("Mul", best, c.period_share), c.period_strength))
    high = b("And", b("And", high, allowed), b("GreaterOrEqual", b.constant(lags), float(SHORTEST_PERIOD)))
    left = b("Concat", r0, b("Slice", r, b.ints(0), b.ints(-1), one), axis=1)
    right = b("Concat", b("Slice", r, b.ints(1), b.ints(lags.size), one), r0, axis=1)  # its last entry is never allowed
    peak = b("And", b("Greater", r, b("Add", left, 1e-9)), b("GreaterOrEqual", r, b("Sub", right, 1e-9)))
    found = b("ArgMax", b("Cast", b("And", high, peak), to=int64), axis=1, keepdims=0)  # 0 where there is none
    b("Concat", "periods", b("Cast", found, to=double), axis=0, name="next_periods")
    b("Identity", "go_on", name="still")
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        b.nodes, "period",
        [info("turn", int64, []), info("go_on", TensorProto.BOOL, []), info("periods", double, [None])],
        [info("still", TensorProto.BOOL, []), info("next_periods", double, [None])],
        b.initializers,
    )  # fmt: skip
    found = g("Loop", turns, "", g.constant(np.zeros(0)), body=body)
    return g("ScatterND", g("Mul", seen, 0.0), "places", found)


PAST = max(*SPIKE_LAGS, *(far for _, far in SPIKE_LINES))
"""How far back spikes are looked for (points)."""

STATISTICS = (
    "seen", "anchor", "delta", "missing", "judged", "compared", "compared_stretches", "last", "L3", "L20", "L150", "L1000", "gap", "stretch_gap",
    "D300", "H300", "D20", "H20", "S150", "S1000", "period", "total", "squares", "recent", "far", "usual", "usual_stretches",
    "peak", "long_peak", "novelty", "novelty_stretches", "alarms", "alarms_stretches",
    "jump_root", "bend_root", "jump", "bend", "jumps", "bends", "spikes", "spikes_lately",
    *(f"{what}_{k}" for k in range(PAST, 0, -1) for what in ("ago", "there")),
)  # fmt: skip
"""The columns of the graph's `statistics` state; a stream that has seen nothing is all zeros."""


def build_graph(model: Weights, c: Adaptation) -> onnx.ModelProto:
    """The same computation as `detect`, with state in and out, from operators of opset 18.

    Statistics are float64 (a float32 level would lose a small change on a large offset), the GRU is float32. Everything inside
    is (N, T, channels), and like things share one tensor: a node costs about a microsecond, whatever its size.
    """
    g = GraphWriter()
    f32, double = TensorProto.FLOAT, TensorProto.DOUBLE

    def add(*xs: str | float) -> str:
        out = xs[0]
        for x in xs[1:]:
            out = g("Add", out, x)
        return out

    def split(x: str, *sizes: int) -> list[str]:
        parts = g("Split", x, g.ints(*sizes), outputs=len(sizes), axis=2)
        return parts if isinstance(parts, list) else [parts]

    def join(*xs: str) -> str:
        return g("Concat", *xs, axis=2)

    def single(x: float) -> str:
        return g.constant(x, np.float32)

    # ---- which points count: inside the row's length and not missing
    end = g("Shape", "values", start=1, end=2)  # T, int64 (1,)
    states_end = g("Add", end, g.ints(1))  # T + 1: the incoming state goes before the first point
    time_index = g(
        "Unsqueeze", g("Range", g.constant(0, np.int64), g("Squeeze", end), g.constant(1, np.int64)), g.ints(0, 2)
    )
    lens = g("Unsqueeze", g("Cast", "sequence_lens", to=TensorProto.INT64), g.ints(1, 2))  # (N, 1, 1)
    values = g("Unsqueeze", "values", g.ints(2))
    valid = g("And", g("Not", g("IsNaN", values)), g("Less", time_index, lens))
    valid_f = g("Cast", valid, to=double)
    x = g("Clip", g("Where", valid, values, 0.0), -HUGE, HUGE)

    state = g("Unsqueeze", "statistics", g.ints(1))  # (N, 1, K)
    sizes = (1, 1, 1, 1, 1, 2, 7, 7, 6, 4, 2, 6, 2, 2 * PAST)
    (
        seen_in,
        anchor_in,
        delta_in,
        missing_in,
        judged_in,
        compared_in,
        levels_in,
        scales_in,
        sums_in,
        peaks_in,
        alarms_in,
        jumps_in,
        spikes_in,
        past_in,
    ) = split(state, *sizes)

    def past_and_end(joined: str, channels: int) -> tuple[str, str]:
        """From (N, T + 1, channels), state first: what was there before each point, and what the row leaves behind."""
        where = lens if channels == 1 else g("Expand", lens, g.ints(1, 1, channels))
        return g("Slice", joined, g.ints(0), end, g.ints(1)), g("GatherElements", joined, where, axis=1)

    def previous(v: str, state_in: str) -> tuple[str, str]:
        return past_and_end(g("Concat", state_in, v, axis=1), 1)

    def solve(kind: str, v: str, gain: str, state_in: str, channels: int) -> tuple[str, str]:
        """Run recurrences side by side (see `doubling`): what each was before every point, and the state left behind."""
        if kind == "sum":
            gain = g("Concat", state_in, gain, axis=1)  # the first gain meets nothing: any finite value will do
        start = g("Concat", state_in, v, axis=1)
        solved = g(
            "Loop",
            "",
            g.constant(True, np.bool_),
            start,
            gain,
            g.ints(1),
            outputs=3,
            body=doubling(kind, channels, states_end),
        )
        return past_and_end(solved[0], channels)

    def decay(names: tuple[str, ...]) -> np.ndarray:
        return np.array([0.5 ** (1 / HALF_LIFE[k]) for k in names])

    def corrected(total: str, n: str, a: np.ndarray) -> str:
        started = g("Greater", n, 0.0)
        return g("Where", started, g("Div", total, g("Max", g("Sub", 1.0, g("Pow", g.constant(a), n)), 1e-12)), 0.0)

    # ---- the anchor, and what the spikes are not learnt from
    first = g("And", valid, g("Equal", g("CumSum", valid_f, g.constant(1, np.int64)), 1.0))
    first = g("And", first, g("Equal", seen_in, 0.0))
    anchor = add(anchor_in, g("ReduceSum", g("Where", first, x, 0.0), g.ints(1), keepdims=1))  # (N, 1, 1)
    d = g("Where", valid, g("Sub", x, anchor), 0.0)

    together = g("Concat", g("Reshape", past_in, g.ints(0, PAST, 2)), join(d, valid_f), axis=1)  # (N, PAST + T, 2)
    kept = g("Add", lens, g.constant(np.arange(PAST).reshape(1, -1, 1), np.int64))
    past_out = g("GatherElements", together, g("Concat", kept, kept, axis=2), axis=1)
    past_out = g("Reshape", past_out, g.ints(0, 1, 2 * PAST))
    at = g("Add", g("Squeeze", time_index, g.ints(0)), g.constant(np.arange(PAST)[::-1][None], np.int64))  # (T, PAST)
    ago, there = g("Split", g("Gather", together, at, axis=1), g.ints(1, 1), outputs=2, axis=3)
    ago, there = g("Squeeze", ago, g.ints(3)), g("Squeeze", there, g.ints(3))  # (N, T, PAST), the latest first

    def part(x: str, start: int, stop: int) -> str:
        return g("Slice", x, g.ints(start), g.ints(stop), g.ints(2))

    # What each point is compared with, as weights of those before it: the last one, the lines, and the ones further back.
    guesses = [
        {1: 1.0},
        *({i: 1 + i / (j - i), j: -i / (j - i)} for i, j in SPIKE_LINES),
        *({k: 1.0} for k in SPIKE_LAGS),
    ]
    through = np.zeros((PAST, len(guesses)))
    for k, guess in enumerate(guesses):
        for lag, weight in guess.items():
            through[lag - 1, k] = weight
    whole = g(
        "Equal", g("MatMul", there, g.constant(through != 0)), g.constant([float(len(guess)) for guess in guesses])
    )
    off = g("Where", whole, g("Abs", g("Sub", d, g("MatMul", ago, g.constant(through)))), HUGE)  # (N, T, guesses)
    bend = g("ReduceMin", part(off, 1, 1 + len(SPIKE_LINES)), g.ints(2), keepdims=1)
    nearest_value = g("ReduceMin", part(off, 1 + len(SPIKE_LINES), len(guesses)), g.ints(2), keepdims=1)

    # Usual jumps and bends: sums that fade by a constant factor per point counted, as prefix sums of what grows by it.
    def fading(v: str, grown: str, state_in: str, channels: int) -> tuple[str, str]:
        total = add(g("CumSum", g("Mul", v, grown), g.constant(1, np.int64)), state_in)
        return past_and_end(g("Concat", state_in, g("Div", total, grown), axis=1), channels)

    a = 0.5 ** (1 / c.spike_half_life)
    counts = g("And", part(whole, 0, 2), valid)  # a jump, a bend
    now = g("Where", counts, g("Min", part(off, 0, 2), LARGE), 0.0)
    counts = g("Cast", counts, to=double)
    grown = g("Pow", 1 / a, g("CumSum", counts, g.constant(1, np.int64)))
    terms = g("Mul", join(g("Sqrt", now), now, counts), 1 - a)
    jumps, jumps_out = fading(terms, join(grown, grown, grown), jumps_in, 6)
    roots, plain, ages = split(jumps, 2, 2, 2)
    ages = g("Max", ages, 1e-12)
    roots = g("Div", roots, ages)
    usual = add(g("Mul", roots, roots), g("Mul", g("Div", plain, ages), c.tail_share))
    limits = g(
        "MatMul", usual, g.constant([[c.spike_jump, c.spike_bend_jump, 0.0, 0.0], [0.0, 0.0, c.spike_bend, 0.0]])
    )
    over = g("Greater", join(nearest_value, nearest_value, bend, part(usual, 0, 1)), limits)
    jumped, moved_on, bent, any_jump = split(over, 1, 1, 1, 1)
    found = g("Or", jumped, g("And", bent, g("And", moved_on, g("Less", bend, HUGE))))
    found = g("And", found, g("And", valid, g("Less", nearest_value, HUGE)))
    old_enough = g("GreaterOrEqual", part(ages, 0, 1), 1 - a**c.spike_youth - 1e-9)
    found = g("And", found, g("And", old_enough, any_jump))
    found_f = g("Cast", found, to=double)
    keep = np.array([0.5 ** (1 / c.spike_memory), 0.5 ** (1 / c.burst)])
    passed = g("Add", g("Cast", time_index, to=double), 1.0)
    rates, spikes_out = fading(found_f, g("Pow", g.constant(1 / keep), passed), spikes_in, 2)
    known_spikes = g("Sub", *split(rates, 1, 1))
    spike = g("And", found, g("Less", known_spikes, c.spikes_known))
    learnt = g("And", valid, g("Not", spike))
    learnt_f = g("Cast", learnt, to=double)

    # ---- counts
    counted = g("CumSum", learnt_f, g.constant(1, np.int64))
    seen, seen_out = previous(add(counted, seen_in), seen_in)

    # ---- levels: the last value is the recurrence with gain 0 at points that are learnt
    a = np.concatenate([[0.0], decay(LEVELS[1:])])
    gain = g("Where", join(*[learnt] * 5, *[valid] * 2), g.constant([*a, c.gap_keep, c.stretch_gap_keep]), 1.0)
    missing_now = g("Sub", 1.0, valid_f)
    terms = join(g("Mul", g("Where", learnt, d, 0.0), g.constant(1 - a)), missing_now, missing_now)
    levels, levels_out = solve("sum", terms, gain, levels_in, 7)
    last, averages, gap, stretch_gap = split(levels, 1, 4, 1, 1)
    averages = corrected(averages, seen, a[1:])
    _, l20, l150, l1000 = split(averages, 1, 1, 1, 1)

    # ---- scales
    some = g("Greater", seen, 0.0)
    moved = g("And", learnt, some)
    delta = g("Where", moved, g("Sub", d, last), 0.0)
    size = g("Div", g("Abs", delta), add(gap, 1.0))  # over a gap it is many steps in one
    root = g("Sqrt", size)
    away = g("Where", learnt, g("Abs", g("Sub", d, join(l150, l1000))), 0.0)
    names = ("D300", "H300", "D20", "H20", "S150", "S1000")
    a = decay(names)
    both = g("Concat", *[moved] * 4, *[learnt] * 2, axis=2)
    filled = g("Where", learnt, d, last)
    track = g("Concat", g("Unsqueeze", "history", g.ints(2)), filled, axis=1)
    due = g("Equal", g("Mod", seen, float(PERIOD_EVERY), fmod=1), 0.0)
    due = g("And", g("And", learnt, due), some)
    periods = period_nodes(g, c, track=track, seen=seen, due=due)  # kept from one such point to the next
    gain = join(g("Where", both, g.constant(a), 1.0), g("Where", due, 0.0, 1.0))
    terms = g("Mul", join(size, root, size, root, away), g.constant(1 - a))
    scales, scales_out = solve("sum", join(terms, periods), gain, scales_in, 7)
    scales, period = split(scales, 6, 1)
    moves = g("Sub", seen, g("Cast", some, to=double))
    scales = corrected(scales, join(*[moves] * 4, *[seen] * 2), a)
    d300, h300, d20, h20, s150, s1000 = split(scales, *[1] * 6)
    h300, h20 = g("Mul", h300, h300), g("Mul", h20, h20)
    step = add(h300, g("Mul", d300, 0.2), g("Mul", s1000, 0.02))
    rounding = add(g("Mul", g("Abs", g("Add", anchor, last)), 1e-15), TINY)
    unit = add(step, rounding)

    # ---- the GRU
    wide = add(s1000, unit)
    delta_before, delta_out = previous(delta, delta_in)
    missing_before, missing_out = previous(g("Sub", 1.0, learnt_f), missing_in)
    pulls = g("Sub", averages, last)  # (N, T, 4)
    above = g("Sub", join(last, l20), l1000)
    signed = g(
        "Concat",
        g("Div", join(g("Neg", pulls), delta_before), unit),
        g("Div", g("Concat", *split(above, 1, 1)[::-1], axis=2), wide),
        axis=2,
    )
    signed = g("Div", g("Asinh", g("Cast", g("Clip", signed, -1e6, 1e6), to=f32)), single(3))
    ratios = g("Clip", g("Div", join(d20, h20, d300, h300, s150, s1000), unit), 1e-4, 1e4)
    ratios = g("Div", g("Log", g("Cast", ratios, to=f32)), single(3))
    age = g("Sub", g("Div", g("Log", g("Cast", add(seen, 1.0), to=f32)), single(5)), single(1))
    inputs = g("Concat", signed, ratios, g("Cast", missing_before, to=f32), age, axis=2)  # (N, T, INPUTS)
    by_time = g("Transpose", inputs, perm=[1, 0, 2])

    def gates(weight: np.ndarray) -> np.ndarray:
        """The weights have the gates as reset, update, new; ONNX wants update, reset, new."""
        r, z, n = np.split(weight, 3)
        return np.concatenate([z, r, n])[None]

    bias = np.concatenate([gates(model.bias_ih), gates(model.bias_hh)], 1)
    parameters = [g.constant(w, np.float32) for w in (gates(model.weight_ih), gates(model.weight_hh), bias)]
    h_in = g("Unsqueeze", "state", g.ints(0))
    hidden = model.hidden
    y, h = g("GRU", by_time, *parameters, "sequence_lens", h_in, outputs=2, hidden_size=hidden, linear_before_reset=1)
    g("Squeeze", h, g.ints(0), name="next_state")
    weight, bias = (g.constant(p.T, np.float32) for p in (model.head_weight, model.head_bias))
    head = g("Add", g("MatMul", g("Concat", g("Squeeze", y, g.ints(1)), by_time, axis=2), weight), bias)
    head = g("Cast", g("Transpose", head, perm=[1, 0, 2]), to=double)  # (N, T, OUTPUTS)
    mix, offset, scale, rises = split(head, len(LEVELS), 1, 1, len(QUANTILES))

    def bounded(v: str, limit: float) -> str:
        return g("Mul", g("Tanh", g("Div", v, limit)), limit)

    # ---- forecast and yardstick
    mix = split(g("Softmax", mix, axis=2), 1, len(LEVELS) - 1)[1]  # the last value's share moves nothing
    pulled = g("ReduceSum", g("Mul", mix, pulls), g.ints(2), keepdims=1)
    forecast = add(last, pulled, g("Mul", step, bounded(offset, 3.0)))
    g("Squeeze", g("Where", some, g("Add", anchor, forecast), 0.0), g.ints(2), name="expected")
    quantile_weights = g.constant([0.0, c.q99, c.q999])
    log_quantiles = g(
        "Add", bounded(scale, 6.0), g("CumSum", g("Log", g("Add", g("Exp", rises), 1.0)), g.constant(2, np.int64))
    )
    learned = g("ReduceSum", g("Mul", g("Exp", log_quantiles), quantile_weights), g.ints(2), keepdims=1)
    scale_weights = g.constant([c.d300, c.h300, c.d20, c.s150, c.s1000])
    measured = g("ReduceSum", g("Mul", join(d300, h300, d20, s150, s1000), scale_weights), g.ints(2), keepdims=1)
    yardstick = add(g("Mul", unit, add(learned, 1e-6)), measured, rounding)
    known = g("And", g("Greater", seen, 1.0), g("Or", g("Greater", h300, 0.0), g("GreaterOrEqual", seen, float(QUIET))))
    judged = g("And", known, valid)
    near_gap = g("GreaterOrEqual", gap, c.gap_settled)
    settled = g("And", g("And", known, learnt), g("Not", near_gap))
    error = g("Abs", g("Sub", d, forecast))
    l = g("Log", g("Clip", g("Div", error, yardstick), 1e-6, 1e6))

    # ---- how unlike all earlier windows the latest is, and how unlike the latest stretch those at its hour
    odd = g("Where", spike, g("Sub", d, last), 0.0)
    nearest, history_out = nearest_window_nodes(
        g,
        c,
        track=track,
        filled=filled,
        odd=odd,
        last=last,
        seen=seen,
        period=period,
        scales=(s1000, d300, unit),
        lens=lens,
    )
    g("Squeeze", history_out, g.ints(2), name="next_history")
    after_spike = g("And", g("Greater", g("Mul", missing_before, part(there, 0, 1)), 0.0), learnt)
    of_stretch = g("And", learnt, g("Less", stretch_gap, c.stretch_gap_settled))
    comparable = g("Concat", g("Not", g("Or", near_gap, after_spike)), of_stretch, axis=2)
    compared = g("And", g("And", g("Less", nearest, UNCOMPARED), judged), comparable)  # (N, T, 2)
    window, stretch = split(nearest, 1, 1)
    size = add(join(g("Sqrt", g("Div", window, float(WINDOW))), stretch), g("Mul", wide, c.grain))
    size = g("Mul", size, g("Exp", g("Mul", g("Clip", l, -2.0, 2.0), c.echo)))
    steps = g("Add", join(d20, d300), g("Mul", unit, 0.1))
    size = g("Mul", size, g("Pow", g("Div", *split(steps, 1, 1)), -c.restlessness))
    size = g("Where", compared, g("Clip", size, 1 / CLIPPED, CLIPPED), 0.0)
    heard = g("Where", learnt, size, 0.0)
    compared = g("And", compared, learnt)
    compared_here = g("CumSum", g("Cast", compared, to=double), g.constant(1, np.int64))  # in this run
    compared_count, compared_out = past_and_end(g("Concat", compared_in, add(compared_here, compared_in), axis=1), 2)

    # ---- the bar
    a, slow = 0.5 ** (1 / c.half_life), 0.5 ** (1 / c.recent_half_life)
    clipped = g("Where", settled, g("Clip", l, c.low, c.high), 0.0)
    rise = g("Where", settled, g("Clip", g("Sub", l, c.peak_base), 0.0, c.peak_cap), 0.0)
    judged_here = g("CumSum", g("Cast", settled, to=double), g.constant(1, np.int64))
    count, judged_out = previous(add(judged_here, judged_in), judged_in)
    longer = 0.5 ** (1 / c.far_half_life)
    capped = g("Where", settled, g("Min", g("Min", error, g("Mul", wide, c.far_cap)), LARGE), 0.0)
    usual_gain = 0.5 ** (1 / c.usual_half_life)
    heard_at_most = g("Min", heard, LARGE)
    terms = join(
        clipped,
        g("Mul", clipped, clipped),
        g("Mul", rise, 1 - slow),
        g("Mul", g("Mul", capped, capped), 1 - longer),
        g("Mul", g("Mul", heard_at_most, heard_at_most), 1 - usual_gain),
    )
    gains = np.array([a, a, slow, longer, usual_gain, usual_gain])
    grown = g("Pow", g.constant(1 / gains), join(*[judged_here] * 4, compared_here))
    sums, sums_out = fading(terms, grown, sums_in, 6)

    sinking = g.constant(
        [0.5 ** (1 / c.peak_half_life), 0.5 ** (1 / c.long_peak_half_life), *[np.exp(-c.forgetting)] * 2]
    )
    peaks, peaks_out = solve("peak", join(rise, rise, heard), sinking, peaks_in, 4)
    peaks, novelties = split(peaks, 2, 2)
    usual, recent, energy, power = split(sums, 2, 1, 1, 2)
    filled, filled_longer = split(g("Sub", 1.0, g("Pow", g.constant([a, longer]), count)), 1, 1)
    weight = add(g("Div", filled, 1 - a), c.prior)
    prior = c.prior * np.array([c.prior_mean, c.prior_mean**2 + c.prior_deviation**2])
    mean, square = split(g("Div", g("Add", usual, g.constant(prior)), weight), 1, 1)
    least = g("Sqrt", g("Div", energy, g("Max", filled_longer, 1e-12)))
    power = g("Div", power, g("Max", g("Sub", 1.0, g("Pow", usual_gain, compared_count)), 1e-12))
    excess = g.constant(np.exp([c.excess, c.rhythm_excess]))
    over_usual = g.constant(np.exp([c.over_usual, c.over_usual_rhythm]))
    needed = g("Max", g("Mul", novelties, excess), g("Mul", g("Sqrt", power), over_usual))
    ages = add(join(seen, split(compared_count, 1, 1)[1]), 1.0)
    needed = g("Mul", needed, g("Exp", g("Div", g.constant([c.novelty_youth, c.rhythm_youth]), ages)))
    comparable = g("Greater", g("Min", novelties, size), 0.0)
    ratio = g("Min", g("Div", size, g("Where", comparable, needed, HUGE)), 1e6)
    near = g("Clip", g("Add", g("Log", g("Max", ratio, 1e-6)), c.alarm_ramp), 0.0, 1.0)
    comparable = g("And", comparable, learnt)
    near = g("Where", learnt, near, 0.0)
    alarms_here = g("CumSum", g("Cast", comparable, to=double), g.constant(1, np.int64))
    alarms, alarms_out = fading(near, g("Pow", 2 ** (1 / c.alarm_half_life), alarms_here), alarms_in, 2)
    odds = g("Pow", g("Mul", ratio, g("Pow", g("Add", alarms, 1.0), -c.alarm_weight)), c.slope)
    odds = g("ReduceMax", odds, g.ints(2), keepdims=1)
    g("Squeeze", g("Div", odds, add(odds, 1.0)), g.ints(2), name="novelty")
    deviation = g("Sqrt", g("Max", g("Sub", square, g("Mul", mean, mean)), 1e-4))
    by_habit = add(g("Mul", mean, c.mean_weight), g("Mul", deviation, c.deviations))
    by_peaks = g(
        "Add", g("Mul", peaks, g.constant([1.0, c.long_peak_weight])), g.constant([c.over_peak, c.over_long_peak])
    )
    by_peaks = g("ReduceMax", g("Where", g("Greater", peaks, 0.0), by_peaks, -1e9), g.ints(2), keepdims=1)
    young = g("Div", c.youth, g("Add", g("Div", count, c.youth_age), 1.0))
    far = g("Min", g("Abs", g("Div", split(above, 1, 1)[0], wide)), 5.0)
    ageing = g("Mul", g("Log", add(g("Div", count, 1000.0), 1.0)), c.ageing)
    height = add(
        g("Max", by_habit, by_peaks, c.floor),
        young,
        ageing,
        g("Mul", recent, -c.recent_weight),
        g("Mul", far, c.level_weight),
    )
    width = g("Max", g("Mul", yardstick, g("Exp", g("Clip", height, -6.0, 12.0))), g("Mul", least, c.far_weight))
    unsure = g("Mul", g("Mul", wide, c.gap_width), g("Sub", 1.0, g("Exp", g("Div", gap, -c.gap_scale))))
    spread = g("Clip", add(g("Mul", width, float(np.exp(c.threshold))), unsure), TINY, HUGE)
    g("Squeeze", g("Where", known, spread, BLIND), g.ints(2), name="spread")
    left = join(
        seen_out,
        anchor,
        delta_out,
        missing_out,
        judged_out,
        compared_out,
        levels_out,
        scales_out,
        sums_out,
        peaks_out,
        alarms_out,
        jumps_out,
        spikes_out,
        past_out,
    )
    g("Squeeze", left, g.ints(1), name="next_statistics")

    info, k = helper.make_tensor_value_info, len(STATISTICS)
    graph = helper.make_graph(
        g.nodes,
        "series_gru",
        [info("values", double, ["batch", "time"]), info("sequence_lens", TensorProto.INT32, ["batch"]),
         info("state", f32, ["batch", hidden]), info("statistics", double, ["batch", k]),
         info("history", double, ["batch", HISTORY])],
        [info("expected", double, ["batch", "time"]), info("spread", double, ["batch", "time"]),
         info("novelty", double, ["batch", "time"]), info("next_state", f32, ["batch", hidden]),
         info("next_statistics", double, ["batch", k]), info("next_history", double, ["batch", HISTORY])],
        g.initializers,
    )  # fmt: skip
    onnx_model = helper.make_model(
        graph, producer_name="series-gru", opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.checker.check_model(onnx_model, full_check=True)
    return onnx_model


# ------------------------------------------------------------------------------------------------------ evaluation


def nab_like_score(
    pieces: list[Labelled], scores: list[np.ndarray], threshold: float | None = None
) -> dict[str, float]:
    """NAB's standard profile on one split; the sources weigh as in SHARES. Without a threshold, the
    best one for their mean is taken.

    Where incidents are denser than in NAB, false alarms would weigh too little beside them, so their
    cost is scaled to that density.
    """
    sources = sorted({p.name.split("/")[0] for p in pieces})
    marked = [nab_like_windows(p.anomalous) for p in pieces]

    def density(name: str) -> float:
        own = [i for i, p in enumerate(pieces) if p.name.startswith(name + "/")]
        return POINTS_PER_WINDOW * sum(len(marked[i]) for i in own) / sum(len(pieces[i].values) for i in own)

    costs = {n: density(n) for n in sources}
    at, change, source, windows = [], [], [], dict.fromkeys(sources, 0)
    for piece, s, own in zip(pieces, scores, marked, strict=True):
        a, c, _ = nab.steps(s, own, nab.PROFILES[0])
        name = piece.name.split("/")[0]
        windows[name] += len(own)
        at.append(a)
        change.append(np.where(c < 0, c * costs[name], c))
        source.append(np.full(len(a), sources.index(name)))
    at_, change_, source_ = map(np.concatenate, (at, change, source))
    order = np.argsort(-at_, kind="stable")
    at_, change_, source_ = at_[order], change_[order], source_[order]
    gains = {n: 50 * np.cumsum(np.where(source_ == k, change_, 0)) / windows[n] for k, n in enumerate(sources)}
    mean = sum(SHARES[n] * gain for n, gain in gains.items())
    if threshold is None:
        best = int(np.where(np.append(at_[1:] != at_[:-1], True), mean, -np.inf).argmax())
    else:
        best = int((at_ >= threshold).sum()) - 1
    return {"mean": float(mean[best]), "threshold": float(at_[best])} | {n: float(v[best]) for n, v in gains.items()}


def run_pieces(pieces: list[Labelled], model: Weights, c: Adaptation) -> list[np.ndarray]:
    """Scores of each piece."""
    values = stack(pieces)
    scores = score(values, *detect(values, model, c))
    return [row[: len(p.values)] for row, p in zip(scores, pieces, strict=True)]


def false_alarms(
    pieces: list[Labelled],
    scores: list[np.ndarray],
    source: str | tuple[str, ...],
    sensitivity: float = 0.5,
    first: int = 0,
) -> float:
    """Alarms on unlabelled points, per 1,000 of them: after NAB's probation, or among the `first` points."""
    alarms = points = 0
    for piece, s in zip(pieces, scores, strict=True):
        if piece.name.startswith(source):
            normal = ~piece.anomalous
            if first:
                normal[first:] = False
            else:
                normal[: nab.probation_rows(len(s))] = False
            alarms += int((s[normal] >= 1 - sensitivity).sum())
            points += int(normal.sum())
    return 1000 * alarms / points


def band_coverage(
    pieces: list[Labelled], bands: list[tuple[np.ndarray, np.ndarray]], source: str, sensitivity: float
) -> float:
    """Share of normal points, after NAB's probation, inside the band of a sensitivity. `bands`: expected and spread of each piece."""
    inside = points = 0
    for piece, (expected, spread) in zip(pieces, bands, strict=True):
        if piece.name.startswith(source):
            normal = ~piece.anomalous & ~np.isnan(piece.values)
            normal[: nab.probation_rows(len(normal))] = False
            error = np.abs(piece.values - expected)[normal]
            inside += int((error < spread[normal] * ((1 - sensitivity) / sensitivity)).sum())
            points += int(normal.sum())
    return inside / points


def incident_f1(
    pieces: list[Labelled], scores: list[np.ndarray], source: str, threshold: float
) -> tuple[float, float, float]:
    """Precision, recall and F1 over points by `nab.precision_recall`, at one threshold."""
    own = [(s, p.anomalous) for p, s in zip(pieces, scores, strict=True) if p.name.startswith(source)]
    at, precision, recall = nab.precision_recall(own)
    k = max(int((at >= threshold).sum()) - 1, 0)
    return precision[k], recall[k], 2 * precision[k] * recall[k] / max(precision[k] + recall[k], 1e-9)


NOVELTY_CONSTANTS = (
    "grain", "echo", "restlessness", "forgetting", "excess", "over_usual", "usual_half_life", "novelty_youth", "alarm_half_life",
    "alarm_weight", "alarm_ramp", "rhythm_excess", "over_usual_rhythm", "rhythm_youth",
)  # fmt: skip
"""What `search` tries."""


def search(config: Config, model: Weights) -> None:
    """Look for better constants of the novelty: a random walk from those above, judged by the NAB-like score of the novelty alone on
    the training and validation pieces."""
    c = Adaptation()
    pieces = [piece for split in ("train", "validation") for piece in nab_like_corpus(config, split)]
    pieces.sort(key=lambda piece: len(piece.values))
    batches = []
    for i in range(0, len(pieces), 64):
        surprised = surprise(stack(pieces[i : i + 64]), model, c)
        s = surprised["statistics"]
        distances = nearest_window(s, c), nearest_stretch(s, c)
        kept = {name: s[name] for name in ("S1000", "D20", "D300", "unit", "seen")}
        batches.append(
            ({"statistics": kept, "judged": surprised["judged"], "surprise": surprised["surprise"]}, distances)
        )
        print(f"{min(i + 64, len(pieces))} of {len(pieces)} pieces compared", flush=True)

    def objective(c: Adaptation) -> float:
        rows = [row for surprised, distances in batches for row in novelty(surprised, c, distances)]
        return nab_like_score(pieces, [row[: len(p.values)] for row, p in zip(rows, pieces, strict=True)])["mean"]

    rng = np.random.default_rng(config.seed)
    best, found = c, objective(c)
    print(f"start {found:.2f}")
    for trial in range(config.trials):
        names = rng.choice(NOVELTY_CONSTANTS, int(rng.integers(1, 4)), replace=False)
        changed = {str(name): getattr(best, name) * float(np.exp(rng.normal() * 0.3)) for name in names}
        tried = dataclasses.replace(best, **changed)
        value = objective(tried)
        if value > found:
            best, found = tried, value
            print(f"trial {trial}: {found:.2f} {changed}", flush=True)
    print(best)


# ----------------------------------------------------------------------------------------------------------- laws


class Stream:
    """The exported graph, with its state."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.widths = {
            i.name: (i.shape[1], np.float32 if i.type == "tensor(float)" else np.float64)
            for i in self.session.get_inputs()[2:]
        }

    def __call__(
        self, values: np.ndarray, lens: list[int] | None = None, state: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """values (N, T) -> scores (N, T) and the state for the next call."""
        *outputs, state = self.outputs(values, lens, state)
        return score(values, *outputs), state

    def outputs(
        self, values: np.ndarray, lens: list[int] | None = None, state: dict | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """values (N, T) -> expected, spread and novelty (N, T) each, and the state for the next call."""
        n = len(values)
        state = state or {name: np.zeros((n, width), dtype) for name, (width, dtype) in self.widths.items()}
        feed = {"values": values, "sequence_lens": np.array(lens or [values.shape[1]] * n, np.int32)} | state
        expected, spread, novelty, *after = self.session.run(None, feed)
        if not (np.isfinite(expected).all() and np.isfinite(spread).all() and (spread > 0).all()):
            raise AssertionError("an output is not finite, or a band has no width")
        if not ((novelty >= 0) & (novelty <= 1)).all():
            raise AssertionError("a novelty is not between 0 and 1")
        if not all(np.isfinite(a).all() for a in after):
            raise AssertionError("the state is not finite")
        return expected, spread, novelty, dict(zip(state, after, strict=True))


def check(file: Path, model: Weights, c: Adaptation, pieces: list[Labelled]) -> dict[str, float]:
    """What a caller may rely on, tried on the exported file. Returns the largest deviations; raises where one is too large."""
    stream = Stream(file)
    rng = np.random.default_rng(0)
    found: dict[str, float] = {}

    def law(name: str, deviation: float, limit: float) -> None:
        found[name] = max(found.get(name, 0.0), float(deviation))
        if not deviation <= limit:
            raise AssertionError(f"{name}: {deviation:.2e} is more than {limit:.0e}")

    chosen = [pieces[i] for i in rng.choice(len(pieces), 24, replace=False)]
    for piece in chosen:
        x = piece.values[None, :1200]
        whole, _ = stream(x)
        law("graph and reference", np.abs(whole - score(x, *detect(x, model, c))).max(), 1e-4)
        for size, n in ((7, 700), (1, 300)):
            state, parts = None, []
            for a in range(0, n, size):
                part, state = stream(x[:, a : min(a + size, n)], state=state)
                parts.append(part)
            law(f"whole and chunks of {size}", np.abs(np.concatenate(parts, 1) - whole[:, :n]).max(), 1e-4)
        deviation = np.nanstd(x)
        shifted = x / (deviation if deviation > 0 else 1.0) + 1e9
        law("another offset", np.abs(stream(shifted)[0] - stream(shifted - 1e9)[0]).max(), 5e-3)
        law("another unit", np.abs(stream(x * 1e-6)[0] - whole).max(), 1e-4)
        law("another unit", np.abs(stream(x * 1e9)[0] - whole).max(), 1e-4)
    days = np.arange(1800)  # a rhythm, long enough for its period to be known, with a gap and a day that does not come
    noise = 2 * rng.standard_normal(len(days))
    rhythm = 1e5 + 30 * np.maximum(np.sin(2 * np.pi * days / 96), -0.3) + noise
    rhythm[700:730] = np.nan
    rhythm[1440:1488] = 1e5 - 9 + noise[1440:1488]
    whole, _ = stream(rhythm[None])
    law("graph and reference", np.abs(whole - score(rhythm[None], *detect(rhythm[None], model, c))).max(), 1e-4)
    for size in (7, 500):
        state, parts = None, []
        for a in range(0, len(days), size):
            part, state = stream(rhythm[None, a : a + size], state=state)
            parts.append(part)
        law(f"whole and chunks of {size}", np.abs(np.concatenate(parts, 1) - whole).max(), 1e-4)
    law("1 - score where a day does not come", 1 - whole[0, 1440:1488].max(), 0.5)
    spiked = 50 + rng.standard_normal(600)
    spiked[[300, 325, 350, 375]] += [20, -18, 22, 19]
    law("1 - score of four spikes", 1 - stream(spiked[None])[0][0, [300, 325, 350, 375]].min(), 0.5)
    hours = 20 * np.sin(2 * np.pi * np.arange(300) / 24) + rng.standard_normal(300)
    hours[200:206] = np.nan
    law("score after a gap", stream(hours[None])[0][0, 200:].max(), 0.49)
    lens = [int(n) for n in rng.integers(1, 900, len(chosen))]
    lens = [min(n, len(p.values)) for n, p in zip(lens, chosen, strict=True)]
    batch = np.full((len(chosen), max(lens)), 7e7)  # padding is not missing data: it must not be looked at
    for row, n, piece in zip(batch, lens, chosen, strict=True):
        row[:n] = piece.values[:n]
    together, after = stream(batch, lens)
    for k, (n, piece) in enumerate(zip(lens, chosen, strict=True)):
        alone, state = stream(piece.values[None, :n])
        law("one by one and in a padded batch", np.abs(together[k, :n] - alone[0]).max(), 1e-4)
        law(
            "one by one and in a padded batch",
            max(np.abs(after[s][k] - state[s][0]).max() / (1 + np.abs(state[s]).max()) for s in state),
            1e-4,
        )
    for level in (0.0, 1.0, 0.1, -1e9, 1e300):
        constant = np.full((1, 500), level)
        law("score of a constant", stream(constant)[0].max(), 0.49)
        constant[0, 400] = level + (abs(level) * 0.01 or 1.0)
        law("1 - score of the first change", 1 - stream(constant)[0][0, 400], 0.5)
    wild = rng.standard_normal((40, 200)) * 10.0 ** rng.uniform(-300, 300, (40, 200))
    wild[rng.random(wild.shape) < 0.1] = np.nan
    wild[:4] = np.nan
    wild[4:8] = np.where(rng.random((4, 200)) < 0.5, 1e300, -1e300)
    wild[8:12] = 1e-320
    wild[12:16, 1:] = np.nan
    law("not finite", float(not np.isfinite(stream(wild)[0]).all()), 0.0)
    return found


def milliseconds(file: Path) -> tuple[float, float, float]:
    """Median CPU time, which others on the machine hardly change, of one more point and of 1,000 more points of a stream whose memory is full, and of a new stream's first 256
    points; one thread. The stream has a daily rhythm, so that stretches are compared too."""
    stream = Stream(file)
    t = np.arange(HISTORY + 1001)
    rhythm = (2 * np.sin(2 * np.pi * t / 288) + np.random.default_rng(0).standard_normal(len(t)))[None]
    x, state = rhythm[:, -1000:], stream(rhythm[:, :-1000])[1]

    def median(call, times: int) -> float:
        spent = []
        for _ in range(times):
            started = time.process_time()
            call()
            spent.append(time.process_time() - started)
        return 1000 * float(np.median(spent))

    return (
        median(lambda: stream(x[:, :1], state=state), 500),
        median(lambda: stream(x, state=state), 20),
        median(lambda: stream(x[:, :256]), 50),
    )


# ----------------------------------------------------------------------------------------------------- the folder


def golden(model: Weights, c: Adaptation) -> list[dict]:
    """Three short series with an answer each, computed by the reference: a daily rhythm with a spike and a gap, a request
    counter's rate with a drop, and noise with four spikes."""
    rng = np.random.default_rng(3)
    t = np.arange(144)
    rhythm = np.round(20 + 6 * np.sin(2 * np.pi * t / 48) + rng.normal(0, 0.5, len(t)), 2)
    rhythm[100] = 61.5
    rhythm[[40, 41, 120]] = np.nan
    t = np.arange(96)
    requests = rng.poisson(180 + 40 * np.sin(2 * np.pi * t / 96)).astype(np.float64)
    requests[70:73] = [3.0, 0.0, 5.0]
    requests[20] = np.nan
    spiked = np.round(50 + rng.normal(0, 1, 160), 2)
    spiked[[100, 112, 124, 136]] += [18, -20, 17, 22]
    cases = []
    for x in (rhythm, requests, spiked):
        s = score(x[None], *detect(x[None], model, c))[0]
        if np.abs(s - 0.5).min() < 0.005:
            raise AssertionError("a golden score lies too close to the threshold to be checked")
        sent = [None if np.isnan(v) else float(v) for v in x]
        cases.append({
            "input": {"values": sent, "sensitivity": 0.5},
            "output": {"anomalies": np.flatnonzero(s >= 0.5).tolist(), "scores": [round(float(v), 6) for v in s]},
            "tolerance": 0.002,
        })  # fmt: skip
    return cases


def between_markers(text: str, name: str, new: str) -> str:
    """Replace what stands between `<!-- name … -->` and `<!-- /name -->`."""
    return re.sub(rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->)", lambda m: m[1] + new + m[2], text, flags=re.S)


def sensitivity_table(metrics: dict[str, float]) -> str:
    """What a sensitivity means, as docs/calibration.md has it, from the figures that the manifest claims."""
    rows = [
        "| `sensitivity` | false alarms per 1,000 normal points | normal points inside `lower` … `upper` |",
        "|---|---|---|",
    ]
    for x in SENSITIVITIES:
        alarms = metrics[f"false alarms per 1,000 normal points at sensitivity {x}"]
        inside = metrics[f"% of normal points inside the band at sensitivity {x}"]
        rows.append(f"| {x} | {alarms:.2f} | {inside:.3f} % |")
    return "\n".join(rows) + "\n"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def publish(config: Config, model: Weights, c: Adaptation) -> None:
    """Export, check, measure on the test split and on NAB, and write the folder's files."""
    file = PUBLISHED
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(build_graph(model, c).SerializeToString())
    pieces = {split: nab_like_corpus(config, split) for split in ("validation", "test")}
    for name, deviation in check(file, model, c, pieces["validation"]).items():
        print(f"  {name:<36}{deviation:.1e}")
    (PUBLISHED.parent / "golden.json").write_text(json.dumps(golden(model, c)) + "\n")

    results = {}
    stream = Stream(file)
    for split, corpus in pieces.items():
        outputs = [
            stream.outputs(p.values[None])[:3] for p in corpus
        ]  # the exported graph, which is the framework's equal
        scores = [score(p.values[None], *o)[0] for p, o in zip(corpus, outputs, strict=True)]
        bands = [(o[0][0], o[1][0]) for o in outputs]
        results[split] = {
            "fixed": nab_like_score(corpus, scores, 0.5),
            "best": nab_like_score(corpus, scores),
            "early": {s: false_alarms(corpus, scores, s, first=100) for s in SHARES},
            "alarms": {x: {s: false_alarms(corpus, scores, s, x) for s in SHARES} for x in SENSITIVITIES},
            "real alarms": {x: false_alarms(corpus, scores, ("kpi", "ms"), x) for x in SENSITIVITIES},
            "coverage": {x: {s: band_coverage(corpus, bands, s, x) for s in SHARES} for x in SENSITIVITIES},
            "real coverage": {x: band_coverage(corpus, bands, ("kpi", "ms"), x) for x in SENSITIVITIES},
            "f1": {x: incident_f1(corpus, scores, "kpi", 1 - x) for x in SENSITIVITIES},
        }
        print(split, results[split], flush=True)
    series, profiles = nab.read_corpus(Path(config.data) / "nab")
    detector = nab.onnx_scores(file)
    known = {one.name: detector(one) for one in series}
    document = nab.report(series, profiles, lambda one: known[one.name], None)
    at_half = nab.report(series, profiles, lambda one: known[one.name], 0.5)
    nab.print_tables(document)
    one_ms, thousand_ms, fresh_ms = milliseconds(file)

    names = {
        "kpi": "KPI",
        "ms": "Microsoft",
        "syn": "synthetic",
        "job": "recurring jobs",
        "ops": "operations",
        "inj": "put in",
        "mnt": "mentions",
    }
    lines = [
        "| measure | " + " | ".join(names[k] for k in SHARES) + " | weighted mean |",
        "|---" * (len(SHARES) + 2) + "|",
    ]
    for split, r in results.items():
        for label, part in (("best single threshold", r["best"]), ("sensitivity 0.5", r["fixed"])):
            cells = " | ".join(f"{part[k]:.1f}" for k in (*SHARES, "mean"))
            lines.append(f"| NAB-like score (standard), {split}, {label} | {cells} |")
        cells = " | ".join(f"{r['early'][k]:.2f}" for k in SHARES)
        lines.append(
            f"| false alarms per 1,000 normal points among a stream's first 100, {split}, sensitivity 0.5 | {cells} | |"
        )
    lines += [
        "",
        "What a sensitivity means. False alarms per 1,000 normal points after NAB's probation, validation pieces:",
        "",
    ]
    lines += ["| sensitivity | " + " | ".join(names[k] for k in SHARES) + " | KPI and Microsoft, validation | the same, test | band holds, validation | band holds, test |",
              "|---" * (len(SHARES) + 5) + "|"]  # fmt: skip
    v, t = results["validation"], results["test"]
    for x in SENSITIVITIES:
        cells = " | ".join(f"{v['alarms'][x][k]:.2f}" for k in SHARES)
        lines.append(
            f"| {x} | {cells} | {v['real alarms'][x]:.2f} | {t['real alarms'][x]:.2f} "
            f"| {100 * v['real coverage'][x]:.3f} % | {100 * t['real coverage'][x]:.3f} % |"
        )
    lines += ["", "The last two columns are the shares of normal KPI and Microsoft points inside `lower`..`upper`.", ""]
    lines += ["| delay-7 precision / recall / F1 on KPI | validation | test |", "|---|---|---|"]
    for x in SENSITIVITIES:
        cells = " | ".join(" / ".join(f"{value:.3f}" for value in r["f1"][x]) for r in (v, t))
        lines.append(f"| sensitivity {x} | {cells} |")
    lines.append("")
    lines += ["| NAB (58 series) | standard | low FP | low FN |", "|---|---|---|---|"]
    for label, d in (
        ("best threshold per profile, as NAB's table has it", document),
        ("sensitivity 0.5 as served", at_half),
    ):
        cells = (
            f"{r['normalised']:.2f} ({r['interval'][0]:.1f} to {r['interval'][1]:.1f})" for r in d["profiles"].values()
        )
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "In brackets: 95 % bootstrap intervals over the 58 series.", ""]
    size = file.stat().st_size
    parameters = model.count
    state_bytes = 4 * model.hidden + 8 * (len(STATISTICS) + HISTORY)
    lines += [f"{parameters:,} parameters, {size:,} bytes; state of a stream: {model.hidden} float32 + {len(STATISTICS) + HISTORY:,} float64 = "
              f"{state_bytes:,} bytes. Once the memory is full, one more point: {one_ms:.2f} ms, 1,000 points: {thousand_ms:.1f} ms; a new stream's first 256 points: "
              f"{fresh_ms:.1f} ms (median CPU time, one thread, ONNX Runtime {onnxruntime.__version__}, machine shared with other work)."]  # fmt: skip
    lines += [
        "",
        "Data files (sha256): " + "; ".join(f"`{n}` {sha256(Path(config.data) / n)[:16]}…" for n in DATA_FILES) + ".",
    ]
    card = HERE / "card.md"
    card.write_text(between_markers(card.read_text(), "metrics", "\n".join(lines) + "\n"))
    metrics = {
        f"NAB {n.removeprefix('reward_').replace('_', ' ')} profile": r["normalised"]
        for n, r in document["profiles"].items()
    }
    metrics["NAB-like score, held-out KPI series"] = t["best"]["kpi"]
    for x in SENSITIVITIES:
        metrics[f"false alarms per 1,000 normal points at sensitivity {x}"] = v["real alarms"][x]
    for x in SENSITIVITIES:
        metrics[f"% of normal points inside the band at sensitivity {x}"] = 100 * v["real coverage"][x]
    guide = HERE.parents[1] / "docs" / "calibration.md"
    guide.write_text(between_markers(guide.read_text(), "series-gru", sensitivity_table(metrics)))
    manifest = HERE / "manifest.toml"
    head = manifest.read_text().split("[metrics]")[0]
    manifest.write_text(
        head + "[metrics]\n" + "".join(f'"{k}" = {v:{".3f" if k[0] == "%" else ".2f"}}\n' for k, v in metrics.items())
    )


SENSITIVITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Where false alarms and the band's coverage are measured."""

DATA_FILES = ("kpi_aiops/kpi_aiops.npz", "ms_cloud_monitoring/ms_cloud_monitoring.zip", "ett/ETTh1.csv.xz", "ett/ETTh2.csv.xz",
              "ett/ETTm1.csv.xz", "ett/ETTm2.csv.xz", "nab/nab.zip")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in dataclasses.fields(Config):
        parser.add_argument(
            f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default, required=f.name == "data"
        )
    config = Config(**vars(parser.parse_args()))
    checkpoint = Path(config.work) / "checkpoint.pt"
    for name in DATA_FILES:
        print(f"{sha256(Path(config.data) / name)}  {name}")
    if config.stage == "all":
        model = train(config, checkpoint)
    elif checkpoint.exists():
        import torch

        model = Weights.from_checkpoint(torch.load(checkpoint, weights_only=True)["model"])
    else:
        model = Weights.from_graph(PUBLISHED)
    if config.stage == "search":
        search(config, model)
    else:
        publish(config, model, Adaptation())


if __name__ == "__main__":
    main()
