"""The exported graph, by hand, because a traced export cannot express `sequence_lens`.

- A layer's convolution is one product: of the last K steps side by side with the weights. What it needs of the steps before
  comes from the state, zeros in a fresh one, as in training.
- The table of words and how it is compared are those of english-lstm: int8, as integers, exact (`models/english-lstm/graph.py`).
- The last numbers of the state are the last output vector, from which a row of length 0 gets its logits.
- `surprisal` needs the whole vocabulary at every step, so it stands behind an `If`, as it does there.

Letters: V vocabulary, E embedding width, L layers, K kernel width, B rows, T time steps.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "english-lstm")]

from graph import add_blocks, add_comparison, bits_of_chosen, bits_where_asked, not_explained  # noqa: E402

from training.graph import GraphBuilder  # noqa: E402


@dataclass(frozen=True)
class Layer:
    """Of a layer: its normalisation, float32 (E,) each, and its two convolutions side by side."""

    norm: np.ndarray
    shift: np.ndarray
    gate: np.ndarray  # float16 (K E, 2 E)
    bias: np.ndarray  # float32 (2 E,)


@dataclass(frozen=True)
class Weights:
    """As they are stored: the table in 8 bits with a scale for each word, the layers in float16."""

    words: np.ndarray  # int8 (V, E)
    scale: np.ndarray  # float16 (V,)
    bias: np.ndarray  # float16 (V,)
    layers: tuple[Layer, ...]
    norm: np.ndarray  # float32 (E,)
    shift: np.ndarray  # float32 (E,)

    @property
    def width(self) -> int:
        return self.words.shape[1]

    @property
    def kept(self) -> int:
        """Steps that each layer's state holds, K - 1."""
        return self.layers[0].gate.shape[0] // self.width - 1

    @property
    def state(self) -> int:
        """Numbers of the state."""
        return len(self.layers) * self.kept * self.width + self.width

    @property
    def largest(self) -> float:
        """No number of the state is larger: a normalised vector has a length of at most the root of its width."""
        norms = [(layer.norm, layer.shift) for layer in self.layers] + [(self.norm, self.shift)]
        return max(float(np.abs(g).max() * math.sqrt(self.width) + np.abs(b).max()) for g, b in norms)


def constants_of(weights: Weights) -> dict[str, np.ndarray | np.generic]:
    """What the nodes read by name; `add_comparison` says which of them."""
    return {
        "words": weights.words, "scale16": weights.scale, "bias16": weights.bias,
        "zero": np.array([0]), "one": np.array([1]), "last": np.array([-1]),
        "rows_of_embedding": np.array([-1, weights.width]), "pairs_of_logits": np.array([-1, 2, len(weights.words)]),
        "tiny": np.float32(1e-20),
        "largest": np.float32(127), "finer": np.float32(254), "middle": np.float32(128), "middle_u8": np.uint8(128),
        "weights_of_parts": np.array([[1, 1 / 254]], np.float32),
        "largest_7": np.float32(64), "finer_7": np.float32(128), "middle_7": np.float32(64), "middle_u8_7": np.uint8(64),
        "weights_of_parts_7": np.array([[1, 1 / 128]], np.float32), "minus_nats_per_bit": np.float32(-math.log(2)),
        "block": np.array([16]), "blocks_of_vectors": np.array([-1, 16, weights.width]), "blocks_of_tokens": np.array([-1, 16]),
        "zero_f32": np.float32(0),
    }  # fmt: skip


