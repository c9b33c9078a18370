"""Figures and their intervals, against published tables and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.evaluation import statistics as s
from service.uncertainty.fitting import expected_calibration_error


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (Statistics in Medicine 17, 1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # its mirror images
        (20, 20, 0.8389, 1.0000),
        (28, 29, 0.8282, 0.9939),
    ],
)
def test_the_wilson_interval_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    assert s.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_of_nothing_the_wilson_interval_is_everything() -> None:
    assert s.wilson(0, 0) == (0, 1)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_holds_the_share(pair: tuple[int, int]) -> None:
    low, high = s.wilson(*pair)
    assert 0 <= low <= pair[0] / pair[1] <= high <= 1


def test_a_bootstrap_of_equal_things_has_no_width() -> None:
    assert s.bootstrap_sums(np.array([[3.0, 4.0]] * 5), s.ratio) == (0.75, 0.75)


def test_a_bootstrap_of_one_thing_is_none() -> None:
    assert s.bootstrap_sums(np.array([[3.0, 4.0]]), s.ratio) is None


def test_a_bootstrap_of_means_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400)
    low, high = s.bootstrap_sums(np.stack([values, np.ones(400)], axis=1), s.ratio) or (0, 0)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_a_bootstrap_leaves_out_resamples_without_a_figure() -> None:
    assert s.bootstrap_sums(np.array([[1.0, 1.0], [0.0, 0.0]]), s.ratio) == (1.0, 1.0)
    assert s.bootstrap_sums(np.zeros((3, 2)), s.ratio) is None


def test_perplexity_is_two_to_the_mean_surprisal() -> None:
    assert s.perplexity(np.array([[12.0, 4.0], [0.0, 2.0]])).tolist() == [8, 1]


def test_reliability_compares_confidence_and_accuracy_in_each_bin() -> None:
    """Bins of 0.25: [0.5, 0.75) holds 0.6 right and 0.7 wrong, [0.75, 1] holds 0.9 and 1.0, both right."""
    bins = s.reliability(np.array([0.6, 0.7, 0.9, 1.0]), np.array([True, False, True, True]), bins=4)
    assert bins.count.tolist() == [0, 0, 2, 2]
    assert bins.confidence[2:] == pytest.approx([0.65, 0.95])
    assert bins.accuracy[2:] == pytest.approx([0.5, 1.0])
    assert np.isnan(bins.accuracy[0])
    assert bins.error == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)


def test_the_error_is_that_of_the_calibration_module() -> None:
    """There from all probabilities, as a model's author has them; here from what an answer shows."""
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.full(10, 0.2), 500)
    labels = rng.integers(0, 10, 500)
    bins = s.reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    assert bins.error == pytest.approx(expected_calibration_error(probabilities, labels))


def test_the_interval_of_a_calibrated_models_error_reaches_down_to_nothing() -> None:
    """Chance alone makes the error of a calibrated model positive; the interval knows it."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 2_000)
    right = rng.random(2_000) < confidence
    low, high = s.calibration_interval(confidence, right) or (1, 1)
    assert low < 0.005
    assert high < s.reliability(confidence, right).error * 1.5


def test_the_interval_of_an_overconfident_models_error_is_far_from_nothing() -> None:
    confidence, right = np.full(1_000, 0.95), np.arange(1_000) % 4 != 0  # right in three of four
    low, high = s.calibration_interval(confidence, right) or (0, 0)
    assert low == pytest.approx(0.2 - 0.027, abs=0.004)
    assert high == pytest.approx(0.2 + 0.027, abs=0.004)


def test_the_confusion_matrix_has_labels_in_rows() -> None:
    matrix = s.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_the_composite_curve_counts_alarms_and_events() -> None:
    """Two stretches (points 1 and 2; point 4): their highest scores are 0.9 and 0.4."""
    scores = np.array([0.1, 0.9, 0.8, 0.8, 0.4])
    labels = np.array([False, True, True, False, True])
    precision, recall = s.composite_curve(scores, labels, np.array([0.9, 0.4]))
    assert precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4, 3 / 5])
    assert recall.tolist() == [0.5, 0.5, 1, 1]
    assert s.average_precision(precision, recall) == pytest.approx(0.5 * 1 + 0.5 * 3 / 4)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_composite_curve_agrees_with_counting_at_each_threshold(points: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in points], float)
    labels = np.array([label for _, label in points])
    events = np.append(scores[labels], 3.0)
    precision, recall = s.composite_curve(scores, labels, events)
    for at, p, r in zip(sorted(set(scores), reverse=True), precision, recall, strict=True):
        assert p == pytest.approx(labels[scores >= at].mean())
        assert r == pytest.approx((events >= at).mean())
