"""The exported graph: the detector of `tcn.py`, from operators of ONNX, with a stream's state in and out.

Letters: N series, T points, F features, C channels. A track is the PAST points before this run and those of it, PAST + T.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto
from tcn import (
    BARS,
    BLIND,
    DILATIONS,
    HUGE,
    KERNEL,
    LONGEST,
    MEANS,
    OUTPUTS,
    PAST,
    QUANTILES,
    QUIET,
    REACH,
    SHIFT,
    TINY,
    Bar,
    Weights,
)

from training.graph import GraphBuilder

TIME = 1


class Track(GraphBuilder):
    """Operators along time."""

    def __init__(self) -> None:
        super().__init__("", np.float64)

    def cut(self, x: str, first: int, behind: int | None = None, axis: int = TIME) -> str:
        """Points `first` to `behind`, not included; negative ones count from the end."""
        last = np.iinfo(np.int64).max if behind is None else behind
        return self("Slice", x, self.ints(first), self.ints(last), self.ints(axis))

    def later(self, x: str, points: int) -> str:
        """Shift by so many points; zeros come in."""
        return self.cut(self("Pad", x, self.ints(0, points, 0, 0)), 0, -points)

    def box(self, v: str, length: int) -> str:
        """Sum over the last `length` points, a power of two."""
        width = 1
        while width < length:
            v = self("Add", v, self.later(v, width))
            width *= 2
        return v

    def add(self, first: str | float, *others: str | float) -> str:
        for other in others:
            first = self("Add", first, other)
        assert isinstance(first, str)
        return first

    def double(self, x: str) -> str:
        return self("Cast", x, to=TensorProto.DOUBLE)


def track_of(g: Track) -> tuple[str, str, str, str]:
    """The points of the track, missing ones as the one before: x, whether there is one, how many there are so far, and which of this
    run are valid; (N, PAST + T) each, the last (N, T)."""
    time = g("Shape", "values", start=1, end=2)
    length = g("Squeeze", time)
    valid = g("Not", g("IsNaN", "values"))
    given = g("Clip", g("Where", valid, "values", 0.0), -HUGE, HUGE)
    one, zero = g.constant(1, np.int64), g.constant(0, np.int64)
    # The k-th valid point is written to place k, the missing ones to a place behind all; then each point reads its own k.
    rank = g("CumSum", g("Cast", valid, to=TensorProto.INT64), one)
    before = g.cut("history", -1)
    slots = g("Concat", before, g("Mul", given, 0.0), before, axis=1)  # (N, 1 + T + 1)
    places = g("Where", valid, rank, g("Add", length, one))
    read = g("GatherElements", g("ScatterElements", slots, places, given, axis=1), rank, axis=1)
    begun = g("Or", g("Greater", rank, zero), g("Greater", "age", 0.0))
    read = g("Where", begun, read, 0.0)
    x = g("Concat", "history", read, axis=1, name="x")
    ages_here = g("Add", g("CumSum", g.double(begun), one), "age")
    back = g.constant(np.arange(PAST, dtype=np.float64)[None] - (PAST - 1))
    ages_before = g("Max", g("Add", back, "age"), 0.0)
    age = g("Concat", ages_before, ages_here, axis=1)
    there = g("Greater", age, 0.0)
    return x, there, age, valid


def sliding_nodes(g: Track, x: str, there: str) -> dict[str, str]:
    """`sliding`."""
    m = g.double(there)
    pair = g("Mul", m, g.later(m, 1))
    delta = g("Mul", pair, g("Sub", x, g.later(x, 1)))
    s = {"x": x, "delta": delta}
    counts = {length: g("Max", g.box(m, length), 1.0) for length in MEANS}
    pairs = {length: g("Max", g.box(pair, length), 1.0) for length in (16, LONGEST)}
    for length in MEANS:
        s[f"M{length}"] = g("Div", g.box(g("Mul", m, x), length), counts[length])
    size = g("Abs", delta)
    for length in (16, LONGEST):
        s[f"D{length}"] = g("Div", g.box(size, length), pairs[length])
        root = g("Div", g.box(g("Sqrt", size), length), pairs[length])
        s[f"H{length}"] = g("Mul", root, root)
    off = g("Abs", g("Sub", x, s["M16"]))
    s["S256"] = g("Div", g.box(g("Mul", m, off), LONGEST), counts[LONGEST])
    s["step"] = g.add(s["H256"], g("Mul", s["D256"], 0.2), g("Mul", s["S256"], 0.02))
    s["rounding"] = g.add(g("Mul", g("Abs", x), 1e-15), TINY)
    s["unit"] = g.add(s["step"], s["rounding"])
    s["wide"] = g.add(s["S256"], s["unit"])
    return s


def features_nodes(g: Track, s: dict[str, str], there: str, age: str) -> str:
    """`features`, (N, F, PAST + T) float32."""

    def single(v: float) -> str:
        return g.constant(v, np.float32)

    def cast(v: str) -> str:
        return g("Cast", v, to=TensorProto.FLOAT)

    def signed(v: str) -> str:
        return g("Div", g("Asinh", cast(g("Clip", v, -1e6, 1e6))), single(3))

    def ratio(name: str) -> str:
        return g("Div", g("Log", cast(g("Clip", g("Div", s[name], s["unit"]), 1e-4, 1e4))), single(3))

    columns = [signed(g("Div", g("Sub", s["x"], s[f"M{length}"]), s["unit"])) for length in MEANS]
    columns += [signed(g("Div", s["delta"], s["unit"]))]
    columns += [signed(g("Div", g("Sub", a, s["M256"]), s["wide"])) for a in (s["M16"], s["x"])]
    columns += [ratio(name) for name in ("D16", "H16", "D256", "H256", "S256")]
    columns += [g("Sub", g("Div", g("Log", cast(g.add(g("Min", age, float(LONGEST)), 1.0))), single(5)), single(1))]
    stacked = g("Concat", *(g("Unsqueeze", column, g.ints(1)) for column in columns), axis=1)
    return g("Mul", stacked, g("Unsqueeze", cast(there), g.ints(1)))


def head_nodes(g: Track, weights: Weights, f: str) -> list[str]:
    """The network over the last REACH + T + 1 points of the track, less the last: what is answered after the point before each of this
    run; weights of the levels, offset, log scale and rises of the quantiles, float64 (N, T, …)."""
    f = g.cut(f, PAST - 1 - REACH, -1, axis=2)
    h = g("Conv", f, g.weight("first", weights.first[..., None]), g.weight("first_bias", weights.first_bias))
    for k, ((weight, bias), dilation) in enumerate(zip(weights.convs, DILATIONS, strict=True)):
        names = g.weight(f"conv{k}", weight), g.weight(f"conv{k}_bias", bias)
        found = g("Relu", g("Conv", h, *names, dilations=[dilation], kernel_shape=[KERNEL]))
        h = g("Add", g.cut(h, (KERNEL - 1) * dilation, axis=2), found)
    both = g("Concat", h, g.cut(f, REACH, axis=2), axis=1)
    head = g("Conv", both, g.weight("head", weights.head[..., None]), g.weight("head_bias", weights.head_bias))
    head = g.double(g("Transpose", head, perm=[0, 2, 1]))
    assert 1 + len(MEANS) + 2 + len(QUANTILES) == OUTPUTS
    return g.several("Split", head, g.ints(1 + len(MEANS), 1, 1, len(QUANTILES)), outputs=4, axis=2)


def forecast_nodes(g: Track, s: dict[str, str], head: list[str]) -> tuple[str, str]:
    """Forecast and yardstick of each point of this run, (N, T)."""
    mix, offset, scale, rises = head

    def bounded(v: str, limit: float) -> str:
        return g("Squeeze", g("Mul", g("Tanh", g("Div", v, limit)), limit), g.ints(2))

    before = {name: g.cut(v, PAST - 1, -1) for name, v in s.items()}
    parts = g.several(
        "Split", g("Softmax", mix, axis=2), g.ints(*[1] * (1 + len(MEANS))), outputs=1 + len(MEANS), axis=2
    )
    forecast = g.add(before["x"], g("Mul", before["step"], bounded(offset, 3.0)))
    for part, length in zip(parts[1:], MEANS, strict=True):
        pull = g("Sub", before[f"M{length}"], before["x"])
        forecast = g.add(forecast, g("Mul", g("Squeeze", part, g.ints(2)), pull))
    risen = g("Log", g("Add", g("Exp", rises), 1.0))
    to_q99 = g("ReduceSum", g.cut(risen, 0, 2, axis=2), g.ints(2), keepdims=0)
    yardstick = g("Mul", before["unit"], g("Exp", g.add(bounded(scale, 6.0), to_q99)))
    return forecast, g("Max", g.add(yardstick, before["rounding"]), TINY)


def build_graph(weights: Weights, bar: Bar) -> onnx.ModelProto:
    """The same computation as `detect`, with state in and out. Values are float64, the network is float32."""
    g = Track()
    series = ["batch", "time"]
    state = {"history": PAST, "surprises": BARS, "age": 1}
    g.input("values", np.float64, series)
    g.input("sequence_lens", np.int32, ["batch"])
    for name, width in state.items():
        g.input(name, np.float64, ["batch", width])
    x, there, age, valid = track_of(g)
    s = sliding_nodes(g, x, there)
    forecast, yardstick = forecast_nodes(g, s, head_nodes(g, weights, features_nodes(g, s, there, age)))
    age_before = g.cut(age, PAST - 1, -1)
    begun = g("Greater", age_before, 0.0)
    moved = g("And", g("Greater", age_before, 1.0), g("Greater", g.cut(s["H256"], PAST - 1, -1), 0.0))
    known = g("Or", moved, g("GreaterOrEqual", age_before, float(QUIET)))
    error = g("Abs", g("Sub", g.cut(x, PAST), forecast))
    surprise = g("Add", g("Log", g("Clip", g("Div", error, yardstick), 1e-6, 1e6)), SHIFT)
    kept = g("Concat", "surprises", g("Where", g("And", known, valid), surprise, 0.0), axis=1)  # (N, BARS + T)

    judged = g.double(g("Greater", kept, 0.0))
    usual = g("Div", g.box(kept, BARS), g("Max", g.box(judged, BARS), 1.0))
    peak, width = kept, 1
    while width < BARS:
        peak = g("Max", peak, g("Sub", g.later(peak, width), bar.sinking * width))
        width *= 2
    height = g("Max", g("Add", usual, bar.over_usual), g("Add", peak, bar.over_peak))
    height = g("Max", g("Sub", g.cut(height, BARS - 1, -1), SHIFT), bar.floor)
    height = g("Add", height, g("Div", bar.youth, g("Add", g("Div", age_before, bar.youth_age), 1.0)))
    spread = g("Clip", g("Mul", yardstick, g("Exp", g("Clip", height, -6.0, 14.0))), TINY, HUGE)

    lens = g("Unsqueeze", g("Cast", "sequence_lens", to=TensorProto.INT64), g.ints(1))
    for name, track, count in (("history", x, PAST), ("surprises", kept, BARS)):
        at = g("Add", lens, g.constant(np.arange(count)[None], np.int64))
        g("GatherElements", track, at, axis=1, name=f"next_{name}")
    g("GatherElements", age, g("Add", lens, g.constant([[PAST - 1]], np.int64)), axis=1, name="next_age")
    g.output(g("Where", begun, forecast, 0.0), "expected", np.float64, series)
    g.output(g("Where", known, spread, BLIND), "spread", np.float64, series)
    for name, width in state.items():
        g.output(f"next_{name}", f"next_{name}", np.float64, ["batch", width])
    return g.model("series_cnn", producer="series-cnn")
