"""Fit the constants of what a model's manifest says about doubt, from its answers on data that it was not trained on.

For a classifier:

    logits, labels = ...                                  # of held-out pictures
    temperature = fit_temperature(logits, labels)         # divide the exported logits by it, once and for all
    logits = logits / temperature
    set_threshold = fit_set_threshold(softmax(logits), labels, coverage=0.99)
    abstain_above = fit_abstain_threshold(energy(logits), rate=0.02)

For the scores of a detector, and for intervals around numbers:

    curve = fit_score_curve(scores, hits)                 # hits: whether each box covers an object of its label
    table = fit_interval_table(truth - estimates)         # table.half_width(0.9): so far from the truth, at most

What is promised holds for new data of the same kind, drawn as the held-out data were (exchangeable with them); it is
a promise about the average over many pictures, not about each single one. Data that also chose the weights, the
training length or anything else about the model promise too much. Everything here is NumPy and float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.graph import Array
from service.uncertainty.scores import sigmoid, softmax
from service.uncertainty.table import IntervalTable, QuantileMargins, ScoreCurve, ScoreLine

__all__ = [
    "COVERAGES",
    "calibration_error",
    "expected_calibration_error",
    "fit_abstain_threshold",
    "fit_interval_table",
    "fit_quantile_margins",
    "fit_score_curve",
    "fit_score_line",
    "fit_set_threshold",
    "fit_temperature",
]

COVERAGES = tuple(percent / 100 for percent in range(50, 100))
"""Coverages that a caller may ask intervals for: 0.5, 0.51 … 0.99."""


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
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def calibration_error(scores: Array, hits: Array, bins: int = 10) -> float:
    """How far scores and what comes true are apart, on average, such as for the boxes of a detector.

    Args:
        scores: float (N,), 0..1.
        hits: bool (N,), what came true.
        bins: intervals of equal width that the scores are sorted into (count).

    Returns:
        The mean over all data of |share of hits - mean score| of their bin, 0..1.

    Raises:
        ValueError: arrays that do not fit together, or no bins.
    """
    scores, hits = _checked_hits(scores, hits)
    if bins < 1:
        raise ValueError(f"bins is {bins}; use at least 1.")
    which = np.clip((scores * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(which, weights=hits - scores, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def fit_score_line(logits: Array, hits: Array, *, offset: bool = True) -> ScoreLine:
    """Find the line through logits whose sigmoid is as likely as can be: two constants, which a few data suffice for.

    The negative log-likelihood is convex; Newton's method finds its minimum. Platt's targets, a little inside of 0
    and 1, keep it finite where logits tell hits and misses apart without error.

    Args:
        logits: float (N,), of held-out data: of a score s, log(s / (1 - s)).
        hits: bool (N,), what came true.
        offset: False: the slope alone is fitted, which is 1 / temperature.

    Raises:
        ValueError: arrays that do not fit together, or only hits, or only misses.

    References:
        Platt, "Probabilistic Outputs for Support Vector Machines" (1999); Lin, Lin, Weng, "A Note on Platt's
        Probabilistic Outputs for Support Vector Machines" (Machine Learning 68, 2007).
    """
    logits, hits = _checked_hits(logits, hits, most=math.inf)
    count, positive = len(hits), int(hits.sum())
    if positive in (0, count):
        raise ValueError(f"hits: {positive} of {count} came true; both kinds are needed.")
    target = np.where(hits, (positive + 1) / (positive + 2), 1 / (count - positive + 2))
    columns = np.stack([logits, np.ones(count)][: 1 + offset], axis=1)  # (N, parameters)
    unit = np.abs(columns).max(axis=0)
    columns = columns / np.where(unit > 0, unit, 1)

    def loss(parameters: Array) -> float:
        line = columns @ parameters
        return float((np.logaddexp(0, line) - target * line).mean())

    parameters = np.zeros(columns.shape[1])
    for _ in range(100):
        probability = sigmoid(columns @ parameters)
        slope = columns.T @ (probability - target) / count
        weight = probability * (1 - probability)
        curvature = (columns * weight[:, None]).T @ columns / count + 1e-12 * np.eye(len(parameters))
        step, share = np.linalg.solve(curvature, slope), 1.0
        while share > 1e-10 and loss(parameters - share * step) > loss(parameters):  # Newton's step went too far
            share /= 2
        parameters = parameters - share * step
        if np.abs(share * step).max() <= 1e-10 * max(1.0, np.abs(parameters).max()):
            break
    found = (parameters / np.where(unit > 0, unit, 1)).tolist()
    return ScoreLine(slope=found[0], offset=found[1] if offset else 0.0)


def fit_score_curve(scores: Array, hits: Array) -> ScoreCurve:
    """Find the rising curve through what came true that is nearest to it: for scores that no line makes honest.

    Isotonic regression by pooling neighbours that are in the wrong order; between the middles of the pools the curve
    is a straight line, so that scores which differ stay in their order there.

    Args:
        scores: float (N,), 0..1, of held-out data; some hundred at least, or it follows chance.
        hits: bool (N,), what came true.

    Raises:
        ValueError: arrays that do not fit together.

    References:
        Zadrozny, Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates" (KDD 2002).
    """
    scores, hits = _checked_hits(scores, hits)
    places, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=hits)
    pools: list[tuple[float, float, float]] = []  # hits, count, sum of scores
    for place, total, count in zip(places.tolist(), sums.tolist(), counts.tolist(), strict=True):
        pool = (total, float(count), place * count)
        while pools and pools[-1][0] * pool[1] >= pool[0] * pools[-1][1]:  # the one before has no smaller share
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    return ScoreCurve(
        scores=tuple(place / count for _, count, place in pools),
        probabilities=tuple(total / count for total, count, _ in pools),
    )


def fit_interval_table(residuals: Array, coverages: Sequence[float] = COVERAGES) -> IntervalTable:
    """Find how far a model's numbers are from the truth, at most, for each of some shares of the data.

    Split conformal prediction: of N held-out distances the one that ceil((N + 1) · coverage) of them do not exceed. A
    new exchangeable truth is then within it of the model's number with a probability of at least `coverage`, whatever
    the model. Larger coverages never have smaller distances.

    Args:
        residuals: float (N,), truth minus the model's number; or that divided by how hard the model finds the case,
            where the half widths will be multiplied by it.
        coverages: ascending, between 0 and 1.

    Raises:
        ValueError: no vector of finite numbers, a coverage out of range, or too few data for it.

    References:
        Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, "Distribution-Free Predictive Inference for Regression" (JASA 113,
        2018).
    """
    distances = np.abs(_checked_vector(residuals, "residuals"))
    widths = [_upper_quantile(distances, _share(c, "coverage"), f"coverage {c:g}") for c in coverages]
    return IntervalTable(coverages=tuple(coverages), half_widths=tuple(widths))


def fit_quantile_margins(
    lower: Array, upper: Array, truth: Array, coverages: Sequence[float] = COVERAGES
) -> QuantileMargins:
    """Find by how much a model's own quantiles must be moved outwards, or may be moved inwards, to hold the truth.

    Conformalised quantile regression: intervals that are wide where the model is in doubt, and hold the truth with a
    probability of at least `coverage` all the same.

    Args:
        lower: float (N, coverages), the lower end of the model's interval for each coverage, on held-out data.
        upper: float (N, coverages), the upper end.
        truth: float (N,).
        coverages: ascending, between 0 and 1.

    Raises:
        ValueError: arrays that do not fit together, a coverage out of range, or too few data for it.

    References:
        Romano, Patterson, Candès, "Conformalized Quantile Regression" (NeurIPS 2019).
    """
    truth = _checked_vector(truth, "truth")
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if lower.shape != (len(truth), len(coverages)) or upper.shape != lower.shape:
        raise ValueError(f"lower {lower.shape} and upper {upper.shape} should be {(len(truth), len(coverages))}.")
    outside = np.maximum(lower - truth[:, None], truth[:, None] - upper)
    margins = [
        _upper_quantile(outside[:, column], _share(c, "coverage"), f"coverage {c:g}")
        for column, c in enumerate(coverages)
    ]
    return QuantileMargins(coverages=tuple(coverages), margins=tuple(margins))


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


def _checked_hits(scores: Array, hits: Array, most: float = 1.0) -> tuple[Array, Array]:
    """Scores as float64 (N,) and hits as bool (N,), or what is wrong with them."""
    scores, hits = _checked_vector(scores, "scores"), np.asarray(hits)
    if hits.shape != scores.shape or not np.isin(hits, (0, 1)).all():
        raise ValueError(f"hits {hits.shape}: true or false is needed for each of the {len(scores)} scores.")
    if most == 1 and (scores.min() < 0 or scores.max() > 1):
        raise ValueError("scores: every number must be from 0 to 1.")
    return scores, hits.astype(bool)


def _checked_vector(values: Array, what: str) -> Array:
    """Values as float64 (N,), or what is wrong with them."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{what}: one finite number for each example is needed, not shape {values.shape}.")
    return values
