"""The exported graph: the detector of `detector.py`, from operators of ONNX, with a stream's state in and out.

A recurrence along time is solved for all points at once: where its factor is constant, as a prefix sum; where it varies, or
is a maximum, by doubling. So a run of 1,000 points takes about as many nodes as one of a single point.

Letters: N series, T points, K running statistics.

References:
    Hillis, Steele, "Data parallel algorithms", CACM 29, 1986 (prefix sums by doubling).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from detector import (
    BLIND,
    CLIPPED,
    HALF_LIFE,
    HUGE,
    LARGE,
    LEVELS,
    MEMORY,
    NEAREST_LAG,
    PERIOD_EVERY,
    PERIODS_SEEN,
    QUANTILES,
    QUIET,
    SHORTEST_PERIOD,
    SPIKE_LAGS,
    SPIKE_LINES,
    STRETCH,
    TINY,
    WINDOW,
    Adaptation,
)
from onnx import TensorProto
from weights import Weights

from training.graph import GraphBuilder

HISTORY = MEMORY + STRETCH
"""Points of the past that the windows and stretches of the next point reach back to."""
BLOCK = 64
"""Points whose windows the graph compares in one go: bounds the memory of a long run."""


def doubling(kind: str, channels: int, end: str) -> onnx.GraphProto:
    """The body of a Loop that solves a recurrence along time in log2(T) steps, shifting by 1, 2, 4, ...

    "sum": v_t + g_t y_(t-1), with v and g float64 (N, T, channels). "peak": max(v_t, g y_(t-1)), with g float64 (channels,).
    `end` names the length of time in the graph around it, int64 (1,).
    """
    b = GraphBuilder("loop_", np.float64)
    pads = b("Concat", b.ints(0), "shift", b.ints(0, 0, 0, 0), axis=0)
    stop = b("Neg", "shift")

    def shifted(x: str) -> str:
        return b("Slice", b("Pad", x, pads), b.ints(0), stop, b.ints(1))

    if kind == "sum":
        v, g = b("Add", "v", b("Mul", "g", shifted("v"))), b("Mul", "g", shifted("g"))
    else:
        v, g = b("Max", "v", b("Mul", "g", shifted("v"))), b("Mul", "g", "g")
    shift = b("Add", "shift", "shift")
    for made, name in (
        (b("Squeeze", b("Less", shift, end)), "more"),
        (v, "next_v"),
        (g, "next_g"),
        (shift, "next_shift"),
    ):
        b("Identity", made, name=name)
    like_v, like_g = [None, None, channels], [None, None, channels] if kind == "sum" else [channels]
    b.input("step", np.int64, [])
    b.input("go_on", np.bool_, [])
    for name, dtype, shape in (("v", np.float64, like_v), ("g", np.float64, like_g), ("shift", np.int64, [1])):
        b.input(name, dtype, shape)
    b.output("more", "more", np.bool_, [])
    for name, dtype, shape in (("v", np.float64, like_v), ("g", np.float64, like_g), ("shift", np.int64, [1])):
        b.output(f"next_{name}", f"next_{name}", dtype, shape)
    return b.graph(f"doubling_{kind}")


UNCOMPARED = 1e306
"""Stands for an infinite distance in the graph."""


def nearest_window_nodes(
    g: GraphBuilder,
    c: Adaptation,
    *,
    track: str,
    filled: str,
    odd: str,
    last: str,
    seen: str,
    period: str,
    scales: tuple[str, str, str],
    lens: str,
) -> tuple[str, str]:
    """Add `nearest_window` and `nearest_stretch` to a graph: |a - b|^2 = |a|^2 + |b|^2 - 2ab for all pairs of a block of windows and those before them, in
    float64, around the last value before the block.

    Args:
        track: the row's last HISTORY values before this run and those of it, float64 (N, HISTORY + T, 1).
        filled: the values, missing ones and spikes repeated, relative to the anchor, float64 (N, T, 1).
        odd: how far a spike is from what stands in its place, else 0, float64 (N, T, 1).
        last: the value before each, float64 (N, T, 1).
        seen: points before each point, float64 (N, T, 1).
        period: of the stream before each point, 0 where unknown, float64 (N, T, 1).
        scales: S1000, D300 and unit, float64 (N, T, 1) each.
        lens: points of each row, int64 (N, 1, 1).
    Returns:
        Squared distances of windows and distances of stretches (N, T, 2), UNCOMPARED where there are none, and the row's last HISTORY
        values (N, HISTORY, 1).
    """
    int64 = TensorProto.INT64
    everything = 2**31
    s1000, d300, unit = scales
    relative = g("Div", g("Add", s1000, unit), g("Add", d300, g("Mul", unit, 0.1)))
    g("Mul", g("Min", g("Mul", relative, relative), 1e6), c.roughness, name="step_weight")
    g("Identity", seen, name="seen_before")
    g("Clip", odd, -CLIPPED, CLIPPED, name="odd_here")
    g("Transpose", last, perm=[0, 2, 1], name="centre")  # (N, 1, T)
    g("Identity", period, name="period_before")
    g("Transpose", track, perm=[0, 2, 1], name="track")
    length = g("Shape", filled, start=1, end=2, name="length")
    blocks = g("Squeeze", g("Div", g("Add", length, g.ints(BLOCK - 1)), g.ints(BLOCK)))

    # Place p of the track is point p - HISTORY of this run. Queries end at places start + HISTORY and on; the windows
    # they are compared with end at places first to last.
    b = GraphBuilder("block_", np.float64)
    one, first_index = b.constant(1, np.int64), b.ints(2)
    start = b("Mul", b("Unsqueeze", "index", b.ints(0)), b.ints(BLOCK))
    end = b("Min", b("Add", start, b.ints(BLOCK)), "length")
    block_seen = b("Slice", "seen_before", start, end, b.ints(1), name="block_seen")  # (N, B, 1)
    most_seen = b("Cast", b("ReduceMax", block_seen, keepdims=0), to=int64)  # in the row with the longest past
    reach = b("Min", b("Max", b("Add", most_seen, b.ints(1)), b.ints(NEAREST_LAG + WINDOW)), b.ints(MEMORY))
    first = b("Sub", b("Add", start, b.ints(HISTORY)), reach)
    beyond = b("Add", end, b.ints(HISTORY))
    origin = b("Sub", first, b.ints(STRETCH))
    part = b(
        "Sub",
        b("Slice", "track", origin, beyond, first_index),
        b("Slice", "centre", start, b("Add", start, b.ints(1)), first_index),
    )
    part = long = b("Clip", part, -CLIPPED, CLIPPED)  # (N, 1, keys + STRETCH)
    part = b("Slice", part, b.ints(STRETCH - WINDOW), b.ints(everything), first_index)  # one more, for the first step
    steps = b(
        "Sub",
        b("Slice", part, b.ints(1), b.ints(everything), first_index),
        b("Slice", part, b.ints(0), b.ints(-1), first_index),
    )
    part = b("Slice", part, b.ints(1), b.ints(everything), first_index)
    both = b("Concat", part, steps, axis=1)  # (N, 2, keys + WINDOW - 1)
    taps = [
        b("Slice", both, b.ints(k), b.ints(k - WINDOW + 1 if k < WINDOW - 1 else everything), first_index)
        for k in range(WINDOW)
    ]
    windows = b("Concat", *taps, axis=1)  # (N, 2 WINDOW, keys): value, step, value, step, ...
    squares = b("Mul", windows, windows)
    kind = np.tile(np.eye(2), (1, WINDOW))  # (2, 2 WINDOW) adds up the values' and the steps' squares
    norms = b("MatMul", b.constant(kind), squares)  # (N, 2, keys)
    table = b("Concat", windows, norms, axis=1)  # (N, 2 WINDOW + 2, keys)
    count = b("Sub", end, start)
    own = b("Transpose", b("Slice", windows, b("Neg", count), b.ints(everything), first_index), perm=[0, 2, 1])
    latest = b.constant([0.0] * (2 * WINDOW - 2) + [1.0, 1.0])  # the last value and the last step of a window
    own = b("Add", own, b("Mul", b("Slice", "odd_here", start, end, b.ints(1)), latest))  # (N, B, 2 WINDOW)
    own_norms = b("MatMul", b("Mul", own, own), b.constant(kind.T))
    weight = b("Slice", "step_weight", start, end, b.ints(1))  # (N, B, 1)
    ones = b("Add", b("Mul", weight, 0.0), 1.0)
    weights = b("Concat", ones, weight, axis=2)  # (N, B, 2)
    own = b("Mul", b("Mul", own, -2.0), b("Concat", *[weights] * WINDOW, axis=2))
    own_norm = b("ReduceSum", b("Mul", own_norms, weights), b.ints(2), keepdims=1)
    factors = b("Concat", own, weights, axis=2)

    # A key may lie too far back for one of the queries or too near to one of them. Between these are most of the keys, which all
    # queries are compared with: nothing is masked there.
    keys = b("Shape", table, start=2, end=3)
    first_query, last = b("Squeeze", b("Sub", keys, count)), b("Squeeze", keys)
    queries_at = b("Unsqueeze", b("Range", first_query, last, one), b.ints(1))  # (B, 1)
    furthest = b("Cast", b("Min", b("Sub", block_seen, float(WINDOW - 1)), float(MEMORY)), to=int64)  # lag, (N, B, 1)
    near = b("Sub", first_query, b.constant(NEAREST_LAG - 1, np.int64))
    far = b("Clip", b("ReduceMax", b("Sub", queries_at, furthest), keepdims=0), b.constant(0, np.int64), near)
    edges = b(
        "Concat",
        b("Slice", table, b.ints(0), b("Unsqueeze", far, b.ints(0)), first_index),
        b("Slice", table, b("Unsqueeze", near, b.ints(0)), b.ints(everything), first_index),
        axis=2,
    )
    edges_at = b("Concat", b("Range", b.constant(0, np.int64), far, one), b("Range", near, last, one), axis=0)
    lag = b("Sub", queries_at, edges_at)  # (B, edges)
    useless = b("Or", b("Less", lag, b.constant(NEAREST_LAG, np.int64)), b("Greater", lag, furthest))
    least = b("ReduceMin", b("Where", useless, UNCOMPARED, b("MatMul", factors, edges)), b.ints(2), keepdims=1)
    between = b("Slice", table, b("Unsqueeze", far, b.ints(0)), b("Unsqueeze", near, b.ints(0)), first_index)
    least = b("Min", least, b("ReduceMin", b("MatMul", factors, between), b.ints(2), keepdims=1))
    least = b("Where", b("Less", least, 0.5 * UNCOMPARED), b("Max", b("Add", least, own_norm), 0.0), UNCOMPARED)

    # Stretches at the same hour: only where a period is known.
    b("Identity", long, name="block_values")
    b("Identity", count, name="block_count")
    b("Slice", "period_before", start, end, b.ints(1), name="block_period")  # (N, B, 1)
    away = b(
        "If",
        b("Greater", b("ReduceMax", "block_period", keepdims=0), 0.0),
        then_branch=nearest_stretch_graph(c),
        else_branch=no_stretch_graph(),
    )
    b("Concat", "found", b("Concat", least, away, axis=2), axis=1, name="next_found")
    b("Identity", "go_on", name="still")
    b.input("index", np.int64, [])
    b.input("go_on", np.bool_, [])
    b.input("found", np.float64, [None, None, 2])
    b.output("still", "still", np.bool_, [])
    b.output("next_found", "next_found", np.float64, [None, None, 2])
    none = g("Slice", g("Concat", filled, filled, axis=2), g.ints(0), g.ints(0), g.ints(1))
    nearest = g("Loop", blocks, "", none, body=b.graph("nearest_window"))
    kept = g("Add", lens, g.constant(np.arange(HISTORY).reshape(1, -1, 1), np.int64))
    return nearest, g("GatherElements", track, kept, axis=1)


def nearest_stretch_graph(c: Adaptation) -> onnx.GraphProto:
    """One block's distances of stretches, (N, B, 1): sums over 3, 6, 12, 24 points, gathered at the lags close to a multiple of the
    period and at no others, so that a block costs what these lags cost, not what the memory holds. Takes what `nearest_window_nodes`
    names block_*: values (N, 1, keys + STRETCH), count of queries (1,), and the period and the points seen before each query (N, B, 1)."""
    int64, double = TensorProto.INT64, TensorProto.DOUBLE
    b = GraphBuilder("stretch_", np.float64)
    time, everything = b.ints(2), b.ints(2**31)
    sums, width = "block_values", 1
    for times in (3, 2, 2, 2):
        length = b("Sub", b("Shape", sums, start=2, end=3), b.ints((times - 1) * width))
        starts = [b.ints(k * width) for k in range(times)]
        total, *others = [b("Slice", sums, at, b("Add", length, at), time) for at in starts]
        for other in others:
            total = b("Add", total, other)
        sums, width = total, width * times
    if width != STRETCH:
        raise AssertionError(f"the sums are over {width} points")
    means = b("Div", b("Slice", sums, b.ints(1), everything, time), float(STRETCH))  # (N, 1, keys)
    own = b("Transpose", b("Slice", means, b("Neg", "block_count"), everything, time), perm=[0, 2, 1])
    off = b("Floor", b("Add", b("Mul", "block_period", c.hour), 1.5))
    around = b("Add", b("Add", off, off), 1.0)  # lags close to one multiple
    reach = b("Sub", b("Min", b("Sub", "block_seen", float(STRETCH - 1)), float(MEMORY)), off)  # the furthest multiple
    multiples = b("Floor", b("Div", reach, b("Max", "block_period", 1.0)))
    enough = b("And", b("GreaterOrEqual", multiples, 2.0), b("Greater", "block_period", 0.0))
    lags = b("Where", enough, b("Mul", multiples, around), 0.0)  # how many there are, (N, B, 1)

    # The r-th of them, (N, B, most): around the whole period before it, less `off`, and on from there.
    most = b("Max", b("ReduceMax", lags, keepdims=0), 1.0)
    rank = b("Range", b.constant(0.0), most, b.constant(1.0))
    before = b("Floor", b("Div", rank, around))
    lag = b(
        "Add", b("Sub", b("Mul", b("Add", before, 1.0), "block_period"), off), b("Sub", rank, b("Mul", before, around))
    )
    same = b("And", b("Less", rank, lags), b("GreaterOrEqual", lag, float(NEAREST_LAG)))
    keys = b("Shape", means, start=2, end=3)
    at = b("Range", b("Squeeze", b("Sub", keys, "block_count")), b("Squeeze", keys), b.constant(1, np.int64))
    at = b("Where", same, b("Sub", b("Cast", b("Unsqueeze", at, b.ints(1)), to=double), lag), 0.0)
    at = b("Cast", at, to=int64)
    other = b("GatherElements", b("Squeeze", means, b.ints(1)), b("Reshape", at, b.ints(0, -1)), axis=1)
    distance = b("Where", same, b("Abs", b("Sub", own, b("Reshape", other, b("Shape", at)))), UNCOMPARED)
    b("ReduceMin", distance, b.ints(2), keepdims=1, name="stretch_least")
    b.output("stretch_least", "stretch_least", np.float64, [None, None, 1])
    return b.graph("nearest_stretch")


def no_stretch_graph() -> onnx.GraphProto:
    """The same where no period is known: nothing can be compared."""
    b = GraphBuilder("no_stretch_", np.float64)
    b("Add", b("Mul", "block_period", 0.0), UNCOMPARED, name="no_stretch_least")
    b.output("no_stretch_least", "no_stretch_least", np.float64, [None, None, 1])
    return b.graph("no_stretch")


PAIRS = 64
"""Points at which the graph looks for periods in one go: bounds the memory of a long run."""


def period_nodes(g: GraphBuilder, c: Adaptation, *, track: str, seen: str, due: str) -> str:
    """Add the search of `period` to a graph: autocorrelations as the transform of the power spectrum.

    Args:
        track: the row's last HISTORY values before this run and those of it, float64 (N, HISTORY + T, 1).
        seen: points before each point, float64 (N, T, 1).
        due: at which points it is looked for, from the MEMORY points before, bool (N, T, 1).
    Returns:
        float64 (N, T, 1), the period found there, 0 where none was found or looked for.
    """
    int64, double = TensorProto.INT64, TensorProto.DOUBLE
    g("Squeeze", track, g.ints(2), name="values_of_all")
    g("Transpose", g("NonZero", due), perm=[1, 0], name="places")  # (pairs, 3)
    g("Identity", seen, name="seen_of_all")
    pairs = g("Shape", "places", start=0, end=1)
    turns = g("Squeeze", g("Div", g("Add", pairs, g.ints(PAIRS - 1)), g.ints(PAIRS)))

    b = GraphBuilder("period_", np.float64)
    one = b.ints(1)
    start = b("Mul", b("Unsqueeze", "turn", b.ints(0)), b.ints(PAIRS))
    places = b("Slice", "places", start, b("Add", start, b.ints(PAIRS)), b.ints(0))  # (P, 3)
    m = b("Min", b("Unsqueeze", b("GatherND", "seen_of_all", places), one), float(MEMORY))  # (P, 1)
    row, point, _ = b.several("Split", places, b.ints(1, 1, 1), outputs=3, axis=1)
    point = b("Add", point, b.constant(np.arange(MEMORY)[None] + HISTORY - MEMORY, np.int64))  # (P, MEMORY)
    row = b("Add", row, b("Mul", point, b.constant(0, np.int64)))
    x = b(
        "GatherND",
        "values_of_all",
        b("Concat", b("Unsqueeze", row, b.ints(2)), b("Unsqueeze", point, b.ints(2)), axis=2),
    )
    inside = b("GreaterOrEqual", b("Add", m, b.constant(np.arange(MEMORY)[None])), float(MEMORY))

    def centred(x: str) -> str:
        return b("Where", inside, b("Sub", x, mean(x)), 0.0)

    def mean(x: str) -> str:
        return b("Div", b("ReduceSum", b("Where", inside, x, 0.0), one, keepdims=1), m)

    x = b("Clip", b("Sub", x, b("Slice", x, b.ints(-1), b.ints(MEMORY), one)), -CLIPPED, CLIPPED)
    x = centred(x)
    scale = mean(b("Abs", x))
    x = centred(b("Clip", b("Div", x, b("Where", b("Greater", scale, 0.0), scale, 1.0)), -3.0, 3.0))
    long = b.constant(2 * MEMORY, np.int64)
    spectrum = b("DFT", b("Unsqueeze", x, b.ints(2)), long, axis=1)  # (P, 2 MEMORY, 2)
    power = b("ReduceSumSquare", spectrum, b.ints(2), keepdims=1)
    lags = np.arange(MEMORY // PERIODS_SEEN + 2, dtype=np.float64)[None]
    r = b("Slice", b("DFT", power, long, axis=1), b.ints(0, 0), b.ints(lags.size, 1), b.ints(1, 2))
    r = b("Squeeze", r, b.ints(2))  # (P, lags)
    r = b("Div", b("Mul", r, m), b("Max", b("Sub", m, b.constant(lags)), 1.0))
    r0 = b("Slice", r, b.ints(0), b.ints(1), one)
    r = b("Div", r, b("Where", b("Greater", r0, 0.0), r0, 1.0))
    fell = b("CumSum", b("Cast", b("Less", r, 0.1), to=double), b.constant(1, np.int64))
    allowed = b("LessOrEqual", b.constant(lags), b("Floor", b("Div", m, float(PERIODS_SEEN))))
    allowed = b("And", allowed, b("Greater", fell, 0.0))
    best = b("ReduceMax", b("Where", allowed, r, -1.0), one, keepdims=1)
    high = b("GreaterOrEqual", r, b("Max", b("Mul", best, c.period_share), c.period_strength))
    high = b("And", b("And", high, allowed), b("GreaterOrEqual", b.constant(lags), float(SHORTEST_PERIOD)))
    left = b("Concat", r0, b("Slice", r, b.ints(0), b.ints(-1), one), axis=1)
    right = b("Concat", b("Slice", r, b.ints(1), b.ints(lags.size), one), r0, axis=1)  # its last entry is never allowed
    peak = b("And", b("Greater", r, b("Add", left, 1e-9)), b("GreaterOrEqual", r, b("Sub", right, 1e-9)))
    found = b("ArgMax", b("Cast", b("And", high, peak), to=int64), axis=1, keepdims=0)  # 0 where there is none
    b("Concat", "periods", b("Cast", found, to=double), axis=0, name="next_periods")
    b("Identity", "go_on", name="still")
    b.input("turn", np.int64, [])
    b.input("go_on", np.bool_, [])
    b.input("periods", np.float64, [None])
    b.output("still", "still", np.bool_, [])
    b.output("next_periods", "next_periods", np.float64, [None])
    found = g("Loop", turns, "", g.constant(np.zeros(0)), body=b.graph("period"))
    return g("ScatterND", g("Mul", seen, 0.0), "places", found)


PAST = max(*SPIKE_LAGS, *(far for _, far in SPIKE_LINES))
"""How far back spikes are looked for (points)."""

STATISTICS = (
    "seen", "anchor", "delta", "missing", "judged", "compared", "compared_stretches", "last", "L3", "L20", "L150", "L1000", "gap", "stretch_gap",
    "D300", "H300", "D20", "H20", "S150", "S1000", "period", "total", "squares", "recent", "far", "usual", "usual_stretches",
    "peak", "long_peak", "novelty", "novelty_stretches", "alarms", "alarms_stretches",
    "jump_root", "bend_root", "jump", "bend", "jumps", "bends", "spikes", "spikes_lately",
    *(f"{what}_{k}" for k in range(PAST, 0, -1) for what in ("ago", "there")),
)  # fmt: skip
"""The columns of the graph's `statistics` state; a stream that has seen nothing is all zeros."""


