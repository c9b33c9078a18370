"""The network: the last 1,024 raw values in, quantiles at any horizons out; everything between is in the exported graph.

1. *Scaling*: the last value is taken off in float64 and the rest is divided by its largest size, so that an answer to
   `a * x + b` is `a` times the answer to `x`, plus `b`.
2. *Seasons*: the two clearest peaks of the autocorrelation of the values and of their steps, by a Fourier transform in
   which missing points count for nothing.
3. *Memory*: a GRU reads the last 512 points in patches of 8: value, step, value one season ago, missing or not.
4. *Candidates*: what is known ahead for every horizon, such as the value one season ago, the mean of several seasons,
   the last level, a drift. The median is a mixture of them; its weights come from the memory and from the candidates
   themselves. So a pattern is continued at its own height, at whatever horizon.
5. *Quantiles*: the median, and cumulated positive gaps on both sides of it: they cannot cross. A gap's unit is a mixture
   of the series' own scales: its steps, its seasonal differences, its spread.

A horizon is answered by itself, by a network without memory of its own: a shorter forecast is the beginning of a longer one.

Letters: N series, L points of history, T horizons, C candidates, S scales, Q quantiles, H hidden units.

References:
    Wen, Torkkola, Narayanaswamy, Madeka, *A multi-horizon quantile recurrent forecaster* (2017): direct horizons, pinball loss.
    Gasthaus and others, *Probabilistic forecasting with spline quantile function RNNs* (2019): quantiles that cannot cross.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LENGTH = 1024
"""Points of history that the graph takes (count)."""
READ = 512
"""Points that the GRU reads (count)."""
PATCH = 8
"""Points of one step of the GRU (count)."""
LONGEST = LENGTH // 2
"""Longest season (points)."""
SEASONS = 8
"""Seasons that are averaged (count)."""
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
CANDIDATES = 16
SCALES = 8
SUMMARY = 21
"""Numbers that say what kind of series it is (count)."""
TINY = 1e-6


class Autocovariance(torch.autograd.Function):
    """Sums of x[t] * x[t + k] for lags k = 0..L/2, by Fourier transforms; in the graph, two nodes `DFT`."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        length = x.shape[1]
        spectrum = torch.fft.fft(x, 2 * length)
        return torch.fft.ifft(spectrum * spectrum.conj()).real[:, : length // 2 + 1].contiguous()

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        def ints(*values: int) -> Any:
            return g.op("Constant", value_t=torch.tensor(values, dtype=torch.int64))

        length = LENGTH
        columns = g.op("Unsqueeze", x, ints(2))
        count = g.op("Constant", value_t=torch.tensor(2 * length, dtype=torch.int64))
        spectrum = g.op("DFT", columns, count, axis_i=1)
        power = g.op("ReduceSumSquare", spectrum, ints(2), keepdims_i=1)
        # the spectrum is even, so that the transform and its inverse differ by a factor only
        back = g.op("DFT", power, count, axis_i=1, inverse_i=1)
        real = g.op("Slice", back, ints(0, 0), ints(length // 2 + 1, 1), ints(1, 2))
        return g.op("Squeeze", real, ints(2))


def asinh(x: Tensor) -> Tensor:
    """A logarithm for numbers of both signs, which is nearly x itself near 0."""
    return torch.sign(x) * torch.log(x.abs() + torch.sqrt(x * x + 1))


def running_largest(x: Tensor, floor: float) -> Tensor:
    """The largest of all entries up to each, along axis 1: doubling, since ONNX has no such operator."""
    step, length = 1, x.shape[1]
    while step < length:
        before = functional.pad(x[:, : length - step], (step, 0), value=floor)
        x = torch.maximum(x, before)
        step *= 2
    return x


def mean_where(x: Tensor, mask: Tensor) -> Tensor:
    """The mean along the last axis of what the mask has, (N, 1)."""
    return (x * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)


class Forecaster(nn.Module):
    """history (N, L) float64, NaN where missing; horizon (N, T) float32 from 1 on -> quantiles (N, T, Q) float64."""

    places: Tensor

    def __init__(self, hidden: int = 64, width: int = 96) -> None:
        super().__init__()
        self.gru = nn.GRU(4 * PATCH, hidden, batch_first=True)
        self.context = nn.Linear(hidden + SUMMARY, width)
        self.ahead = nn.Linear(CANDIDATES + 6, width, bias=False)
        self.deep = nn.Linear(width, width)
        self.out = nn.Linear(width, CANDIDATES + 1 + SCALES + len(LEVELS) - 1)
        with torch.no_grad():
            self.out.weight.mul_(0.3)
            self.out.bias.zero_()
        self.register_buffer("places", torch.arange(LENGTH), persistent=False)

    def forward(self, history: Tensor, horizon: Tensor) -> Tensor:
        quantiles, last, unit, _ = self.scaled(history, horizon)
        return quantiles.double() * unit[:, :, None] + last[:, :, None]

    def scaled(self, history: Tensor, horizon: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantiles (N, T, Q) in units above the last value; both (N, 1) float64; and how large an error of a horizon is
        by the series' own measure, (N, T) in units, for the loss."""
        seen = ~torch.isnan(history)
        mask = seen.float()
        place = torch.where(seen, self.places, torch.full_like(self.places, -1).expand_as(history))
        first = seen.float().argmax(1, keepdim=True)
        latest = torch.maximum(running_largest(place, -1), first)
        raw = torch.gather(torch.where(seen, history, torch.zeros_like(history)), 1, latest)
        last = raw[:, -1:]
        raw = raw - last
        size = raw.abs().amax(1, keepdim=True)
        count = mask.sum(1, keepdim=True)
        # A series that never moved has no scale but its own size, which counts for less the longer it has stood still.
        still = torch.where(last == 0, torch.ones_like(last), last.abs()) * 0.1 / count
        unit = torch.where(size > 0, size, still)
        z = (raw / unit).float()

        began = (self.places >= first).float()
        age = LENGTH - first.float()
        steps = functional.pad(z[:, 1:] - z[:, :-1], (1, 0)) * began
        both = mask * functional.pad(mask[:, :-1], (1, 0))
        mean = mean_where(z, mask)
        spread = mean_where((z - mean).abs(), mask)
        spread = torch.where(size > 0, spread.double(), torch.ones_like(unit)).float().clamp(min=TINY)
        step = mean_where(steps.abs(), both).clamp(min=TINY)
        step = torch.where(count > 1, step, spread)
        step_now = self._recent(steps.abs() * both, both, step, 16).clamp(min=TINY)
        step_lately = self._recent(steps.abs() * both, both, step, 64).clamp(min=TINY)

        lag, second, clear, clear_second = self._seasons(z, steps, mask, both, mean, spread, step, age)
        back = self._ago(z, lag, first)
        known = (self.places >= first + lag).float() * mask
        seasonal = self._or(mean_where((z - back).abs(), known), known.sum(1, keepdim=True), step).clamp(min=TINY)
        seasonal_now = self._recent((z - back).abs() * known, known, seasonal, 64).clamp(min=TINY)

        # --- memory
        scale = spread
        read = torch.stack([asinh(z / scale), (steps / step).clamp(-8, 8) / 3, asinh(back / scale), mask], 1)[
            :, :, -READ:
        ]  # (N, 4, READ)
        patches = read.reshape(-1, 4, READ // PATCH, PATCH).permute(0, 2, 1, 3).reshape(-1, READ // PATCH, 4 * PATCH)
        _, memory = self.gru(patches)

        # --- what is known ahead
        ahead = horizon.clamp(min=1.0)
        seasons_on = torch.ceil(ahead / lag)
        phase = (ahead - 1 - (seasons_on - 1) * lag).long()  # 0 .. lag - 1
        start = LENGTH - lag + phase  # (N, T), where the last season has this phase
        one = torch.gather(z, 1, start)
        few, many = self._mean_seasons(z, mask, start, lag, first)
        few_now, many_now = self._mean_seasons(z, mask, torch.full_like(lag, LENGTH - 1), lag, first)
        back_now = torch.gather(z, 1, (LENGTH - 1 - lag).clamp(min=0))
        on_second = torch.ceil(ahead / second)
        start_second = LENGTH - second + (ahead - 1 - (on_second - 1) * second).long()
        long = torch.gather(z, 1, start_second)
        long_now = torch.gather(z, 1, (LENGTH - 1 - second).clamp(min=0))
        inside = (self.places >= LENGTH - lag).float() * mask
        before = (self.places >= LENGTH - 2 * lag).float() * (self.places < LENGTH - lag).float() * mask
        level = self._or(mean_where(z, inside), inside.sum(1, keepdim=True), torch.zeros_like(mean))
        level_before = self._or(mean_where(z, before), before.sum(1, keepdim=True), level)
        drift = (level - level_before).clamp(-4 * spread, 4 * spread)
        windows = [self._window_mean(z, mask, width) for width in (4, 16, 64, 256)]
        gone = torch.gather(z, 1, torch.maximum(first, LENGTH - 1 - 4 * torch.ones_like(first)))
        slope = (windows[1] - self._window_mean(z, mask, 32)) / 8.0
        flat = torch.zeros_like(one)
        candidates = torch.stack(
            [
                flat,
                one,
                few,
                many,
                one - back_now,
                few - few_now,
                many - many_now,
                long,
                long - long_now,
                flat + windows[0],
                flat + windows[1],
                flat + windows[2],
                flat + windows[3],
                flat + level,
                one + drift * seasons_on,
                flat + (slope * ahead).clamp(-4.0, 4.0),
            ],
            2,
        )  # (N, T, C)
        root = torch.sqrt(ahead)
        scales = torch.stack(
            [
                flat + step,
                step * root,
                flat + seasonal,
                flat + seasonal_now,
                flat + spread,
                step_now * root,
                flat + step_lately,
                step_lately * root,
            ],
            2,
        )  # (N, T, S)

        # --- the mixture
        def log(x: Tensor) -> Tensor:
            return torch.log(x / scale) / 3

        summary = torch.cat(
            [
                log(step), log(step_now), log(step_lately), log(seasonal), log(seasonal_now), clear, clear_second,
                torch.log(lag.float()) / 5, torch.log(second.float()) / 5, torch.log(age) / 5, torch.log(count) / 5,
                torch.log(age / lag) / 4, asinh(mean / scale), asinh(level / scale), asinh(drift / scale),
                asinh(slope * 8 / scale), asinh(windows[0] / scale), asinh(windows[2] / scale),
                asinh(gone / scale), (steps[:, -1:] / step).clamp(-8, 8) / 3, mask[:, -1:],
            ],
            1,
        )  # fmt: skip
        phase_share = phase.float() / lag
        known_ahead = torch.cat(
            [
                asinh(candidates / scale[:, :, None]),
                torch.stack(
                    [
                        torch.log(ahead) / 5,
                        phase_share,
                        torch.log(seasons_on) / 4,
                        torch.log(on_second) / 4,
                        torch.log(ahead / age) / 5,
                        1 / ahead,
                    ],
                    2,
                ),
            ],
            2,
        )
        whole = self.context(torch.cat([memory[0], summary], 1))  # (N, width)
        x = functional.silu(whole[:, None] + self.ahead(known_ahead))
        x = x + functional.silu(self.deep(x))
        out = self.out(x)
        weights = torch.softmax(out[..., :CANDIDATES], -1)
        mix = torch.softmax(out[..., CANDIDATES + 1 : CANDIDATES + 1 + SCALES], -1)
        width = torch.exp((mix * torch.log(scales)).sum(-1))  # (N, T)
        median = (weights * candidates).sum(-1) + 0.3 * out[..., CANDIDATES] * width
        gaps = 0.35 * functional.softplus(out[..., CANDIDATES + 1 + SCALES :]) * width[..., None]
        up = torch.cumsum(gaps[..., MIDDLE:], -1)
        down = torch.cumsum(gaps[..., :MIDDLE].flip(-1), -1).flip(-1)
        quantiles = torch.cat([median[..., None] - down, median[..., None], median[..., None] + up], -1)
        return quantiles, last, unit, torch.minimum(flat + seasonal, step * root) + 0.05 * spread

    def _or(self, value: Tensor, count: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(count > 0, value, otherwise)

    def _recent(self, x: Tensor, mask: Tensor, otherwise: Tensor, width: int) -> Tensor:
        """The mean of what there is among the last `width` points."""
        some = mask[:, -width:]
        return self._or(mean_where(x[:, -width:], some), some.sum(1, keepdim=True), otherwise)

    def _window_mean(self, z: Tensor, mask: Tensor, width: int) -> Tensor:
        some = mask[:, -width:]
        return self._or(mean_where(z[:, -width:], some), some.sum(1, keepdim=True), torch.zeros_like(some[:, :1]))

    def _ago(self, z: Tensor, lag: Tensor, first: Tensor) -> Tensor:
        """The value one season before each point; of the first season, the point itself."""
        there = self.places - lag
        return torch.gather(z, 1, torch.where(there >= first, there, self.places.expand_as(there)))

    def _mean_seasons(
        self, z: Tensor, mask: Tensor, start: Tensor, lag: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means of the last three seasons, and of eight, at the phase of the places `start` (N, T)."""
        sums = total = three = three_total = torch.zeros_like(start, dtype=torch.float32)
        for back in range(SEASONS):
            place = start - back * lag
            there = (place >= first).float()
            place = place.clamp(min=0)
            weight = there * torch.gather(mask, 1, place)
            sums, total = sums + weight * torch.gather(z, 1, place), total + weight
            if back == 2:
                three, three_total = sums, total
        one = torch.gather(z, 1, start)
        few = torch.where(three_total > 0, three / three_total.clamp(min=1.0), one)
        return few, torch.where(total > 0, sums / total.clamp(min=1.0), few)

    def _seasons(
        self,
        z: Tensor,
        steps: Tensor,
        mask: Tensor,
        both: Tensor,
        mean: Tensor,
        spread: Tensor,
        step: Tensor,
        age: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The lags of two seasons, int64 (N, 1), and how clear they are, 0 (none: a lag of 1) to about 1.5."""
        t = (self.places - LENGTH + 1).float() / LENGTH
        centre = mean_where(t.expand_as(z), mask)
        offset = (t - centre) * mask
        slope = (offset * z).sum(1, keepdim=True) / (offset * offset).sum(1, keepdim=True).clamp(min=TINY)
        level = ((z - mean - slope * (t - centre)) / spread).clamp(-4.0, 4.0) * mask
        change = (steps / step).clamp(-5.0, 5.0) * both
        curve = 0.5 * (self._correlation(level, mask) + self._correlation(change, both))  # (N, LONGEST + 1)
        lowest = -running_largest(-curve, -10.0)
        lags = self.places[: LONGEST + 1]
        rise = functional.pad(curve[:, 1:] >= curve[:, :-1], (1, 0), value=False)
        fall = functional.pad(curve[:, :-1] >= curve[:, 1:], (0, 1), value=True)
        possible = rise & fall & (lags >= 2) & (lags.float() * 2 <= age)
        score = torch.where(possible & (curve > 0.05), curve - lowest, torch.zeros_like(curve))
        best = score.amax(1, keepdim=True)
        lag = (score >= 0.8 * best).float().argmax(1, keepdim=True)
        clear = torch.gather(score, 1, lag)
        there = (clear > 0.15) & (best > 0)
        lag = torch.where(there, lag, torch.ones_like(lag))
        others = torch.where(lags.float() >= 1.5 * lag.float(), score, torch.zeros_like(score))
        best_other, second = others.max(1, keepdim=True)
        has_second = there & (best_other > 0.15)
        second = torch.where(has_second, second, lag)
        nothing = torch.zeros_like(clear)
        return lag, second, torch.where(there, clear, nothing), torch.where(has_second, best_other, nothing)

    def _correlation(self, x: Tensor, mask: Tensor) -> Tensor:
        """Correlation of x with itself so many points before, where both are there; shrunk where few pairs are."""
        sums = Autocovariance.apply(x)
        pairs = Autocovariance.apply(mask)
        variance = (sums[:, :1] / pairs[:, :1].clamp(min=1.0)).clamp(min=TINY)
        return sums / (pairs.clamp(min=0.0) + 4.0) / variance
