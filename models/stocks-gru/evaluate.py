"""448 shares of the S&P 500 in 2021, ten trading days ahead.

    gridloop evaluate stocks-gru --data DIR [--url URL] [--write]

DIR holds `stocks_sp500/stocks_sp500.npz`, made of https://github.com/filicasc/professionalstudioB: arrays `symbol`, `date` and
`adj_close`. Origins are ten days apart, so no day is forecast twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.evaluation import DataMissing
from service.evaluation.forecasting import ForecastingEvaluation, Group, Window

CONTEXT, HORIZON = 1_024, 10
"""Days that are sent, and days that are forecast (count)."""


class Shares(ForecastingEvaluation):
    """Adjusted closing prices."""

    title = "S&P 500, adjusted closing prices of 2021"

    def groups(self) -> Sequence[Group]:
        file = self.data / "stocks_sp500" / "stocks_sp500.npz"
        if not file.exists():
            raise DataMissing(
                self.data, "stocks_sp500/stocks_sp500.npz", "Made of https://github.com/filicasc/professionalstudioB."
            )
        with np.load(file) as found:
            prices, days, names = found["adj_close"].astype(np.float64), found["date"], found["symbol"]
        begin = int(np.searchsorted(days, np.datetime64("2021-01-01")))
        windows = [
            Window(f"{name}", at, series[max(at - CONTEXT, 0) : at], series[at : at + HORIZON])
            for at in range(begin, len(days) - HORIZON + 1, HORIZON)
            for name, series in zip(names, prices, strict=True)
        ]
        return [Group("S&P 500", windows, "random walk", unit="days")]
