"""The exported graph, by hand, because a traced export cannot express `sequence_lens`.

- All embeddings are one table: the features, each moved to its own rows, are gathered at once.
- Gates stand in ONNX's order (update, reset, new); torch's is reset, update, new.
- What points back is a product with a one-hot row for each lookback; a lookback that shows nothing has a number that is
  no symbol's, and its row is all zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from network import LENGTHS, SIZES, Composer
from numpy.typing import NDArray
from onnx import TensorProto

from service.music.alphabet import PITCHES, SYMBOLS
from service.music.walk import LEVELS, LOOKBACKS, WIDTH
from training.graph import GraphBuilder

Weights = Mapping[str, NDArray[np.float32]]


def build_graph(network: Composer) -> onnx.ModelProto:
    """The network as a graph: features, sequence_lens, state -> logits, next_state."""
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    hidden = weights["first.weight_hh_l0"].shape[1]
    g = GraphBuilder()
    g.input("features", np.int32, ["batch", "time", WIDTH])
    g.input("sequence_lens", np.int32, ["batch"])
    g.input("state", np.float32, ["batch", 2, hidden])

    table, offsets, columns = _table(weights)
    rows = g("Add", "features", g.constant(offsets, np.int32))
    wide = g("Gather", g.weight("embeddings", table), rows)  # (batch, time, features, widest)
    flat = g("Reshape", wide, g.ints(0, 0, -1))
    embedded = g("Gather", flat, g.ints(*columns), axis=2)  # (batch, time, sum(SIZES))

    x = g("Transpose", embedded, perm=[1, 0, 2])
    first, first_state = _gru(g, weights, "first", x, _layer(g, 0))
    second, second_state = _gru(g, weights, "second", first, _layer(g, 1))
    g.output(g("Transpose", g("Concat", first_state, second_state, axis=0), perm=[1, 0, 2]), "next_state", np.float32,
             ["batch", 2, hidden])  # fmt: skip

    y = g("Transpose", second, perm=[1, 0, 2])
    u = g("Relu", _linear(g, weights, "head", g("Concat", y, embedded, axis=2)))
    pitches = g("Unsqueeze", _linear(g, weights, "pitches", u), g.ints(3))
    lengths = g("Unsqueeze", _linear(g, weights, "lengths", u), g.ints(2))
    apart = g("Reshape", g("Add", pitches, lengths), g.ints(0, 0, SYMBOLS))
    logits = g("Add", apart, _linear(g, weights, "both", _linear(g, weights, "narrow", u)))
    points = g("Unsqueeze", _linear(g, weights, "points", u), g.ints(2))  # (batch, time, 1, lookbacks)
    pointed = g("Squeeze", g("MatMul", points, _marks(g)), g.ints(2))
    g.output(g("Add", logits, pointed), "logits", np.float32, ["batch", "time", SYMBOLS])
    return g.model("folk-gru")


def _table(weights: Weights) -> tuple[NDArray[np.float32], list[int], list[int]]:
    """All embeddings below each other; where each feature's rows begin; which columns of all features are used."""
    length = weights["length.weight"]
    parts = [
        weights["pitch.weight"],
        length[1:],
        *(weights[f"{name}.weight"] for name in ("place", "left", "past", "meter", "mode", "height")),
    ]
    for number in range(len(LOOKBACKS)):
        parts += [weights["pitch.weight"], length, weights[f"alike.{number}.weight"]]
    widest = max(SIZES)
    assert [len(part) for part in parts] == list(LEVELS)
    assert [part.shape[1] for part in parts] == list(SIZES)
    table = np.concatenate([np.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in parts])
    offsets = np.cumsum([0, *LEVELS[:-1]]).tolist()
    columns = [widest * at + column for at, size in enumerate(SIZES) for column in range(size)]
    return table, offsets, columns


def _layer(g: GraphBuilder, number: int) -> str:
    """One layer's state (1, batch, hidden) of the input `state`."""
    return g("Unsqueeze", g("Gather", "state", g.constant(number, np.int64), axis=1), g.ints(0))


def _gru(g: GraphBuilder, weights: Weights, name: str, x: str, state: str) -> tuple[str, str]:
    """A layer over x (time, batch, inputs): its outputs (time, batch, hidden) and its state behind them."""

    def in_onnx_order(value: NDArray[np.float32]) -> NDArray[np.float32]:
        reset, update, new = np.split(value, 3)
        return np.concatenate([update, reset, new])

    inward, across = (in_onnx_order(weights[f"{name}.weight_{kind}_l0"]) for kind in ("ih", "hh"))
    bias = np.concatenate([in_onnx_order(weights[f"{name}.bias_{kind}_l0"]) for kind in ("ih", "hh")])
    y, last = g.several(
        "GRU",
        x,
        g.weight(f"{name}.w", inward[None]),
        g.weight(f"{name}.r", across[None]),
        g.weight(f"{name}.b", bias[None]),
        "sequence_lens",
        state,
        names=[f"{name}_outputs", f"{name}_last"],
        hidden_size=across.shape[1],
        linear_before_reset=1,
    )
    return g("Squeeze", y, g.ints(1)), last


def _linear(g: GraphBuilder, weights: Weights, name: str, x: str) -> str:
    product = g("MatMul", x, g.weight(f"{name}.weight", np.ascontiguousarray(weights[f"{name}.weight"].T)))
    return g("Add", product, g.weight(f"{name}.bias", weights[f"{name}.bias"]))


def _marks(g: GraphBuilder) -> str:
    """A one-hot row (symbols,) for what each lookback shows, zeros where it shows nothing that begins here."""
    pitch, length, alike = (
        g("Gather", "features", g.ints(*(8 + 3 * number + part for number in range(len(LOOKBACKS)))), axis=2)
        for part in range(3)
    )
    starts = g("Equal", g("Mod", alike, g.constant(2, np.int32)), g.constant(1, np.int32))
    symbol = g("Sub", g("Add", g("Mul", pitch, g.constant(LENGTHS, np.int32)), length), g.constant(1, np.int32))
    number = g("Cast", g("Where", starts, symbol, g.constant(SYMBOLS, np.int32)), to=TensorProto.INT64)
    assert SYMBOLS == PITCHES * LENGTHS
    return g("OneHot", number, g.ints(SYMBOLS), g.constant([0.0, 1.0], np.float32), axis=-1)