STATE = {
    "seen": 1, "anchor": 1, "delta": 1, "missing": 1, "judged": 1, "compared": 2, "levels": 7, "scales": 7, "sums": 6,
    "peaks": 4, "alarms": 2, "jumps": 6, "spikes": 2, "past": 2 * PAST,
}  # fmt: skip
"""Parts of the `statistics` state with their columns, in the order of STATISTICS."""


class StreamGraph(GraphBuilder):
    """The graph of a stream: what is known of its rows, of the state before them, and of the state that they leave.

    Everything is (N, T, channels), and like things share one tensor: a node costs about a microsecond, whatever its size.

    Attributes:
        end: points of the longest row T, int64 (1,).
        lens: points of each row, int64 (N, 1, 1).
        time_index: int64 (1, T, 1).
        valid: which points count: inside the row's length and not missing, bool (N, T, 1); `valid_f` is the same as float64.
        x: their values, 0 where none counts.
        state: parts of `statistics` before the first point, (N, 1, columns) each.
        left: the same parts, as the row leaves them.
    """

    def __init__(self) -> None:
        super().__init__(dtype=np.float64)
        self.end = self("Shape", "values", start=1, end=2)
        self._states_end = self("Add", self.end, self.ints(1))  # T + 1: the incoming state goes before the first point
        steps = self("Range", self.constant(0, np.int64), self("Squeeze", self.end), self.constant(1, np.int64))
        self.time_index = self("Unsqueeze", steps, self.ints(0, 2))
        self.lens = self("Unsqueeze", self("Cast", "sequence_lens", to=TensorProto.INT64), self.ints(1, 2))
        values = self("Unsqueeze", "values", self.ints(2))
        self.valid = self("And", self("Not", self("IsNaN", values)), self("Less", self.time_index, self.lens))
        self.valid_f = self("Cast", self.valid, to=TensorProto.DOUBLE)
        self.x = self("Clip", self("Where", self.valid, values, 0.0), -HUGE, HUGE)
        parts = self.split(self("Unsqueeze", "statistics", self.ints(1)), *STATE.values())
        self.state = dict(zip(STATE, parts, strict=True))
        self.left: dict[str, str] = {}

    def add(self, *xs: str | float) -> str:
        """The sum of two or more."""
        out = xs[0]
        for x in xs[1:]:
            out = self("Add", out, x)
        return str(out)

    def split(self, x: str, *sizes: int) -> list[str]:
        """Channels, so many in each."""
        return self.several("Split", x, self.ints(*sizes), outputs=len(sizes), axis=2)

    def join(self, *xs: str) -> str:
        """The channels of all."""
        return self("Concat", *xs, axis=2)

    def part(self, x: str, start: int, stop: int) -> str:
        """Some of the channels."""
        return self("Slice", x, self.ints(start), self.ints(stop), self.ints(2))

    def count(self, x: str) -> str:
        """How many of them there were up to each point, itself included, in this run; x is float64."""
        return self("CumSum", x, self.constant(1, np.int64))

    def before(self, name: str, v: str) -> str:
        """What was there before each point, of a part of the state that becomes v (N, T, channels)."""
        return self._past_and_end(name, self("Concat", self.state[name], v, axis=1))

    def solve(self, kind: str, v: str, gain: str, name: str) -> str:
        """Run a part's recurrences side by side (see `doubling`): what each was before every point."""
        if kind == "sum":
            gain = self(
                "Concat", self.state[name], gain, axis=1
            )  # the first gain meets nothing: any finite value will do
        start, go_on = self("Concat", self.state[name], v, axis=1), self.constant(True, np.bool_)
        body = doubling(kind, STATE[name], self._states_end)
        solved = self.several("Loop", "", go_on, start, gain, self.ints(1), outputs=3, body=body)
        return self._past_and_end(name, solved[0])

    def fading(self, v: str, grown: str, name: str) -> str:
        """Sums that fade by a constant factor per point counted, as prefix sums of what grows by it: before every point."""
        total = self.add(self.count(self("Mul", v, grown)), self.state[name])
        return self._past_and_end(name, self("Concat", self.state[name], self("Div", total, grown), axis=1))

    def _past_and_end(self, name: str, joined: str) -> str:
        """From (N, T + 1, channels), state first: what was there before each point; the row leaves the last behind."""
        where = self.lens if STATE[name] == 1 else self("Expand", self.lens, self.ints(1, 1, STATE[name]))
        before = self("Slice", joined, self.ints(0), self.end, self.ints(1))
        self.left[name] = self("GatherElements", joined, where, axis=1)
        return before


