"""Compare an answer with the one that was expected of it: exact where it must be, tolerant where it may.

Kernels of different processors round differently, so numbers agree within a tolerance, and which of two near-equal
scores comes first is no difference. `Task.difference` says with these functions what matters in its answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

__all__ = ["comparable", "difference", "near", "ranking_difference"]

INDISTINGUISHABLE = 1e-6
"""Scores that differ by no more are taken for equal: files of samples have six digits."""


def comparable(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without its fields that differ between any two versions of a model: which one it is, and its state."""
    return {name: value for name, value in answer.items() if name not in ("model", "state")}


def difference(expected: Any, got: Any, tolerance: float, place: str = "") -> str | None:
    """The first place where an answer is not what was expected.

    Args:
        expected: what JSON can hold; fields of an object that are not expected do not count.
        got: the answer's part at the same place.
        tolerance: largest allowed difference of a number.
        place: where the part is, such as `results[0].predictions`.

    Returns:
        A phrase that names the place and both values; None where there is no difference.
    """
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            return f"at {place or 'the top'}: expected an object, got {got!r:.80}"
        pairs = [(value, got.get(key), f"{place}.{key}".lstrip(".")) for key, value in expected.items()]
    elif isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return f"at {place}: expected {len(expected)} entries, got {got!r:.80}"
        pairs = [(e, g, f"{place}[{i}]") for i, (e, g) in enumerate(zip(expected, got, strict=True))]
    elif _is_number(expected):
        same = _is_number(got) and math.isclose(expected, got, rel_tol=0, abs_tol=tolerance)
        return None if same else f"at {place}: expected {expected}, got {got!r:.80}"
    else:
        return None if expected == got else f"at {place}: expected {expected!r}, got {got!r:.80}"
    return next(filter(None, (difference(e, g, tolerance, p) for e, g, p in pairs)), None)


def near(one: float, other: float, tolerance: float) -> bool:
    """Whether two probabilities are so close that kernels which round differently may put either first.

    Differences of rounding are of the size of the logits, and one of them moves a probability p by p (1 - p) times as
    much. So a tolerance that fits the large scores of an answer is far too wide for its small ones: it is narrowed by
    that factor, so that 0.02 is no near tie of 0.002, however large the tolerance.

    Args:
        one: 0..1.
        other: 0..1.
        tolerance: largest allowed difference of a score anywhere in 0..1.
    """
    middle = (one + other) / 2
    # Two scores move, and p (1 - p) is a quarter at most: from 0.15 to 0.85 the tolerance is as it was given.
    widest = tolerance * min(1.0, 8 * middle * (1 - middle))
    return abs(one - other) <= max(INDISTINGUISHABLE, widest)


def ranking_difference(
    expected: Any, got: Any, tolerance: float, place: str, *, name: str, shown: int | None = None
) -> str | None:
    """The first difference between two rankings by probability, best first; near ties may stand in either order.

    Each entry is looked for by its name, and its score and other fields compared there. One may have changed places
    with another, or have fallen off the end, only where their scores are near (`near`), in both rankings.

    Args:
        expected: objects with a `score`.
        got: the same, perhaps with more entries than were asked for, so that what fell off the end can be found.
        tolerance: largest allowed difference of a number.
        place: where the ranking is, such as `results[0].predictions`.
        name: the field that tells the entries apart, such as `label`.
        shown: how many entries the ranking has without the added ones; left out: all.
    """
    if not (_is_ranking(expected, name) and _is_ranking(got, name)):
        return difference(expected, got[:shown] if isinstance(got, list) else got, tolerance, place)
    if len(expected) != len(got[:shown]):
        return f"at {place}: expected {len(expected)} entries, got {got[:shown]!r:.80}"
    places = {entry[name]: i for i, entry in enumerate(got)}
    for i, entry in enumerate(expected):
        if entry[name] not in places:
            there = ", ".join(repr(other[name]) for other in got[:shown])
            return f"at {place}[{i}]: expected {name} {entry[name]!r}, got {there:.80}"
        if found := difference(entry, got[places[entry[name]]], tolerance, f"{place}[{i}]"):
            return f"{found} for {name} {entry[name]!r}"
    names = {entry[name] for entry in expected}
    end = max(places[each] for each in names)
    # What was not expected was to come after all that was, with a score of at most the last one's.
    newcomers = [entry | {"score": expected[-1]["score"]} for entry in got[:end] if entry[name] not in names]
    for above, below in combinations([*expected, *newcomers], 2):
        over, under = got[places[above[name]]], got[places[below[name]]]
        if places[above[name]] > places[below[name]] and not (
            near(above["score"], below["score"], tolerance) and near(over["score"], under["score"], tolerance)
        ):
            return f"at {place}: expected {above[name]!r} before {below[name]!r}, got it after, by more than a near tie"
    return None


def _is_ranking(entries: Any, name: str) -> bool:
    """Whether these are objects with scores, told apart by their names."""
    if not isinstance(entries, list) or not entries:
        return False
    if not all(isinstance(e, Mapping) and isinstance(e.get(name), str) and _is_number(e.get("score")) for e in entries):
        return False
    return len({entry[name] for entry in entries}) == len(entries)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
