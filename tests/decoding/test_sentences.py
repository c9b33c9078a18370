"""The search for whole sentences, against every sentence that there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding.sentences import Grammar, Sentence, States, search
from service.graph import Array, Run
from service.state import OutOfRange

START, END, UNKNOWN, FIRST_WORD = 0, 1, 2, 3


def grammar(words: int, most: int, least: int = 1) -> Grammar:
    """Of a start, an end, an unknown word, and so many words."""
    says = np.array([False, False, False, *[True] * words])
    return Grammar(START, END, says, least, most)


def find(tables: Array, rules: Grammar, beams: int, **options: Any) -> list[list[Sentence]]:
    """Search with decoders that only know the last token: logits (things, tokens, tokens) of what follows each."""

    def read(tokens: Array, things: Array, states: States) -> Run:
        np.testing.assert_array_equal(states["thing"][:, 0], things)
        return Run({"token": tokens, "thing": states["thing"]}, graph="decoder")

    steps = search({"thing": np.arange(len(tables), dtype=np.float32)[:, None]}, read, rules, beams, **options)
    outputs: Mapping[str, Array] | None = None
    while True:
        try:
            run = steps.send(outputs)  # type: ignore[arg-type]
        except StopIteration as end:
            found: list[list[Sentence]] = end.value
            return found
        thing = run.tensors["thing"]
        logits = tables[thing[:, 0].astype(int), run.tensors["token"]]
        outputs = {"logits": logits.astype(np.float32), "next_thing": thing, "seen": run.tensors["token"]}


def every_sentence(table: Array, rules: Grammar) -> list[tuple[float, tuple[int, ...]]]:
    """All sentences with their scores, best first: what a search that misses nothing would find."""
    words = np.flatnonzero(rules.says).tolist()
    found = []
    for length in range(max(1, rules.least), rules.most + 1):
        for tokens in itertools.product(words, repeat=length):
            total = 0.0
            for place, (before, token) in enumerate(itertools.pairwise((rules.start, *tokens))):
                able = [*words, *([rules.end] if place >= rules.least else [])]
                total += math.log(np.exp(table[before, token]) / np.exp(table[before, able]).sum())
            found.append((math.exp(total / length), tokens))
    return sorted(found, key=lambda each: (-each[0], each[1]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 2))
def test_a_beam_wide_enough_finds_the_best_of_all_sentences(seed: int, most: int, least: int) -> None:
    rules = grammar(2, max(most, least), least)
    tables = np.random.default_rng(seed).normal(size=(3, 5, 5))
    for sentences, table in zip(find(tables, rules, beams=20), tables, strict=True):
        expected = every_sentence(table, rules)
        assert [sentence.tokens for sentence in sentences] == [tokens for _, tokens in expected]
        np.testing.assert_allclose([sentence.score for sentence in sentences], [score for score, _ in expected], 1e-5)


def test_things_searched_together_get_what_each_gets_alone() -> None:
    tables = np.random.default_rng(1).normal(size=(4, 9, 9)) * 2
    together = find(tables, grammar(6, 12), beams=3)
    for thing, table in enumerate(tables):
        (alone,) = find(table[None], grammar(6, 12), beams=3)
        assert [each.tokens for each in alone] == [each.tokens for each in together[thing]]


def test_nothing_but_words_is_said_however_probable() -> None:
    table = np.zeros((1, 5, 5))
    table[..., [START, UNKNOWN]] = 100
    for sentence in find(table, grammar(2, 4), beams=4)[0]:
        assert set(sentence.tokens) <= {FIRST_WORD, FIRST_WORD + 1}


def test_probabilities_are_among_what_may_follow() -> None:
    """Two words and, from the second place on, the end: 1/2 and then 1/3."""
    (sentences,) = find(np.zeros((1, 5, 5)), grammar(2, 2), beams=9)
    assert [round(math.exp(log), 6) for log in sentences[-1].logs] == [0.5, 0.333333]
    assert sentences[-1].score == pytest.approx(math.sqrt(1 / 6))


def test_a_sentence_does_not_end_too_early_and_not_too_late() -> None:
    eager, shy = np.zeros((2, 1, 5, 5))
    eager[..., END], shy[..., END] = 50, -50
    assert {len(each.tokens) for each in find(eager, grammar(2, 9, least=2), beams=3)[0]} == {2}
    assert {len(each.tokens) for each in find(shy, grammar(2, 9, least=2), beams=3)[0]} == {9}


def test_equal_sentences_come_in_the_order_of_their_tokens() -> None:
    (sentences,) = find(np.zeros((1, 5, 5)), grammar(2, 2, least=2), beams=4)
    assert [each.tokens for each in sentences] == list(itertools.product((3, 4), repeat=2))


def test_no_two_sentences_have_the_same_key() -> None:
    """Where 3 and 5 are told apart by nothing, as Dog and dog, the better of each two is kept."""
    table = np.zeros((1, 6, 6))
    table[..., 5] = 1

    def key(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(3 if token == 5 else token for token in tokens)

    (sentences,) = find(table, grammar(3, 2, least=2), beams=9, key=key)
    assert [each.tokens for each in sentences] == [(5, 5), (4, 5), (5, 4), (4, 4)]


def test_other_outputs_are_kept_for_the_word_that_they_led_to() -> None:
    (sentences,) = find(np.zeros((1, 5, 5)), grammar(2, 3, least=3), beams=2)
    for sentence in sentences:
        assert [int(kept["seen"]) for kept in sentence.kept] == [START, *sentence.tokens[:-1]]


def test_logits_that_are_no_numbers_are_out_of_range() -> None:
    with pytest.raises(OutOfRange):
        find(np.full((1, 5, 5), np.nan), grammar(2, 3), beams=2)
