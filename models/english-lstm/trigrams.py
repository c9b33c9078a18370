"""A table of what followed pairs of words in the training texts, mixed with the network.

References:
    Ney, Essen, Kneser, "On structuring probabilistic dependences in stochastic language modelling" (1994): the discount.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from network import LanguageModel, log_likelihoods
from texts import Corpus
from weights import Trigrams

from service.text.tokeniser import END


def pair_keys(tokens: np.ndarray, words: int, end: int) -> np.ndarray:
    """Key of the two words before each token of a text that opens with a line."""
    b = np.concatenate([[end], tokens[:-1]])
    a = np.concatenate([[end], b[:-1]])
    return np.where(b == end, 0, a + 1) * (words + 1) + b + 1


SEEN = (2, 3, 5, 9, 17, 65, 257, 1025)
"""How often a pair was seen falls into classes that begin here (counts)."""


def count_trigrams(model: LanguageModel, corpus: Corpus, followers: int, discount: float) -> Trigrams:
    """Count the training texts; choose the shares that fit the two validation texts best, which count alike.

    Args:
        model: that the table is mixed with.
        corpus: the texts.
        followers: words kept for a pair, the most frequent first (count).
        discount: taken off each count, so that what was never seen keeps a share.
    """
    words, end = len(corpus.vocabulary), corpus.vocabulary.index(END)
    texts = [corpus.wikitext["train"], *corpus.everyday.values()]
    triples, count = np.unique(
        np.concatenate([pair_keys(text, words, end) * words + text for text in texts]), return_counts=True
    )
    keys, first = np.unique(triples // words, return_index=True)
    seen = np.add.reduceat(count, first)
    pair = np.repeat(np.arange(len(keys)), np.diff(np.append(first, len(triples))))
    order = np.lexsort((-count, pair))
    rank = np.empty(len(triples), np.int64)
    rank[order] = np.arange(len(triples)) - first[pair]
    kept = (rank < followers) & (seen[pair] >= SEEN[0])
    triples, pair, p3 = triples[kept], pair[kept], (count[kept] - discount) / seen[pair[kept]]
    mass = np.bincount(pair, p3, minlength=len(keys))
    classes = np.digitize(seen, SEEN)

    lookups = []  # of each token of the validation texts: class of its pair, p3, m, p_lstm
    for text in (corpus.wikitext["valid"][:64_000], corpus.valid[:32_000]):
        p = np.exp(log_likelihoods(model, text, end).astype(np.float64))
        text = text[: len(p)]
        key = pair_keys(text, words, end)
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        known = keys[at] == key
        place = np.minimum(np.searchsorted(triples, key * words + text), len(triples) - 1)
        hit = triples[place] == key * words + text
        lookups.append((np.where(known, classes[at], 0), np.where(hit, p3[place], 0), np.where(known, mass[at], 0), p))
    shares = np.zeros(len(SEEN) + 1)
    for c in range(1, len(shares)):
        grid = np.linspace(0, 0.95, 96)
        gain = np.zeros(len(grid))
        for of, p3_, m, p in lookups:
            here = of == c
            mixed = grid[:, None] * p3_[here] + (1 - grid[:, None] * m[here]) * p[here]
            gain += np.log(mixed).sum(1) / len(p)
        shares[c] = grid[gain.argmax()]
    record: dict[str, Any] = {
        "shares": {f"seen {least} times or more": round(float(s), 2) for least, s in zip(SEEN, shares[1:], strict=True)}
    }
    for name, (of, p3_, m, p) in zip(("WikiText-2", "everyday"), lookups, strict=True):
        mixed = shares[of] * p3_ + (1 - shares[of] * m) * p
        alone, both = (math.exp(-np.log(x).mean()) for x in (p, mixed))
        print(f"{name} valid (part): the LSTM alone {alone:.1f}, with trigrams {both:.1f}", flush=True)
        record[f"{name} validation perplexity without and with"] = [round(alone, 2), round(both, 2)]

    share = shares[classes[pair]]
    odds = (share * p3 / (1 - share * mass[pair])).astype(np.float16)
    some = odds > 0
    used, begin = np.unique(pair[some], return_index=True)
    return Trigrams(
        keys[used],
        np.append(begin, some.sum()),
        (triples % words)[some],
        odds[some],
        record,
    )
