"""The network: the last 1,024 daily prices in, quantiles of the price at any horizons out; all of it is in the graph.

1. Prices become log returns. What the graph says of `a * prices` is `a` times what it says of `prices`, and no quantile is
   below 0.
2. *Realised volatility* over 5 to 1,024 days, and exponentially weighted ones. Each horizon has its own mixture of them:
   the near future is as lively as the last days, the far one as the last years.
3. *Memory*: a GRU reads the returns of the last 256 days, four at a time, in units of the volatility.
4. *Quantiles*: a median, and cumulated positive gaps on both sides, which begin as those of a normal distribution and learn
   their own tails. They cannot cross.

A horizon is answered by itself, so a shorter forecast is the beginning of a longer one.

Letters: N series, L days of history, T horizons, V volatilities, Q quantiles, H hidden units.

References:
    Corsi, *A simple approximate long-memory model of realized volatility* (2009): volatilities of several spans.
    Wen, Torkkola, Narayanaswamy, Madeka, *A multi-horizon quantile recurrent forecaster* (2017).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional

LENGTH = 1024
"""Days of history that the graph takes (count)."""
READ = 256
"""Days that the GRU reads (count)."""
PATCH = 4
"""Days of one step of the GRU (count)."""
SPANS = (5, 10, 21, 63, 126, 252, LENGTH)
"""Days over which volatility is measured (count)."""
KEEPS = (0.94, 0.97, 0.985)
"""Of the exponentially weighted volatilities."""
MOMENTA = (1, 5, 21, 63, 252)
"""Days over which the price's own movement is told (count)."""
LEVELS = (
    0.01,
    0.025,
    0.05,
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.35,
    0.4,
    0.5,
    0.6,
    0.65,
    0.7,
    0.75,
    0.8,
    0.85,
    0.9,
    0.95,
    0.975,
    0.99,
)
"""Levels of the quantiles."""
MIDDLE = len(LEVELS) // 2
VOLATILITIES = len(SPANS) + len(KEEPS)
UNSEEN = 0.02
"""Daily volatility of a share of which one price is known."""
LEAST = 1e-6
"""Least daily volatility, for prices that stand still."""


def running_largest(x: Tensor, floor: float) -> Tensor:
    """The largest of all entries up to each, along axis 1: doubling, since ONNX has no such operator."""
    step, length = 1, x.shape[1]
    while step < length:
        before = functional.pad(x[:, : length - step], (step, 0), value=floor)
        x = torch.maximum(x, before)
        step *= 2
    return x


class PriceFan(nn.Module):
    """history (N, L) float64, prices, NaN where missing; horizon (N, T) float32 from 1 on -> quantiles (N, T, Q) float64."""

    places: Tensor
    weights: Tensor

    def __init__(self, hidden: int = 24, width: int = 48) -> None:
        super().__init__()
        self.gru = nn.GRU(3 * PATCH, hidden, batch_first=True)
        self.context = nn.Linear(hidden + VOLATILITIES + len(MOMENTA) + 2, width)
        self.ahead = nn.Linear(2, width, bias=False)
        self.out = nn.Linear(width, VOLATILITIES + 2 + len(LEVELS) - 1)
        normal = [NormalDist().inv_cdf(level) for level in LEVELS]
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()
            gaps = torch.tensor(normal).diff()
            self.out.bias[VOLATILITIES + 2 :] = torch.log(torch.expm1(gaps))
        self.register_buffer("places", torch.arange(LENGTH), persistent=False)
        # (L, V): how much each day counts for each volatility
        ages = torch.arange(LENGTH - 1, -1, -1.0)
        spans = [(ages < span).float() for span in SPANS]
        self.register_buffer("weights", torch.stack([*spans, *(keep**ages for keep in KEEPS)], 1), persistent=False)

    def forward(self, history: Tensor, horizon: Tensor) -> Tensor:
        quantiles, last, _ = self.logarithms(history, horizon)
        return torch.exp(quantiles.double() + last[:, :, None])

    def logarithms(self, history: Tensor, horizon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantiles of the log return until each horizon (N, T, Q), the last log price (N, 1) float64, and how large such a
        return usually is, (N, T), for the loss."""
        seen = ~torch.isnan(history)
        mask = seen.float()
        place = torch.where(seen, self.places, torch.full_like(self.places, -1).expand_as(history))
        first = mask.argmax(1, keepdim=True)
        latest = torch.maximum(running_largest(place, -1), first)
        prices = torch.gather(torch.where(seen, history, torch.ones_like(history)), 1, latest)
        logs = torch.log(prices)
        last = logs[:, -1:]
        path = (logs - last).float()
        # A return over missing days counts as one of the day after them.
        returns = functional.pad(path[:, 1:] - path[:, :-1], (1, 0)).clamp(-1.0, 1.0)
        there = mask * (self.places > first).float()
        count = there.sum(1, keepdim=True)

        days = there @ self.weights  # (N, V)
        squares = (returns * returns * there) @ self.weights
        # A week says little: each volatility leans on the longer ones by some days.
        whole = (squares[:, len(SPANS) - 1 : len(SPANS)] + 4 * UNSEEN**2) / (days[:, len(SPANS) - 1 : len(SPANS)] + 4)
        whole = torch.where(count > 20, squares[:, len(SPANS) - 1 : len(SPANS)] / count.clamp(min=1.0), whole)
        variances = (squares + 2 * whole) / (days + 2)
        volatilities = torch.sqrt(variances).clamp(min=LEAST)
        usual = volatilities[:, len(SPANS) : len(SPANS) + 1]

        read = torch.stack([(returns / usual).clamp(-6, 6) / 2, (returns.abs() / usual).clamp(0, 6) / 2, there], 1)
        patches = read[:, :, -READ:].reshape(-1, 3, READ // PATCH, PATCH).permute(0, 2, 1, 3)
        _, memory = self.gru(patches.reshape(-1, READ // PATCH, 3 * PATCH))

        moved = [torch.tanh(-path[:, -1 - days : LENGTH - days] / (usual * math.sqrt(days)) / 3) for days in MOMENTA]
        summary = torch.cat(
            [torch.log(volatilities / usual), *moved, torch.log(count + 1) / 5, torch.log(usual) / 3 + 1.3], 1
        )
        ahead = horizon.clamp(min=1.0)
        whole_context = self.context(torch.cat([memory[0], summary], 1))
        near = torch.stack([torch.log(ahead) / 3, 1 / ahead], 2)
        out = self.out(torch.tanh(whole_context[:, None] + self.ahead(near)))
        mix = torch.softmax(out[..., :VOLATILITIES], -1)
        logs_mixed = (mix * torch.log(volatilities)[:, None]).sum(-1)
        root = torch.sqrt(ahead)
        width = torch.exp(logs_mixed + torch.tanh(out[..., VOLATILITIES])) * root  # (N, T)
        median = 0.2 * out[..., VOLATILITIES + 1] * width
        gaps = functional.softplus(out[..., VOLATILITIES + 2 :]) * width[..., None]
        up = torch.cumsum(gaps[..., MIDDLE:], -1)
        down = torch.cumsum(gaps[..., :MIDDLE].flip(-1), -1).flip(-1)
        quantiles = torch.cat([median[..., None] - down, median[..., None], median[..., None] + up], -1)
        return quantiles, last, torch.sqrt(whole).clamp(min=LEAST) * root
