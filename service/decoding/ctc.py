"""Read what a network trained by CTC says: words, their alternatives, and when they were said.

For each step such a network gives the probabilities of a *blank* and of each label. A path of one of them per step
stands for the labels that are left when repetitions are merged and blanks taken out; many paths stand for the same.

    for begin, end in segments(...):                      # cut where nothing is being said
        alternatives = prefix_beam_search(log_probs[begin:end])
    spans = align(frames[begin:end], best)                # from a second output that knows when

Everything is NumPy and plain Python: an utterance has some ten segments of a few steps.

References:
    Graves et al., "Connectionist temporal classification", ICML 2006 (paths, blanks, the best path).
    Hannun et al., "First-pass large vocabulary continuous speech recognition using bi-directional recurrent DNNs",
    arXiv:1408.2873, 2014 (the prefix beam search).
    Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 77, 1989 (Viterbi's alignment).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LogProbs = NDArray[np.float32]
Labels = tuple[int, ...]

BLANK = 0
"""Number of the blank among the labels, and of silence among those of `align`."""
BEAMS = 16
"""Alternatives that are followed at a time (count)."""
LEAST_PROBABILITY = 1e-6
"""Labels below it are not followed within a step: sixteen beams could not keep them."""


class Alternative(NamedTuple):
    """Labels that may have been said, and the logarithm of their probability."""

    labels: Labels
    log_probability: float


class Spoken(NamedTuple):
    """One label of the best path: when it begins and ends (steps), and its largest probability in between."""

    label: int
    begin: int
    end: int
    probability: float


def best_path(log_probs: LogProbs) -> list[Spoken]:
    """The labels of the most probable path, which is not always the most probable sequence of labels.

    Args:
        log_probs: float32 (T, V), the blank first.
    """
    best = log_probs.argmax(axis=1)
    edges = np.flatnonzero(np.diff(best, prepend=BLANK, append=BLANK))
    runs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [
        Spoken(int(best[begin]), begin, end, float(np.exp(log_probs[begin:end, best[begin]].max())))
        for begin, end in runs
        if best[begin] != BLANK
    ]


def prefix_beam_search(log_probs: LogProbs, beams: int = BEAMS) -> list[Alternative]:
    """The most probable sequences of labels, each with the probability of all its paths that were followed.

    Args:
        log_probs: float32 (T, V), the blank first.
        beams: sequences kept from one step to the next.

    Returns:
        At most `beams` different sequences, best first. With as many beams as there are sequences, the probabilities
        are exact; with fewer, they are at most that.
    """
    # Of each prefix: the probability of the paths that end in a blank, and of those that end in its last label.
    kept: dict[Labels, tuple[float, float]] = {(): (1.0, 0.0)}
    scale = 0.0
    for row in np.exp(log_probs.astype(np.float64)).tolist():
        ahead: dict[Labels, list[float]] = {}
        likely = [label for label, p in enumerate(row) if p > LEAST_PROBABILITY and label != BLANK]
        for prefix, (blank, spoken) in kept.items():
            total = blank + spoken
            stays = ahead.setdefault(prefix, [0.0, 0.0])
            stays[0] += total * row[BLANK]
            last = prefix[-1] if prefix else BLANK
            if prefix:
                stays[1] += spoken * row[last]
            for label in likely:
                # The same label again is another one only after a blank.
                before = blank if label == last else total
                if before:
                    ahead.setdefault((*prefix, label), [0.0, 0.0])[1] += before * row[label]
        ranked = sorted(ahead.items(), key=lambda item: -(item[1][0] + item[1][1]))[:beams]
        top = sum(ranked[0][1])
        if top <= 0.0:
            return [Alternative((), -math.inf)]
        kept = {prefix: (blank / top, spoken / top) for prefix, (blank, spoken) in ranked}
        scale += math.log(top)
    return [
        Alternative(prefix, scale + math.log(blank + spoken))
        for prefix, (blank, spoken) in kept.items()
        if blank + spoken > 0.0
    ]


def combine(first: Sequence[Alternative], second: Sequence[Alternative], most: int = BEAMS) -> list[Alternative]:
    """Alternatives for two stretches of sound, one after the other, from those of each.

    The best of the two is the best of each, so that a recording in pieces has the text of the whole. Labels that come
    about in several ways are as probable as the likeliest of these.

    Args:
        first: best first.
        second: best first.
        most: alternatives kept.
    """
    if len(second) == 1:
        (labels, added) = second[0]
        return [Alternative(before + labels, score + added) for before, score in first]
    joined: dict[Labels, float] = {}
    for before, score in first:
        for labels, added in second:
            whole = before + labels
            joined[whole] = max(score + added, joined.get(whole, -math.inf))
    return [Alternative(labels, s) for labels, s in sorted(joined.items(), key=lambda item: -item[1])[:most]]


def agreement(alternatives: Sequence[Alternative]) -> list[float]:
    """How probable each label of the best alternative is: what those of its length that have it there add up to.

    Args:
        alternatives: best first.
    """
    best = alternatives[0].labels
    same = [(labels, math.exp(score)) for labels, score in alternatives if len(labels) == len(best)]
    return [min(1.0, sum(p for labels, p in same if labels[i] == label)) for i, label in enumerate(best)]


def next_segment(
    log_blank: NDArray[np.float32], start: int, *, quiet: float, pause: int, longest: int
) -> tuple[int, int | None]:
    """Find the next stretch in which something may have been said, from the probabilities of the blank alone.

    Whether a step is in a segment depends on what is before and a few steps after it, so a stream in pieces has
    the same segments as the whole. Paths that cross a cut are blank there, so what is found on both sides adds up.

    Args:
        log_blank: float32 (T,), logarithm of the probability of the blank in each step.
        start: the step to look from.
        quiet: log probability from which on a step is quiet.
        pause: quiet steps that end a segment (count).
        longest: steps after which a segment is cut where the blank is likeliest, in its second half (count).

    Returns:
        Where the segment begins (T: nowhere yet), and where it ends (None: not within these steps).
    """
    is_quiet = log_blank >= quiet
    loud = np.flatnonzero(~is_quiet[start:])
    if not len(loud):
        return len(log_blank), None
    begin, run = start + int(loud[0]), 0
    for step in range(begin, len(log_blank)):
        run = run + 1 if is_quiet[step] else 0
        if run == pause:
            return begin, step + 1 - pause
        if step + 1 - begin == longest:
            half = begin + longest // 2
            return begin, half + 1 + int(log_blank[half : step + 1].argmax())
    return begin, None


def align(frames: LogProbs, labels: Labels) -> list[tuple[int, int]]:
    """When each label was said, given which ones were: the likeliest division of the steps into silences and labels.

    Args:
        frames: float32 (T, V), log probabilities of what is being said in each step, silence first.
        labels: in the order said.

    Returns:
        For each label the step where it begins, and the one after its last. Where there are fewer steps than labels,
        they share the last.
    """
    T, L = len(frames), len(labels)
    if not L or T < L:
        return [(min(i, max(T - 1, 0)), max(T, 1)) for i in range(L)]
    # States: silence, first label, silence, second label, … silence. A silence may be left out.
    states = np.zeros(2 * L + 1, np.intp)
    states[1::2] = labels
    scores = frames[:, states].astype(np.float64)
    came = np.zeros((T, 2 * L + 1), np.int8)  # by how many states one came forward
    total = np.full(2 * L + 1, -np.inf)
    total[:2] = scores[0, :2]
    for t in range(1, T):
        options = np.full((3, 2 * L + 1), -np.inf)
        options[0] = total
        options[1, 1:] = total[:-1]
        options[2, 3::2] = total[1:-2:2]
        came[t] = options.argmax(axis=0)
        total = options.max(axis=0) + scores[t]
    state = 2 * L if total[2 * L] >= total[2 * L - 1] else 2 * L - 1
    path = np.empty(T, np.intp)
    for t in range(T - 1, -1, -1):
        path[t] = state
        state -= came[t, state]
    spans = []
    for i in range(L):
        steps = np.flatnonzero(path == 2 * i + 1)
        spans.append((int(steps[0]), int(steps[-1]) + 1))
    return spans