class Points(NamedTuple):
    """The points as the statistics see them, (N, T, 1) each."""

    anchor: str
    """The stream's first value, (N, 1, 1)."""
    d: str
    """Values relative to it."""
    there: str
    """Which of the PAST points before were there, the latest first, float64 (N, T, PAST)."""
    spike: str
    learnt: str
    """Valid, and no spike."""
    learnt_f: str


def points_of(g: StreamGraph, c: Adaptation) -> Points:
    """The anchor, and what is not learnt from: `spikes`."""
    first = g("And", g.valid, g("Equal", g.count(g.valid_f), 1.0))
    first = g("And", first, g("Equal", g.state["seen"], 0.0))
    anchor = g.add(g.state["anchor"], g("ReduceSum", g("Where", first, g.x, 0.0), g.ints(1), keepdims=1))  # (N, 1, 1)
    g.left["anchor"] = anchor
    d = g("Where", g.valid, g("Sub", g.x, anchor), 0.0)
    ago, there = past_points(g, d)

    # What each point is compared with, as weights of those before it: the last one, the lines, and the ones further back.
    lines = ({i: 1 + i / (j - i), j: -i / (j - i)} for i, j in SPIKE_LINES)
    guesses = [{1: 1.0}, *lines, *({k: 1.0} for k in SPIKE_LAGS)]
    through = np.zeros((PAST, len(guesses)))
    for k, guess in enumerate(guesses):
        for lag, weight in guess.items():
            through[lag - 1, k] = weight
    matches = g("MatMul", there, g.constant(through != 0))
    whole = g("Equal", matches, g.constant([float(len(guess)) for guess in guesses]))
    off = g("Where", whole, g("Abs", g("Sub", d, g("MatMul", ago, g.constant(through)))), HUGE)  # (N, T, guesses)
    bend = g("ReduceMin", g.part(off, 1, 1 + len(SPIKE_LINES)), g.ints(2), keepdims=1)
    nearest_value = g("ReduceMin", g.part(off, 1 + len(SPIKE_LINES), len(guesses)), g.ints(2), keepdims=1)

    a = 0.5 ** (1 / c.spike_half_life)
    counts = g("And", g.part(whole, 0, 2), g.valid)  # a jump, a bend
    now = g("Where", counts, g("Min", g.part(off, 0, 2), LARGE), 0.0)
    counts = g("Cast", counts, to=TensorProto.DOUBLE)
    grown = g("Pow", 1 / a, g.count(counts))
    terms = g("Mul", g.join(g("Sqrt", now), now, counts), 1 - a)
    roots, plain, ages = g.split(g.fading(terms, g.join(grown, grown, grown), "jumps"), 2, 2, 2)
    ages = g("Max", ages, 1e-12)
    roots = g("Div", roots, ages)
    usual = g.add(g("Mul", roots, roots), g("Mul", g("Div", plain, ages), c.tail_share))
    limits = g.constant([[c.spike_jump, c.spike_bend_jump, 0.0, 0.0], [0.0, 0.0, c.spike_bend, 0.0]])
    limits = g("MatMul", usual, limits)
    over = g("Greater", g.join(nearest_value, nearest_value, bend, g.part(usual, 0, 1)), limits)
    jumped, moved_on, bent, any_jump = g.split(over, 1, 1, 1, 1)
    found = g("Or", jumped, g("And", bent, g("And", moved_on, g("Less", bend, HUGE))))
    found = g("And", found, g("And", g.valid, g("Less", nearest_value, HUGE)))
    old_enough = g("GreaterOrEqual", g.part(ages, 0, 1), 1 - a**c.spike_youth - 1e-9)
    found = g("And", found, g("And", old_enough, any_jump))
    found_f = g("Cast", found, to=TensorProto.DOUBLE)
    keep = np.array([0.5 ** (1 / c.spike_memory), 0.5 ** (1 / c.burst)])
    passed = g("Add", g("Cast", g.time_index, to=TensorProto.DOUBLE), 1.0)
    known_spikes = g("Sub", *g.split(g.fading(found_f, g("Pow", g.constant(1 / keep), passed), "spikes"), 1, 1))
    spike = g("And", found, g("Less", known_spikes, c.spikes_known))
    learnt = g("And", g.valid, g("Not", spike))
    return Points(anchor, d, there, spike, learnt, g("Cast", learnt, to=TensorProto.DOUBLE))


