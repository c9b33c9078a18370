"""How good forecasts are on the validation parts, by the measures of the service's own evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from network import LENGTH, LEVELS
from series import Floats

from service.evaluation.forecasting import DECILES, Window, quantile_losses, random_walk, seasonal_naive

COLUMNS = [LEVELS.index(level) for level in DECILES]
Forecast = Callable[[Floats, int], Floats]
"""history (N, L), horizon -> quantiles (N, horizon, Q)."""


def windows(series: Sequence[Floats], origins: Sequence[int], context: int, horizon: int) -> list[Window]:
    """Of each series at each origin."""
    return [
        Window(f"{number}", at, x[max(at - context, 0) : at], x[at : at + horizon])
        for number, x in enumerate(series)
        for at in origins
    ]


def measure(forecast: Forecast, some: Sequence[Window], season: int) -> dict[str, float]:
    """MASE, the weighted quantile loss beside seasonal naive and a random walk, and what the 80 % band holds."""
    horizon = len(some[0].future)
    history = np.full((len(some), LENGTH), np.nan)
    for row, one in zip(history, some, strict=True):
        row[LENGTH - len(one.past) :] = one.past
    quantiles = np.concatenate([forecast(history[at : at + 256], horizon) for at in range(0, len(some), 256)])
    rows = []
    for one, fan in zip(some, quantiles[..., COLUMNS], strict=True):
        naive = seasonal_naive(one.past, season, horizon)
        scale = np.abs(one.past[season:] - one.past[:-season]).mean()
        rows.append([
            np.abs(one.future - fan[:, DECILES.index(0.5)]).mean() / scale,
            np.abs(one.future - naive).mean() / scale,
            quantile_losses(one.future, fan),
            quantile_losses(one.future, naive[:, None].repeat(len(DECILES), 1)),
            quantile_losses(one.future, random_walk(one.past, horizon)),
            ((one.future >= fan[:, 0]) & (one.future <= fan[:, -1])).mean(),
        ])  # fmt: skip
    mase, naive_mase, loss, naive_loss, walk_loss, inside = np.array(rows).mean(0)
    return {
        "MASE": float(mase),
        "naive": float(naive_mase),
        "skill": float(1 - loss / naive_loss),
        "ratio": float(loss / walk_loss),
        "cover": float(inside),
    }
