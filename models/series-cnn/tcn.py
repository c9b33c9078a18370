"""The detector in NumPy and its network in torch: everything at a point is computed from the last PAST points, and from nothing else.

How it works. Sliding means and scales of the last 4 to 256 points describe a series free of its unit and offset. A stack of
causal, dilated convolutions reads them and answers with a mix of those means as the forecast of the next point, and with
how far off a normal one may be. The error by that yardstick is a *surprise*; a point is anomalous where its surprise exceeds
a bar: the usual surprise of the last BARS points, and the largest of them, which sinks the longer ago it was.

No number is carried from point to point as a recurrent network carries its hidden units: a stream's state is its last PAST
values and its last BARS surprises. A missing point repeats the one before.

Letters: N series, T points, F features, C channels.

References:
    Bai, Kolter, Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling"
        (2018), arXiv:1803.01271: the TCN.
    van den Oord et al., "WaveNet" (2016), arXiv:1609.03499: causal dilated convolutions.
    Koenker, Bassett, "Regression quantiles", Econometrica 46, 1978 (the pinball loss of the error quantiles).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MEANS = (4, 16, 64, 256)
"""Lengths of the sliding means that the forecast mixes, beside the last value (points)."""
LONGEST = 256
DILATIONS = (1, 2, 4, 8, 16, 32, 64, 128)
KERNEL = 3
REACH = (KERNEL - 1) * sum(DILATIONS)
"""Steps that the convolutions look back from the last one (points)."""
PAST = 784
"""Points that a forecast depends on: REACH, LONGEST, MEANS[1] and one more, rounded up."""
BARS = 512
"""Surprises that the bar depends on (points)."""
FEATURES = 13
QUANTILES = (0.9, 0.99, 0.999)
OUTPUTS = 1 + len(MEANS) + 1 + 1 + len(QUANTILES)
"""What the head answers for a point: weights of the levels, an offset, the error's scale and its quantiles."""
HUGE = BLIND = 1e300
"""Values are clipped here; so wide is the band where nothing can be said yet."""
TINY = 1e-37
"""Smallest unit. ONNX Runtime 1.31 takes double constants for one that are equal as float32: 1e-280 would become 0."""
QUIET = 32
"""A stream whose values were all the same so far has no scale: only after this many of them is a change an alarm (points)."""
SHIFT = 14.0
"""Added to a surprise that is kept, which is at least log(1e-6): so 0 stands for none."""


@dataclass(frozen=True)
class Bar:
    """The constants of the bar, found by the NAB-like score of the validation pieces: all logarithms."""

    floor: float = 0.5
    over_usual: float = 2.0
    over_peak: float = 0.3
    sinking: float = 0.003
    """How much the largest surprise counts less for each point since."""
    youth: float = 2.0
    youth_age: float = 10.0


def box(v: np.ndarray, length: int) -> np.ndarray:
    """Sum over the last `length` points, a power of two, by doubling: (N, T)."""
    width = 1
    while width < length:
        v = v + later(v, width)
        width *= 2
    return v


def later(v: np.ndarray, points: int, first: float = 0.0) -> np.ndarray:
    """Shift (N, T) by so many points; what comes in is `first`."""
    count = min(points, v.shape[1])
    return np.concatenate([np.full((len(v), count), first), v[:, : v.shape[1] - count]], 1)


def filled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, T) with each missing point as the one before, and whether there is one; float64 and bool."""
    valid = ~np.isnan(values)
    at = np.maximum.accumulate(np.where(valid, np.arange(values.shape[1]), -1), 1)
    x = np.take_along_axis(np.clip(np.where(valid, values, 0.0), -HUGE, HUGE), np.maximum(at, 0), 1)
    return np.where(at >= 0, x, 0.0), at >= 0


def sliding(x: np.ndarray, there: np.ndarray) -> dict[str, np.ndarray]:
    """Means and scales of the last points, this one included.

    Args:
        x: float64 (N, T).
        there: bool (N, T), which of them are points of the stream at all.
    """
    m = there.astype(np.float64)
    pair = m * later(m, 1)
    delta = pair * (x - later(x, 1))
    s: dict[str, np.ndarray] = {"x": x, "delta": delta}
    counts = {length: np.maximum(box(m, length), 1.0) for length in MEANS}
    pairs = {length: np.maximum(box(pair, length), 1.0) for length in (16, LONGEST)}
    for length in MEANS:
        s[f"M{length}"] = box(m * x, length) / counts[length]
    for length in (16, LONGEST):
        s[f"D{length}"] = box(np.abs(delta), length) / pairs[length]
        s[f"H{length}"] = (box(np.sqrt(np.abs(delta)), length) / pairs[length]) ** 2
    s["S256"] = box(m * np.abs(x - s["M16"]), LONGEST) / counts[LONGEST]
    s["step"] = s["H256"] + 0.2 * s["D256"] + 0.02 * s["S256"]
    s["rounding"] = 1e-15 * np.abs(x) + TINY
    s["unit"] = s["step"] + s["rounding"]
    s["wide"] = s["S256"] + s["unit"]
    return s


def features(s: dict[str, np.ndarray], there: np.ndarray, age: np.ndarray) -> np.ndarray:
    """float32 (N, T, FEATURES): free of the series' unit and offset, 0 where there is no point. `age`: points so far."""

    def signed(v: np.ndarray) -> np.ndarray:
        return np.arcsinh(np.clip(v, -1e6, 1e6)) / 3

    def ratio(v: np.ndarray) -> np.ndarray:
        return np.log(np.clip(v / s["unit"], 1e-4, 1e4)) / 3

    columns = [signed((s["x"] - s[f"M{length}"]) / s["unit"]) for length in MEANS]
    columns += [signed(s["delta"] / s["unit"])]
    columns += [signed((s["M16"] - s["M256"]) / s["wide"]), signed((s["x"] - s["M256"]) / s["wide"])]
    columns += [ratio(s[name]) for name in ("D16", "H16", "D256", "H256", "S256")]
    columns += [np.log1p(np.minimum(age, LONGEST)) / 5 - 1]
    return (np.stack(columns, -1) * there[..., None]).astype(np.float32)


