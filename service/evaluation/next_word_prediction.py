"""Next word: suggestions that are what was typed, and perplexity.

Without an `evaluate.py`, texts are the lines of `DIR/*.txt`, each typed from a fresh state. Perplexity is told where
the model can `explain`.

A word is a token with a letter or digit in it, as the task's tokeniser cuts; each but the first of a line is asked for
after all that stands before it. Spellings that differ only in capitals are one word. What can't be suggested, such as
the 's of "Tom's" or a word that the model does not know, is asked for all the same, and missed.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.evaluation.base import (
    Answer,
    Ask,
    Conversation,
    DataMissing,
    Evaluation,
    EvaluationFailed,
    Figure,
    Infer,
    Item,
    Outcome,
    Plot,
    Question,
)
from service.evaluation.statistics import Floats, bootstrap_sums, perplexity, ratio, reliability
from service.graph import Array, Signature
from service.text.normal_form import normalise
from service.text.tokeniser import MAX_CHUNK_CHARS, tokenise_chunk

TOP_K = 10
"""Suggestions asked for: the accuracy plot has so many places (count)."""

PIECE_CHARS = 4_000
"""A longer text is sent in pieces (characters)."""

RUN_TOKENS = 256
"""Tokens of a stream in one run (count)."""


# -------------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True, slots=True)
class Words:
    """The suggestions at the words of one line.

    Attributes:
        source: the text that the line belongs to.
        ranks: place of the typed word among the suggestions, 0 the first; TOP_K where it was not there.
        scores: probability of the first suggestion at each word; NaN where none was asked for.
        bits: surprisal of the whole line; NaN where the model does not tell.
        tokens: that it is the sum of (count).
    """

    source: str
    ranks: NDArray[np.int64]
    scores: Floats
    bits: float
    tokens: int


# -------------------------------------------------------------------------------------------------------- conversations


def placed_tokens(text: str) -> Iterator[tuple[int, str]]:
    """The tokens of a normalised text, as the task's tokeniser cuts it, each with the place where it starts."""
    for chunk in re.finditer(rf"\S{{1,{MAX_CHUNK_CHARS}}}", text):
        at = chunk.start()
        for token in tokenise_chunk(chunk.group()):
            written = {"@-@": "-", "@,@": ",", "@.@": ".", "...": ".."}.get(token, token)
            at = text.index(written, at)
            yield at, token
            at += len(written)


def is_word(token: str) -> bool:
    """Whether a token is asked for."""
    return any(character.isalnum() for character in token)


def can_be_suggested(token: str) -> bool:
    """Whether a token may be a suggestion; a suffix such as 's is not."""
    return is_word(token) and token[0] != "'"


def suggestions(line: str) -> Generator[Question, Answer, tuple[NDArray[np.int64], Floats]]:
    """Ask for each word but the first, after what stands before it; see `Words`."""
    ranks, scores = [], []
    sent, state = 0, None
    for place, (start, token) in enumerate(placed_tokens(line)):
        if place == 0 or not is_word(token):
            continue
        if not can_be_suggested(token):
            ranks.append(TOP_K)
            scores.append(np.nan)
            continue
        fields = {"text": line[sent:start], "state": state, "complete": "never", "top_k": TOP_K}
        answer = yield Ask(fields)
        sent, state = start, answer["state"]
        found = [prediction["text"].casefold() for prediction in answer["predictions"]]
        ranks.append(found.index(token.casefold()) if token.casefold() in found else TOP_K)
        scores.append(answer["predictions"][0]["score"])
    return np.array(ranks, np.int64), np.array(scores, np.float64)


def surprisals(text: str) -> Generator[Question, Answer, Floats]:
    """The surprisal of each word and mark of a text, in bits, by `explain`; paragraph ends are read but not told.

    A long text is sent in pieces that end after a space, where no word is pending, each with the state of the last.
    """
    bits: list[float] = []
    state = None
    for piece in re.findall(rf"(?s).{{1,{PIECE_CHARS}}}(?:(?<=\s)|$)|.{{1,{PIECE_CHARS}}}", text):
        answer = yield Ask({"text": piece, "state": state, "complete": "never", "top_k": 1, "explain": True})
        state = answer["state"]
        bits += [token["surprisal"] for token in answer["tokens"]]
    return np.array(bits)


def stream_surprisals(ids: Sequence[int], opening: int, signature: Signature) -> Generator[Question, Answer, Floats]:
    """The surprisal of each token of a stream that is already cut into tokens, by the graph itself: exact.

    Args:
        ids: lines of the vocabulary, counted from 0.
        opening: the token that is read before the first.
        signature: of the graph, which needs the output `surprisal`.
    """
    state = signature.fresh_state()
    bits = []
    for begin in (None, *range(0, len(ids), RUN_TOKENS)):
        part = [opening] if begin is None else list(ids[begin : begin + RUN_TOKENS])
        tensors: dict[str, Array] = {
            "tokens": np.array([part], np.int64),
            "sequence_lens": np.array([len(part)], np.int32),
            "explain": np.array([begin is not None]),
            **state,
        }
        answer = yield Infer(tensors, (*signature.states.values(), "surprisal"))
        state = {name: answer[following] for name, following in signature.states.items()}
        if begin is not None:
            bits.append(answer["surprisal"][0])
    return np.concatenate(bits).astype(np.float64)


