"""The symbols that a composing model reads and writes: a pitch relative to the tonic, and a length.

A pitch is a step on the key's own scale and an accidental beside it, so a tune is in its key by construction, and what
was learned in one key holds in all. Where a bar ends is no symbol: it follows from the lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from service.music.abc import Note
from service.music.theory import Key

TICKS: Final = 96
"""Of a whole note: a thirty-second is 3, an eighth of a triplet 8."""
LENGTHS: Final = (3, 4, 6, 8, 9, 12, 16, 18, 24, 36, 48, 72, 96, 108, 144)
"""Lengths of symbols in ticks: what is written as one note, and thirds of triplets."""
TRIPLETS: Final = frozenset({4, 8, 16})
"""Those of triplets: three of the same follow each other."""
LOWEST_STEP: Final = -10
HIGHEST_STEP: Final = 15
"""Steps of the scale from the tonic that is on or next above middle C."""

NONE: Final = 0
"""Nothing: before the first note, and what stands so many bars earlier where there is no such bar."""
REST: Final = 1
HOLD: Final = 2
"""The note before goes on over the bar line."""
UPBEAT: Final = 3
"""The first symbol of a tune that begins within a bar: its length is that of the upbeat."""
FIRST_NOTE: Final = 4
PITCHES: Final = FIRST_NOTE + 3 * (HIGHEST_STEP - LOWEST_STEP + 1)
SYMBOLS: Final = PITCHES * len(LENGTHS)
"""A symbol's number is `pitch * len(LENGTHS) + length`, which are indices."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A pitch and a length, both as indices."""

    pitch: int
    length: int

    @classmethod
    def numbered(cls, number: int) -> Symbol:
        """The way back from `number`."""
        return cls(*divmod(number, len(LENGTHS)))

    @property
    def number(self) -> int:
        return self.pitch * len(LENGTHS) + self.length

    @property
    def ticks(self) -> int:
        return LENGTHS[self.length]


def pitch_of(note: Note, key: Key) -> int:
    """The nearest pitch symbol of a note or rest: octaves and double accidentals that are none are brought closer."""
    if note.step is None:
        return REST
    step = note.step - key.tonic
    while step < LOWEST_STEP:
        step += 7
    while step > HIGHEST_STEP:
        step -= 7
    beside = max(-1, min(1, note.accidental - key.signature[note.step % 7]))
    return FIRST_NOTE + 3 * (step - LOWEST_STEP) + beside + 1


def length_index(length: Fraction) -> int:
    """The nearest length symbol of a length in whole notes."""
    ticks = float(length * TICKS)
    return min(range(len(LENGTHS)), key=lambda index: abs(math.log(LENGTHS[index] / ticks)))


def note_of(symbol: Symbol, key: Key) -> Note:
    """The note or rest that a symbol means; HOLD has no pitch of its own and UPBEAT is none."""
    length = Fraction(symbol.ticks, TICKS)
    if symbol.pitch < FIRST_NOTE:
        return Note(None, 0, length)
    above, beside = divmod(symbol.pitch - FIRST_NOTE, 3)
    step = above + LOWEST_STEP + key.tonic
    return Note(step, key.signature[step % 7] + beside - 1, length)
