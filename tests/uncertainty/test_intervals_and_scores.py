"""Honest scores of detectors, and intervals that hold the truth as often as they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.uncertainty.fitting import (
    COVERAGES,
    calibration_error,
    fit_interval_table,
    fit_quantile_margins,
    fit_score_curve,
    fit_score_line,
)
from service.uncertainty.scores import sigmoid
from service.uncertainty.table import IntervalTable, QuantileMargins, ScoreCurve, ScoreLine

# --- scores


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.4, -1.5), (3.0, 2.0)])
def test_a_line_undoes_an_exaggeration(slope: float, offset: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, 40_000)
    hits = rng.random(40_000) < sigmoid(slope * logits + offset)
    found = fit_score_line(logits, hits)
    assert (found.slope, found.offset) == pytest.approx((slope, offset), abs=0.08)
    assert calibration_error(found.probabilities_of(logits), hits) < 0.01


def test_without_an_offset_the_line_is_a_temperature() -> None:
    """Right 3 times in 4 at a logit of 1, and at -1 wrong 3 times in 4: the sigmoid is 3/4 at a slope of log 3."""
    logits, hits = np.repeat([1.0, -1.0], 4000), np.tile([1, 1, 1, 0], 2000)
    hits[4000:] = 1 - hits[4000:]
    found = fit_score_line(logits, hits, offset=False)
    assert (found.slope, found.offset) == (pytest.approx(np.log(3), rel=1e-2), 0)


def test_scores_that_are_never_wrong_still_have_a_line() -> None:
    found = fit_score_line(np.array([-1e4, -5, 5, 1e4]), np.array([0, 0, 1, 1]))
    assert 0 < found.slope < 100


def test_the_curve_by_mental_arithmetic() -> None:
    """Hits 0, 1, 0, 1: the two in the middle are in the wrong order and share a half."""
    curve = fit_score_curve(np.array([0.1, 0.2, 0.4, 0.9]), np.array([0, 1, 0, 1]))
    assert curve.scores == pytest.approx((0.1, 0.3, 0.9))
    assert curve.probabilities == (0, 0.5, 1)
    assert curve.probabilities_of(np.array([0, 0.2, 0.3, 0.6, 1])).tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40))
def test_pools_are_the_isotonic_regression(data: list[tuple[int, bool]]) -> None:
    """By its other definition: of all runs that end here or later, the least of the largest means from before."""
    scores, hits = np.array([score / 20 for score, _ in data]), np.array([hit for _, hit in data])
    places = np.unique(scores)

    def mean(first: int, last: int) -> float:
        return float(hits[(scores >= places[first]) & (scores <= places[last])].mean())

    count = len(places)
    best = [max(min(mean(i, j) for j in range(k, count)) for i in range(k + 1)) for k in range(count)]
    assert sorted({round(value, 9) for value in best}) == [
        round(p, 9) for p in fit_score_curve(scores, hits).probabilities
    ]


def test_a_curve_makes_scores_honest_that_no_line_does() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random(20_000)
    hits = rng.random(20_000) < np.where(scores < 0.5, 0.1, 0.1 + 0.4 * scores)
    assert calibration_error(scores, hits) > 0.2
    assert calibration_error(fit_score_curve(scores, hits).probabilities_of(scores), hits) < 0.01


def test_the_calibration_error_of_scores_by_mental_arithmetic() -> None:
    """Four of 0.95 of which three are hits, and four of 0.35 of which none is: 0.5 · 0.2 + 0.5 · 0.35."""
    error = calibration_error(np.repeat([0.95, 0.35], 4), np.array([1, 1, 1, 0, 0, 0, 0, 0]))
    assert error == pytest.approx(0.275)


# --- intervals


def test_half_widths_by_mental_arithmetic() -> None:
    """Of nine distances 1 to 9, ceil(10 · 0.5) = 5 do not exceed 5 and nine do not exceed 9."""
    table = fit_interval_table(np.array([1, -2, 3, -4, 5, -6, 7, -8, 9]), (0.5, 0.75, 0.9))
    assert table == IntervalTable(coverages=(0.5, 0.75, 0.9), half_widths=(5, 8, 9))
    assert [table.half_width(c) for c in (0.3, 0.5, 0.51, 0.75, 0.9)] == [5, 5, 8, 8, 9]
    with pytest.raises(ValueError, match="coverage 0.95 is more than the 0.9 that this model was calibrated for"):
        table.half_width(0.95)


@pytest.mark.parametrize(("coverage", "count"), [(0.5, 20), (0.8, 30), (0.9, 99)])
def test_intervals_hold_new_truths_as_promised_however_wrong_the_model(coverage: float, count: int) -> None:
    """Over 2,000 fits, each tried on 50 new cases, the mean coverage is between the theorem's two bounds."""
    rng, held = np.random.default_rng(3), []
    for _ in range(2000):
        residuals = rng.standard_t(2, count + 50) + 1  # far outliers, and a model that is always too low
        width = fit_interval_table(residuals[:count], (coverage,)).half_width(coverage)
        held.append((np.abs(residuals[count:]) <= width).mean())
    error = 3 * np.std(held) / np.sqrt(len(held))
    assert coverage - error <= np.mean(held) <= coverage + 1 / (count + 1) + error


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=99, max_size=120), st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_more_coverage_never_gives_a_narrower_interval(residuals: list[float], one: float, other: float) -> None:
    table = fit_interval_table(np.array(residuals))
    low, high = sorted((one, other))
    assert table.half_width(low) <= table.half_width(high)
    assert table.coverages == COVERAGES