def past_points(g: StreamGraph, d: str) -> tuple[str, str]:
    """The PAST values before each point and which of them were there, float64 (N, T, PAST) each, the latest first."""
    together = g("Concat", g("Reshape", g.state["past"], g.ints(0, PAST, 2)), g.join(d, g.valid_f), axis=1)
    kept = g("Add", g.lens, g.constant(np.arange(PAST).reshape(1, -1, 1), np.int64))
    left = g("GatherElements", together, g("Concat", kept, kept, axis=2), axis=1)  # of (N, PAST + T, 2)
    g.left["past"] = g("Reshape", left, g.ints(0, 1, 2 * PAST))
    at = g("Squeeze", g.time_index, g.ints(0))
    at = g("Add", at, g.constant(np.arange(PAST)[::-1][None], np.int64))  # (T, PAST)
    ago, there = g.several("Split", g("Gather", together, at, axis=1), g.ints(1, 1), outputs=2, axis=3)
    return g("Squeeze", ago, g.ints(3)), g("Squeeze", there, g.ints(3))


class Statistics(NamedTuple):
    """`running_statistics` in the graph, float64 (N, T, 1) each where nothing else is said."""

    seen: str
    some: str
    """Whether anything was seen, bool."""
    last: str
    l20: str
    l1000: str
    averages: str
    """The LEVELS but the last value, (N, T, 4)."""
    gap: str
    stretch_gap: str
    delta: str
    period: str
    d300: str
    h300: str
    d20: str
    h20: str
    s150: str
    s1000: str
    step: str
    rounding: str
    unit: str
    wide: str
    """S1000 and the unit together."""
    filled: str
    """The values, missing ones and spikes repeated."""
    track: str
    """The last HISTORY values before this run and `filled`, (N, HISTORY + T, 1)."""


