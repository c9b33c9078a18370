"""The period of a series: after how many points it repeats itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_CORRELATION = 0.3
"""A pattern that repeats with less than this correlation is none."""
_NEARLY = 0.9
"""A shorter period is taken for a longer one that is not clearly stronger, such as its double (factor)."""


def find_period(values: NDArray[np.float64]) -> int:
    """The lag at which a series is most like itself, its trend taken off; 0 where it does not repeat.

    Args:
        values: (points,), NaN where missing.

    Returns:
        Points, from 2 to a third of the series.

    References:
        Box, Jenkins, *Time Series Analysis: Forecasting and Control* (1970), §2.1: the autocorrelation function.
    """
    count = len(values)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 6:
        return 0
    places = np.arange(count)
    filled = np.interp(places, known, values[known])
    filled = filled / (np.abs(filled).max() or 1.0)  # squares of it do not overflow
    rest = filled - np.polyval(np.polyfit(places, filled, 1), places)
    spectrum = np.fft.rfft(rest, 2 * count)
    products = np.fft.irfft(spectrum * np.conj(spectrum))[:count]
    if products[0] <= 1e-12 * count:  # a straight line
        return 0
    pairs = count - places
    correlation = products / products[0] * count / pairs
    lags = np.arange(2, count // 3 + 1)
    here = correlation[lags]
    peaks = lags[(here >= correlation[lags - 1]) & (here >= correlation[lags + 1]) & (here >= LEAST_CORRELATION)]
    if not len(peaks):
        return 0
    strong = peaks[correlation[peaks] >= _NEARLY * correlation[peaks].max()]
    return int(strong[0])
