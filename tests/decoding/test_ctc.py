"""CTC against an oracle that writes down every path."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding import ctc
from service.decoding.ctc import Alternative


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return (x - np.log(np.exp(x).sum(-1, keepdims=True))).astype(np.float32)


def every_sequence(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probability of each sequence of labels, by definition: the sum over all paths."""
    T, V = log_probs.shape
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(V), repeat=T):
        labels = tuple(label for i, label in enumerate(path) if label and (i == 0 or path[i - 1] != label))
        found[labels] += math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(path)))
    return found


steps = st.tuples(st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**32 - 1), st.floats(0.1, 4.0)).map(
    lambda a: log_softmax(a[3] * np.random.default_rng(a[2]).standard_normal((a[0], a[1])))
)


@given(steps)
@settings(deadline=None)
def test_with_beams_enough_every_sequence_has_its_exact_probability(log_probs: np.ndarray) -> None:
    expected = every_sequence(log_probs)
    found = {labels: math.exp(score) for labels, score in ctc.prefix_beam_search(log_probs, 10_000)}
    for labels, probability in expected.items():
        assert found.get(labels, 0.0) == pytest.approx(probability, abs=1e-5)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-4)


@given(steps)
@settings(deadline=None)
def test_with_few_beams_the_best_are_found_and_none_is_overrated(log_probs: np.ndarray) -> None:
    expected = every_sequence(log_probs)
    found = ctc.prefix_beam_search(log_probs, 4)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert len({labels for labels, _ in found}) == len(found) <= 4
    for labels, score in found:
        assert math.exp(score) <= expected[labels] + 1e-5


@given(steps)
def test_the_best_path_is_the_likeliest_label_of_each_step(log_probs: np.ndarray) -> None:
    path = log_probs.argmax(1).tolist()
    spoken = ctc.best_path(log_probs)
    again = [0] * len(path)
    for label, begin, end, probability in spoken:
        assert set(path[begin:end]) == {label}
        assert probability == pytest.approx(math.exp(max(log_probs[begin:end, label])), rel=1e-5)
        again[begin:end] = [label] * (end - begin)
    assert again == path


def test_a_word_said_twice_needs_a_blank_between() -> None:
    one, blank = [0.05, 0.95], [0.95, 0.05]
    assert ctc.prefix_beam_search(np.log(np.array([one, one], np.float32)))[0].labels == (1,)
    assert ctc.prefix_beam_search(np.log(np.array([one, blank, one], np.float32)))[0].labels == (1, 1)


def test_two_paths_of_one_text_outweigh_a_likelier_path_of_another() -> None:
    """The best path is all blanks (0.36), but three paths say `1` (0.64 together)."""
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], np.float32))
    assert ctc.best_path(log_probs) == []
    (best, score), *_ = ctc.prefix_beam_search(log_probs)
    assert best == (1,) and math.exp(score) == pytest.approx(0.64, abs=1e-6)


def test_alternatives_of_two_stretches_multiply_and_the_best_is_the_best_of_each() -> None:
    """`1 2` comes about in two ways, together likelier than `1 2 2`; pieces on their own could not tell that."""
    first = [Alternative((1, 2), math.log(0.55)), Alternative((1,), math.log(0.45))]
    second = [Alternative((2,), math.log(0.55)), Alternative((), math.log(0.45))]
    joined = ctc.combine(first, second)
    assert joined[0].labels == (1, 2, 2)
    told = {a.labels: math.exp(a.log_probability) for a in joined}
    assert told == pytest.approx({(1, 2, 2): 0.3025, (1, 2): 0.2475, (1,): 0.2025})
    assert ctc.combine(joined, [Alternative((), 0.0)]) == joined


def test_a_word_is_as_sure_as_the_alternatives_that_agree_on_it() -> None:
    alternatives = [
        Alternative((1, 2), math.log(0.6)),
        Alternative((1, 3), math.log(0.3)),
        Alternative((1,), math.log(0.1)),
    ]
    assert ctc.agreement(alternatives) == pytest.approx([0.9, 0.6])


def cut(quiet: list[int], pause: int = 2, longest: int = 8) -> list[tuple[int, int]]:
    """All segments; `quiet` has 1 where the blank is certain."""
    log_blank = np.where(np.array(quiet) == 1, 0.0, -1.0).astype(np.float32)
    found, at = [], 0
    while True:
        begin, end = ctc.next_segment(log_blank, at, quiet=-0.1, pause=pause, longest=longest)
        if end is None:
            return found
        found.append((begin, end))
        at = end


def test_a_segment_ends_with_a_pause() -> None:
    assert cut([1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1, 1]) == [(2, 6), (9, 10)]
    assert cut([1, 1, 0, 0, 1]) == []  # it may go on


def test_a_segment_without_a_pause_is_cut_in_its_second_half() -> None:
    assert cut([0] * 5 + [1] + [0] * 6 + [1, 1], longest=8) == [(0, 6), (6, 12)]


@given(st.lists(st.sampled_from([0, 0, 1]), max_size=60), st.integers(0, 60))
def test_what_is_decided_does_not_depend_on_what_follows(quiet: list[int], seen: int) -> None:
    early, late = cut(quiet[:seen]), cut(quiet)
    assert late[: len(early)] == early


def every_division(frames: np.ndarray, labels: tuple[int, ...]) -> float:
    """Log probability of the likeliest division into silences and labels, by trying all."""
    best = -math.inf
    T = len(frames)
    for edges in itertools.combinations_with_replacement(range(T + 1), 2 * len(labels)):
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        if any(a == b for a, b in spans):
            continue
        said = [0] * T
        for label, (a, b) in zip(labels, spans, strict=True):
            said[a:b] = [label] * (b - a)
        best = max(best, float(sum(frames[t, label] for t, label in enumerate(said))))
    return best


@given(steps, st.lists(st.integers(1, 3), max_size=3))
@settings(deadline=None)
def test_an_alignment_is_the_likeliest_division(frames: np.ndarray, said: list[int]) -> None:
    labels = tuple(label for label in said if label < frames.shape[1])[: len(frames)]
    spans = ctc.align(frames, labels)
    assert len(spans) == len(labels)
    assert all(a < b for a, b in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    steps_said = [0] * len(frames)
    for label, (a, b) in zip(labels, spans, strict=True):
        steps_said[a:b] = [label] * (b - a)
    score = float(sum(frames[t, label] for t, label in enumerate(steps_said)))
    assert score == pytest.approx(every_division(frames, labels), abs=1e-4)


def test_more_labels_than_steps_share_the_last() -> None:
    frames = log_softmax(np.zeros((1, 3)))
    assert len(ctc.align(frames, (1, 2))) == 2
