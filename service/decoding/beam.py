"""Beam search for continuations of several words.

A continuation is done with its last word, and stays within its sentence. Marks, suffixes and hyphenated parts belong to
the word before them. Probabilities are among the tokens that may follow (`Vocabulary.follows`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.graph import Run, Settled
from service.state import OutOfRange
from service.text.tokeniser import join
from service.text.vocabulary import SUFFIXES, Vocabulary, proportional

BEAMS = 16
"""Unfinished continuations kept from one word to the next (count)."""


@dataclass(frozen=True)
class Beam:
    """An unfinished continuation.

    Attributes:
        score: its probability.
        tokens: spellings so far.
        words: how many words these are.
        last: number of the last token, not read yet.
        state: float32 (S,) before the last token.
        glued: whether the next token must be a word: after a comma, a colon or a hyphen.
        counts: whether that word is one more: not after a hyphen.
    """

    score: float
    tokens: tuple[str, ...]
    words: int
    last: int
    state: NDArray[np.float32]
    glued: bool = False
    counts: bool = True


def search(
    first: Sequence[tuple[int, str, float]],
    state: NDArray[np.float32],
    words: int,
    vocabulary: Vocabulary,
    read: Callable[[NDArray[np.int64], NDArray[np.float32]], Run],
    top_k: int,
    settled: Callable[[Callable[[], list[str]]], Settled] | None = None,
) -> Generator[Run | Settled, Mapping[str, NDArray[Any]], list[tuple[str, float]]]:
    """Search for the most probable continuations.

    Args:
        first: candidates for the first word, as (token, spelling, probability).
        state: float32 (S,) before them.
        words: of each continuation, at least 2.
        vocabulary: of the model.
        read: makes the run that reads one token int64 (rows,) in each row, after a state float32 (rows, S); it has the
            outputs `logits` (rows, tokens) and `next_state` (rows, S).
        top_k: continuations wanted.
        settled: what to yield after each run; it is given a function that tells the words with which the best
            continuation will begin in any case.

    Returns:
        Continuations and their probabilities, best first.

    Raises:
        OutOfRange: the logits are no numbers, or leave no word possible.
    """
    beams = [Beam(score, (text,), 1, token, state) for token, text, score in first]
    done: dict[str, float] = {}
    for _ in range(2 * words + 6):  # room for a few marks and hyphens between the words
        least = _least(done, top_k)
        beams = [beam for beam in beams if beam.score > least]
        if not beams:
            break
        outputs = yield read(np.array([beam.last for beam in beams]), np.stack([beam.state for beam in beams]))
        ahead: list[Beam] = []
        for row, beam in enumerate(beams):
            weights = proportional(outputs["logits"][row])
            weights *= vocabulary.is_word if beam.glued else vocabulary.follows
            total = float(weights.sum(dtype=np.float64))
            if not total > 0:
                raise OutOfRange("logits")
            groups, sums = vocabulary.heaviest(weights, max(top_k, BEAMS), None)
            scores = sums * (beam.score / total)
            likely = scores > least
            tokens, scores = vocabulary.likeliest(groups[likely], weights), scores[likely]
            ends = vocabulary.is_word[tokens] & (beam.words + beam.counts == words)
            _finish(done, beam, vocabulary.inside(tokens[ends]), scores[ends])
            # No more than BEAMS are kept of all, so no more of one.
            longer, places = tokens[~ends][:BEAMS], scores[~ends][:BEAMS]
            state = outputs["next_state"][row]
            for token, text, score in zip(longer.tolist(), vocabulary.inside(longer), places.tolist(), strict=True):
                if vocabulary.is_word[token]:
                    ahead.append(Beam(score, (*beam.tokens, text), beam.words + beam.counts, token, state))
                else:
                    mark = vocabulary.words[token]
                    glued, counts = mark not in SUFFIXES, mark != "@-@"
                    ahead.append(Beam(score, (*beam.tokens, mark), beam.words, token, state, glued, counts))
        beams = sorted(ahead, key=lambda beam: -beam.score)[:BEAMS]
        if settled is not None:
            yield settled(partial(_certain, beams, done))
    least = _least(done, top_k)
    ranked = sorted(((-score, text) for text, score in done.items() if score >= least))[:top_k]
    return [(text, min(-score, 1.0)) for score, text in ranked]


def _least(done: Mapping[str, float], top_k: int) -> float:
    """What a continuation must exceed to be among the best `top_k`; 0 where there are fewer."""
    if len(done) < top_k:
        return 0.0
    return float(np.partition(np.fromiter(done.values(), np.float64, len(done)), -top_k)[-top_k])


def _certain(beams: Sequence[Beam], done: Mapping[str, float]) -> list[str]:
    """The words that the best continuation begins with, whichever it will be.

    The last word of an unfinished one may still get a suffix. One that is done may still be found on other ways, but
    gains no more than all unfinished ones have.
    """
    ahead, best = sum(beam.score for beam in beams), max(done.values(), default=0.0)
    left = [text.split() for text, score in done.items() if score + ahead >= best]
    if ahead >= best:
        left += [join(beam.tokens).split()[:-1] for beam in beams]
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*left, strict=False))]


def _finish(done: dict[str, float], beam: Beam, last: Sequence[str], scores: NDArray[np.float64]) -> None:
    """Add continuations, each a beam with its last word, to those that are done."""
    begin = join((*beam.tokens, "x"))[:-1]  # the same before any word that starts with a letter or digit
    for word, score in zip(last, scores.tolist(), strict=True):
        text = begin + word if word[0].isalnum() else join((*beam.tokens, word))
        done[text] = done.get(text, 0.0) + score
