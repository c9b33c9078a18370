"""Beam search for whole sentences, of several things at a time: what a decoder graph would most probably say of each.

A sentence begins after the decoder's start token and ends before its end token. Probabilities are among the tokens that
may follow. How probable a sentence is does not count its end, and does not fall with its length: its *score* is the
geometric mean of its words' probabilities. Its end must be worth its place in the beam all the same, so that a sentence
is not broken off where it reads well so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np

from service.graph import Array, Run, Settled
from service.state import OutOfRange

States = Mapping[str, Array]
"""The decoder's recurrent state by input name, (rows, ...)."""

Read = Callable[[Array, Array, States], Run]
"""Makes the run that reads a token int64 (rows,) in each row, about the thing int64 (rows,), after these states. It has
the outputs `logits` (rows, tokens) and, for each state `x`, `next_x`; others are kept for the words they lead to."""


@dataclass(frozen=True)
class Grammar:
    """What may follow what.

    Attributes:
        start: token before the first word.
        end: token after the last.
        says: bool (tokens,): which ones are words.
        least: words of a sentence at least.
        most: words of a sentence at most.
    """

    start: int
    end: int
    says: Array
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, or the beginning of one.

    Attributes:
        tokens: its words.
        logs: logarithm of the probability of each.
        kept: for each word, the outputs that the read function asked for beside those that the search needs.
        row: of the last run that read all but its last word.
    """

    tokens: tuple[int, ...] = ()
    logs: tuple[float, ...] = ()
    kept: tuple[Mapping[str, Array], ...] = ()
    row: int = 0

    @property
    def score(self) -> float:
        """Geometric mean of the words' probabilities."""
        return math.exp(math.fsum(self.logs) / len(self.logs))

    @property
    def rank(self) -> tuple[float, tuple[int, ...]]:
        """What sorts sentences: the best first, and of equal ones always the same."""
        return -self.score, self.tokens


@dataclass
class _Beam:
    """The search about one thing: sentences that go on, and those that are done by what must tell them apart."""

    going: list[Sentence] = field(default_factory=list)
    done: dict[Hashable, Sentence] = field(default_factory=dict)

    def finish(self, sentence: Sentence, key: Hashable) -> None:
        """Take a sentence as it is, unless a better one of this key is there."""
        known = self.done.get(key)
        if known is None or sentence.rank < known.rank:
            self.done[key] = sentence


def search(
    states: States,
    read: Read,
    grammar: Grammar,
    beams: int,
    key: Callable[[Sequence[int]], Hashable] = tuple,
    settled: Callable[[Callable[[], list[Sentence]]], Settled] | None = None,
) -> Generator[Run | Settled, Mapping[str, Array], list[list[Sentence]]]:
    """Search for the most probable sentences about each of several things, in steps that all of them share.

    Args:
        states: before the start token, a row for each thing.
        read: makes a run.
        grammar: of the decoder.
        beams: sentences kept from one word to the next, and found of each thing (count).
        key: what must tell the sentences about a thing apart, of their tokens.
        settled: what to yield after each word; it is given a function that tells how far the best sentence about each
            thing is certain by now.

    Returns:
        For each thing its sentences, best first: as many as `beams`, or fewer where there are no more.

    Raises:
        OutOfRange: the logits are no numbers, or leave nothing that may follow.
    """
    things = len(next(iter(states.values())))
    found = [_Beam([Sentence(row=thing)]) for thing in range(things)]
    for length in range(grammar.most):
        rows = [(thing, sentence) for thing, beam in enumerate(found) for sentence in beam.going]
        if not rows:
            break
        tokens = np.array([sentence.tokens[-1] if length else grammar.start for _, sentence in rows], np.int64)
        before = [sentence.row for _, sentence in rows]
        outputs = yield read(
            tokens,
            np.array([thing for thing, _ in rows], np.int64),
            {name: array[before] for name, array in states.items()},
        )
        logs = _log_probabilities(outputs["logits"], grammar, may_end=length >= grammar.least)
        kept = {name for name in outputs if name != "logits" and name.removeprefix("next_") not in states}
        first = 0
        for beam in found:
            going, beam.going = beam.going, []
            for place, row, token in _best(going, logs[first : first + len(going)], 2 * beams):
                before_it = going[row]
                if token == grammar.end:
                    if place < beams:
                        beam.finish(before_it, key(before_it.tokens))
                elif len(beam.going) < beams:
                    extra = {name: outputs[name][first + row] for name in kept}
                    log = float(logs[first + row, token])
                    beam.going.append(
                        Sentence(
                            (*before_it.tokens, token),
                            (*before_it.logs, log),
                            (*before_it.kept, extra) if kept else (),
                            first + row,
                        )
                    )
            first += len(going)
            if len(beam.done) >= beams:
                beam.going = []
        states = {name: outputs[f"next_{name}"] for name in states}
        if settled is not None:
            yield settled(lambda: [_certain(beam) for beam in found])
    for beam in found:
        for sentence in beam.going:  # as long as any may be
            beam.finish(sentence, key(sentence.tokens))
    return [sorted(beam.done.values(), key=lambda sentence: sentence.rank)[:beams] for beam in found]


def _certain(beam: _Beam) -> Sentence:
    """The beginning that all sentences share of which one will be the best; all of it once that is known."""
    if not beam.going:
        return min(beam.done.values(), key=lambda sentence: sentence.rank)
    left = [*beam.going, *beam.done.values()]
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*(sentence.tokens for sentence in left), strict=False))
    length, one = sum(1 for _ in same), left[0]
    return replace(one, tokens=one.tokens[:length], logs=one.logs[:length], kept=one.kept[:length])


def _log_probabilities(logits: Array, grammar: Grammar, *, may_end: bool) -> Array:
    """Logarithms of the probabilities among what may follow, float64 (rows, tokens); -inf for what may not."""
    able = grammar.says.copy()
    able[grammar.end] = may_end
    logits = np.where(able, logits, -np.inf).astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():  # NaN as well
        raise OutOfRange("logits")
    logits -= largest
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _best(going: Sequence[Sentence], logs: Array, count: int) -> Iterator[tuple[int, int, int]]:
    """The most probable continuations as (place, row, token), best first; of equal ones the first row and token."""
    if not going:
        return
    totals = (logs + np.array([[math.fsum(sentence.logs)] for sentence in going])).ravel()
    some = np.flatnonzero(totals > -np.inf)
    if len(some) > count:
        least = np.partition(totals, -count)[-count]
        some = np.flatnonzero(totals >= least)
    order = some[np.argsort(-totals[some], kind="stable")][:count]
    for place, number in enumerate(order.tolist()):
        yield place, *divmod(number, logs.shape[1])
