"""When an answer equals an expected one: exact where it must be, tolerant where it may."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.tasks.comparison import difference, near, ranking_difference


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),  # fields that are not expected do not count
        ({"a": 1.0}, {"a": 1.0005}),
        ({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "x", "c": None}]}),
        ({"a": None}, {"a": None}),
        ({"a": True}, {"a": True}),
    ],
)
def test_alike(expected: Any, got: Any) -> None:
    assert difference(expected, got, 1e-3) is None


@pytest.mark.parametrize(
    ("expected", "got", "place"),
    [
        ({"a": 1.0}, {"a": 1.01}, "at a:"),
        ({"a": 1}, {}, "at a:"),
        ({"a": 1}, {"a": "1"}, "at a:"),
        ({"a": [1, 2]}, {"a": [1]}, "at a: expected 2 entries"),
        ({"a": {"b": ["x"]}}, {"a": {"b": ["y"]}}, r"at a.b\[0\]"),
        ({"a": 1}, {"a": True}, "at a:"),
        ({"a": {"b": 1}}, {"a": 3}, "expected an object"),
    ],
)
def test_different_and_where(expected: Any, got: Any, place: str) -> None:
    assert re.search(place, difference(expected, got, 1e-3) or "")


@pytest.mark.parametrize(
    ("one", "other", "tolerance", "tied"),
    [
        (0.302050, 0.302012, 0.01, True),
        (0.001835, 0.001817, 0.03, True),
        (0.50, 0.48, 0.03, True),
        (0.50, 0.46, 0.03, False),  # never further apart than the tolerance
        (0.02, 0.002, 0.03, False),  # within the tolerance, but ten times as much
        (0.0002, 0.0001, 0.03, False),
        (0.999, 0.99, 0.03, False),  # ten times as much doubt
        (2e-6, 1.5e-6, 0.001, True),  # six digits cannot tell them apart
        (0.0, 0.0, 0.001, True),
    ],
)
def test_near_scores_may_change_places_and_a_small_one_is_near_few_others(
    one: float, other: float, tolerance: float, tied: bool
) -> None:
    assert near(one, other, tolerance) is tied
    assert near(other, one, tolerance) is tied


def ranked(*scores: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"label": label, "score": score} for label, score in scores]


def compared(expected: Any, got: Any, tolerance: float, shown: int | None = None) -> str | None:
    return ranking_difference(expected, got, tolerance, "predictions", name="label", shown=shown)


SHIP = ranked(("ship", 0.994), ("car", 0.001835), ("dog", 0.001817))


@pytest.mark.parametrize(
    ("got", "tolerance"),
    [
        (SHIP, 0.0),
        (ranked(("ship", 0.995), ("dog", 0.001830), ("car", 0.001820)), 0.03),
        # What fell off the end is the next one.
        (ranked(("ship", 0.994), ("car", 0.00184), ("cat", 0.00182), ("dog", 0.00181)), 0.03),
    ],
)
def test_rankings_alike(got: Any, tolerance: float) -> None:
    assert compared(SHIP, got, tolerance, shown=3) is None


@pytest.mark.parametrize(
    ("got", "message"),
    [
        # Another best label, however like the scores.
        (ranked(("car", 0.994), ("ship", 0.001835), ("dog", 0.001817)), "score: expected 0.994"),
        (ranked(("truck", 0.994), ("car", 0.001835), ("dog", 0.001817)), r"\[0\]: expected label 'ship'"),
        # A score that is off by more than the tolerance.
        (ranked(("ship", 0.96), ("car", 0.001835), ("dog", 0.001817)), "expected 0.994, got 0.96"),
        # All scores are within the tolerance, but a small one takes the place of a much smaller one.
        (ranked(("ship", 0.97), ("dog", 0.02), ("car", 0.0018)), "'car' before 'dog'"),
        (ranked(("ship", 0.97), ("cat", 0.02), ("car", 0.0018), ("dog", 0.0017)), "'car' before 'cat'"),
        # Another label at the end, with the score of the expected one: the labels are mixed up.
        (ranked(("ship", 0.994), ("car", 0.001835), ("frog", 0.001817), ("dog", 0.0001)), "'dog' before 'frog'"),
        (ranked(("ship", 0.994), ("car", 0.001835), ("frog", 0.001817)), r"\[2\]: expected label 'dog'"),
        (ranked(("ship", 0.994), ("car", 0.001835)), "expected 3 entries"),
    ],
)
def test_rankings_that_differ_and_where(got: Any, message: str) -> None:
    assert re.search(message, compared(SHIP, got, 0.03, shown=3) or "")


def test_the_best_of_two_that_are_nearly_tied_may_be_either() -> None:
    one, other = ranked(("cat", 0.501), ("dog", 0.499)), ranked(("dog", 0.5005), ("cat", 0.4995))
    assert compared(one, other, 0.01) is None
    assert compared(one[:1], other, 0.01, shown=1) is None
    assert compared(one[:1], ranked(("dog", 0.7), ("cat", 0.3)), 0.01, shown=1) is not None
    assert compared(one[:1], ranked(("dog", 0.501), ("cat", 0.3)), 0.01, shown=1) is not None


def test_other_fields_of_an_entry_are_compared_with_those_of_its_namesake() -> None:
    one = [{"label": "a", "score": 0.5, "index": 0}, {"label": "b", "score": 0.5, "index": 1}]
    assert compared(one, one[::-1], 0.01) is None
    assert compared(one, [one[1], one[0] | {"index": 2}], 0.01) == (
        "at predictions[0].index: expected 0, got 2 for label 'a'"
    )


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ([{"label": "a"}, {"label": "b"}], ranked(("a", 0.5), ("b", 0.5))),  # no scores expected
        (ranked(("a", 0.5), ("a", 0.5)), ranked(("a", 0.5), ("a", 0.5))),  # names that tell nothing apart
    ],
)
def test_what_is_no_ranking_is_compared_place_by_place(expected: Any, got: Any) -> None:
    assert compared(expected, got, 0.01) is None
    assert compared(expected, [*got[:1], {"label": "c", "score": 0.5}], 0.01) is not None
