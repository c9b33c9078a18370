"""Draw from what a model holds possible, so that a seed gives the same everywhere.

A request's draws come from a generator of its own, whose raw bits NumPy keeps the same from version to version. One
number in 0..1 chooses along the cumulated probabilities of the symbols, in the order of their numbers: two processors
whose logits differ by rounding, some 1e-6, choose differently only where the number falls between their two sums: by
estimate once in a hundred thousand choices.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.state import OutOfRange

MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps exact."""


class Draws:
    """Numbers in 0..1, evenly spread; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def __call__(self) -> float:
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
        number: of the symbol.
        surprisal: -log2 of its probability among those allowed, before temperature and `top_p`.
    """

    number: int
    surprisal: float


def choose(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_], temperature: float, top_p: float, draw: float
) -> Choice:
    """Choose one of the symbols allowed.

    Args:
        logits: (symbols,).
        allowed: (symbols,), at least one.
        temperature: what logits are divided by; 0: the likeliest, and of equal ones the first.
        top_p: only the likeliest symbols that reach this probability together; 1: all.
        draw: in 0..1, 1 excluded.

    Raises:
        OutOfRange: the logits are no numbers.
    """
    places = np.flatnonzero(allowed)
    scores = logits[places].astype(np.float64)
    top = float(scores.max())
    if not math.isfinite(top) or np.isnan(scores).any():
        raise OutOfRange("logits")
    scores -= top
    if temperature == 0:
        chosen = int(scores.argmax())
    else:
        with np.errstate(over="ignore", under="ignore"):
            weights = np.exp(scores / temperature)
        chosen = _along(_nucleus(weights, top_p), draw)
    return Choice(int(places[chosen]), _bits(scores, chosen))


def surprisal(logits: NDArray[np.float32], allowed: NDArray[np.bool_], number: int) -> float:
    """-log2 of the probability of a symbol among those allowed and itself.

    Raises:
        OutOfRange: the logits are no numbers.
    """
    scores = np.where(allowed, logits, -np.inf).astype(np.float64)
    scores[number] = logits[number]
    top = float(scores.max())
    if not math.isfinite(top):
        raise OutOfRange("logits")
    return _bits(scores - top, number)


def _bits(scores: NDArray[np.float64], chosen: int) -> float:
    return max(0.0, (math.log(float(np.exp(scores).sum())) - float(scores[chosen])) / math.log(2))


def _nucleus(weights: NDArray[Any], top_p: float) -> NDArray[Any]:
    """The weights of the likeliest symbols that together reach a share of all; the others are 0."""
    if top_p >= 1:
        return weights
    total = float(weights.sum())
    # Those below this share are together less than what may be left out, so they need not be sorted.
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    order = likely[np.argsort(-weights[likely], kind="stable")]
    kept = order[: int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1]
    small = np.zeros_like(weights)
    small[kept] = weights[kept]
    return small


def _along(weights: NDArray[Any], draw: float) -> int:
    """The place where the cumulated weights pass a share of them."""
    sums = np.cumsum(weights)
    chosen = int(np.searchsorted(sums, draw * sums[-1], side="right"))
    return min(chosen, int(np.flatnonzero(weights)[-1]))