def corrected(g: StreamGraph, total: str, n: str, a: np.ndarray) -> str:
    """Averages of n points from sums that fade by a, corrected for what is not there yet."""
    started = g("Greater", n, 0.0)
    return g("Where", started, g("Div", total, g("Max", g("Sub", 1.0, g("Pow", g.constant(a), n)), 1e-12)), 0.0)


def decay(names: tuple[str, ...]) -> np.ndarray:
    return np.array([0.5 ** (1 / HALF_LIFE[k]) for k in names])


def statistics_of(g: StreamGraph, c: Adaptation, points: Points) -> Statistics:
    """Levels, scales and the period of each point's past."""
    d, learnt = points.d, points.learnt
    seen = g.before("seen", g.add(g.count(points.learnt_f), g.state["seen"]))

    # the last value is the recurrence with gain 0 at points that are learnt
    a = np.concatenate([[0.0], decay(LEVELS[1:])])
    gains = g.constant([*a, c.gap_keep, c.stretch_gap_keep])
    gain = g("Where", g.join(*[learnt] * 5, *[g.valid] * 2), gains, 1.0)
    missing_now = g("Sub", 1.0, g.valid_f)
    terms = g.join(g("Mul", g("Where", learnt, d, 0.0), g.constant(1 - a)), missing_now, missing_now)
    last, averages, gap, stretch_gap = g.split(g.solve("sum", terms, gain, "levels"), 1, 4, 1, 1)
    averages = corrected(g, averages, seen, a[1:])
    _, l20, l150, l1000 = g.split(averages, 1, 1, 1, 1)

    some = g("Greater", seen, 0.0)
    moved = g("And", learnt, some)
    delta = g("Where", moved, g("Sub", d, last), 0.0)
    size = g("Div", g("Abs", delta), g.add(gap, 1.0))  # over a gap it is many steps in one
    root = g("Sqrt", size)
    away = g("Where", learnt, g("Abs", g("Sub", d, g.join(l150, l1000))), 0.0)
    a = decay(("D300", "H300", "D20", "H20", "S150", "S1000"))
    both = g("Concat", *[moved] * 4, *[learnt] * 2, axis=2)
    filled = g("Where", learnt, d, last)
    track = g("Concat", g("Unsqueeze", "history", g.ints(2)), filled, axis=1)
    due = g("Equal", g("Mod", seen, float(PERIOD_EVERY), fmod=1), 0.0)
    due = g("And", g("And", learnt, due), some)
    periods = period_nodes(g, c, track=track, seen=seen, due=due)  # kept from one such point to the next
    gain = g.join(g("Where", both, g.constant(a), 1.0), g("Where", due, 0.0, 1.0))
    terms = g("Mul", g.join(size, root, size, root, away), g.constant(1 - a))
    scales, period = g.split(g.solve("sum", g.join(terms, periods), gain, "scales"), 6, 1)
    moves = g("Sub", seen, g("Cast", some, to=TensorProto.DOUBLE))
    scales = corrected(g, scales, g.join(*[moves] * 4, *[seen] * 2), a)
    d300, h300, d20, h20, s150, s1000 = g.split(scales, *[1] * 6)
    h300, h20 = g("Mul", h300, h300), g("Mul", h20, h20)
    step = g.add(h300, g("Mul", d300, 0.2), g("Mul", s1000, 0.02))
    rounding = g.add(g("Mul", g("Abs", g("Add", points.anchor, last)), 1e-15), TINY)
    unit = g.add(step, rounding)
    wide = g.add(s1000, unit)
    return Statistics(
        seen, some, last, l20, l1000, averages, gap, stretch_gap, delta, period, d300, h300, d20, h20, s150, s1000, step, rounding,
        unit, wide, filled, track,
    )  # fmt: skip