# ----------------------------------------------------------------------------------------------------------- evaluation


class NextWordPredictionEvaluation(Evaluation):
    """Lines of text, typed word by word. A model's own evaluation overrides `texts`."""

    title = "Lines of text files"
    item = "word of a stream"

    def texts(self) -> Mapping[str, Sequence[str]]:
        """Lines by the name of their text.

        Raises:
            DataMissing: there are none.
        """
        texts = {}
        for path in sorted(self.data.glob("*.txt")):
            try:
                lines = path.read_text("utf-8").splitlines()
            except UnicodeDecodeError:
                raise EvaluationFailed(f"{path.name} is not UTF-8 text; save it as UTF-8.") from None
            if lines := [line.strip() for line in lines if line.strip()]:
                texts[path.stem] = lines
        if not texts:
            raise DataMissing(self.data, "texts (DIR/*.txt, UTF-8, one text a line)", "Put a text file there.")
        return texts

    @property
    def can_explain(self) -> bool:
        """Whether the model tells surprisals."""
        signature = self.subject.signature
        return "explain" in signature.inputs and "surprisal" in signature.outputs

    def items(self) -> Sequence[Item]:
        items = []
        for source, lines in self.texts().items():
            for number, line in enumerate(map(normalise, self.few(lines)), start=1):
                questions = self.can_explain + sum(is_word(token) for _, token in placed_tokens(line))
                items.append(Item(f"{source}, line {number}", partial(self._read, source, line), questions))
        return items

    def _read(self, source: str, line: str) -> Generator[Question, Answer, Words]:
        bits = (yield from surprisals(line)) if self.can_explain else np.array([np.nan])
        ranks, scores = yield from suggestions(line)
        return Words(source, ranks, scores, float(bits.sum()), len(bits))

    def timed(self) -> Conversation:
        """One word with the state of the one before it."""
        words = [part for lines in self.texts().values() for line in lines[:50] for part in line.split()][:2]
        answer = yield Ask({"text": f"{words[0]} ", "top_k": TOP_K})
        yield Ask({"text": f"{words[-1]} ", "state": answer["state"], "top_k": TOP_K})
        return None

    def outcome(self, records: Sequence[Words]) -> Outcome:
        figures: list[Figure] = []
        curves: dict[str, Floats] = {}
        for source in dict.fromkeys(record.source for record in records):
            lines = [record for record in records if record.source == source]
            asked = np.array([len(line.ranks) for line in lines], float)
            for k in (1, 3):
                hits = np.array([np.count_nonzero(line.ranks < k) for line in lines], float)
                figures.append(share(f"{source} top-{k} accuracy", np.stack([hits, asked], axis=1), "words"))
            ranks = np.concatenate([line.ranks for line in lines])
            if len(ranks):
                curves[source] = np.array([np.mean(ranks < k) for k in range(1, TOP_K + 1)])
            sums = np.array([(line.bits, line.tokens) for line in lines])
            if np.isfinite(sums).all():
                low, high = bootstrap_sums(sums, perplexity) or (None, None)
                value, tokens = float(perplexity(sums.sum(axis=0))), int(sums[:, 1].sum())
                figures.append(Figure(f"{source} perplexity", value, tokens, "words and marks", low, high, ".2f"))
        return Outcome(figures, (), self._plots(records, curves), self.notes())

    @staticmethod
    def _plots(records: Sequence[Words], curves: Mapping[str, Floats]) -> list[Plot]:
        scores = np.concatenate([line.scores for line in records])
        told = np.isfinite(scores)
        right = np.concatenate([line.ranks for line in records])[told] == 0
        return [
            Plot(
                "top_k.png",
                "How often the typed word is among the first suggestions.",
                "top_k_accuracy",
                {"curves": curves},
            ),
            Plot(
                "reliability.png",
                "How often the first suggestion of each probability is what was typed. Words that the model does not "
                "know count as misses, which its probabilities leave out.",
                "reliability_diagram",
                {"bins": reliability(scores[told], right), "of": "words"},
            ),
        ]

    @staticmethod
    def notes() -> list[str]:
        """Sentences under the table."""
        return [
            "Each word of a line but the first is asked for, from a fresh state at the line's start; capitals are "
            "ignored, and a word that the model does not know counts as missed.",
            "Intervals: bootstrap over lines.",
        ]


def share(name: str, sums: Floats, of: str) -> Figure:
    """The share of the first column's sum in that of the second, with a bootstrap over rows.

    Args:
        name: of the figure.
        sums: float64 (things, 2).
        of: what the second column counts.
    """
    total = sums.sum(axis=0)
    low, high = bootstrap_sums(sums, ratio) or (None, None)
    value = float(total[0] / total[1]) if total[1] else float("nan")
    return Figure(name, value, int(total[1]), of, low, high)
