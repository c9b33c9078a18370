"""The exported graph, by hand, because a traced export cannot express `sequence_lens`.

- The table of words is stored once, as int8, and used twice: rows are gathered for the input, and its transpose
  (folded when the file is loaded) multiplies the output vectors as integers, four times faster than float32 at
  batch 1, where reading the weights is all the time. A vector v is split in two int8 parts, v = s (hi + lo / 254)
  with s = max |v| / 127, so nothing is lost but the eighth decimal: rows never depend on their company.
- Where a processor has no VNNI, sums of such products need a session that `keep_sums_exact` has prepared. It cannot
  reach into a graph inside the graph, so `surprisal` is computed from parts of seven bits: 128 · 127 · 2 < 2^15.
- A row of length 0 passes its state through, and its logits come from the state.
- The last two words are the last two numbers of the state. Their key is looked up in a table of buckets: the remainder
  of the key chooses the bucket, the quotient is compared with those in it, so a pair is never taken for another.
- `surprisal` needs the whole vocabulary at every time step. onnxruntime computes outputs that nobody fetches, so it
  stands behind an `If`: zeros unless some row has `explain`; 16 positions at a time, to bound the memory.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto
from weights import BUCKETS, Weights, in_onnx_order

from service.text.tokeniser import END
from training.graph import GraphBuilder


def constants_of(weights: Weights) -> dict[str, np.ndarray | np.generic]:
    """Everything that the nodes read by name: the weights, the table of pairs in buckets, and small numbers."""
    hidden = weights.r.shape[1]
    words_, trigrams = len(weights.words), weights.trigrams
    assert (words_ + 1) ** 2 < 2**31
    assert (words_ + 1) ** 2 // BUCKETS < 2**16
    by_bucket = np.argsort(trigrams.keys % BUCKETS, kind="stable")
    occupancy = np.bincount(trigrams.keys % BUCKETS, minlength=BUCKETS)
    sizes = np.diff(trigrams.first)[by_bucket]
    first = np.concatenate([[0], np.cumsum(sizes)])
    take = np.repeat(trigrams.first[by_bucket] - first[:-1], sizes) + np.arange(first[-1])

    return {
        # Place 0 among the pairs is the one that is never found, and has no followers.
        "bucket_begin": np.concatenate([[0], np.cumsum(occupancy)]).astype(np.int32) + np.int32(1),
        "quotients": np.concatenate([[0], trigrams.keys[by_bucket] // BUCKETS]).astype(np.uint16),
        "follower_begin": np.concatenate([[0], first]).astype(np.int32),
        "follower": trigrams.words[take].astype(np.uint16), "odds": trigrams.odds[take],
        "buckets": np.array(BUCKETS, np.int32), "key_base": np.array(words_ + 1, np.int32),
        "end_plus_1": np.array(weights.vocabulary.index(END) + 1, np.int32),
        "bucket_slots": np.arange(occupancy.max(), dtype=np.int32)[None],
        "follower_slots": np.arange(sizes.max(), dtype=np.int32)[None],
        "last_pair": np.array(len(trigrams.keys), np.int32), "last_follower": np.array(len(take) - 1, np.int32),
        "no_word": np.float32(0), "most_words": np.float32(words_), "impossible": np.float32(1e-30),
        "one_f32": np.float32(1), "no_odds": np.array(0, np.float16), "pair_of_places": np.array([[0, 1]]),
        "two_ones": np.array([1, 1]), "minus_two": np.array([-2]),
        "words": weights.words, "scale": weights.scale, "bias": weights.bias,
        "w16": in_onnx_order(weights.w)[None], "r16": in_onnx_order(weights.r)[None],
        "gate_bias": np.concatenate([in_onnx_order(weights.gate_bias), np.zeros(4 * hidden, np.float32)])[None],
        "down16": weights.down, "down_bias": weights.down_bias,
        "one_i32": np.array(1, np.int32), "zero_i32": np.array(0, np.int32),
        "zero": np.array([0]), "one": np.array([1]), "last": np.array([-1]), "parts_of_state": np.array([hidden, hidden, 2]),
        "rows_of_embedding": np.array([-1, weights.words.shape[1]]), "rows_of_hidden": np.array([-1, hidden]),
        "pairs_of_logits": np.array([-1, 2, len(weights.words)]),
        "largest": np.float32(127), "tiny": np.float32(1e-20), "finer": np.float32(254), "middle": np.float32(128),
        "middle_u8": np.uint8(128), "weights_of_parts": np.array([[1, 1 / 254]], np.float32),
        "largest_7": np.float32(64), "finer_7": np.float32(128), "middle_7": np.float32(64),
        "middle_u8_7": np.uint8(64), "weights_of_parts_7": np.array([[1, 1 / 128]], np.float32),
        "minus_nats_per_bit": np.float32(-math.log(2)),
        "block": np.array([16]), "blocks_of_vectors": np.array([-1, 16, weights.words.shape[1]]),
        "blocks_of_tokens": np.array([-1, 16]), "zero_f32": np.float32(0),
    }  # fmt: skip


def add_comparison(g: GraphBuilder, vectors: str, logits: str, bits: str = "") -> None:
    """From vectors (rows, E) to logits (rows, V), by way of parts of eight bits or, with `_7`, of seven."""
    name = f"{logits}/".__add__
    g("Abs", vectors, name=name("size"))
    g("ReduceMax", name("size"), "last", name=name("peak"), keepdims=1)
    g("Max", name("peak"), "tiny", name=name("positive"))
    g("Div", name("positive"), f"largest{bits}", name=name("unit"))
    g("Div", vectors, name("unit"), name=name("scaled"))
    g("Round", name("scaled"), name=name("hi"))
    g("Sub", name("scaled"), name("hi"), name=name("rest"))
    g("Mul", name("rest"), f"finer{bits}", name=name("finer_rest"))
    g("Round", name("finer_rest"), name=name("lo"))
    g("Unsqueeze", name("hi"), "one", name=name("hi_part"))
    g("Unsqueeze", name("lo"), "one", name=name("lo_part"))
    g("Concat", name("hi_part"), name("lo_part"), name=name("parts"), axis=1)  # (rows, 2, E)
    g("Add", name("parts"), f"middle{bits}", name=name("shifted"))
    g("Cast", name("shifted"), name=name("parts_u8"), to=TensorProto.UINT8)
    g("Reshape", name("parts_u8"), "rows_of_embedding", name=name("flat"))  # (2 rows, E)
    g("MatMulInteger", name("flat"), "words_by_column", f"middle_u8{bits}", name=name("sums"))
    g("Cast", name("sums"), name=name("sums_f32"), to=TensorProto.FLOAT)
    g("Reshape", name("sums_f32"), "pairs_of_logits", name=name("pairs"))  # (rows, 2, V)
    g("Mul", name("unit"), f"weights_of_parts{bits}", name=name("weight"))
    g("Unsqueeze", name("weight"), "one", name=name("weight_row"))  # (rows, 1, 2)
    g("MatMul", name("weight_row"), name("pairs"), name=name("both"))
    g("Squeeze", name("both"), "one", name=name("unscaled"))
    g("Mul", name("unscaled"), "scale", name=name("unbiased"))
    g("Add", name("unbiased"), "bias", name=logits)


def add_memory(g: GraphBuilder, a: str, b: str, logits: str, mixed: str) -> None:
    """Mix what followed the words a, b (rows,), numbers plus one, into logits (rows, V)."""
    name = f"{mixed}/".__add__
    g("Equal", b, "end_plus_1", name=name("opens"))
    g("Where", name("opens"), "zero_i32", a, name=name("a"))
    g("Mul", name("a"), "key_base", name=name("high"))
    g("Add", name("high"), b, name=name("key"))
    g("Mod", name("key"), "buckets", name=name("bucket"))
    g("Div", name("key"), "buckets", name=name("quotient"))
    g("Add", name("bucket"), "one_i32", name=name("next_bucket"))
    g("Gather", "bucket_begin", name("bucket"), name=name("begin"))
    g("Gather", "bucket_begin", name("next_bucket"), name=name("end"))
    g("Unsqueeze", name("begin"), "one", name=name("begin_column"))
    g("Unsqueeze", name("end"), "one", name=name("end_column"))
    g("Unsqueeze", name("quotient"), "one", name=name("quotient_column"))
    g("Add", name("begin_column"), "bucket_slots", name=name("places"))
    g("Less", name("places"), name("end_column"), name=name("inside"))
    g("Min", name("places"), "last_pair", name=name("places_read"))
    g("Gather", "quotients", name("places_read"), name=name("stored"))
    g("Cast", name("stored"), name=name("stored_i32"), to=TensorProto.INT32)
    g("Equal", name("stored_i32"), name("quotient_column"), name=name("equal"))
    g("And", name("equal"), name("inside"), name=name("same"))
    g("Where", name("same"), name("places"), "zero_i32", name=name("hits"))
    g("ReduceSum", name("hits"), "one", name=name("pair"), keepdims=1)  # one at most
    g("Add", name("pair"), "one_i32", name=name("next_pair"))
    g("Gather", "follower_begin", name("pair"), name=name("from_column"))
    g("Gather", "follower_begin", name("next_pair"), name=name("to_column"))
    g("Add", name("from_column"), "follower_slots", name=name("slots"))
    g("Less", name("slots"), name("to_column"), name=name("real"))
    g("Min", name("slots"), "last_follower", name=name("slots_read"))
    g("Gather", "follower", name("slots_read"), name=name("kept"))
    g("Cast", name("kept"), name=name("kept_i64"), to=TensorProto.INT64)
    g("Gather", "odds", name("slots_read"), name=name("odds_read"))
    g("Where", name("real"), name("odds_read"), "no_odds", name=name("odds_16"))
    g("Cast", name("odds_16"), name=name("odds"), to=TensorProto.FLOAT)
    g("ReduceMax", logits, "one", name=name("peak"), keepdims=1)
    g("Sub", logits, name("peak"), name=name("lowered"))
    g("Exp", name("lowered"), name=name("weights"))
    g("ReduceSum", name("weights"), "one", name=name("total"), keepdims=1)
    g("GatherElements", name("weights"), name("kept_i64"), name=name("weights_kept"), axis=1)
    g("Div", name("weights_kept"), name("total"), name=name("p"))
    g("Max", name("p"), "impossible", name=name("p_positive"))
    g("Div", name("odds"), name("p_positive"), name=name("ratio"))
    g("Add", name("ratio"), "one_f32", name=name("factor"))
    g("Log", name("factor"), name=name("gain"))
    g("ScatterElements", logits, name("kept_i64"), name("gain"), name=mixed, axis=1, reduction="add")


def bits_of_chosen(b: GraphBuilder) -> onnx.GraphProto:
    """The end of `surprisal_of_block`: bits of the words that stand there, from the logits of the block."""
    b("LogSoftmax", "logits_of_block", name="log_p", axis=1)
    b("Unsqueeze", "tokens_of_block", "last", name="chosen")
    b("GatherElements", "log_p", "chosen", name="log_p_of_chosen", axis=1)
    b("Squeeze", "log_p_of_chosen", "last", name="nats")
    b("Div", "nats", "minus_nats_per_bit", name="bits_of_block")
    b.output("bits_of_block", "bits_of_block", np.float32, None)
    return b.graph("surprisal_of_16_positions")


def add_blocks(b: GraphBuilder, vectors: str) -> None:
    """Cut the vectors before all positions, and the words at them, into blocks of 16, the last one padded."""
    b("Reshape", "tokens", "last", name="tokens_flat")
    b("Shape", "tokens_flat", name="count")
    b("Neg", "count", name="minus_count")
    b("Mod", "minus_count", "block", name="lacking")
    b("Concat", "zero", "zero", "lacking", "zero", name="padding", axis=0)
    b("Concat", "zero", "lacking", name="padding_1d", axis=0)
    b("Pad", vectors, "padding", name="vectors_padded")
    b("Pad", "tokens_flat", "padding_1d", name="tokens_padded")
    b("Reshape", "vectors_padded", "blocks_of_vectors", name="vector_blocks")
    b("Reshape", "tokens_padded", "blocks_of_tokens", name="token_blocks")


def bits_where_asked(b: GraphBuilder) -> onnx.GraphProto:
    """The end of `explained`: bits in rows again, and zeros in the rows that nobody asks about."""
    b("Reshape", "bit_blocks", "last", name="bits_padded")
    b("Slice", "bits_padded", "zero", "count", "zero", name="bits_flat")
    b("Shape", "tokens", name="grid")
    b("Reshape", "bits_flat", "grid", name="bits_of_all")
    b("Unsqueeze", "explain", "one", name="explain_column")
    b("Where", "explain_column", "bits_of_all", "zero_f32", name="bits")
    b.output("bits", "bits", np.float32, None)
    return b.graph("explained")


def surprisal_of_block() -> onnx.GraphProto:
    """Bits of 16 positions, from their vectors, their words and the two words before each."""
    b = GraphBuilder()
    b.input("vectors_of_block", np.float32, None)
    b.input("tokens_of_block", np.int64, None)
    b.input("a_of_block", np.int32, None)
    b.input("b_of_block", np.int32, None)
    add_comparison(b, "vectors_of_block", "lstm_logits_of_block", "_7")
    add_memory(b, "a_of_block", "b_of_block", "lstm_logits_of_block", "logits_of_block")
    return bits_of_chosen(b)


def explained() -> onnx.GraphProto:
    """The branch for a batch in which somebody asks for surprisals."""
    b = GraphBuilder()
    b("Squeeze", "y", "one", name="after")  # (T, B, H)
    b("Slice", "after", "zero", "last", "zero", name="but_last")
    b("Concat", "h_before", "but_last", name="before", axis=0)
    b("Transpose", "before", name="before_by_row", perm=[1, 0, 2])
    b("Reshape", "before_by_row", "rows_of_hidden", name="before_flat")  # (B T, H)
    b("Gemm", "before_flat", "down", "down_bias", name="vectors", transB=1)
    add_blocks(b, "vectors")
    for which, begin, end in (("a", "zero", "minus_two"), ("b", "one", "last")):
        b("Slice", "words_so_far", begin, end, "one", name=f"{which}_of_all")
        b("Reshape", f"{which}_of_all", "last", name=f"{which}_flat")
        b("Pad", f"{which}_flat", "padding_1d", name=f"{which}_padded")
        b("Reshape", f"{which}_padded", "blocks_of_tokens", name=f"{which}_blocks")
    b(
        "Scan",
        "vector_blocks",
        "token_blocks",
        "a_blocks",
        "b_blocks",
        name="bit_blocks",
        body=surprisal_of_block(),
        num_scan_inputs=4,
    )
    return bits_where_asked(b)


def not_explained() -> onnx.GraphProto:
    """The branch for all others: zeros."""
    b = GraphBuilder()
    b("Shape", "tokens", name="size")
    b("ConstantOfShape", "size", name="no_bits")
    b.output("no_bits", "no_bits", np.float32, None)
    return b.graph("not_explained")


def add_reading(g: GraphBuilder, hidden: int) -> None:
    """From tokens and state to `vector`, `next_state` and the last two words, numbers plus one, `a_now` and `b_now`."""
    g("Transpose", "words", name="words_by_column", perm=[1, 0])
    g("Cast", "w16", name="w", to=TensorProto.FLOAT)
    g("Cast", "r16", name="r", to=TensorProto.FLOAT)
    g("Cast", "down16", name="down", to=TensorProto.FLOAT)
    g("Transpose", "tokens", name="tokens_by_time", perm=[1, 0])
    g("Gather", "words", "tokens_by_time", name="x_i8")
    g("Cast", "x_i8", name="x_unscaled", to=TensorProto.FLOAT)
    g("Gather", "scale", "tokens_by_time", name="x_scale")
    g("Unsqueeze", "x_scale", "last", name="x_scale_column")
    g("Mul", "x_unscaled", "x_scale_column", name="x")  # (T, B, E)
    g.several("Split", "state", "parts_of_state", names=["h", "c", "words_before"], axis=1)
    g("Clip", "words_before", "no_word", "most_words", name="known_words_before")  # a state may come from anybody
    g("Cast", "known_words_before", name="words_before_i32", to=TensorProto.INT32)
    g("Cast", "tokens", name="tokens_i32", to=TensorProto.INT32)
    g("Add", "tokens_i32", "one_i32", name="tokens_plus_1")
    g("Concat", "words_before_i32", "tokens_plus_1", name="words_so_far", axis=1)  # (B, 2 + T)
    g("Cast", "sequence_lens", name="sequence_lens_i64", to=TensorProto.INT64)
    g("Unsqueeze", "sequence_lens_i64", "one", name="sequence_lens_column")
    g("Add", "sequence_lens_column", "pair_of_places", name="places_of_last_words")
    g("GatherElements", "words_so_far", "places_of_last_words", name="last_words", axis=1)
    g("Cast", "last_words", name="last_words_f32", to=TensorProto.FLOAT)
    g.several("Split", "last_words", "two_ones", names=["last_but_one", "last_one"], axis=1)
    g("Squeeze", "last_but_one", "one", name="a_now")
    g("Squeeze", "last_one", "one", name="b_now")
    g("Unsqueeze", "h", "zero", name="h_before")
    g("Unsqueeze", "c", "zero", name="c_before")
    g("Max", "sequence_lens", "one_i32", name="lengths")
    g.several(
        "LSTM",
        "x",
        "w",
        "r",
        "gate_bias",
        "lengths",
        "h_before",
        "c_before",
        names=["y", "h_after", "c_after"],
        hidden_size=hidden,
    )
    g("Greater", "sequence_lens", "zero_i32", name="read_something")
    g("Unsqueeze", "read_something", "one", name="read_something_column")
    g("Squeeze", "h_after", "zero", name="h_read")
    g("Squeeze", "c_after", "zero", name="c_read")
    g("Where", "read_something_column", "h_read", "h", name="h_now")
    g("Where", "read_something_column", "c_read", "c", name="c_now")
    g("Concat", "h_now", "c_now", "last_words_f32", name="next_state", axis=1)
    g("Gemm", "h_now", "down", "down_bias", name="vector", transB=1)


def build_graph(weights: Weights) -> onnx.ModelProto:
    """The model, checked."""
    hidden, words = weights.r.shape[1], len(weights.words)
    g = GraphBuilder()
    for name, value in constants_of(weights).items():
        g.weight(name, np.asarray(value))
    g.input("tokens", np.int64, ["batch", "time"])
    g.input("sequence_lens", np.int32, ["batch"])
    g.input("state", np.float32, ["batch", 2 * hidden + 2])
    g.input("explain", np.bool_, ["batch"])
    add_reading(g, hidden)
    add_comparison(g, "vector", "lstm_logits")
    add_memory(g, "a_now", "b_now", "lstm_logits", "logits")
    g("Cast", "explain", name="explain_i32", to=TensorProto.INT32)
    g("ReduceMax", "explain_i32", name="explain_any", keepdims=0)
    g("Cast", "explain_any", name="somebody_asks", to=TensorProto.BOOL)
    g("If", "somebody_asks", name="surprisal", then_branch=explained(), else_branch=not_explained())

    g.output("logits", "logits", np.float32, ["batch", words])
    g.output("next_state", "next_state", np.float32, ["batch", 2 * hidden + 2])
    g.output("surprisal", "surprisal", np.float32, ["batch", "time"])
    return g.model("english-lstm", producer="english-lstm", opset=18, ir_version=9)
