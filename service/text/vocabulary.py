"""Vocabulary: the words of a language model, their spellings, and the heaviest of them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, quoted
from service.text.tokeniser import END

UNKNOWN = "<unk>"
"""Stands for every word outside the vocabulary."""
RARER = 20
"""A title in capitals gives way to a word that stands so many times higher in the vocabulary (factor)."""

_LINKS = frozenset({",", ";", ":"})
SUFFIXES = frozenset({"'s", "'m", "'re", "'ve", "'ll", "'d"})
# WikiText-2 splits "didn't" into "didn" and "'t". A stem that is no word by itself is shown with its ending.
_STEM = re.compile(r"(?:do|did|does|is|was|were|are|could|would|should|has|have|had|must|need|might|ai)n", re.I)
_ALWAYS_CAPITAL = frozenset({"i", "i'm", "i'd", "i'll", "i've"})

PARTS = 256
"""The vocabulary is divided into so many parts, or more, to see how heavy its heaviest tokens are (count)."""
MANY_PARTS = 16
"""Where a part would have fewer tokens, no bar is looked for (count)."""
ROUNDING = 1 - 1e-6
"""A bar is lowered by this factor, so that none is missed by a rounding error of float32."""


class Vocabulary:
    """The words of a model, and every table that predictions need, built once.

    Attributes:
        words: spelling of each token, index by index.
        group: int64 (words,): tokens which a reader takes for the same word ("The", "the") share a number.
        is_word: bool (words,): can be a prediction; punctuation, suffixes and control tokens cannot.
        no_words: int64: tokens that cannot.
        count: how many groups can be a prediction.
        follows: bool (words,): may come inside a continuation: words, `, ; :`, suffixes and joiners; no sentence end.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.number = {word: index for index, word in enumerate(words)}
        shown = [f"{w}'t" if _STEM.fullmatch(w) and w != "Don" else w for w in words]  # Don is a name
        self.shown = shown
        self.is_word = np.array([_can_be_predicted(w) for w in words], bool)
        glue = _LINKS | SUFFIXES | {"@-@"}
        self.follows = self.is_word | np.array([w in glue for w in words], bool)
        groups: dict[str, int] = {}
        members: list[list[int]] = []
        self.group = np.empty(len(words), np.int64)
        for index, text in enumerate(shown):
            # Tokens that are never words keep a group of their own, which no word can reach.
            key = text.casefold() if self.is_word[index] else f" {index}"
            number = groups.setdefault(key, len(members))
            if number == len(members):
                members.append([])
            members[number].append(index)
            self.group[index] = number
        self.members = members
        self.no_words = np.flatnonzero(~self.is_word)
        self.count = sum(bool(self.is_word[m[0]]) for m in members)
        self._most_members = max(map(len, members))
        # Inside a sentence a token is written as it is, but for those that are always written with a capital.
        always = [m[0] if shown[m[0]].casefold() in _ALWAYS_CAPITAL else -1 for m in members]
        self._inside = [shown[i if always[g] < 0 else always[g]] for i, g in enumerate(self.group.tolist())]
        self._table = np.array([m + [-1] * (self._most_members - len(m)) for m in members], np.int32)
        folded = sorted((key, number) for key, number in groups.items() if key[:1] != " ")
        self._folded = [key for key, _ in folded]
        self._folded_groups = np.array([number for _, number in folded], np.int64)
        # The tokens of these groups one after another, and where each group's begin.
        self._folded_tokens = np.array([index for _, number in folded for index in members[number]], np.int64)
        self._folded_begins = np.cumsum([0, *(len(members[number]) for _, number in folded)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, token: str) -> list[int]:
        """Numbers of a typed token: as typed, else in other capitals, else split as WikiText-2 does, else unknown.

        A word in capitals is read as the common word, not as the rare title that happens to be spelt like it: "WHAT"
        is "what", though "US" stays what it is.
        """
        spellings = [token, token.lower(), token.capitalize(), token.upper()]
        if len(token) > 1 and token.isupper():
            title, common = (self.number.get(spelling) for spelling in spellings[:2])
            if title is not None and common is not None and title > RARER * (common + 50):
                return [common]
        for spelling in spellings:
            if (found := self.number.get(spelling)) is not None and spelling not in (END, UNKNOWN):
                return [found]
        head, mark, tail = token.partition("'")
        if head and tail:
            return self.encode(head) + self.encode(mark + tail)
        if UNKNOWN not in self.number:
            raise InvalidInput(
                f"{quoted(token)} is none of the model's words. Send a text without it, or use another model."
            )
        return [self.number[UNKNOWN]]

    def starting_with(self, fragment: str) -> tuple[slice, slice]:
        """Words in alphabetical order: the one that *is* the fragment (or none), and all longer ones that start so."""
        key = fragment.casefold()
        begin = bisect_left(self._folded, key)
        end = bisect_left(self._folded, key + "\U0010ffff", begin)
        longer = begin + (begin < len(self._folded) and self._folded[begin] == key)
        return slice(begin, longer), slice(longer, end)

    def weights(self, alphabetical: slice, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Summed weight of each group in a range of the alphabetical order, from that of each token."""
        begins = self._folded_begins[alphabetical.start : alphabetical.stop]
        if not len(begins):
            return np.empty(0, np.float32)
        return np.asarray(np.add.reduceat(weights[self.tokens(alphabetical)], begins - begins[0]), np.float32)

    def tokens(self, alphabetical: slice) -> NDArray[np.int64]:
        """The tokens of a range of the alphabetical order."""
        return self._folded_tokens[self._folded_begins[alphabetical.start] : self._folded_begins[alphabetical.stop]]

    def heaviest(
        self, weights: NDArray[np.float32], k: int, among: slice | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The groups with the largest summed weights.

        Nearly all words are nearly impossible, so only tokens that reach a bar are added up and sorted. As many tokens
        as k groups can have are of k groups at least. So none of the k heaviest groups is lighter than the last of that
        many heaviest tokens, and a group is lighter which has no token of its weight divided by the most tokens in a
        group. A weight that so many tokens reach is found among the largest ones of many parts of the vocabulary. Where
        so many words are asked for that the bar would be low, every token is added up, but not sorted.

        Args:
            weights: float32 (words,), at least 0, the largest of them at most 1.
            k: at least 1; of fewer groups, all are returned.
            among: only groups in this range of the alphabetical order.

        Returns:
            Groups int64 (k,), heaviest first, equal ones in their order; their weights float64 (k,).
        """
        if among is not None:
            groups, sums = self._folded_groups[among], self.weights(among, weights).astype(np.float64)
            order = np.lexsort((groups, -sums))[:k]
            return groups[order], sums[order]
        enough = k * self._most_members
        parts = max(PARTS, 4 * enough)
        if parts * MANY_PARTS > len(weights):
            every: NDArray[np.float64] = np.bincount(self.group, weights).astype(np.float64, copy=False)
            k = min(k, len(every))
            groups = np.flatnonzero(every >= np.partition(every, -k)[-k])
            sums = every[groups]
        else:
            largest = weights[: len(weights) // parts * parts].reshape(-1, parts).max(axis=0)
            reached = float(np.partition(largest, -enough)[-enough])
            tokens = np.flatnonzero(weights >= reached / self._most_members * ROUNDING)
            groups = np.unique(self.group[tokens]) if self._most_members > 1 else self.group[tokens]
            members = self._table[groups]
            sums = np.where(members >= 0, weights[members], 0.0).sum(axis=1, dtype=np.float64)
        order = np.lexsort((groups, -sums))[:k]
        return groups[order], sums[order]

    def likeliest(self, groups: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.int64]:
        """The token of the largest weight in each group, the first of equal ones."""
        members = self._table[groups]
        best = np.where(members >= 0, weights[members], -1.0).argmax(axis=1)
        return np.asarray(np.take_along_axis(members, best[:, None], axis=1)[:, 0], np.int64)

    def inside(self, tokens: NDArray[np.int64]) -> list[str]:
        """How a person would write these tokens inside a sentence; see `spelling` for other places."""
        return [self._inside[token] for token in tokens.tolist()]

    def spelling(self, group: int, p: NDArray[np.float32], *, starts: bool, typed: str) -> tuple[int, str]:
        """The token of a group that the context calls for, and how a person would write it here.

        Args:
            group: a group of words.
            p: probability of each token, or what is proportional to it.
            starts: whether a sentence starts here.
            typed: letters the person typed already; their capitals are kept.
        """
        members = self.members[group]
        likely = max(members, key=lambda index: p[index])
        inside = members[0]  # the vocabulary's order: the usual spelling inside a sentence comes first
        settled = starts or self.shown[inside].casefold() in _ALWAYS_CAPITAL
        text = self.shown[inside if settled else likely]
        letters = [c for c in typed if c.isalpha()]
        if len(letters) > 1 and all(c.isupper() for c in letters):
            text = text.upper()
        elif typed[1:] != typed[1:].lower() and text[: len(typed)].casefold() == typed.casefold():
            text = typed + text[len(typed) :]  # capitals inside a word are meant: iPhone
        elif (letters[0].isupper() if letters else starts) and text.islower():
            text = text[:1].upper() + text[1:]
        return likely, text


def _can_be_predicted(word: str) -> bool:
    return (
        any(c.isalnum() for c in word)
        and word[0] != "'"
        and "@" not in word
        and not (word[0] == "<" and word[-1] == ">")
    )


def proportional(logits: NDArray[np.float32], among: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Weights (words,) proportional to the probabilities, from logits (words,): the likeliest has weight 1.

    Args:
        logits: of one place in the text.
        among: tokens of which the likeliest is to have weight 1; left out, all of them.
    """
    highest = logits.max() if among is None else logits[among].max()
    weights = logits - highest
    if among is not None:
        np.minimum(weights, 0.0, out=weights)
    return np.asarray(np.exp(weights, out=weights))
