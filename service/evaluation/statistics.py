"""Figures with their uncertainty: pure functions on arrays.

Every interval is a 95 % confidence interval. It tells how far the figure would move on other data of the same kind; it
knows nothing of data of another kind, nor of other weights from the same training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_Z = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

RESAMPLES = 1000
"""Bootstrap resamples (count)."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The Wilson score interval of a proportion: sound near 0 and 1, where the usual ± is not.

    Args:
        successes: 0..n.
        n: trials (count); of none, the interval is everything.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference" (JASA 22, 1927).
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    # Rounding must not leave the interval short of a proportion of exactly 0 or 1.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def bootstrap_sums(
    sums: Floats, figure: Callable[[Floats], Floats], resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a figure that depends on sums over independent things: lines, series.

    Args:
        sums: float64 (things, K): what each adds to K sums.
        figure: from sums (resamples, K) to figures (resamples,); resamples whose figure is not finite are left out.
        resamples: count.

    Returns:
        None when there are fewer than two things, or no resample has a finite figure.

    References:
        Efron, Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13.
    """
    if len(sums) < 2:
        return None
    n, rng = len(sums), np.random.default_rng(0)
    # One resample at a time: thousands of lines times a thousand resamples would fill the memory.
    drawn = np.array([np.bincount(rng.integers(0, n, n), minlength=n) @ sums for _ in range(resamples)])
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = figure(drawn)
    figures = figures[np.isfinite(figures)]
    if not len(figures):
        return None
    low, high = np.quantile(figures, [0.025, 0.975])
    return float(low), float(high)


def ratio(sums: Floats) -> Floats:
    """The figure whose first sum is the numerator and whose second is the denominator: (..., 2) -> (...)."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def perplexity(sums: Floats) -> Floats:
    """Two to the mean surprisal: from (bits, tokens) in the last axis."""
    return np.asarray(np.exp2(sums[..., 0] / sums[..., 1]))


# ---------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidence against accuracy, by bins of equal width.

    Attributes:
        edges: float64 (bins + 1,).
        count: answers in each bin, int64 (bins,).
        confidence: mean confidence in each, NaN where empty.
        accuracy: share that were right, NaN where empty.
        error: the expected calibration error: mean |accuracy - confidence|, weighted by count.
    """

    edges: Floats
    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats
    error: float


def reliability(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Sort answers by confidence and compare it with how often they are right.

    Args:
        confidence: float64 (N,), 0..1: the probability of the best answer.
        right: bool (N,): whether that was the right one.
        bins: count.

    References:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017).
    """
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(place, confidence, bins) / count
        accuracy = np.bincount(place, right.astype(float), bins) / count
    error = float(np.nansum(np.abs(accuracy - means) * count) / max(1, len(confidence)))
    return Reliability(np.linspace(0, 1, bins + 1), count, means, accuracy, error)


def calibration_interval(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> tuple[float, float] | None:
    """The basic bootstrap interval of the expected calibration error.

    The error is a mean of absolute values, so chance only ever adds to it, in each resample once more: the basic
    interval, which reflects the resamples at the figure, takes that out (Davison, Hinkley, *Bootstrap Methods and
    their Application*, 1997, §5.2), and the percentile interval would double it.
    """
    n = len(confidence)
    if n < 2:
        return None
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, n, n)
        errors.append(reliability(confidence[drawn], right[drawn], bins).error)
    low, high = np.quantile(errors, [0.025, 0.975])
    here = reliability(confidence, right, bins).error
    return max(0.0, float(2 * here - high)), max(0.0, float(2 * here - low))


def confusion_matrix(truth: NDArray[np.int64], answer: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How often each class (rows) was given each answer (columns): int64 (classes, classes)."""
    return np.bincount(truth * classes + answer, minlength=classes**2).reshape(classes, classes)


# ------------------------------------------------------------------------------------------------------------ detection


def precision_recall_f1(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """From (true alarms, false alarms, missed) in the last axis; NaN where a share is of nothing."""
    true, false, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return true / (true + false), true / (true + missed), 2 * true / (2 * true + false + missed)


def composite_curve(scores: Floats, labels: NDArray[np.bool_], events: Floats) -> tuple[Floats, Floats]:
    """Precision of single alarms and recall of events, at every threshold that makes a difference.

    An anomaly that lasts is found by one alarm in it; each false alarm costs.

    Args:
        scores: float64 (N,), higher is more anomalous.
        labels: bool (N,).
        events: float64 (E,), the highest score in each labelled stretch; at least one.

    Returns:
        Precision and recall of `score >= threshold`, thresholds descending.

    References:
        Garg, Zhang, Samaran, Savitha, Foo, "An Evaluation of Anomaly Detection and Diagnosis in Multivariate Time
        Series" (IEEE TNNLS 33, 2021), whose composite F-score is the harmonic mean of the two.
    """
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], np.cumsum(labels[order])
    last_of_ties = np.append(scores[1:] != scores[:-1], True)
    precision = (true / np.arange(1, len(scores) + 1))[last_of_ties]
    found = len(events) - np.searchsorted(np.sort(events), scores[last_of_ties], side="left")
    return precision, found / len(events)


def average_precision(precision: Floats, recall: Floats) -> float:
    """The area under a precision-recall curve as a sum of steps, which does not flatter as interpolation does."""
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
