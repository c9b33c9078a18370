"""Forecasting: how far forecasts are from what came, beside the plainest ones, and how much their bands hold.

Without an `evaluate.py`, series are read from `DIR/*.csv`, a column `value` each, and the last fifth of each is
forecast 24 points at a time, beside a random walk.

References:
    GluonTS (Alexandrov and others, JMLR 21, 2020), `evaluation.metrics`: MASE, with the seasonal error of the context;
    weighted quantile loss, the mean over deciles.
    Hyndman, Koehler, "Another look at measures of forecast accuracy" (2006).
    RiskMetrics technical document (1996): exponentially weighted volatility, 0.94 for days.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from service.evaluation.base import (
    Answer,
    Ask,
    Breakdown,
    Conversation,
    DataMissing,
    Evaluation,
    Figure,
    Item,
    Outcome,
    Plot,
    Question,
    spread_evenly,
)
from service.evaluation.statistics import Floats, bootstrap_sums, ratio
from service.tables import read_table

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Quantiles that are asked for."""

VOLATILITY_KEEP = 0.94
"""What a day keeps of the weight of the day before it, in a random walk's volatility."""

DRAWN = 3
"""Forecasts of each group that are drawn (count)."""

HORIZON, CONTEXT = 24, 512
"""Of a series in a file (points)."""


# ------------------------------------------------------------------------------------------------------------ measures


def quantile_losses(values: Floats, quantiles: Floats, levels: Sequence[float] = DECILES) -> float:
    """Twice the pinball loss of all points, the mean over levels; over the sum of |values|, it is the weighted loss.

    Args:
        values: float64 (time,), what came.
        quantiles: float64 (time, levels).
        levels: of the quantiles.
    """
    error, level = values[:, None] - quantiles, np.asarray(levels)
    return float(2 * np.maximum(level * error, (level - 1) * error).sum() / len(level))


def seasonal_naive(past: Floats, season: int, horizon: int) -> Floats:
    """The last season again and again, float64 (horizon,)."""
    return past[-season:][np.arange(horizon) % season]


def random_walk(past: Floats, horizon: int, levels: Sequence[float] = DECILES) -> Floats:
    """Tomorrow is as today, give or take normal steps of an exponentially weighted volatility, (horizon, levels).

    Steps are those of logarithms where all values are above 0.
    """
    is_price = bool((past > 0).all())
    steps = np.diff(np.log(past) if is_price else past)
    weights = VOLATILITY_KEEP ** np.arange(len(steps))[::-1]
    sigma = np.sqrt((weights * steps**2).sum() / weights.sum())
    scores = np.array([NormalDist().inv_cdf(level) for level in levels])
    spread = sigma * np.sqrt(np.arange(1, horizon + 1))[:, None] * scores
    return np.asarray(past[-1] * np.exp(spread) if is_price else past[-1] + spread)


# -------------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True, slots=True)
class Window:
    """A series up to an origin, and what followed.

    Attributes:
        series: its name.
        origin: number of the first point that is forecast; windows of one origin are no independent tests.
        past: float64 (context,), what is sent.
        future: float64 (horizon,).
    """

    series: str
    origin: int
    past: Floats
    future: Floats


@dataclass(frozen=True, slots=True)
class Group:
    """Windows that share a figure.

    Attributes:
        name: as figures begin, such as "ETTh1".
        windows: all of one horizon.
        baseline: what the quantile loss is compared with.
        season: of the seasonal naive forecast, and of the error that MASE divides by (points).
        standard: mean and deviation by which squared and absolute errors are standardised; none: they are not told.
        unit: of a step, as in "24 h ahead".
    """

    name: str
    windows: Sequence[Window]
    baseline: Literal["seasonal naive", "random walk"]
    season: int = 1
    standard: tuple[float, float] | None = None
    unit: str = "points"

    @property
    def title(self) -> str:
        """Name and horizon."""
        return f"{self.name}, {len(self.windows[0].future)} {self.unit}"


