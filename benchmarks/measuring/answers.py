"""Whether two answers say the same, though one was computed alone and one in a batch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

TOLERANCE = 1e-3
"""Largest difference of two equal answers, relative to the larger number and never below this much of 1."""


def same_answer(a: Any, b: Any) -> bool:
    """Whether two answers (parsed JSON) say the same.

    Numbers may differ by the tolerance; the opaque `state`, which holds the same rounding, is left out. Lists of
    predictions are compared by label: near-ties may change places, and the last place may go to another as probable.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_answer(a[key], b[key]) for key in a if key != "state")
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return False
        if a and all(isinstance(entry, Mapping) and "score" in entry for entry in (*a, *b)):
            return _same_predictions(a, b)
        return all(map(same_answer, a, b))
    if all(isinstance(side, int | float) and not isinstance(side, bool) for side in (a, b)):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(a) is type(b) and bool(a == b)


def _same_predictions(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> bool:
    left, right = ({entry.get("label", entry.get("text")): entry["score"] for entry in side} for side in (a, b))
    margin = TOLERANCE * max(left.values())
    edge = min(left.values()) + margin
    return all(
        abs(left[label] - right[label]) <= margin if label in left and label in right else (left | right)[label] <= edge
        for label in left | right
    )


def wrong_among(samples: Sequence[tuple[int, bytes]], expected: Sequence[Any]) -> int:
    """How many answers differ from the one that the same request got alone.

    Args:
        samples: number of the request, and the answer's body.
        expected: the answer to each request, parsed.
    """

    def is_right(body: bytes, answer: Any) -> bool:
        try:
            return same_answer(answer, json.loads(body))
        except ValueError:
            return False

    return sum(not is_right(body, expected[index]) for index, body in samples)
