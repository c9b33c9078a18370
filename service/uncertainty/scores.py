"""Scores of a batch: probabilities and energies from logits, and the best of them."""

from __future__ import annotations

import numpy as np

from service.graph import Array

MOST_SORTED = 64
"""Up to so many classes sorting all is quicker than choosing first; of more, ranking so many costs no more than one."""


def softmax(logits: Array) -> Array:
    """Turn scores into probabilities, subtracting the maximum first so that large logits do not overflow.

    Args:
        logits: float (batch, classes).

    Returns:
        The same dtype, (batch, classes); each row sums to 1.
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """Turn each score into a probability of its own, as classes need that do not exclude one another.

    Args:
        logits: float (batch, classes).

    Returns:
        The same dtype, (batch, classes), each 0..1.
    """
    return np.asarray(np.exp(-np.logaddexp(0, -logits)), logits.dtype)  # exp(-logits) by itself would overflow


def energy(logits: Array) -> Array:
    """How strange an input looks to a classifier: -log of the sum of exp(logit), larger for what it never saw.

    Args:
        logits: float (batch, classes).

    Returns:
        The same dtype, (batch,).

    References:
        Liu, Wang, Owens, Li, "Energy-based Out-of-distribution Detection" (NeurIPS 2020), at temperature 1.
    """
    highest = logits.max(axis=1)
    return np.asarray(-highest - np.log(np.exp(logits - highest[:, None]).sum(axis=1)))


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k largest scores of each row, largest first, equal ones in their order; all where there are fewer.

    Args:
        scores: (batch, classes).
        k: at least 1.

    Returns:
        int64 (batch, min(k, classes)).
    """
    k = min(k, scores.shape[1])
    if scores.shape[1] <= MOST_SORTED:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    # Sorted, as how a partition leaves equal ones depends on the processor.
    best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def prediction_sets(scores: Array, ranked: Array, threshold: float) -> list[list[int]]:
    """The classes of each row whose probability reaches the threshold, and the best one in any case.

    Args:
        scores: float32 (batch, classes), probabilities.
        ranked: int64 (batch, k), the k best classes of each row as `top_k` gives them; a longer set takes longer.
        threshold: 0..1.

    Returns:
        Indices of classes for each row, best first.
    """
    k = ranked.shape[1]
    sizes = (scores >= threshold).sum(axis=1).tolist()
    sets = [row[: max(size, 1)] for row, size in zip(ranked.tolist(), sizes, strict=True)]
    for row in [row for row, size in enumerate(sizes) if size > k]:
        others = scores[row].copy()
        others[ranked[row]] = -1
        sets[row] += top_k(others[None], sizes[row] - k)[0].tolist()
    return sets
