"""The detector in NumPy: from a series to forecast, band and novelty. What the exported graph computes, in the plainest form.

How it works. A stream is described by running statistics of its own past (levels and scales at several half-lives). They make
a GRU's inputs free of unit and offset; the GRU answers with a mix of those levels as the forecast of the next point.

Two things alarm. *Novelty*: the latest three points together are unlike any three of the last 2,048 points; their distance
to the nearest such window, raised where the forecast was wrong too and lowered where the stream is restless just now, must
exceed the root mean square of such distances and the slowly forgotten largest of them, by more in a stream that alarms often.
Where the stream has a period, the mean of the last 24 points is compared in the same way with those at about the same hour of
earlier periods. *Surprise*: the forecast error as such exceeds a bar set by the statistics of earlier
surprises, a slowly sinking peak of them, and the errors of the last thousands of points. So one incident alarms once or a few
times, and a nervous stream needs more to alarm. Everything at point i is computed from points up to i.

Nothing is learnt from a *spike*, a point far from all just before it: for what follows it is a missing point, unless the stream has
often shown such. After missing points the band is wider for a while, and what spans them is neither compared nor learnt.

Letters: N series, T points, H hidden units, K running statistics.

References:
    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014 (GRU).
    Salinas et al., "DeepAR", Int. J. Forecasting 36, 2020 (one global recurrent forecaster, scaled inputs).
    Koenker, Bassett, "Regression quantiles", Econometrica 46, 1978 (the pinball loss of the error quantiles).
    Kingma, Ba, "Adam", ICLR 2015 (exponential moving averages with bias correction).
    Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017 (a bar from the stream's own peaks).
    Ahmad et al., "Unsupervised real-time anomaly detection for streaming data", Neurocomputing 262, 2017 (NAB; adaptation to
    how surprising a stream usually is).
    Bollerslev, "Generalized autoregressive conditional heteroskedasticity", J. Econometrics 31, 1986 (a scale that follows
    the latest steps).
    Crane, Sornette, "Robust dynamic classes revealed by measuring the response function of a social system", PNAS 105, 2008
    (attention comes in bursts that fade by a power law, as in the made-up mentions).
    Burnaev, Ishimtsev, "Conformalized density- and distance-based anomaly detection in time-series data", arXiv:1608.04585,
    2016 (the distance of the latest window to its nearest earlier ones).
    Hillis, Steele, "Data parallel algorithms", CACM 29, 1986 (prefix sums by doubling, as used in the ONNX graph).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from weights import Weights

QUANTILES = (0.9, 0.99, 0.999)
"""The error quantiles that the GRU learns beside the forecast."""

LEVELS = ("last", "L3", "L20", "L150", "L1000")
"""What the forecast mixes: the last value, and exponential averages with these half-lives (points)."""

HALF_LIFE = {
    "L3": 3.0, "L20": 20.0, "L150": 150.0, "L1000": 1000.0,  # of the values
    "D300": 300.0, "H300": 300.0, "D20": 20.0, "H20": 20.0,  # of |difference| (D) and of its square root (H)
    "S150": 150.0, "S1000": 1000.0,  # of the distance to L150 and L1000
}  # fmt: skip

INPUTS = 15
TINY = 1e-280
HUGE = 1e300
"""Values are clipped here."""
BLIND = 1e304
"""Half-width of the band where nothing can be said yet."""
LARGE = 1e130
"""Larger jumps and errors count as this much in what is remembered of them, so that its squares stay finite, and sums of them that grow."""
CLIPPED = 1e140
"""Windows are compared within this distance, so that their weighted squares stay finite; its inverse is the least novelty."""
MEMORY = 2048
"""How far back a window may have its like (points)."""
WINDOW = 3
"""Length of the windows that are compared (points)."""
NEAREST_LAG = 2
"""How far back a window's like must lie at least (points), or a smooth series would always be like itself."""
STRETCH = 24
"""Length of the means that are compared with those of other days at the same hour (points)."""
PERIOD_EVERY = 128
"""The period is looked for again after so many points that are not missing."""
SHORTEST_PERIOD = 8
PERIODS_SEEN = 3
"""Periods that a stream must have shown before one is believed in; it bounds the longest, MEMORY / PERIODS_SEEN (points)."""
QUIET = 32
"""A stream whose values were all the same so far has no scale: only after this many of them is a change an alarm (points)."""