@dataclass(frozen=True, slots=True)
class Forecasted:
    """What came of a window.

    Attributes:
        group: number of its group.
        window: itself.
        quantiles: float64 (time, deciles).
        mean: float64 (time,).
    """

    group: int
    window: Window
    quantiles: Floats
    mean: Floats


class ForecastingEvaluation(Evaluation):
    """Windows of series, each asked about once. A model's own evaluation overrides `groups`."""

    title = "The last fifth of each series"
    item = "forecast"

    def groups(self) -> Sequence[Group]:
        """All of them.

        Raises:
            DataMissing: there are no data.
        """
        windows = []
        for path in sorted(self.data.glob("*.csv")):
            table = read_table(path)
            if (column := table.column("value")) is not None:
                windows += of_series(path.stem, np.array(table.numbers(column), np.float64))
        if not windows:
            raise DataMissing(
                self.data,
                "series (DIR/*.csv with a column value)",
                "Write each series to a CSV file: a first line `value`, a line for each point.",
            )
        return [Group("series", windows, "random walk")]

    def items(self) -> Sequence[Item]:
        self._groups = self.groups()
        return [
            Item(f"{window.series} at {window.origin}", partial(self._ask, number, window))
            for number, group in enumerate(self._groups)
            for window in self.few(group.windows)
        ]

    @staticmethod
    def _ask(group: int, window: Window) -> Generator[Question, Answer, Forecasted]:
        values = [None if np.isnan(value) else value for value in window.past.tolist()]
        answer = yield Ask({"values": values, "horizon": len(window.future), "quantiles": list(DECILES)})
        quantiles = np.array([answer["quantiles"][repr(level)] for level in DECILES], np.float64).T
        return Forecasted(group, window, quantiles, np.array(answer["mean"], np.float64))

    def timed(self) -> Conversation:
        return self._ask(0, self.groups()[0].windows[0])

    def outcome(self, records: Sequence[Forecasted]) -> Outcome:
        figures: list[Figure] = []
        plots: list[Plot] = []
        rows = []
        for number, group in enumerate(self._groups):
            some = [record for record in records if record.group == number]
            if not some:
                continue
            figures += self._figures(group, some)
            shares = np.mean([record.window.future[:, None] < record.quantiles for record in some], axis=(0, 1))
            rows.append([group.title, *(f"{share:.1%}".replace("%", " %") for share in shares)])
            plots += [
                Plot(
                    f"{re.sub(r'[^a-z0-9]+', '_', group.name.lower())}_{place + 1}.png",
                    f"{group.title}: {one.window.series}, what came (black) and what was forecast: median, and the "
                    "middle 80 and 40 %.",
                    draw_fan,
                    {"past": one.window.past, "future": one.window.future, "quantiles": one.quantiles},
                )
                for place, one in enumerate(spread_evenly(some, DRAWN if len(self._groups) == 1 else 1))
            ]
        table = Breakdown("Share of points below each decile", ["windows", *(f"{d:.0%}" for d in DECILES)], rows)
        return Outcome(figures, [table], plots, self.notes())

    def notes(self) -> list[str]:
        """What is counted, and how."""
        return [
            "MASE and the weighted quantile loss (mean over deciles) by GluonTS's definitions. Intervals: bootstrap "
            "over origins, since series that are forecast at one time err together.",
            f"The random walk's volatility is exponentially weighted ({VOLATILITY_KEEP:g}), its steps are normal.",
        ]

    def _figures(self, group: Group, some: Sequence[Forecasted]) -> list[Figure]:
        sums = _sums(group, some)  # (origins, 8)
        windows, n = len(some), int(sums[:, 7].sum())
        seasonal = group.baseline == "seasonal naive"
        figures = []
        if seasonal:
            figures.append(_figure(f"{group.title}: MASE", sums[:, [0, 6]], ratio, windows, "windows", ".3f"))
            name = f"{group.title}: skill in weighted quantile loss over seasonal naive"
            figures.append(_figure(name, sums[:, [1, 2]], _skill, windows, "windows", ".3f"))
        else:
            name = f"{group.title}: weighted quantile loss over a random walk's"
            figures.append(_figure(name, sums[:, [1, 2]], ratio, windows, "windows", ".3f"))
        figures.append(_figure(f"{group.title}: 80 % band holds", sums[:, [3, 7]], ratio, n, "points", ".1%"))
        if group.standard:
            figures.append(_figure(f"{group.title}: MSE, standardised", sums[:, [4, 7]], ratio, n, "points", ".4f"))
            figures.append(_figure(f"{group.title}: MAE, standardised", sums[:, [5, 7]], ratio, n, "points", ".4f"))
        return figures


