"""The series that the detector learns from and is judged on: read from public data sets, cut into pieces, or made up.

References:
    Crane, Sornette, "Robust dynamic classes revealed by measuring the response function of a social system", PNAS 105, 2008
    (attention comes in bursts that fade by a power law, as in the made-up mentions).
"""

from __future__ import annotations

import csv
import io
import lzma
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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


def disturbed(data: Path, split: str, rng: np.random.Generator) -> list[Labelled]:
    """Calm stretches of the split's KPIs and of electricity load and oil temperature (a third of the time each), with incidents."""
    out = []
    for i, series in enumerate(read_kpi(data)):
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
        with lzma.open(data / "ett" / f"{name}.csv.xz", "rt") as file:
            columns = np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.float64)
        third = len(columns) // 3
        for column in columns.T:
            n = int(rng.choice([1500, 3000, 4000]))
            a = ("train", "validation", "test").index(split) * third + int(rng.integers(0, third - n))
            out.append(with_incidents(rng, name, column[a : a + n], period))
    return out


def training_pool(data: Path, seed: int, length: int, made_up: int) -> list[Labelled]:
    """Stretches of the training series at several resolutions, of at most `length` points, and so many that are made up."""
    rng = np.random.default_rng(seed)
    pool: list[Labelled] = []
    sources = [
        s for every in (read_kpi(data), read_microsoft(data)) for i, s in enumerate(every) if split_of(i) == "train"
    ]
    for series in sources:
        kpi = series.name.startswith("kpi/")
        for k in (1, 2, 5, 10, 30, 60) if kpi else (1,):
            coarse = aggregate(series, k)
            n = min(length, len(coarse.values))
            if kpi and n < 1000:
                continue
            for _ in range((8 if k <= 10 else 3) if kpi else 3):
                a = int(rng.integers(0, len(coarse.values) - n + 1))
                pool.append(Labelled(series.name, coarse.values[a : a + n], coarse.anomalous[a : a + n]))
    for _ in range(made_up):
        s = synthetic(rng)
        pool.append(Labelled(s.name, s.values[:length], s.anomalous[:length]))
    return pool


def nab_like_corpus(data: Path, split: str) -> list[Labelled]:
    """Pieces of one split's series that resemble NAB's: 1,000 to 20,000 points, KPIs at 5, 15 and 60 minutes, and incidents about
    as rare as there; and synthetic ones, with random incidents, with recurring jobs, and streams of mentions. A long memory, which hides the second of two incidents, would look worse than it is on denser pieces."""
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
    pieces += [operations(rng) for _ in range(70)] + disturbed(data, split, rng)
    rng = np.random.default_rng({"train": 41, "validation": 42, "test": 43}[split])
    return pieces + [mentions(rng) for _ in range(30)]


def stack(series: list[Labelled]) -> np.ndarray:
    """float64 (N, T), short ones filled with NaN at the end."""
    values = np.full((len(series), max(len(s.values) for s in series)), np.nan)
    for row, s in zip(values, series, strict=True):
        row[: len(s.values)] = s.values
    return values
