"""Fit the constants of a model's `[calibration]` table, from logits on data that it was not trained on.

    logits, labels = ...                                  # of held-out pictures
    temperature = fit_temperature(logits, labels)         # divide the exported logits by it, once and for all
    logits = logits / temperature
    set_threshold = fit_set_threshold(softmax(logits), labels, coverage=0.99)
    abstain_above = fit_abstain_threshold(energy(logits), rate=0.02)

What is promised holds for new data of the same kind, drawn as the held-out data were (exchangeable with them); it is
a promise about the average over many pictures, not about each single one. Data that also chose the weights, the
training length or anything else about the model promise too much. Everything here is NumPy and float64.
"""

from __future__ import annotations

import math

import numpy as np

from service.graph import Array
from service.uncertainty.scores import softmax

__all__ = [
    "expected_calibration_error",
    "fit_abstain_threshold",
    "fit_set_threshold",
    "fit_temperature",
]


def fit_temperature(logits: Array, labels: Array) -> float:
    """Find the number to divide logits by, so that their softmax is as likely as can be: neither too sure nor too shy.

    The negative log-likelihood is convex in 1 / temperature; Newton's method finds its minimum.

    Args:
        logits: float (N, classes), of held-out data.
        labels: int (N,), the true classes.

    Returns:
        The temperature, above 0: more than 1 where the model was too sure of itself.

    Raises:
        ValueError: arrays that do not fit together; or no finite temperature is best, because the model is right (or
            no better than chance) on all of the data.

    References:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017).
    """
    logits, labels = _checked(logits, labels, "logits")
    own = logits[np.arange(len(labels)), labels]  # (N,)
    if (own == logits.max(axis=1)).all():
        raise ValueError("every label has the largest logit, so no finite temperature is best; hold out more data.")
    if (own - logits.mean(axis=1)).mean() <= 0:
        raise ValueError("the logits tell no more than chance; check that labels and logits belong together.")
    inverse, low, high = 1.0, 0.0, math.inf
    for _ in range(200):
        probabilities = softmax(inverse * logits)
        expected = (probabilities * logits).sum(axis=1)
        slope = float((expected - own).mean())
        curvature = float((probabilities * (logits - expected[:, None]) ** 2).sum(axis=1).mean())
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / curvature if curvature > 0 else math.nan
        if not low <= following <= high:  # Newton's step left the bracket
            following = 2 * inverse if high == math.inf else (low + high) / 2
        if abs(following - inverse) <= 1e-9 * inverse:
            break
        inverse = following
    return 1 / following


def fit_set_threshold(probabilities: Array, labels: Array, coverage: float) -> float:
    """Find the probability from which on a class is in the prediction set, so that sets hold the truth often enough.

    Split conformal prediction with the score of the least ambiguous sets: of N held-out probabilities of the true
    class, the one that ceil((N + 1) · coverage) of them reach. For new exchangeable data the set of all classes that
    reach the threshold then holds the true class with a probability of at least `coverage` (and, without ties, at most
    `coverage` + 1 / (N + 1)), whatever the model.

    Args:
        probabilities: float (N, classes), the model's softmax on held-out data.
        labels: int (N,), the true classes.
        coverage: wanted share of sets that hold the true class, between 0 and 1.

    Returns:
        The threshold, 0..1. Round it down, not up, when you write it with fewer digits.

    Raises:
        ValueError: arrays that do not fit together, a coverage out of range, or too few data for it.

    References:
        Sadinle, Lei, Wasserman, "Least Ambiguous Set-Valued Classifiers With Bounded Error Levels" (JASA 114, 2019);
        Angelopoulos, Bates, "Conformal Prediction: A Gentle Introduction" (Foundations and Trends in Machine Learning
        16, 2023), theorem 1.
    """
    probabilities, labels = _checked(probabilities, labels, "probabilities")
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities: every row must sum to 1; apply softmax to the logits first.")
    own = probabilities[np.arange(len(labels)), labels]
    return -_upper_quantile(-own, _share(coverage, "coverage"), f"coverage {coverage:g}")


def fit_abstain_threshold(novelty: Array, rate: float) -> float:
    """Find the novelty above which a model should abstain, so that few of the inputs that it knows are turned away.

    Of N held-out novelties the one that ceil((N + 1) · (1 - rate)) of them do not exceed: a new exchangeable input
    exceeds it with a probability of at most `rate`.

    Args:
        novelty: float (N,), of held-out data of the kind that the model was trained on; larger = stranger.
        rate: share of such data that may abstain, between 0 and 1.

    Returns:
        The threshold, in the unit of `novelty`. Round it up, not down, when you write it with fewer digits.

    Raises:
        ValueError: no vector of finite numbers, a rate out of range, or too few data for it.

    References:
        Bates, Candès, Lei, Romano, Sesia, "Testing for outliers with conformal p-values" (Annals of Statistics 51,
        2023).
    """
    novelty = np.asarray(novelty, np.float64)
    if novelty.ndim != 1 or not np.isfinite(novelty).all():
        raise ValueError(f"novelty: one finite number for each input is needed, not shape {novelty.shape}.")
    return _upper_quantile(novelty, 1 - _share(rate, "rate"), f"rate {rate:g}")


def expected_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """How far confidence and accuracy are apart, on average: 0 where 80 % sure means right 80 times in 100.

    Args:
        probabilities: float (N, classes).
        labels: int (N,), the true classes.
        bins: intervals of equal width that the best class's probability is sorted into (count).

    Returns:
        The mean over all data of |accuracy - confidence| of their bin, 0..1.

    Raises:
        ValueError: arrays that do not fit together, or no bins.

    References:
        Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (AAAI 2015).
    """
    probabilities, labels = _checked(probabilities, labels, "probabilities")
    if bins < 1:
        raise ValueError(f"bins is {bins}; use at least 1.")
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(which, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def _upper_quantile(values: Array, share: float, what: str) -> float:
    """The ceil((N + 1) · share)-th smallest: a new exchangeable value is no larger with at least that probability."""
    count = len(values)
    rank = math.ceil(round((count + 1) * share, 9))  # 100 · 0.07 is 7, not 7.000000000000001
    if not 1 <= rank <= count:
        needed = math.ceil(round(1 / (1 - share), 9)) - 1
        raise ValueError(f"{what} needs at least {needed} held-out examples; there are {count}.")
    return float(np.partition(values, rank - 1)[rank - 1])


def _share(value: float, what: str) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{what} is {value!r}; it must be above 0 and below 1.")
    return value


def _checked(scores: Array, labels: Array, what: str) -> tuple[Array, Array]:
    """Scores as float64 (N, classes) and labels as int (N,), or what is wrong with them."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or 0 in scores.shape:
        raise ValueError(f"{what} {scores.shape} and labels {labels.shape} should be (N, classes) and (N,), N above 0.")
    if not np.isfinite(scores).all():
        raise ValueError(f"{what}: every number must be finite.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels: rows of classes are needed, whole numbers 0..{scores.shape[1] - 1}.")
    return scores, labels