@dataclass(frozen=True)
class Adaptation:
    """The constants which turn forecast errors and novelty into comparable scores. Those of the bar were found by random search, by the
    NAB-like score on training and validation pieces; `ageing`, the far_ ones, `peak_half_life` and `over_peak` last, alone; those of the
    novelty one at a time, in the middle of where the score is flat; `threshold` so that the bar adds few alarms to the novelty's.

    The surprise of a point is l = log(error / yardstick). The bar for it is
    max(habit, floor, peak + over_peak, long_peak_weight * long_peak + over_long_peak)
    + youth / (1 + age / youth_age) + ageing * log(1 + age / 1000) - recent_weight * recent + level_weight * distance from the
    usual level, with habit = mean_weight * mean + deviations * deviation.
    A score of 0.5 is where the error reaches max(yardstick * exp(bar), far_weight * far) * exp(threshold).
    """

    # the yardstick: a weighted sum of scales
    d20: float = 0.734
    d300: float = 0.0
    s1000: float = 0.186
    s150: float = 0.0233
    h300: float = 0.0
    q99: float = 0.0
    q999: float = 0.0389
    # usual surprise of the stream: mean and deviation of l, clipped, with a prior worth `prior` points
    low: float = -3.32
    high: float = 3.68
    half_life: float = 823.0
    prior: float = 0.438
    prior_mean: float = 0.324
    prior_deviation: float = 0.49
    mean_weight: float = 1.22
    deviations: float = 1.87
    floor: float = 0.484
    # the long memory: root mean square of the errors themselves, which hears the large ones; each capped at `far_cap` usual distances
    far_weight: float = 3.47
    far_half_life: float = 3050.0
    far_cap: float = 20.0
    # sinking peaks of (l - peak_base), capped
    peak_base: float = 0.784
    peak_cap: float = 6.24
    peak_half_life: float = 287.0
    over_peak: float = 1.14
    long_peak_half_life: float = 258.0
    long_peak_weight: float = 0.233
    over_long_peak: float = -0.937
    # recent surprise, youth of the stream, distance from its usual level
    recent_half_life: float = 590.0
    recent_weight: float = -4.04
    youth: float = 2.0
    youth_age: float = 10.0
    ageing: float = 0.0978
    level_weight: float = -0.0923
    # a spike is so many usual jumps away from each of the last points, or so many usual bends off their line and this many jumps
    # away; usual is the power mean of order 1/2, which hears few outliers, and a share of the plain mean
    spike_jump: float = 4.0
    spike_bend: float = 3.0
    spike_bend_jump: float = 1.5
    tail_share: float = 0.5
    spike_half_life: float = 300.0
    spike_youth: float = 64.0
    # it is not learnt from, unless there were so many in the last thousands of points, those of the last hundreds not counted
    spikes_known: float = 1.5
    spike_memory: float = 5000.0
    burst: float = 200.0
    # missing points are forgotten by these factors per point that is there; where the latter two are, nothing is judged by the novelty
    # or learnt for the bar, and how much wider the band is there (usual distances from the usual level)
    gap_keep: float = 0.5
    stretch_gap_keep: float = 0.88
    gap_settled: float = 0.4
    stretch_gap_settled: float = 2.0
    gap_width: float = 4.0
    gap_scale: float = 3.0
    # where the default sensitivity lies
    threshold: float = 1.2
    # the novelty of the latest window: weight of its steps beside its values, floor in usual distances from the usual level,
    # share of the last point's surprise, and of how restless the stream is just now
    roughness: float = 0.5
    grain: float = 0.1
    echo: float = 0.3
    restlessness: float = 0.45
    # it must lie so far above the largest novelty lately, which is forgotten at this rate per point, and above the root mean
    # square of novelties; more in a young stream (all logarithms)
    forgetting: float = 0.006
    excess: float = 0.18
    over_usual: float = 1.47
    usual_half_life: float = 1000.0
    novelty_youth: float = 15.0
    # the second novelty, of the mean of the last STRETCH points beside those of earlier periods at the same hour: least autocorrelation
    # of a period, how much of a period the hour may be off, and what of its bar differs from the first's
    period_strength: float = 0.3
    period_share: float = 0.85
    hour: float = 0.04
    rhythm_excess: float = 0.15
    over_usual_rhythm: float = 1.6
    rhythm_youth: float = 50.0
    # a stream with many alarms so far needs more: how long they are remembered (points), how much each weighs, and how far below
    # the bar (logarithm) a point begins to count as part of one
    alarm_half_life: float = 5000.0
    alarm_weight: float = 0.12
    alarm_ramp: float = 0.35
    # how steeply its score rises with it
    slope: float = 3.0


