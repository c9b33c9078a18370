"""Train and export `stocks-gru`: a fan of quantiles for daily prices of shares.

    python models/stocks-gru/train.py --data DIR                # train (resumes), export, check, card
    python models/stocks-gru/train.py --data DIR --stage export # the same from the checkpoint

DIR holds `stocks_sp500/stocks_sp500.npz`: 448 shares of the S&P 500, 2016 to 2021, from
https://github.com/filicasc/professionalstudioB (Yahoo Finance), and `exchange_rate/exchange_rate.txt.gz`, eight exchange
rates from https://github.com/laiguokun/multivariate-time-series-data, of which the first 80 % are learned from.
Needs torch, onnx and onnxruntime. One CPU thread.

Shares are learned from until `--until`; 2021 is the test, looked at once. Variants were compared by training until the end
of 2018 and looking at 2019, and until the middle of 2020 and looking at its second half.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from network import LENGTH, LEVELS, PriceFan
from numpy.typing import NDArray
from torch import Tensor, nn

from service.evaluation.forecasting import DECILES, quantile_losses, random_walk
from training.card import data_table, write_block
from training.data import DataSet
from training.flags import Flags, read_flags
from training.golden import write_golden
from training.loop import Average, Checkpoint, epochs, start

HERE = Path(__file__).resolve().parent
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Every knob; each is a flag."""

    out: Path = HERE
    work: Path = Path("runs/stocks-gru")
    seed: int = 7
    stage: Literal["all", "export"] = "all"
    until: str = "2020-12-31"
    """Last day of the shares that is learned from."""
    watch_until: str = "2020-12-31"
    """Last day of those on which variants are compared, after `until`."""
    hidden: int = 24
    """Units of the GRU."""
    width: int = 48
    """Units of the network that answers a horizon."""
    epochs: int = 10
    """Of `steps` each."""
    steps: int = 150
    """Steps of an epoch."""
    batch: int = 160
    """Windows a step."""
    horizons: int = 12
    """Horizons of a window that are asked about in a step."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2


STOCKS = DataSet(
    "S&P 500 prices",
    "https://github.com/filicasc/professionalstudioB",
    "none stated",
    ("stocks_sp500/stocks_sp500.npz",),
)
EXCHANGE = DataSet(
    "exchange rates",
    "https://github.com/laiguokun/multivariate-time-series-data",
    "none stated",
    ("exchange_rate/exchange_rate.txt.gz",),
)


# -------------------------------------------------------------------------------------------------------------- data


def read_shares(data: Path) -> tuple[Floats, NDArray[np.datetime64]]:
    """Adjusted closing prices (shares, days), and the days."""
    with np.load(STOCKS.folder(data) / "stocks_sp500.npz") as file:
        return file["adj_close"].astype(np.float64), file["date"]


def read_rates(data: Path) -> list[Floats]:
    """The first 80 % of the exchange rates."""
    with gzip.open(EXCHANGE.paths(data)[0], "rt") as file:
        rates = np.loadtxt(file, delimiter=",")
    return list(rates[: int(0.8 * len(rates))].T)


def made_prices(rng: np.random.Generator) -> Floats:
    """Prices whose volatility comes in waves (GARCH), with tails."""
    length, daily = 1500, np.exp(rng.uniform(np.log(0.003), np.log(0.05)))
    news, memory = rng.uniform(0.02, 0.15), rng.uniform(0.8, 0.97)
    memory = min(memory, 0.995 - news)
    degrees = rng.choice([4, 6, 10])
    shocks = rng.standard_t(degrees, length) * math.sqrt((degrees - 2) / degrees)
    variance, returns = 1.0, np.empty(length)
    for day, shock in enumerate(shocks):
        returns[day] = math.sqrt(variance) * shock
        variance = (1 - news - memory) + news * returns[day] ** 2 + memory * variance
    return np.asarray(np.exp(np.cumsum(returns * daily + 0.02 * daily)))


def draw(
    rng: np.random.Generator, shares: Floats, rates: list[Floats], made: list[Floats], windows: int, horizons: int
) -> tuple[Floats, NDArray[np.float32], Floats]:
    """Windows (N, L), horizons (N, T), and the prices then (N, T)."""
    history = np.full((windows, LENGTH), np.nan)
    ahead, values = np.ones((windows, horizons), np.float32), np.empty((windows, horizons))
    for row, source in enumerate(rng.random(windows)):
        if source < 0.8:
            series = shares[rng.integers(len(shares))]
        else:
            series = rates[rng.integers(len(rates))] if source < 0.86 else made[rng.integers(len(made))]
        end = int(rng.integers(1, len(series) - 1))
        length = LENGTH if rng.random() < 0.7 else int(np.exp(rng.uniform(0, np.log(LENGTH))))
        past = series[max(end - length, 0) : end].copy()
        if rng.random() < 0.05:
            past[:-1][rng.random(len(past) - 1) < 0.1] = np.nan
        history[row, LENGTH - len(past) :] = past
        most = min(len(series) - end, 1000)
        near = rng.integers(1, min(most, 30) + 1, horizons)
        far = np.exp(rng.uniform(0, np.log(most + 0.999), horizons)).astype(int)
        chosen = np.where(rng.random(horizons) < 0.7, near, far)
        ahead[row], values[row] = chosen, series[end + chosen - 1]
    return history, ahead, values


# ---------------------------------------------------------------------------------------------------------- measures


def measure(network: PriceFan, shares: Floats, origins: list[int], horizon: int = 10) -> dict[str, float]:
    """Weighted quantile loss over that of a random walk with exponentially weighted volatility; coverage of both."""
    columns = [LEVELS.index(level) for level in DECILES]
    ahead = torch.arange(1, horizon + 1).float().expand(len(shares), horizon)
    rows = []
    for at in origins:
        history = np.full((len(shares), LENGTH), np.nan)
        past = shares[:, max(at - LENGTH, 0) : at]
        history[:, LENGTH - past.shape[1] :] = past
        with torch.no_grad():
            fans = network(torch.from_numpy(history), ahead).numpy()[..., columns]
        for share, fan, truth in zip(past, fans, shares[:, at : at + horizon], strict=True):
            walk = random_walk(share, horizon)
            inside = [((truth >= one[:, 0]) & (truth <= one[:, -1])).mean() for one in (fan, walk)]
            rows.append([quantile_losses(truth, fan), quantile_losses(truth, walk), *inside])
    loss, walk_loss, cover, walk_cover = np.array(rows).mean(0)
    return {"ratio": float(loss / walk_loss), "cover": float(cover), "walk cover": float(walk_cover)}


# ------------------------------------------------------------------------------------------------------------ training


def loss_of(network: PriceFan, history: Tensor, horizon: Tensor, values: Tensor) -> Tensor:
    """Pinball loss of the log return over all levels, in units of its usual size."""
    levels = torch.tensor(LEVELS)
    quantiles, last, usual = network.logarithms(history, horizon)
    wanted = ((torch.log(values) - last).float() / usual).clamp(-12, 12)
    error = wanted[..., None] - quantiles / usual[..., None]
    return torch.maximum(levels * error, (levels - 1) * error).sum(-1).mean()


def train(config: Config) -> PriceFan:
    """Fit the network; returns it with the averaged weights."""
    start(config)
    network = PriceFan(config.hidden, config.width)
    print(f"{sum(p.numel() for p in network.parameters()):,} weights", flush=True)
    average = Average(network, 0.998)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    checkpoint = Checkpoint(config, network=network, optimiser=optimiser, average=average)
    if config.stage == "all":
        shares, days = read_shares(config.data)
        learned = shares[:, days <= np.datetime64(config.until)]
        watched = [
            int(at)
            for at in np.flatnonzero(
                (days > np.datetime64(config.until)) & (days <= np.datetime64(config.watch_until))
            )[:-10:5]
        ]
        rates, rng = read_rates(config.data), np.random.default_rng(config.seed)
        made = [made_prices(rng) for _ in range(300)]
        for epoch in epochs(config.epochs, checkpoint):
            rng = np.random.default_rng([config.seed, epoch.number])
            total = 0.0
            for step in range(config.steps):
                done = (epoch.number + step / config.steps) / config.epochs
                rate = (
                    config.learning_rate * min(1, 0.05 + 20 * done) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
                )
                for group in optimiser.param_groups:
                    group["lr"] = rate
                batch = draw(rng, learned, rates, made, config.batch, config.horizons)
                loss = loss_of(network, *map(torch.from_numpy, batch))
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                average.update()
                total += loss.item()
            epoch.log(loss=total / config.steps)
            if watched and (epoch.number % 2 == 1 or epoch.number == config.epochs - 1):
                average.swap()
                print({key: round(value, 4) for key, value in measure(network, shares, watched).items()}, flush=True)
                average.swap()
    average.swap()
    return network.eval()


# ---------------------------------------------------------------------------------------------------------- the folder


def export(config: Config, network: PriceFan) -> tuple[Path, float]:
    """Write the graph, checked against torch on real prices; its file, and how far the two are apart."""
    from training.export import check_equal, save, torch_to_onnx

    shares, _ = read_shares(config.data)
    history = np.full((12, LENGTH), np.nan)
    for row, length in enumerate([1024, 700, 250, 60, 2, 1] * 2):
        history[row, LENGTH - length :] = shares[row, 1100 - length : 1100]
    history[6:, 500:900:7] = np.nan
    horizon = np.arange(1, 61, dtype=np.float32)[None].repeat(len(history), 0)
    with torch.no_grad():
        expected = network(torch.from_numpy(history), torch.from_numpy(horizon)).numpy()
    inputs = {"history": torch.from_numpy(history), "horizon": torch.from_numpy(horizon)}
    free = {"horizon": {1: "time"}, "quantiles": {1: "time"}}
    model = torch_to_onnx(network, inputs, ["quantiles"], free=free)
    feeds = {"history": history, "horizon": horizon}
    apart = check_equal(model, feeds, {"quantiles": expected}, tolerance=1e-4, relative=True)
    file = config.out / "1" / "model.onnx"
    save(model, file)
    return file, apart


def golden_inputs() -> list[dict[str, object]]:
    """Requests whose answers are checked when the model is loaded: a calm and a lively share, and one price."""
    rng = np.random.default_rng(3)
    calm = [float(v) for v in np.round(50 * np.exp(np.cumsum(rng.normal(0, 0.008, 120))), 2)]
    sizes = np.where(np.arange(90) < 70, 0.01, 0.04)
    lively: list[float | None] = [float(v) for v in np.round(200 * np.exp(np.cumsum(rng.normal(0, sizes))), 2)]
    lively[30] = None
    return [
        {"values": calm, "horizon": 10, "quantiles": [0.1, 0.5, 0.9]},
        {"values": lively, "horizon": 30, "quantiles": [0.005, 0.5, 0.975]},
        {"values": [120.0], "horizon": 5, "quantiles": [0.1, 0.5, 0.9]},
    ]


def main(config: Config) -> None:
    """Train, export, check, and write what the card says of it."""
    network = train(config)
    file, apart = export(config, network)
    write_golden(config.out / "1", golden_inputs(), tolerance=0.05, fields=("horizon", "mean", "quantiles"))
    weights = sum(p.numel() for p in network.parameters())
    lines = [
        f"{weights:,} weights, {file.stat().st_size / 1e6:.2f} MB; the graph and torch differ by {apart:.1g} at most, relative.",
        "",
        *data_table(config.data, STOCKS, EXCHANGE),
    ]
    write_block(config.out / "card.md", "data", lines)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