class Inputs(NamedTuple):
    """What the GRU reads, and what others need of that."""

    by_time: str
    """float32 (T, N, INPUTS)."""
    pulls: str
    """The levels, relative to the last value, (N, T, 4)."""
    above: str
    """The last value and L20, relative to L1000, (N, T, 2)."""
    missing_before: str
    """Whether the point before was not learnt, (N, T, 1)."""


def inputs_of(g: StreamGraph, points: Points, s: Statistics) -> Inputs:
    """`gru_inputs`."""
    f32 = TensorProto.FLOAT

    def single(x: float) -> str:
        return g.constant(x, np.float32)

    delta_before = g.before("delta", s.delta)
    missing_before = g.before("missing", g("Sub", 1.0, points.learnt_f))
    pulls = g("Sub", s.averages, s.last)
    above = g("Sub", g.join(s.last, s.l20), s.l1000)
    in_units = g("Div", g.join(g("Neg", pulls), delta_before), s.unit)
    signed = g("Concat", in_units, g("Div", g("Concat", *g.split(above, 1, 1)[::-1], axis=2), s.wide), axis=2)
    signed = g("Div", g("Asinh", g("Cast", g("Clip", signed, -1e6, 1e6), to=f32)), single(3))
    ratios = g("Clip", g("Div", g.join(s.d20, s.h20, s.d300, s.h300, s.s150, s.s1000), s.unit), 1e-4, 1e4)
    ratios = g("Div", g("Log", g("Cast", ratios, to=f32)), single(3))
    age = g("Sub", g("Div", g("Log", g("Cast", g.add(s.seen, 1.0), to=f32)), single(5)), single(1))
    inputs = g("Concat", signed, ratios, g("Cast", missing_before, to=f32), age, axis=2)  # (N, T, INPUTS)
    return Inputs(g("Transpose", inputs, perm=[1, 0, 2]), pulls, above, missing_before)


def head_of(g: StreamGraph, model: Weights, by_time: str) -> list[str]:
    """The GRU and its head: weights of the levels, offset, log scale and rises of the quantiles, float64 (N, T, …)."""

    def gates(weight: np.ndarray) -> np.ndarray:
        """The weights have the gates as reset, update, new; ONNX wants update, reset, new."""
        r, z, n = np.split(weight, 3)
        return np.concatenate([z, r, n])[None]

    bias = np.concatenate([gates(model.bias_ih), gates(model.bias_hh)], 1)
    parameters = [g.constant(w, np.float32) for w in (gates(model.weight_ih), gates(model.weight_hh), bias)]
    h_in = g("Unsqueeze", "state", g.ints(0))
    kind = {"hidden_size": model.hidden, "linear_before_reset": 1}
    y, h = g.several("GRU", by_time, *parameters, "sequence_lens", h_in, outputs=2, **kind)
    g("Squeeze", h, g.ints(0), name="next_state")
    weight, bias = (g.constant(p.T, np.float32) for p in (model.head_weight, model.head_bias))
    head = g("Add", g("MatMul", g("Concat", g("Squeeze", y, g.ints(1)), by_time, axis=2), weight), bias)
    head = g("Cast", g("Transpose", head, perm=[1, 0, 2]), to=TensorProto.DOUBLE)
    return g.split(head, len(LEVELS), 1, 1, len(QUANTILES))


class Surprise(NamedTuple):
    """`surprise` in the graph, (N, T, 1) each."""

    yardstick: str
    error: str
    log: str
    """Logarithm of error / yardstick."""
    known: str
    judged: str
    settled: str
    near_gap: str