def add_layers(g: GraphBuilder, weights: Weights) -> None:
    """From tokens and state to `vectors` (B, 1 + T, E), that before the first token included, and `next_state`."""
    count, kept, width = len(weights.layers), weights.kept, weights.width
    float32 = TensorProto.FLOAT
    x = g("Cast", g("Gather", "words", "tokens"), to=float32)
    x = g("Mul", x, g("Unsqueeze", g("Gather", "scale", "tokens"), "last"))  # (B, T, E)
    before, vector = g.several("Split", "state", g.ints(count * kept * width, width), outputs=2, axis=1)
    before = g("Reshape", before, g.ints(0, count, kept, width))
    befores = g.several("Split", before, g.ints(*[1] * count), outputs=count, axis=1)
    lens = g("Reshape", g("Cast", "sequence_lens", to=TensorProto.INT64), g.ints(-1, 1, 1))
    places = g("Add", lens, g.constant(np.arange(kept).reshape(1, kept, 1), np.int64))  # (B, K - 1, 1)
    time = g("Shape", "tokens", start=1, end=2)
    afters = []
    for k, layer in enumerate(weights.layers):
        norm = g.weight(f"norm{k}", layer.norm), g.weight(f"shift{k}", layer.shift)
        seen = g("Concat", g("Squeeze", befores[k], "one"), g("LayerNormalization", x, *norm, axis=-1), axis=1)
        afters.append(g("Reshape", g("GatherND", seen, places, batch_dims=1), g.ints(0, kept * width)))
        taps = [
            g("Slice", seen, g.ints(tap), g("Add", time, g.ints(tap)), "one") for tap in range(kept + 1)
        ]  # of step t: steps t - K + 1 to t
        gate = g("Cast", g.weight(f"gate{k}", layer.gate), to=float32)
        both = g("Add", g("MatMul", g("Concat", *taps, axis=2), gate), g.weight(f"bias{k}", layer.bias))
        a, b = g.several("Split", both, outputs=2, axis=2, num_outputs=2)
        x = g("Add", x, g("Mul", a, g("Sigmoid", b)))
    y = g("LayerNormalization", x, g.weight("norm", weights.norm), g.weight("shift", weights.shift), axis=-1)
    g("Concat", g("Unsqueeze", vector, "one"), y, axis=1, name="vectors")
    g("Squeeze", g("GatherND", "vectors", lens, batch_dims=1), "one", name="vector")
    g("Concat", *afters, "vector", axis=1, name="next_state")


def surprisal_of_block() -> onnx.GraphProto:
    """Bits of 16 positions, from the vectors before them and their words."""
    b = GraphBuilder()
    b.input("vectors_of_block", np.float32, None)
    b.input("tokens_of_block", np.int64, None)
    add_comparison(b, "vectors_of_block", "logits_of_block", "_7")
    return bits_of_chosen(b)


def explained() -> onnx.GraphProto:
    """The branch for a batch in which somebody asks for surprisals."""
    b = GraphBuilder()
    b("Slice", "vectors", "zero", "last", "one", name="before")  # (B, T, E)
    b("Reshape", "before", "rows_of_embedding", name="before_flat")
    add_blocks(b, "before_flat")
    b("Scan", "vector_blocks", "token_blocks", name="bit_blocks", body=surprisal_of_block(), num_scan_inputs=2)
    return bits_where_asked(b)


def build_graph(weights: Weights) -> onnx.ModelProto:
    """The model, checked."""
    g = GraphBuilder()
    for name, value in constants_of(weights).items():
        g.weight(name, np.asarray(value))
    g.input("tokens", np.int64, ["batch", "time"])
    g.input("sequence_lens", np.int32, ["batch"])
    g.input("state", np.float32, ["batch", weights.state])
    g.input("explain", np.bool_, ["batch"])
    g("Transpose", "words", name="words_by_column", perm=[1, 0])
    g("Cast", "scale16", name="scale", to=TensorProto.FLOAT)
    g("Cast", "bias16", name="bias", to=TensorProto.FLOAT)
    add_layers(g, weights)
    add_comparison(g, "vector", "logits")
    g("Cast", "explain", name="explain_i32", to=TensorProto.INT32)
    g("ReduceMax", "explain_i32", name="explain_any", keepdims=0)
    g("Cast", "explain_any", name="somebody_asks", to=TensorProto.BOOL)
    g("If", "somebody_asks", name="surprisal", then_branch=explained(), else_branch=not_explained())
    g.output("logits", "logits", np.float32, ["batch", len(weights.words)])
    g.output("next_state", "next_state", np.float32, ["batch", weights.state])
    g.output("surprisal", "surprisal", np.float32, ["batch", "time"])
    return g.model("english-cnn", producer="english-cnn", opset=18, ir_version=9)