# ------------------------------------------------------------------------------------------- running statistics


def average_before(v: np.ndarray, counted: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential average of the counted values before each point, bias-corrected as in Adam; 0 before the first."""
    a = 0.5 ** (1 / half_life)
    out = np.empty_like(v)
    total, n = np.zeros(len(v)), np.zeros(len(v))
    for t in range(v.shape[1]):
        out[:, t] = total / np.where(n > 0, 1 - a**n, 1.0)
        total = np.where(counted[:, t], a * total + (1 - a) * v[:, t], total)
        n += counted[:, t]
    return out


def before(x: np.ndarray, first: float = 0.0) -> np.ndarray:
    """Shift (N, T) by one point: what was there a point ago."""
    return np.concatenate([np.full((len(x), 1), first), x[:, :-1]], 1)


SPIKE_LAGS = (2, 3, 4)
"""A spike is unlike the points so far back: it may last two points, and the point after it is none."""
SPIKE_LINES = ((1, 2), (1, 3), (2, 4), (3, 6))
"""It is off the lines through these earlier points, of which one at least holds no point of another spike."""


def spikes(x: np.ndarray, valid: np.ndarray, c: Adaptation) -> np.ndarray:
    """Points so far from all just before them that the stream should not learn from them, unless it often shows such; bool (N, T).

    Which they are depends on the values alone, not on what was alarmed before, so that the graph can look for all at once.
    """

    def ago(y: np.ndarray, k: int) -> np.ndarray:
        return np.concatenate([np.zeros_like(y[:, :k]), y[:, :-k]], 1)

    def away(k: int) -> np.ndarray:
        return np.abs(x - ago(x, k))

    steps = valid & ago(valid, 1)
    bends = steps & ago(valid, 2)

    def off_line(near: int, far: int) -> np.ndarray:
        slope = (ago(x, near) - ago(x, far)) / (far - near)
        return np.abs(x - ago(x, near) - near * slope)

    def usual(v: np.ndarray, counted: np.ndarray) -> np.ndarray:
        v = np.minimum(v, LARGE)
        root, plain = (average_before(part, counted, c.spike_half_life) for part in (np.sqrt(v), v))
        return root**2 + c.tail_share * plain

    jump, usual_bend = usual(away(1), steps), usual(off_line(1, 2), bends)
    nearest = np.min([np.where(ago(valid, k), away(k), HUGE) for k in SPIKE_LAGS], 0)
    compared = valid & np.any([ago(valid, k) for k in SPIKE_LAGS], 0)
    old_enough = before(np.cumsum(steps, 1)) >= c.spike_youth
    bend = np.min([np.where(ago(valid, i) & ago(valid, j), off_line(i, j), HUGE) for i, j in SPIKE_LINES], 0)
    bent = (bend > c.spike_bend * usual_bend) & (nearest > c.spike_bend_jump * jump) & (bend < HUGE)
    far = (nearest > c.spike_jump * jump) | bent
    found = far & compared & old_enough & (jump > 0)
    slow, fast = (decayed_before(found, 0.5 ** (1 / h)) for h in (c.spike_memory, c.burst))
    return found & (slow - fast < c.spikes_known)


def decayed_before(v: np.ndarray, keep: float | np.ndarray) -> np.ndarray:
    """y_t = keep_t * y_(t-1) + v_t, what it was before each point; float64 (N, T)."""
    keep = np.broadcast_to(keep, v.shape)
    out, total = np.empty(v.shape), np.zeros(len(v))
    for t in range(v.shape[1]):
        out[:, t] = total
        total = keep[:, t] * total + v[:, t]
    return out


def running_statistics(values: np.ndarray, c: Adaptation) -> dict[str, np.ndarray]:
    """Describe each point's past.

    Args:
        values: float64 (N, T), NaN = missing.
    Returns:
        float64 or bool (N, T) each: `valid`, there is a value, and `learnt`, it is no spike either; `gap` and `stretch_gap`, how many
        points were missing lately; `seen` to `unit` from points before i only. Levels are relative to `anchor`, the
        stream's first value, so that a large offset costs no precision.
    """
    valid = ~np.isnan(values)
    x = np.clip(np.where(valid, values, 0.0), -HUGE, HUGE)
    n = len(x)
    anchor = np.where(valid.any(1), x[np.arange(n), valid.argmax(1)], 0.0)[:, None]
    d = np.where(valid, x - anchor, 0.0)
    learnt = valid & ~spikes(d, valid, c)
    at = np.maximum.accumulate(np.where(learnt, np.arange(d.shape[1]), -1), 1)
    last = before(np.where(at >= 0, np.take_along_axis(d, np.maximum(at, 0), 1), 0.0))
    seen = before(np.cumsum(learnt, 1))
    moved = learnt & (seen > 0)
    delta = np.where(moved, d - last, 0.0)
    gap = decayed_before(~valid, np.where(valid, c.gap_keep, 1.0))
    stretch_gap = decayed_before(~valid, np.where(valid, c.stretch_gap_keep, 1.0))
    s = {"valid": valid, "learnt": learnt, "d": d, "anchor": np.broadcast_to(anchor, d.shape), "delta": delta, "seen": seen,
         "last": last, "gap": gap, "stretch_gap": stretch_gap}  # fmt: skip
    size = np.abs(delta) / (1 + gap)  # over a gap it is many steps in one
    for name in LEVELS[1:]:
        s[name] = average_before(d, learnt, HALF_LIFE[name])
    for name in ("D300", "D20"):
        s[name] = average_before(size, moved, HALF_LIFE[name])
    for name in ("H300", "H20"):
        s[name] = average_before(np.sqrt(size), moved, HALF_LIFE[name]) ** 2
    for name, level in (("S150", "L150"), ("S1000", "L1000")):
        s[name] = average_before(np.abs(d - s[level]), learnt, HALF_LIFE[name])
    s["step"] = s["H300"] + 0.2 * s["D300"] + 0.02 * s["S1000"]  # 0 while nothing has ever moved
    s["rounding"] = 1e-15 * np.abs(anchor + last) + TINY  # a few units in the last place of the values themselves
    s["unit"] = s["step"] + s["rounding"]
    return s


def gru_inputs(s: dict[str, np.ndarray]) -> np.ndarray:
    """float32 (N, T, INPUTS): free of the series' unit and offset, mostly within -3..3."""
    unit, last = s["unit"], s["last"]

    def signed(x: np.ndarray) -> np.ndarray:
        return np.arcsinh(np.clip(x, -1e6, 1e6)) / 3

    def ratio(x: np.ndarray) -> np.ndarray:
        return np.log(np.clip(x / unit, 1e-4, 1e4)) / 3

    wide = s["S1000"] + unit
    columns = [signed((last - s[level]) / unit) for level in LEVELS[1:]]
    columns += [
        signed(before(s["delta"]) / unit),
        signed((s["L20"] - s["L1000"]) / wide),
        signed((last - s["L1000"]) / wide),
    ]
    columns += [ratio(s[k]) for k in ("D20", "H20", "D300", "H300", "S150", "S1000")]
    columns += [before(~s["learnt"]), np.log1p(s["seen"]) / 5 - 1]
    return np.stack(columns, -1).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- forecast


OUTPUTS = len(LEVELS) + 1 + 1 + len(QUANTILES)
"""What the head answers for a point: weights of the levels, an offset, the error's scale and its quantiles."""


def forecast(x: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same without torch: x (N, T, INPUTS) -> weights of the levels (N, T, 5), offset (N, T) and log quantiles (N, T, 3), float64."""
    o = weights.run(x).astype(np.float64)
    k = len(LEVELS)
    mix = np.exp(o[..., :k] - o[..., :k].max(-1, keepdims=True))
    log_quantiles = 6 * np.tanh(o[..., k + 1, None] / 6) + np.cumsum(np.logaddexp(o[..., k + 2 :], 0), -1)
    return mix / mix.sum(-1, keepdims=True), 3 * np.tanh(o[..., k] / 3), log_quantiles


# --------------------------------------------------------------------------------------------------- adaptation


def surprise(values: np.ndarray, model: Weights, c: Adaptation) -> dict[str, np.ndarray]:
    """Forecast each point and measure its error by the stream's yardstick.

    Returns:
        float64 (N, T): `expected`, `yardstick`, `surprise` (log error / yardstick; meaningless where not `judged`), `error`
        (capped at so many times the usual distance from the usual level), `level` (distance of the last value from that level), and bool (N, T) `judged`: a valid point with enough past.
    """
    s = running_statistics(values, c)
    mix, offset, log_quantiles = forecast(gru_inputs(s), model)
    expected = (
        s["last"] + sum(mix[..., k] * (s[name] - s["last"]) for k, name in enumerate(LEVELS)) + s["step"] * offset
    )
    unit = s["unit"]
    yardstick = c.d20 * s["D20"] + c.d300 * s["D300"] + c.s1000 * s["S1000"] + c.s150 * s["S150"] + c.h300 * s["H300"]
    yardstick += (
        unit * (c.q99 * np.exp(log_quantiles[..., 1]) + c.q999 * np.exp(log_quantiles[..., 2]) + 1e-6) + s["rounding"]
    )
    known = (s["seen"] > 1) & ((s["H300"] > 0) | (s["seen"] >= QUIET))
    error = np.abs(s["d"] - expected)
    return {
        "expected": np.where(s["seen"] > 0, s["anchor"] + expected, 0.0),
        "yardstick": yardstick,
        "surprise": np.log(np.clip(error / yardstick, 1e-6, 1e6)),
        "error": np.minimum(np.minimum(error, c.far_cap * (s["S1000"] + unit)), LARGE),
        "level": np.minimum(np.abs(s["last"] - s["L1000"]) / (s["S1000"] + unit), 5.0),
        "known": known,
        "judged": known & s["valid"],
        "settled": known & s["learnt"] & (s["gap"] < c.gap_settled),
        "unsure": c.gap_width * -np.expm1(-s["gap"] / c.gap_scale) * (s["S1000"] + unit),
        "statistics": s,
    }


def bar(s: dict[str, np.ndarray], c: Adaptation) -> tuple[np.ndarray, np.ndarray]:
    """How surprising each point would have to be to alarm, and how large its error, from the points before it: float64 (N, T) each."""
    l, judged, level = s["surprise"], s["settled"], s["level"]
    a, slow, fast = 0.5 ** (1 / c.half_life), 0.5 ** (1 / c.recent_half_life), 0.5 ** (1 / c.peak_half_life)
    slower, longer = 0.5 ** (1 / c.long_peak_half_life), 0.5 ** (1 / c.far_half_life)
    x = np.where(judged, np.clip(l, c.low, c.high), 0.0)
    rise = np.where(judged, np.clip(l - c.peak_base, 0.0, c.peak_cap), 0.0)
    energy = np.where(judged, s["error"] ** 2, 0.0)
    gain, gain_recent, gain_far = (np.where(judged, g, 1.0) for g in (a, slow, longer))
    zero = np.zeros(len(l))
    total, squares, n, peak, long_peak, recent, far = (zero,) * 7
    out, least = np.empty_like(l), np.empty_like(l)
    for t in range(l.shape[1]):
        weight = (1 - a**n) / (1 - a) + c.prior
        mean = (total + c.prior * c.prior_mean) / weight
        square = (squares + c.prior * (c.prior_mean**2 + c.prior_deviation**2)) / weight
        deviation = np.sqrt(np.maximum(square - mean**2, 1e-4))
        b = np.maximum(c.mean_weight * mean + c.deviations * deviation, c.floor)
        b = np.maximum(b, np.where(peak > 0, peak + c.over_peak, -np.inf))
        b = np.maximum(b, np.where(long_peak > 0, c.long_peak_weight * long_peak + c.over_long_peak, -np.inf))
        b = b + c.youth / (1 + n / c.youth_age) + c.ageing * np.log1p(n / 1000)
        out[:, t] = b - c.recent_weight * recent + c.level_weight * level[:, t]
        least[:, t] = c.far_weight * np.sqrt(far / np.maximum(1 - longer**n, 1e-12))
        total = gain[:, t] * total + x[:, t]
        squares = gain[:, t] * squares + x[:, t] ** 2
        recent = gain_recent[:, t] * recent + (1 - slow) * rise[:, t]
        far = gain_far[:, t] * far + (1 - longer) * energy[:, t]
        peak = np.maximum(fast * peak, rise[:, t])
        long_peak = np.maximum(slower * long_peak, rise[:, t])
        n = n + judged[:, t]
    return out, least


def nearest_window(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """How unlike the latest window is to each earlier one of the last MEMORY points: the distance to the nearest.

    The squared distance of two windows is the sum over their points of the squared difference of the values and, weighted, of
    the steps between them, so that a smooth series is not like itself merely because it is smooth.

    Returns:
        float64 (N, T), squared distances in the unit of the series, infinite where no earlier window can be compared.
    """
    y = np.where(
        s["learnt"], s["d"], s["last"]
    )  # a missing point repeats the one before, and so does a spike once it is past
    step = np.diff(y, prepend=y[:, :1])
    odd = np.where(s["valid"], s["d"], s["last"]) - y  # the spike itself, in its own window
    n = y.shape[1]
    weight, reach = step_weight(s, c), s["seen"] - WINDOW + 1
    best = np.full(y.shape, np.inf)

    def sums(x: np.ndarray, lag: int) -> np.ndarray:
        """Over windows: entry k belongs to the window that ends at point lag + WINDOW - 1 + k."""
        e = np.clip(x[:, lag:] - x[:, : n - lag], -CLIPPED, CLIPPED)
        own = np.clip(x[:, lag:] + odd[:, lag:] - x[:, : n - lag], -CLIPPED, CLIPPED)[:, WINDOW - 1 :]
        return own**2 + sum(e[:, k : e.shape[1] - WINDOW + 1 + k] ** 2 for k in range(WINDOW - 1))

    for lag in range(NEAREST_LAG, min(MEMORY, n - WINDOW) + 1):
        now = slice(lag + WINDOW - 1, None)
        distance = sums(y, lag) + weight[:, now] * sums(step, lag)
        best[:, now] = np.minimum(best[:, now], np.where(reach[:, now] >= lag, distance, np.inf))
    return best


def step_weight(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """What a squared difference of steps weighs beside one of values, (N, T): as if both spread equally, times `roughness`."""
    return c.roughness * np.minimum(((s["S1000"] + s["unit"]) / (s["D300"] + 0.1 * s["unit"])) ** 2, 1e6)


def period(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """The period of each stream as its past shows it, by the first high peak of the autocorrelation.

    Looked for after every PERIOD_EVERY points, in the last MEMORY ones, whose largest deviations are clipped. The lag must lie behind the
    first that is no more correlated.

    Returns:
        float64 (N, T), points; 0 where none is known.
    """
    y = np.where(s["learnt"], s["d"], s["last"])
    out = np.zeros(y.shape)
    lag = np.arange(MEMORY // PERIODS_SEEN + 2)
    for row, values in enumerate(y):
        seen = s["seen"][row]
        for t in np.flatnonzero(s["learnt"][row] & (seen >= PERIOD_EVERY) & (seen % PERIOD_EVERY == 0)):
            m = int(min(seen[t], MEMORY))
            x = np.clip(values[t - m : t] - values[t - 1], -CLIPPED, CLIPPED)
            x = x - x.mean()
            x = np.clip(x / (np.abs(x).mean() or 1.0), -3.0, 3.0)
            spectrum = np.abs(np.fft.rfft(x - x.mean(), 2 * MEMORY)) ** 2
            r = np.fft.irfft(spectrum)[: len(lag)] * m / np.maximum(m - lag, 1)
            r = r / (r[0] if r[0] > 0 else 1.0)
            allowed = (lag <= m // PERIODS_SEEN) & (np.cumsum(r < 0.1) > 0)
            best = np.where(allowed, r, -1.0).max()
            peak = np.zeros(len(lag), dtype=bool)
            peak[1:-1] = (r[1:-1] > r[:-2] + 1e-9) & (r[1:-1] >= r[2:] - 1e-9)
            high = r >= max(c.period_share * best, c.period_strength)
            found = allowed & peak & high & (lag >= SHORTEST_PERIOD)
            out[row, t + 1 :] = found.argmax()  # 0 where there is none
    return out


def nearest_stretch(s: dict[str, np.ndarray], c: Adaptation) -> np.ndarray:
    """How unlike the mean of the last STRETCH points is to each such mean of earlier periods at about the same hour: the distance to
    the nearest; float64 (N, T), in the unit of the series, infinite before there are two earlier ones."""
    y = np.where(s["learnt"], s["d"], s["last"])
    n = y.shape[1]
    if n < STRETCH:
        return np.full(y.shape, np.inf)
    mean = np.zeros_like(y)
    mean[:, STRETCH - 1 :] = sum(y[:, k : n - STRETCH + 1 + k] for k in range(STRETCH)) / STRETCH
    reach, periods = np.minimum(s["seen"] - STRETCH + 1, MEMORY), period(s, c)
    best = np.full(y.shape, np.inf)
    for row, of in enumerate(periods):
        for p in np.unique(of[of > 0]):
            off = np.floor(c.hour * p + 1.5)
            at = np.flatnonzero((of == p) & (reach[row] >= 2 * p + off))
            for centre in np.arange(p, MEMORY - off + 1, p):
                at = at[reach[row, at] >= centre + off]
                for lag in range(int(max(centre - off, NEAREST_LAG)), int(centre + off) + 1):
                    best[row, at] = np.minimum(best[row, at], np.abs(mean[row, at] - mean[row, at - lag]))
    return best


def novelty(surprised: dict, c: Adaptation, distances: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """0..1, at least 0.5 where the latest window is so unlike all earlier ones, or the latest stretch so unlike all at its hour, measured
    by what novelties the stream showed so far and lately, that it alarms; float64 (N, T). Takes what `surprise` returns."""
    s, judged = surprised["statistics"], surprised["judged"]
    windows, stretches = distances or (nearest_window(s, c), nearest_stretch(s, c))
    restless = (s["D20"] + 0.1 * s["unit"]) / (s["D300"] + 0.1 * s["unit"])  # the steps lately beside those of long
    factor = np.exp(c.echo * np.clip(surprised["surprise"], -2.0, 2.0)) * restless**-c.restlessness

    def of(
        distance: np.ndarray, settled: np.ndarray, excess: float, over_usual: float, youth: float, own_age: bool
    ) -> np.ndarray:
        compared = np.isfinite(distance) & judged & settled
        size = (np.where(compared, distance, 0.0) + c.grain * (s["S1000"] + s["unit"])) * factor
        size = np.where(compared, np.clip(size, 1 / CLIPPED, CLIPPED), 0.0)
        learnt = compared & s["learnt"]
        seen = before(np.cumsum(learnt, 1)) if own_age else s["seen"]
        return over_bar(size, learnt, excess, over_usual, youth / (seen + 1.0), c)

    after_spike = before(s["valid"] & ~s["learnt"]) > 0
    gap = (s["gap"] < c.gap_settled) & ~(after_spike & s["learnt"])
    stretch_gap = (s["stretch_gap"] < c.stretch_gap_settled) & s["learnt"]
    return np.maximum(
        of(np.sqrt(windows / WINDOW), gap, c.excess, c.over_usual, c.novelty_youth, own_age=False),
        of(stretches, stretch_gap, c.rhythm_excess, c.over_usual_rhythm, c.rhythm_youth, own_age=True),
    )


def over_bar(
    size: np.ndarray, learnt: np.ndarray, excess: float, over_usual: float, youth: np.ndarray, c: Adaptation
) -> np.ndarray:
    """From novelties (N, T), 0 where there is none, to 0..1, at least 0.5 where one is above the bar that those `learnt` before it set."""
    keep, slow = np.exp(-c.forgetting), 0.5 ** (1 / c.usual_half_life)
    slower = 0.5 ** (1 / c.alarm_half_life)
    (peak, power, n, alarms), out = np.zeros((4, len(size))), np.zeros_like(size)
    for t in range(size.shape[1]):
        usual = np.sqrt(power / np.maximum(1 - slow**n, 1e-12))
        known = (peak > 0) & (size[:, t] > 0)
        needed = np.maximum(peak * np.exp(excess), usual * np.exp(over_usual)) * np.exp(youth[:, t])
        ratio = np.where(known, np.minimum(size[:, t] / np.where(known, needed, 1.0), 1e6), 0.0)
        odds = (ratio * (1.0 + alarms) ** -c.alarm_weight) ** c.slope
        out[:, t] = odds / (1.0 + odds)
        counts = np.clip(np.log(np.maximum(ratio, 1e-6)) + c.alarm_ramp, 0.0, 1.0)
        alarms = np.where(known & learnt[:, t], slower * alarms + counts, alarms)
        heard = np.where(learnt[:, t], size[:, t], 0.0)
        peak = np.maximum(keep * peak, heard)
        power = np.where(learnt[:, t], slow * power + (1 - slow) * np.minimum(heard, LARGE) ** 2, power)
        n = n + learnt[:, t]
    return out


def detect(values: np.ndarray, model: Weights, c: Adaptation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference of the exported graph: values (N, T) -> expected, spread and novelty, float64 (N, T)."""
    s = surprise(values, model, c)
    height, least = bar(s, c)
    width = np.maximum(s["yardstick"] * np.exp(np.clip(height, -6.0, 12.0)), least)
    spread = np.clip(width * np.exp(c.threshold) + s["unsure"], TINY, HUGE)
    return s["expected"], np.where(s["known"], spread, BLIND), novelty(s, c)


def score(values: np.ndarray, expected: np.ndarray, spread: np.ndarray, novelty: np.ndarray) -> np.ndarray:
    """0..1, at least 0.5 where a point leaves the band or its window is novel; 0 for missing points. Nothing overflows."""
    missing = np.isnan(values)
    error = np.abs(np.where(missing, expected, values) - expected)
    return np.where(missing, 0.0, np.maximum(error / (error + spread), novelty))