def surprise_of(
    g: StreamGraph, model: Weights, c: Adaptation, points: Points, s: Statistics, inputs: Inputs
) -> Surprise:
    """The forecast, which is an output, and how far it is off by the stream's yardstick."""
    mix, offset, scale, rises = head_of(g, model, inputs.by_time)

    def bounded(v: str, limit: float) -> str:
        return g("Mul", g("Tanh", g("Div", v, limit)), limit)

    mix = g.split(g("Softmax", mix, axis=2), 1, len(LEVELS) - 1)[1]  # the last value's share moves nothing
    pulled = g("ReduceSum", g("Mul", mix, inputs.pulls), g.ints(2), keepdims=1)
    forecast = g.add(s.last, pulled, g("Mul", s.step, bounded(offset, 3.0)))
    g("Squeeze", g("Where", s.some, g("Add", points.anchor, forecast), 0.0), g.ints(2), name="expected")
    quantile_weights = g.constant([0.0, c.q99, c.q999])
    log_scale = bounded(scale, 6.0)
    risen = g("CumSum", g("Log", g("Add", g("Exp", rises), 1.0)), g.constant(2, np.int64))
    log_quantiles = g("Add", log_scale, risen)
    learned = g("ReduceSum", g("Mul", g("Exp", log_quantiles), quantile_weights), g.ints(2), keepdims=1)
    scale_weights = g.constant([c.d300, c.h300, c.d20, c.s150, c.s1000])
    scales = g.join(s.d300, s.h300, s.d20, s.s150, s.s1000)
    measured = g("ReduceSum", g("Mul", scales, scale_weights), g.ints(2), keepdims=1)
    yardstick = g.add(g("Mul", s.unit, g.add(learned, 1e-6)), measured, s.rounding)
    begun = g("Greater", s.seen, 1.0)
    known = g("And", begun, g("Or", g("Greater", s.h300, 0.0), g("GreaterOrEqual", s.seen, float(QUIET))))
    judged = g("And", known, g.valid)
    near_gap = g("GreaterOrEqual", s.gap, c.gap_settled)
    settled = g("And", g("And", known, points.learnt), g("Not", near_gap))
    error = g("Abs", g("Sub", points.d, forecast))
    log = g("Log", g("Clip", g("Div", error, yardstick), 1e-6, 1e6))
    return Surprise(yardstick, error, log, known, judged, settled, near_gap)


class Sizes(NamedTuple):
    """How novel the latest window and the latest stretch are, (N, T, 2) each."""

    size: str
    """0 where nothing can be compared."""
    heard: str
    """The same where it is learnt."""
    compared_here: str
    """How many were learnt in this run, this point included."""
    compared_count: str
    """How many were learnt before each point."""


def sizes_of(
    g: StreamGraph, c: Adaptation, points: Points, s: Statistics, missing_before: str, surprise: Surprise
) -> Sizes:
    """How unlike all earlier windows the latest is, and how unlike the latest stretch those at its hour."""
    odd = g("Where", points.spike, g("Sub", points.d, s.last), 0.0)
    nearest, history = nearest_window_nodes(
        g,
        c,
        track=s.track,
        filled=s.filled,
        odd=odd,
        last=s.last,
        seen=s.seen,
        period=s.period,
        scales=(s.s1000, s.d300, s.unit),
        lens=g.lens,
    )
    g("Squeeze", history, g.ints(2), name="next_history")
    was_spike = g("Greater", g("Mul", missing_before, g.part(points.there, 0, 1)), 0.0)
    after_spike = g("And", was_spike, points.learnt)
    of_stretch = g("And", points.learnt, g("Less", s.stretch_gap, c.stretch_gap_settled))
    comparable = g("Concat", g("Not", g("Or", surprise.near_gap, after_spike)), of_stretch, axis=2)
    compared = g("And", g("And", g("Less", nearest, UNCOMPARED), surprise.judged), comparable)  # (N, T, 2)
    window, stretch = g.split(nearest, 1, 1)
    size = g.join(g("Sqrt", g("Div", window, float(WINDOW))), stretch)
    size = g.add(size, g("Mul", s.wide, c.grain))
    size = g("Mul", size, g("Exp", g("Mul", g("Clip", surprise.log, -2.0, 2.0), c.echo)))
    steps = g("Add", g.join(s.d20, s.d300), g("Mul", s.unit, 0.1))
    size = g("Mul", size, g("Pow", g("Div", *g.split(steps, 1, 1)), -c.restlessness))
    size = g("Where", compared, g("Clip", size, 1 / CLIPPED, CLIPPED), 0.0)
    heard = g("Where", points.learnt, size, 0.0)
    compared = g("And", compared, points.learnt)
    compared_here = g.count(g("Cast", compared, to=TensorProto.DOUBLE))
    compared_count = g.before("compared", g.add(compared_here, g.state["compared"]))
    return Sizes(size, heard, compared_here, compared_count)


class Memory(NamedTuple):
    """What is remembered of earlier surprises and novelties, before each point."""

    count: str
    """Points that were judged and settled, (N, T, 1)."""
    mean: str
    """Of the clipped surprises, with the prior; `square` is the mean of their squares."""
    square: str
    recent: str
    least: str
    """Root mean square of the errors, (N, T, 1)."""
    power: str
    """Mean square of novelties, (N, T, 2)."""
    peaks: str
    """Two sinking peaks of surprise, (N, T, 2)."""
    novelties: str
    """Sinking peaks of novelty, (N, T, 2)."""


