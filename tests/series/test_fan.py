"""Any quantile and the mean of a forecast that is known at a few levels."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from service.series.fan import Fan

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
NORMAL = NormalDist(10, 2)


@pytest.fixture
def normal() -> np.ndarray:
    return np.array([[NORMAL.inv_cdf(level) for level in LEVELS]])


def test_a_normal_distribution_stays_one_between_the_levels(normal: np.ndarray) -> None:
    for level in (0.02, 0.3, 0.5, 0.84):
        assert Fan(LEVELS).at(normal, level)[0] == pytest.approx(NORMAL.inv_cdf(level))


def test_the_mean_of_what_is_symmetrical_is_its_middle(normal: np.ndarray) -> None:
    assert Fan(LEVELS).mean(normal)[0] == pytest.approx(10)


def test_the_mean_of_a_skewed_distribution_is_nearly_right() -> None:
    exponential = np.array([[-math.log(1 - level) for level in LEVELS]])
    assert Fan(LEVELS).mean(exponential)[0] == pytest.approx(1, abs=0.02)


def test_tails_fall_exponentially() -> None:
    exponential = np.array([[-math.log(1 - level) for level in LEVELS]])
    assert Fan(LEVELS).at(exponential, 0.9999)[0] == pytest.approx(-math.log(0.0001))


def test_quantiles_of_positive_values_are_positive_far_out() -> None:
    prices = np.array([[1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0]])
    assert Fan(LEVELS, positive=True).at(prices, 1e-9)[0] > 0
    assert Fan(LEVELS).at(prices, 1e-9)[0] < 0


def test_the_mean_does_not_lose_digits_on_a_large_offset(normal: np.ndarray) -> None:
    assert Fan(LEVELS).mean(normal + 1e9)[0] - 1e9 == pytest.approx(10, abs=1e-5)
