"""ETTh1's test part and the last fifth of the exchange rates.

    gridloop evaluate series-forecaster --data DIR [--url URL] [--write]

DIR holds `ett/ETTh1.csv.xz` (https://github.com/zhouhaoyi/ETDataset) and `exchange_rate/exchange_rate.txt.gz`
(https://github.com/laiguokun/multivariate-time-series-data).
"""

from __future__ import annotations

import csv
import gzip
import lzma
from collections.abc import Sequence

import numpy as np

from service.evaluation import DataMissing
from service.evaluation.forecasting import ForecastingEvaluation, Group, Window

CONTEXT = 512
"""Points that are sent (count)."""
TEST = (11_520, 14_400)
"""Rows of ETTh1's official test part."""
TRAINING = 8_640
"""Rows of its training part, which standardises."""


class EttAndExchange(ForecastingEvaluation):
    """Both, as often as the origins' distance allows."""

    title = "ETTh1 (official test part) and exchange_rate (last 20 %)"

    def groups(self) -> Sequence[Group]:
        try:
            with lzma.open(self.data / "ett/ETTh1.csv.xz", "rt") as file:
                header, *lines = csv.reader(file)
            with gzip.open(self.data / "exchange_rate/exchange_rate.txt.gz", "rt") as file:
                rates = np.loadtxt(file, delimiter=",")
        except FileNotFoundError:
            raise DataMissing(
                self.data,
                "ett/ETTh1.csv.xz and exchange_rate/exchange_rate.txt.gz",
                "They come from https://github.com/zhouhaoyi/ETDataset and "
                "https://github.com/laiguokun/multivariate-time-series-data.",
            ) from None
        ett = np.array([[float(value) for value in line[1:]] for line in lines])
        names, oil = header[1:], ett[:, header[1:].index("OT")]
        begin, end = TEST
        day = windows(names, ett, range(begin, end - 24 + 1, 48), 24)
        four = windows(["OT"], oil[:, None], range(begin, end - 96 + 1, 24), 96)
        standard = (float(oil[:TRAINING].mean()), float(oil[:TRAINING].std()))
        days = windows(
            [f"rate {k + 1}" for k in range(rates.shape[1])],
            rates,
            range(int(0.8 * len(rates)), len(rates) - 29, 30),
            30,
        )
        return [
            Group("ETTh1", day, "seasonal naive", 24, unit="h"),
            Group("ETTh1 OT", four, "seasonal naive", 24, standard, unit="h"),
            Group("exchange_rate", days, "random walk", unit="days"),
        ]


def windows(names: Sequence[str], series: np.ndarray, origins: range, horizon: int) -> list[Window]:
    """Of each column (rows, series) at each origin."""
    return [
        Window(name, at, series[at - CONTEXT : at, column], series[at : at + horizon, column])
        for at in origins
        for column, name in enumerate(names)
    ]
