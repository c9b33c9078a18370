"""The network in torch: embeddings, two GRU layers, and a head that can point at what stood here before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.music.alphabet import LENGTHS as LENGTH_TICKS
from service.music.alphabet import PITCHES, SYMBOLS
from service.music.walk import LOOKBACKS, WIDTH

LENGTHS = len(LENGTH_TICKS)
PITCH_SIZE, LENGTH_SIZE = 24, 12
SIZES = (PITCH_SIZE, LENGTH_SIZE, 16, 16, 12, 8, 4, 6, *((PITCH_SIZE, LENGTH_SIZE, 4) * len(LOOKBACKS)))
"""Numbers that each feature becomes."""


class Composer(nn.Module):
    """Which symbol comes next.

    Args:
        hidden: units of each GRU layer.
        dropout: share of the units left out between the layers and before the head.
        forget: share of the lookbacks that are not shown, so that a tune does not only repeat itself.
    """

    def __init__(self, hidden: int, dropout: float, forget: float) -> None:
        super().__init__()
        self.pitch = nn.Embedding(PITCHES, PITCH_SIZE)
        self.length = nn.Embedding(LENGTHS + 1, LENGTH_SIZE)
        self.place = nn.Embedding(144, 16)
        self.left = nn.Embedding(33, 16)
        self.past = nn.Embedding(33, 12)
        self.meter = nn.Embedding(9, 8)
        self.mode = nn.Embedding(2, 4)
        self.height = nn.Embedding(12, 6)
        self.alike = nn.ModuleList(nn.Embedding(8, 4) for _ in LOOKBACKS)
        self.first = nn.GRU(sum(SIZES), hidden, batch_first=True)
        self.second = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden + sum(SIZES), hidden)
        self.pitches = nn.Linear(hidden, PITCHES)
        self.lengths = nn.Linear(hidden, LENGTHS)
        self.narrow = nn.Linear(hidden, 64)
        self.both = nn.Linear(64, SYMBOLS)
        self.points = nn.Linear(hidden, len(LOOKBACKS))
        self.drop = nn.Dropout(dropout)
        self.forget = forget
        nn.init.zeros_(self.both.weight)

    def embedded(self, x: Tensor) -> Tensor:
        """Features (B, T, WIDTH) as numbers (B, T, sum(SIZES))."""
        tables = [self.pitch, self.length, self.place, self.left, self.past, self.meter, self.mode, self.height]
        parts = [table(x[..., at]) for at, table in enumerate(tables)]
        # The length before is an index from 0; those of lookbacks begin at 1, 0 being none.
        parts[1] = self.length(x[..., 1] + 1)
        for number in range(len(LOOKBACKS)):
            at = 8 + 3 * number
            one = [self.pitch(x[..., at]), self.length(x[..., at + 1]), self.alike[number](x[..., at + 2])]
            part = torch.cat(one, -1)
            if self.training:
                part = part * (torch.rand(*x.shape[:2], 1) >= self.forget)
            parts.append(part)
        return torch.cat(parts, -1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, T, SYMBOLS) and the state (B, 2, hidden) after features (B, T, WIDTH)."""
        e = self.drop(self.embedded(x)) if self.training else self.embedded(x)
        before = (None, None) if state is None else (state[None, :, 0].contiguous(), state[None, :, 1].contiguous())
        y, first = self.first(e, before[0])
        y, second = self.second(self.drop(y), before[1])
        u = self.drop(torch.relu(self.head(torch.cat([self.drop(y), e], -1))))
        logits = (self.pitches(u)[..., :, None] + self.lengths(u)[..., None, :]).flatten(-2)
        logits = logits + self.both(self.narrow(u))
        pitch, length, alike = (x[..., 8 + part : WIDTH : 3] for part in range(3))
        pointed = torch.where(alike % 2 == 1, pitch * LENGTHS + length - 1, torch.full_like(pitch, SYMBOLS))
        marks = torch.zeros(*logits.shape[:-1], SYMBOLS + 1).scatter_add(-1, pointed, self.points(u))
        return logits + marks[..., :SYMBOLS], torch.stack([first[0], second[0]], 1)