def of_series(name: str, values: Floats) -> list[Window]:
    """Windows of the last fifth of a series, which do not overlap."""
    begin = max(int(0.8 * len(values)), 2)
    return [
        Window(name, at, values[max(at - CONTEXT, 0) : at], values[at : at + HORIZON])
        for at in range(begin, len(values) - HORIZON + 1, HORIZON)
    ]


def _sums(group: Group, some: Sequence[Forecasted]) -> Floats:
    """What each origin adds, float64 (origins, 8).

    Scaled error, loss, the baseline's loss, points inside the band, squared and absolute error, windows, points.
    """
    found: dict[int, Floats] = {}
    _, deviation = group.standard or (0.0, 1.0)
    for record in some:
        past, future = record.window.past, record.window.future
        median = record.quantiles[:, DECILES.index(0.5)]
        horizon = len(future)
        scale = np.nanmean(np.abs(past[group.season :] - past[: -group.season]))
        if group.baseline == "seasonal naive":
            plain = np.repeat(seasonal_naive(past, group.season, horizon)[:, None], len(DECILES), 1)
        else:
            plain = random_walk(past[~np.isnan(past)], horizon)
        inside = (future >= record.quantiles[:, 0]) & (future <= record.quantiles[:, -1])
        row = np.array(
            [
                np.abs(future - median).mean() / scale,
                quantile_losses(future, record.quantiles),
                quantile_losses(future, plain),
                inside.sum(),
                (((future - record.mean) / deviation) ** 2).sum(),
                np.abs((future - median) / deviation).sum(),
                1,
                horizon,
            ],
            np.float64,
        )
        found[record.window.origin] = found.get(record.window.origin, 0) + row
    return np.array(list(found.values()))


def _skill(sums: Floats) -> Floats:
    return np.asarray(1 - sums[..., 0] / sums[..., 1])


def _figure(name: str, sums: Floats, measure: Callable[[Floats], Floats], n: int, of: str, form: str) -> Figure:
    low, high = bootstrap_sums(sums, measure) or (None, None)
    return Figure(name, float(measure(sums.sum(axis=0))), n, of, low, high, form)


def draw_fan(figure: Any, past: Floats, future: Floats, quantiles: Floats) -> None:
    """A forecast as a fan over what came.

    Args:
        figure: of matplotlib.
        past: float64 (context,).
        future: float64 (time,).
        quantiles: float64 (time, deciles).
    """
    axes = figure.subplots()
    behind = min(len(past), 4 * len(future))
    ahead = np.arange(len(future))
    for outer, shade in ((0, 0.25), (2, 0.35)):
        low, high = quantiles[:, outer], quantiles[:, -1 - outer]
        axes.fill_between(ahead, low, high, color="tab:blue", alpha=shade, linewidth=0)
    axes.plot(ahead, quantiles[:, DECILES.index(0.5)], color="tab:blue")
    axes.plot(np.arange(-behind, len(future)), [*past[-behind:], *future], color="black", linewidth=1)
    axes.set_xlabel("points from the origin on")
