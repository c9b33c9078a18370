"""The weights as they are stored in the exported graph, apart from the framework that found them.

Letters: V vocabulary, E embedding width, H hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

BUCKETS = 65_521
"""Of the table of pairs; a prime: the quotients of keys below (V + 1)^2 fit 16 bits."""


@dataclass
class Trigrams:
    """What followed pairs of words in the training texts, interpolated with the LSTM.

    p(w | text) = s p3(w | a, b) + (1 - s m) p_lstm(w | text), where a, b are the last two words, p3 the discounted relative
    frequency (Ney, Essen, Kneser 1994), m its sum over the words that are kept for the pair, and the share s depends on how
    often the pair was seen. So the LSTM gets what the discount takes away. As logits that is: those of the words that are
    kept grow by log(1 + odds / p_lstm(w)), with odds = s p3 / (1 - s m), the others stay.

    Attributes:
        keys: int64 (pairs,), ascending: (a + 1) (V + 1) + b + 1, with 0 for a + 1 where b is `<eos>`: each line is a new text.
        first: int64 (pairs + 1,): where the words of each pair begin.
        words: int64 (followers,).
        odds: float16 (followers,).
        record: the shares s by how often the pair was seen, and what they do to the validation texts.
    """

    keys: np.ndarray
    first: np.ndarray
    words: np.ndarray
    odds: np.ndarray
    record: dict[str, Any]

    def of(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """The words kept for a pair, and their odds."""
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            return np.array([], np.int64), np.array([], np.float16)
        here = slice(self.first[place], self.first[place + 1])
        return self.words[here], self.odds[here]


def reordered(trigrams: Trigrams, order: np.ndarray) -> Trigrams:
    """The same table in another numbering of the words: that in which they are served."""
    place = np.argsort(order)
    a, b = np.divmod(trigrams.keys, len(order) + 1)
    a = np.where(a > 0, place[np.maximum(a, 1) - 1] + 1, 0)
    keys = a * (len(order) + 1) + place[b - 1] + 1
    by_key = np.argsort(keys)
    sizes = np.diff(trigrams.first)[by_key]
    first = np.concatenate([[0], np.cumsum(sizes)])
    take = np.repeat(trigrams.first[by_key] - first[:-1], sizes) + np.arange(first[-1])
    return Trigrams(keys[by_key], first, place[trigrams.words[take]], trigrams.odds[take], trigrams.record)


@dataclass
class Weights:
    """The trained weights as they are stored: the table in 8 bits with a scale per word, the LSTM in float16."""

    vocabulary: list[str]
    words: np.ndarray  # int8 (V, E)
    scale: np.ndarray  # float32 (V,)
    bias: np.ndarray  # float32 (V,)
    w: np.ndarray  # float16 (4H, E), gates in torch's order: i f g o
    r: np.ndarray  # float16 (4H, H)
    gate_bias: np.ndarray  # float32 (4H,)
    down: np.ndarray  # float16 (E, H)
    down_bias: np.ndarray  # float32 (E,)
    trigrams: Trigrams

    @classmethod
    def read(cls, version: Path) -> Weights:
        """From an exported version, in the order in which its words are served."""
        graph = onnx.load(version / "model.onnx").graph
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        words = (version / "vocabulary.txt").read_text(encoding="utf8").removesuffix("\n").split("\n")
        gate_bias = stored["gate_bias"][0]
        return cls(
            words,
            stored["words"],
            stored["scale"],
            stored["bias"],
            in_torchs_order(stored["w16"][0]),
            in_torchs_order(stored["r16"][0]),
            in_torchs_order(gate_bias[: len(gate_bias) // 2]),
            stored["down16"],
            stored["down_bias"],
            _trigrams_of(stored),
        )


def in_onnx_order(gates: np.ndarray) -> np.ndarray:
    """Gates i f g o of torch as i o f g, along the first axis."""
    i, f, g, o = np.split(gates, 4)
    return np.concatenate([i, o, f, g])


def in_torchs_order(gates: np.ndarray) -> np.ndarray:
    """The other way."""
    i, o, f, g = np.split(gates, 4)
    return np.concatenate([i, f, g, o])


def _trigrams_of(stored: dict[str, np.ndarray]) -> Trigrams:
    """The table of buckets as a list of pairs in ascending order; place 0 is the pair that is never found."""
    occupancy = np.diff(stored["bucket_begin"])
    keys = stored["quotients"][1:].astype(np.int64) * BUCKETS + np.repeat(np.arange(BUCKETS), occupancy)
    begin = stored["follower_begin"][1:].astype(np.int64)
    by_key = np.argsort(keys)
    sizes = np.diff(begin)[by_key]
    first = np.concatenate([[0], np.cumsum(sizes)])
    take = np.repeat(begin[:-1][by_key] - first[:-1], sizes) + np.arange(first[-1])
    return Trigrams(keys[by_key], first, stored["follower"][take].astype(np.int64), stored["odds"][take], {})