def memory_of(g: StreamGraph, c: Adaptation, s: Statistics, surprise: Surprise, sizes: Sizes) -> Memory:
    """The fading sums and sinking peaks that the bars are made of."""
    settled = surprise.settled
    a, slow = 0.5 ** (1 / c.half_life), 0.5 ** (1 / c.recent_half_life)
    clipped = g("Where", settled, g("Clip", surprise.log, c.low, c.high), 0.0)
    rise = g("Where", settled, g("Clip", g("Sub", surprise.log, c.peak_base), 0.0, c.peak_cap), 0.0)
    judged_here = g.count(g("Cast", settled, to=TensorProto.DOUBLE))
    count = g.before("judged", g.add(judged_here, g.state["judged"]))
    longer = 0.5 ** (1 / c.far_half_life)
    capped = g("Where", settled, g("Min", g("Min", surprise.error, g("Mul", s.wide, c.far_cap)), LARGE), 0.0)
    usual_gain = 0.5 ** (1 / c.usual_half_life)
    heard_at_most = g("Min", sizes.heard, LARGE)
    terms = g.join(
        clipped,
        g("Mul", clipped, clipped),
        g("Mul", rise, 1 - slow),
        g("Mul", g("Mul", capped, capped), 1 - longer),
        g("Mul", g("Mul", heard_at_most, heard_at_most), 1 - usual_gain),
    )
    gains = np.array([a, a, slow, longer, usual_gain, usual_gain])
    grown = g("Pow", g.constant(1 / gains), g.join(*[judged_here] * 4, sizes.compared_here))
    sums = g.fading(terms, grown, "sums")

    surprises = [0.5 ** (1 / half_life) for half_life in (c.peak_half_life, c.long_peak_half_life)]
    sinking = g.constant([*surprises, *[np.exp(-c.forgetting)] * 2])
    peaks, novelties = g.split(g.solve("peak", g.join(rise, rise, sizes.heard), sinking, "peaks"), 2, 2)
    usual, recent, energy, power = g.split(sums, 2, 1, 1, 2)
    filled, filled_longer = g.split(g("Sub", 1.0, g("Pow", g.constant([a, longer]), count)), 1, 1)
    weight = g.add(g("Div", filled, 1 - a), c.prior)
    prior = c.prior * np.array([c.prior_mean, c.prior_mean**2 + c.prior_deviation**2])
    mean, square = g.split(g("Div", g("Add", usual, g.constant(prior)), weight), 1, 1)
    least = g("Sqrt", g("Div", energy, g("Max", filled_longer, 1e-12)))
    power = g("Div", power, g("Max", g("Sub", 1.0, g("Pow", usual_gain, sizes.compared_count)), 1e-12))
    return Memory(count, mean, square, recent, least, power, peaks, novelties)


def write_novelty(g: StreamGraph, c: Adaptation, points: Points, s: Statistics, sizes: Sizes, memory: Memory) -> None:
    """`over_bar`, of windows and of stretches: the output `novelty`."""
    excess = g.constant(np.exp([c.excess, c.rhythm_excess]))
    over_usual = g.constant(np.exp([c.over_usual, c.over_usual_rhythm]))
    needed = g("Max", g("Mul", memory.novelties, excess), g("Mul", g("Sqrt", memory.power), over_usual))
    ages = g.add(g.join(s.seen, g.split(sizes.compared_count, 1, 1)[1]), 1.0)
    needed = g("Mul", needed, g("Exp", g("Div", g.constant([c.novelty_youth, c.rhythm_youth]), ages)))
    comparable = g("Greater", g("Min", memory.novelties, sizes.size), 0.0)
    ratio = g("Min", g("Div", sizes.size, g("Where", comparable, needed, HUGE)), 1e6)
    near = g("Clip", g("Add", g("Log", g("Max", ratio, 1e-6)), c.alarm_ramp), 0.0, 1.0)
    comparable = g("And", comparable, points.learnt)
    near = g("Where", points.learnt, near, 0.0)
    alarms_here = g.count(g("Cast", comparable, to=TensorProto.DOUBLE))
    alarms = g.fading(near, g("Pow", 2 ** (1 / c.alarm_half_life), alarms_here), "alarms")
    odds = g("Pow", g("Mul", ratio, g("Pow", g("Add", alarms, 1.0), -c.alarm_weight)), c.slope)
    odds = g("ReduceMax", odds, g.ints(2), keepdims=1)
    g("Squeeze", g("Div", odds, g.add(odds, 1.0)), g.ints(2), name="novelty")


def write_spread(g: StreamGraph, c: Adaptation, s: Statistics, above: str, surprise: Surprise, memory: Memory) -> None:
    """`bar`, and the half-width of the band that follows from it: the output `spread`."""
    variance = g("Sub", memory.square, g("Mul", memory.mean, memory.mean))
    deviation = g("Sqrt", g("Max", variance, 1e-4))
    by_habit = g.add(g("Mul", memory.mean, c.mean_weight), g("Mul", deviation, c.deviations))
    weighted = g("Mul", memory.peaks, g.constant([1.0, c.long_peak_weight]))
    by_peaks = g("Add", weighted, g.constant([c.over_peak, c.over_long_peak]))
    by_peaks = g("ReduceMax", g("Where", g("Greater", memory.peaks, 0.0), by_peaks, -1e9), g.ints(2), keepdims=1)
    young = g("Div", c.youth, g("Add", g("Div", memory.count, c.youth_age), 1.0))
    far = g("Min", g("Abs", g("Div", g.split(above, 1, 1)[0], s.wide)), 5.0)
    ageing = g("Mul", g("Log", g.add(g("Div", memory.count, 1000.0), 1.0)), c.ageing)
    height = g("Max", by_habit, by_peaks, c.floor)
    recent, level = g("Mul", memory.recent, -c.recent_weight), g("Mul", far, c.level_weight)
    height = g.add(height, young, ageing, recent, level)
    width = g("Mul", surprise.yardstick, g("Exp", g("Clip", height, -6.0, 12.0)))
    width = g("Max", width, g("Mul", memory.least, c.far_weight))
    unsure = g("Mul", g("Mul", s.wide, c.gap_width), g("Sub", 1.0, g("Exp", g("Div", s.gap, -c.gap_scale))))
    spread = g("Clip", g.add(g("Mul", width, float(np.exp(c.threshold))), unsure), TINY, HUGE)
    g("Squeeze", g("Where", surprise.known, spread, BLIND), g.ints(2), name="spread")


def build_graph(model: Weights, c: Adaptation) -> onnx.ModelProto:
    """The same computation as `detect`, with state in and out, from operators of opset 18.

    Statistics are float64 (a float32 level would lose a small change on a large offset), the GRU is float32.
    """
    g = StreamGraph()
    points = points_of(g, c)
    statistics = statistics_of(g, c, points)
    inputs = inputs_of(g, points, statistics)
    surprise = surprise_of(g, model, c, points, statistics, inputs)
    sizes = sizes_of(g, c, points, statistics, inputs.missing_before, surprise)
    memory = memory_of(g, c, statistics, surprise, sizes)
    write_novelty(g, c, points, statistics, sizes, memory)
    write_spread(g, c, statistics, inputs.above, surprise, memory)
    g("Squeeze", g.join(*(g.left[name] for name in STATE)), g.ints(1), name="next_statistics")

    series, state = (
        ["batch", "time"],
        {
            "state": (np.float32, ["batch", model.hidden]),
            "statistics": (np.float64, ["batch", len(STATISTICS)]),
            "history": (np.float64, ["batch", HISTORY]),
        },
    )
    g.input("values", np.float64, series)
    g.input("sequence_lens", np.int32, ["batch"])
    for name, (dtype, shape) in state.items():
        g.input(name, dtype, shape)
    for name in ("expected", "spread", "novelty"):
        g.output(name, name, np.float64, series)
    for name, (dtype, shape) in state.items():
        g.output(f"next_{name}", f"next_{name}", dtype, shape)
    return g.model("series_gru", producer="series-gru")
