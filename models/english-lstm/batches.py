"""What a step of the training reads: tokens, the words that are compared, rates of dropout and of learning.

Also for `models/english-cnn/train.py`, whose network reads the same.

Letters: V vocabulary, E embedding width, B rows of a batch, T time steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from texts import EVERYDAY, Corpus, Windows
from torch import Tensor

from service.text.tokeniser import END

if TYPE_CHECKING:
    from train import Config


class Batches:
    """Rows of WikiText-2, each reading its own piece from end to end, and below them windows of everyday text."""

    def __init__(self, corpus: Corpus, config: Config) -> None:
        self.config, self.rng = config, np.random.default_rng((config.seed, config.cycle))
        end, train_tokens = corpus.vocabulary.index(END), corpus.wikitext["train"]
        self.windows = {k: Windows(v, end, config.time_steps, self.rng) for k, v in corpus.everyday.items()}
        self.piece = len(train_tokens) // config.wikitext_rows
        self.grid = train_tokens[: self.piece * config.wikitext_rows].reshape(config.wikitext_rows, self.piece)
        self.position = 0

    def tokens(self) -> tuple[Tensor, bool]:
        """Tokens (T + 1, B), and whether the WikiText rows begin anew instead of going on."""
        config = self.config
        anew = self.position + config.time_steps + 1 > self.piece
        if anew:
            self.position = int(self.rng.integers(config.time_steps))
        batch = [self.grid[:, self.position : self.position + config.time_steps + 1]]
        batch += [self.windows[k].take(config.rows[k]) for k in EVERYDAY]
        self.position += config.time_steps
        return torch.from_numpy(np.concatenate(batch).T.copy()), anew

    def next(self, carried: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Tokens (T + 1, B) and the state before them, which the WikiText rows go on with, most of the time."""
        config = self.config
        tokens, anew = self.tokens()
        h = torch.zeros(1, tokens.shape[1], config.hidden)
        c = torch.zeros_like(h)
        if carried is not None and not anew:
            keep = (torch.rand(1, config.wikitext_rows, 1) >= config.reset).float()
            h[:, : config.wikitext_rows] = carried[0] * keep
            c[:, : config.wikitext_rows] = carried[1] * keep
        return tokens, (h, c)


class Sampled:
    """Which words a batch compares: its targets, and others by chance, frequent ones more often.

    Attributes:
        drawn: chance of each word to be drawn, float32 (V,).
        log_q: logarithm of its chance to be compared, drawn or as a target.
    """

    def __init__(self, corpus: Corpus, config: Config) -> None:
        vocabulary, rows = len(corpus.vocabulary), config.rows
        batch_rows = config.wikitext_rows + sum(rows.values())
        share = np.zeros(vocabulary)  # how often each word is a target in one batch
        texts = [(corpus.wikitext["train"], config.wikitext_rows), *((corpus.everyday[k], rows[k]) for k in rows)]
        for tokens, r in texts:
            share += r / batch_rows * np.bincount(tokens, minlength=vocabulary) / len(tokens)
        share = np.maximum(share, 0.5 / 4e6)
        low, high = 0.0, 1e9
        for _ in range(60):  # the scale at which the expected number of candidates is the one asked for
            scale = (low + high) / 2
            low, high = (scale, high) if np.minimum(1, scale * share**0.75).sum() < config.candidates else (low, scale)
        self.drawn = torch.from_numpy(np.minimum(1, scale * share**0.75)).float()
        absent = torch.from_numpy(np.exp(-batch_rows * config.time_steps * share)).float()
        self.log_q = torch.log(1 - (1 - self.drawn) * absent)

    def rows(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of the table that a step needs, candidates first and inputs after them; the candidates; and where each
        word lies among the rows."""
        vocabulary = len(self.drawn)
        member = torch.rand(vocabulary) < self.drawn
        member[tokens[1:].flatten()] = True
        candidates = member.nonzero()[:, 0]
        member[candidates] = False
        member[tokens[:-1].flatten()] = True
        member[candidates] = False
        needed = torch.cat([candidates, member.nonzero()[:, 0]])
        place = torch.empty(vocabulary, dtype=torch.int64)
        place[needed] = torch.arange(len(needed))
        return needed, candidates, place


class Dropout:
    """Rates of each row (B, 1): those of WikiText-2 see each sentence many times where most dialogues are seen once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        batch_rows = config.wikitext_rows + sum(config.rows.values())
        self.is_wikitext = (torch.arange(batch_rows) < config.wikitext_rows)[:, None]
        self.rates = {
            at: torch.where(
                self.is_wikitext, getattr(config, f"wikitext_dropout_{at}"), getattr(config, f"dropout_{at}")
            )
            for at in ("in", "hidden", "out")
        }

    def words(self, x: Tensor, places: Tensor, count: int) -> Tensor:
        """Read some words of the WikiText rows as zeros, wherever they stand; x (T, B, E), places (T, B) among `count`."""
        share = self.config.wikitext_dropout_word
        if not share:
            return x
        kept = (torch.rand(count) >= share) / (1 - share)
        return torch.where(self.is_wikitext, kept[places][:, :, None], 1.0) * x


def learning_rate(config: Config, step: int, progress: float) -> float:
    """A warm-up, then half a cosine."""
    warm = min(1.0, (step + 1) / config.warm_up_steps)
    cosine = (1 + math.cos(math.pi * min(progress, 1))) / 2
    return warm * (config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine)


def clip(gradients: list[Tensor], most: float) -> Tensor:
    """Scale them so that their norm together is at most this; returns what it was."""
    norm = torch.stack([g.norm() for g in gradients]).norm()
    factor = float(min(1.0, most / (norm + 1e-6)))
    for g in gradients:
        g.mul_(factor)
    return norm
