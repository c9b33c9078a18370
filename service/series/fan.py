"""A forecast as quantiles at a few levels: any other level of it, and its mean.

Between two levels a quantile is a straight line of the normal score, so that a normal distribution stays one. Beyond
the outermost levels the tails fall exponentially, by the distance of the two outermost quantiles.

References:
    Gneiting, Raftery, "Strictly proper scoring rules, prediction, and estimation" (JASA 102, 2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NORMAL = NormalDist()


class Fan:
    """What turns the quantiles of a model into others.

    Args:
        levels: at which the model answers: ascending, at least two, strictly between 0 and 1.
        positive: the values are above 0, so lines and tails are those of their logarithms.
    """

    def __init__(self, levels: Sequence[float], *, positive: bool = False) -> None:
        self.levels, self.positive = tuple(levels), positive
        self._scores = np.array([_NORMAL.inv_cdf(level) for level in levels])
        self._mean = self._mean_weights()

    def at(self, quantiles: Floats, level: float) -> Floats:
        """The quantile of one level.

        Args:
            quantiles: float64 (time, levels), ascending along the last axis.
            level: strictly between 0 and 1.

        Returns:
            float64 (time,); for a higher level nowhere lower.
        """
        if level in self.levels:
            return quantiles[:, self.levels.index(level)]
        q = np.log(quantiles) if self.positive else quantiles
        first, last = self.levels[0], self.levels[-1]
        if level < first:
            share = math.log(first / level) / math.log(self.levels[1] / first)
            found = q[:, 0] - share * (q[:, 1] - q[:, 0])
        elif level > last:
            share = math.log((1 - last) / (1 - level)) / math.log((1 - self.levels[-2]) / (1 - last))
            found = q[:, -1] + share * (q[:, -1] - q[:, -2])
        else:
            score = _NORMAL.inv_cdf(level)
            above = int(np.searchsorted(self._scores, score, "right"))
            share = (score - self._scores[above - 1]) / (self._scores[above] - self._scores[above - 1])
            found = q[:, above - 1] + share * (q[:, above] - q[:, above - 1])
        return np.asarray(np.exp(found) if self.positive else found)

    def mean(self, quantiles: Floats) -> Floats:
        """The mean of the distribution with these quantiles (time, levels), float64 (time,)."""
        middle = quantiles[:, len(self.levels) // 2]
        # Relative to the middle: the weights add up to 1 only nearly, and the values may be large.
        return np.asarray(middle + (quantiles - middle[:, None]) @ self._mean)

    def _mean_weights(self) -> Floats:
        """How much each quantile counts in the mean: the integral over all levels of `at`, float64 (levels,)."""
        p, z = np.array(self.levels), self._scores
        density = np.array([_NORMAL.pdf(score) for score in z])
        weights = np.zeros(len(p))
        below, above = (density[:-1] - density[1:]) - z[:-1] * np.diff(p), np.diff(z)
        weights[1:] += below / above
        weights[:-1] += np.diff(p) - below / above
        slope = p[0] / math.log(p[1] / p[0])
        weights[0] += p[0] + slope
        weights[1] -= slope
        slope = (1 - p[-1]) / math.log((1 - p[-2]) / (1 - p[-1]))
        weights[-1] += 1 - p[-1] + slope
        weights[-2] -= slope
        return weights