@dataclass(frozen=True)
class Weights:
    """Of the network, float32: `first` (C, F), `convs` [(C, C, KERNEL), (C,)] for each dilation, `head` (OUTPUTS, C + F), and biases."""

    first: np.ndarray
    first_bias: np.ndarray
    convs: tuple[tuple[np.ndarray, np.ndarray], ...]
    head: np.ndarray
    head_bias: np.ndarray

    @property
    def count(self) -> int:
        """How many numbers they are."""
        own = (self.first, self.first_bias, self.head, self.head_bias)
        return sum(a.size for a in own) + sum(w.size + b.size for w, b in self.convs)

    @property
    def channels(self) -> int:
        return len(self.first)

    def run(self, f: np.ndarray) -> np.ndarray:
        """Features float32 (N, REACH + T, F) -> what the head answers after each of the last T, (N, T, OUTPUTS)."""
        h = f @ self.first.T + self.first_bias
        for (weight, bias), dilation in zip(self.convs, DILATIONS, strict=True):
            span = (KERNEL - 1) * dilation
            length = h.shape[1] - span
            taps = sum(h[:, k * dilation : k * dilation + length] @ weight[..., k].T for k in range(KERNEL))
            h = h[:, span:] + np.maximum(taps + bias, 0)
        return np.concatenate([h, f[:, REACH:]], -1) @ self.head.T + self.head_bias


def forecast(o: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The head's answers -> weights of the levels (N, T, 5), offset (N, T) and log quantiles (N, T, 3), float64."""
    o, k = o.astype(np.float64), 1 + len(MEANS)
    mix = np.exp(o[..., :k] - o[..., :k].max(-1, keepdims=True))
    log_quantiles = 6 * np.tanh(o[..., k + 1, None] / 6) + np.cumsum(np.logaddexp(o[..., k + 2 :], 0), -1)
    return mix / mix.sum(-1, keepdims=True), 3 * np.tanh(o[..., k] / 3), log_quantiles


def surprises(values: np.ndarray, weights: Weights) -> dict[str, np.ndarray]:
    """Forecast each point of series that begin here, values (N, T), and measure its error.

    Returns:
        (N, T) each: `expected`, `yardstick`, `surprise` + SHIFT, 0 where it is not judged, `known` and `age`, from the points before.
    """
    x, there = filled(values)
    age = np.cumsum(there, 1).astype(np.float64)
    s = sliding(x, there)
    f = features(s, there, age)
    mix, offset, quantiles = forecast(
        weights.run(np.concatenate([np.zeros((len(x), REACH, FEATURES), np.float32), f], 1))
    )
    expected = x + s["step"] * offset
    for k, length in enumerate(MEANS, 1):
        expected = expected + mix[..., k] * (s[f"M{length}"] - x)
    yardstick = s["unit"] * np.exp(quantiles[..., 1]) + s["rounding"]
    known = ((age > 1) & (s["H256"] > 0)) | (age >= QUIET)
    expected, yardstick, known, age = (later(v, 1) for v in (expected, yardstick, known.astype(np.float64), age))
    yardstick, known = np.where(yardstick > 0, yardstick, TINY), known > 0
    judged = known & ~np.isnan(values)
    surprise = np.log(np.clip(np.abs(x - expected) / yardstick, 1e-6, 1e6))
    return {
        "expected": expected,
        "yardstick": yardstick,
        "surprise": np.where(judged, surprise + SHIFT, 0.0),
        "known": known,
        "age": age,
    }


def spread_of(s: dict[str, np.ndarray], bar: Bar) -> np.ndarray:
    """Half-width of the band at sensitivity 0.5, (N, T), from the surprises before each point."""
    kept = later(s["surprise"], 1)
    judged = (kept > 0).astype(np.float64)
    usual = box(kept, BARS) / np.maximum(box(judged, BARS), 1.0)
    peak, width = kept, 1
    while width < BARS:
        peak = np.maximum(peak, later(peak, width) - bar.sinking * width)
        width *= 2
    height = np.maximum(np.maximum(usual + bar.over_usual, peak + bar.over_peak) - SHIFT, bar.floor)
    height = height + bar.youth / (1 + s["age"] / bar.youth_age)
    spread = np.clip(s["yardstick"] * np.exp(np.clip(height, -6.0, 14.0)), TINY, HUGE)
    return np.where(s["known"], spread, BLIND)


def score(values: np.ndarray, expected: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """0..1, at least 0.5 where a point leaves the band; 0 for missing points."""
    missing = np.isnan(values)
    error = np.abs(np.where(missing, expected, values) - expected)
    return np.where(missing | (spread >= BLIND), 0.0, error / (error + spread))


def detect(values: np.ndarray, weights: Weights, bar: Bar) -> tuple[np.ndarray, np.ndarray]:
    """The reference of the exported graph: values (N, T) -> expected and spread, float64 (N, T)."""
    s = surprises(values, weights)
    return s["expected"], spread_of(s, bar)