def quantiles(rng: np.random.Generator, count: int) -> tuple[Any, Any, Any]:
    """Truths whose spread the model knows in each case, though it thinks it half as large: for 0.5 and 0.9."""
    spread = rng.uniform(0.5, 4, count)
    ends = spread[:, None] * [0.6745, 1.645] / 2
    return -ends, ends, rng.normal(0, spread)


def test_quantiles_are_moved_so_that_they_hold_new_truths() -> None:
    rng = np.random.default_rng(4)
    margins = fit_quantile_margins(*quantiles(rng, 2000), (0.5, 0.9))
    lower, upper, truth = quantiles(rng, 20_000)
    for column, coverage in enumerate((0.5, 0.9)):
        assert ((lower[:, column] <= truth) & (truth <= upper[:, column])).mean() < coverage - 0.1
        low, high = margins.interval(lower, upper, coverage)
        assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(coverage, abs=0.03)


@given(
    ends=st.lists(st.tuples(*[st.floats(-9, 9)] * 2), min_size=3, max_size=3),
    margins=st.tuples(*[st.floats(-5, 5)] * 3),
    asked=st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)),
)
def test_intervals_of_quantiles_are_nested_even_where_the_models_are_not(ends: Any, margins: Any, asked: Any) -> None:
    table = QuantileMargins(coverages=(0.5, 0.8, 0.9), margins=margins)
    lower, upper = np.sort(np.array(ends), axis=1).T
    (low, high), (lower_still, higher_still) = (table.interval(lower, upper, c) for c in sorted(asked))
    assert lower_still <= low <= high <= higher_still


# --- what does not fit is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_interval_table(np.arange(50)), "coverage 0.99 needs at least 99 held-out examples; there are 50"),
        (lambda: fit_interval_table(np.array([])), "residuals: one finite number for each example"),
        (lambda: fit_interval_table(np.arange(9), (1.0,)), "above 0 and below 1"),
        (lambda: fit_quantile_margins(np.zeros((3, 1)), np.zeros((3, 2)), np.zeros(3), (0.5,)), r"upper \(3, 2\) should be \(3, 1\)"),
        (lambda: fit_score_line(np.arange(3), np.ones(3)), "3 of 3 came true; both kinds are needed"),
        (lambda: fit_score_curve(np.array([0.5, 2]), np.ones(2)), "from 0 to 1"),
        (lambda: fit_score_curve(np.array([0.5, 1]), np.array([0.5, 1])), "true or false is needed for each of the 2 scores"),
        (lambda: calibration_error(np.zeros(2), np.zeros(3)), "true or false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        (IntervalTable, {"coverages": (0.9, 0.5), "half_widths": (1, 2)}, "coverages must be in ascending order"),
        (IntervalTable, {"coverages": (0.5, 0.9), "half_widths": (2, 1)}, "half_widths must be in ascending order"),
        (
            IntervalTable,
            {"coverages": (0.5, 0.9), "half_widths": (2,)},
            "half_widths has 1 numbers and the column beside it 2",
        ),
        (QuantileMargins, {"coverages": (0.5,), "margins": ()}, "margins has 0 numbers"),
        (ScoreCurve, {"scores": (0.1, 0.1), "probabilities": (0, 1)}, "scores must be in ascending order"),
        (ScoreCurve, {"scores": (0.1, 0.2), "probabilities": (1, 0)}, "probabilities must be in ascending order"),
        (ScoreLine, {"slope": float("nan")}, "finite number"),
        (ScoreLine, {"temperature": 2}, "Extra inputs"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(table: Any, values: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        table.model_validate(values)
