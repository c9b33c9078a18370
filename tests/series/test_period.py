"""After how many points a series repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from service.series.period import find_period


def waves(period: float, points: int = 240) -> np.ndarray:
    return np.sin(2 * np.pi * np.arange(points) / period)


@pytest.mark.parametrize("period", [7, 12, 24, 48])
@pytest.mark.parametrize("scale", [1e-200, 1, 1e200])
def test_a_pattern_that_repeats_is_found_under_a_trend_and_noise(period: int, scale: float) -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, 240)
    assert find_period(scale * (waves(period) + 0.02 * np.arange(240) + noise)) == period


def test_missing_points_and_a_spike_do_not_hide_it() -> None:
    values = waves(12)
    values[[5, 17, 18, 100]] = np.nan
    values[60] = 8
    assert find_period(values) == 12


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(2).normal(size=300),
        np.arange(100.0),
        np.full(50, 3.0),
        np.zeros(20),
        np.array([1.0, 2.0, 1.0, 2.0, 1.0]),
        np.full(40, np.nan),
        np.array([]),
    ],
)
def test_what_does_not_repeat_has_none(values: np.ndarray) -> None:
    assert find_period(values) == 0
