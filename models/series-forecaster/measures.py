"""How good forecasts are, by GluonTS's definitions, on the parts that the training must not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from network import LENGTH, LEVELS
from numpy.typing import NDArray
from series import Floats

DECILES = [LEVELS.index(level) for level in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
Forecast = Callable[[Floats, int], Floats]
"""history (N, L), horizon -> quantiles (N, horizon, Q)."""


@dataclass(frozen=True)
class Window:
    """A series up to an origin, and what followed."""

    past: Floats
    future: Floats


def windows(series: Sequence[Floats], origins: Sequence[int], context: int, horizon: int) -> list[Window]:
    """Of each series at each origin."""
    return [Window(x[max(at - context, 0) : at], x[at : at + horizon]) for x in series for at in origins]


def quantile_loss(values: Floats, quantiles: Floats, levels: NDArray[np.float64]) -> float:
    """Weighted quantile loss: the mean over levels of twice the pinball loss, over the sum of |values|."""
    error = values[..., None] - quantiles
    return float(2 * np.maximum(levels * error, (levels - 1) * error).sum() / np.abs(values).sum() / len(levels))


def measure(forecast: Forecast, some: Sequence[Window], season: int) -> dict[str, float]:
    """MASE, weighted quantile losses over seasonal naive and over a random walk with EWMA volatility, and coverage."""
    horizon = len(some[0].future)
    history = np.full((len(some), LENGTH), np.nan)
    for row, one in zip(history, some, strict=True):
        row[LENGTH - len(one.past) :] = one.past
    quantiles = np.concatenate([forecast(history[at : at + 256], horizon) for at in range(0, len(some), 256)])
    values = np.array([one.future for one in some])
    scale = np.array([np.abs(one.past[season:] - one.past[:-season]).mean() for one in some])
    naive = np.array([one.past[-season:][np.arange(horizon) % season] for one in some])
    levels = np.array(LEVELS)[DECILES]
    median = quantiles[..., len(LEVELS) // 2]
    walk = np.array([random_walk(one.past, horizon, levels) for one in some])
    mine = quantile_loss(values, quantiles[..., DECILES], levels)
    low, high = quantiles[..., LEVELS.index(0.1)], quantiles[..., LEVELS.index(0.9)]
    return {
        "MASE": float((np.abs(values - median).mean(1) / scale).mean()),
        "naive": float((np.abs(values - naive).mean(1) / scale).mean()),
        "skill": 1 - mine / quantile_loss(values, naive[..., None].repeat(9, -1), levels),
        "ratio": mine / quantile_loss(values, walk, levels),
        "cover": float(((values >= low) & (values <= high)).mean()),
    }


def random_walk(past: Floats, horizon: int, levels: NDArray[np.float64], keep: float = 0.94) -> Floats:
    """Tomorrow = today, with Gaussian steps of an exponentially weighted volatility; of logarithms where all are positive."""
    from statistics import NormalDist

    steps = np.diff(np.log(past) if (past > 0).all() else past)
    weights = keep ** np.arange(len(steps))[::-1]
    sigma = np.sqrt((weights * steps**2).sum() / weights.sum())
    z = np.array([NormalDist().inv_cdf(level) for level in levels])
    spread = sigma * np.sqrt(np.arange(1, horizon + 1))[:, None] * z
    return np.asarray(past[-1] * np.exp(spread) if (past > 0).all() else past[-1] + spread)
