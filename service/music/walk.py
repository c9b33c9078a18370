"""A tune in the making: where it is, what may come next, and what the model is shown of it.

Time runs in measures. A tune with an upbeat begins within measure 0 and ends as much before the end of the last one, so
an upbeat and its complement are one bar. The model is shown the symbol before, the place in the measure, the measures
that are left, and *what stood at this place 1, 2, 4 and 8 measures earlier*: that is where a tune's form comes from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.music.alphabet import (
    FIRST_NOTE,
    HOLD,
    LENGTHS,
    LOWEST_STEP,
    NONE,
    PITCHES,
    REST,
    TICKS,
    TRIPLETS,
    UPBEAT,
    Symbol,
    length_index,
)
from service.music.theory import METERS, Key, Meter

LOOKBACKS: Final = (1, 2, 4, 8)
FARTHEST: Final = 32
"""Measures that are counted one by one; beyond, every eighth looks the same, as the phrases of a tune do."""
WIDTH: Final = 8 + 3 * len(LOOKBACKS)
"""Features of a step."""
LEVELS: Final = (
    PITCHES,
    len(LENGTHS),
    144,
    FARTHEST + 1,
    FARTHEST + 1,
    len(METERS),
    2,
    12,
    *((PITCHES, len(LENGTHS) + 1, 8) * len(LOOKBACKS)),
)
"""How many values each feature has."""
LOWEST_NOTE: Final = -3
HIGHEST_NOTE: Final = 16
"""What is composed, in steps above middle C: from the G of a fiddle's lowest string up."""


@dataclass(frozen=True, slots=True)
class Event:
    """A symbol at its place in a measure, from where to where in ticks."""

    start: int
    end: int
    pitch: int
    length: int


@dataclass
class Walk:
    """Where a tune is.

    Attributes:
        key: of the tune.
        meter: of the tune.
        bars: it will have.
        upbeat: length of what is before the first bar line, in ticks.
        number: of the current measure; an upbeat is measure 0, and without one measure 0 is the first bar.
        place: in the current measure, in ticks.
        measures: events of each measure, the current one last; of a tune that is gone on with, those before are there.
        last: pitch and length of the symbol before.
        in_triplet: how many more of the same length must follow.
        events: of this tune so far (count).
    """

    key: Key
    meter: Meter
    bars: int
    upbeat: int | Fraction = 0
    number: int = 0
    place: int | Fraction = 0
    measures: list[list[Event]] = field(default_factory=lambda: [[]])
    last: tuple[int, int] = (NONE, 0)
    in_triplet: int = 0
    events: int = 0

    @cached_property
    def measure(self) -> int:
        """Length of a whole measure, in ticks."""
        return int(self.meter.length * TICKS)

    @property
    def bars_left(self) -> int:
        """Measures that are still to be filled, the current one included; 0 at the end."""
        return self.bars - self.number + (1 if self.upbeat else 0)

    @property
    def left(self) -> int | Fraction:
        """Ticks to the next bar line."""
        return self.measure - self.place - (self.upbeat if self.bars_left == 1 else 0)

    def take(self, symbol: Symbol) -> None:
        """Go on by a symbol that may come next."""
        if symbol.pitch == UPBEAT:
            self.begin_with(symbol.ticks)
            return
        if symbol.ticks in TRIPLETS:
            self.in_triplet = (self.in_triplet or 3) - 1
        self.put(symbol.pitch, symbol.length, symbol.ticks)
        if not self.left:
            self.close()

    def begin_with(self, upbeat: int | Fraction) -> None:
        """Begin within a measure, so many ticks before its end."""
        self.upbeat = upbeat
        self.place = self.measure - upbeat
        self.last = (UPBEAT, length_index(Fraction(upbeat) / TICKS))

    def put(self, pitch: int, length: int, ticks: int | Fraction) -> None:
        """Add an event; one that was read may be longer or shorter than the symbol nearest to it."""
        self.measures[-1].append(Event(round(self.place), round(self.place + ticks), pitch, length))
        self.place += ticks
        self.events += 1
        self.last = (pitch, length)

    def close(self) -> None:
        """Go over a bar line."""
        self.number += 1
        self.place = 0
        self.measures.append([])

    def features(self) -> list[int]:
        """What the model is shown before the next symbol, (WIDTH,); each below its `LEVELS`."""
        left = self.bars_left
        found = [
            *self.last,
            min(round(self.place), LEVELS[2] - 1),
            _counted(left),
            _counted(max(self.bars - left, 0)),
            METERS.index(self.meter.name),
            int(self.key.is_minor),
            self.key.height,
        ]
        for back in LOOKBACKS:
            found += self._stood(back)
        return found

    def _stood(self, back: int) -> tuple[int, int, int]:
        """The symbol that stood here so many measures earlier, its length, and how far the two measures are alike.

        That is the sum of 1 if the symbol begins just here, 2 if this measure has begun as that one did, and 4 if the
        measures before the two are the same.
        """
        at = len(self.measures) - 1 - back
        if at < 0:
            return NONE, 0, 0
        then, now, place = self.measures[at], self.measures[-1], round(self.place)
        here = next((event for event in then if event.end > place), None)
        alike = 2 * (then[: len(now)] == now) + 4 * (at > 0 and self.measures[at - 1] == self.measures[-2])
        if here is None or here.start > place:
            return NONE, 0, alike
        return here.pitch, here.length + 1, alike + (here.start == place)

    def allowed(self, held: bool = False) -> NDArray[np.bool_]:
        """Which symbols may come next, (SYMBOLS,): those that fill the bar exactly, sooner or later.

        Args:
            held: whether the note before was written with a tie, so that it must go on.

        Raises:
            ValueError: none does, as the place is none that symbols lead to.
        """
        place, left = self.place, self.left
        if self.in_triplet:
            lengths = _only(self.last[1])
        elif place % 3 or left % 3:
            raise ValueError(f"{place} ticks after a bar line, {left} before the next")
        else:
            lengths = _fitting(int(place), int(left))
        if held:
            return _holds(lengths)
        hold = not self.place and self.events > 0 and self.last[0] != REST
        return _mask(lengths, hold, self.measure if self.last[0] == NONE else 0, self.key.tonic)


def _counted(measures: int) -> int:
    return measures if measures <= FARTHEST else FARTHEST - 7 + (measures - FARTHEST - 1) % 8


def _only(index: int) -> tuple[bool, ...]:
    return tuple(other == index for other in range(len(LENGTHS)))


@lru_cache(maxsize=4096)
def _fitting(place: int, left: int) -> tuple[bool, ...]:
    """Which of the lengths a symbol may have, at this place of a measure, so far before the bar line."""
    return tuple(_fits(length, place, left) for length in LENGTHS)


def _fits(length: int, place: int, left: int) -> bool:
    if length in TRIPLETS:
        return 3 * length <= left and place % (3 * length // 2) == 0
    return length <= left and (place % 6 == 0 or length in (3, 9))


@lru_cache(maxsize=4096)
def _mask(lengths: tuple[bool, ...], hold: bool, measure: int, tonic: int) -> NDArray[np.bool_]:
    """Symbols of these lengths; UPBEAT where a measure of that length may begin with one."""
    pitches = np.zeros(PITCHES, bool)
    steps = np.arange((PITCHES - FIRST_NOTE) // 3) + LOWEST_STEP + tonic
    pitches[FIRST_NOTE:] = np.repeat((steps >= LOWEST_NOTE) & (steps <= HIGHEST_NOTE), 3)
    pitches[REST], pitches[HOLD] = True, hold
    mask = np.outer(pitches, lengths)
    if measure:
        mask[UPBEAT] = [length < measure and length not in TRIPLETS and length % 6 == 0 for length in LENGTHS]
    flat = mask.ravel()
    flat.setflags(write=False)
    return flat


@lru_cache(maxsize=1024)
def _holds(lengths: tuple[bool, ...]) -> NDArray[np.bool_]:
    """HOLD in these lengths."""
    mask = np.zeros((PITCHES, len(LENGTHS)), bool)
    mask[HOLD] = lengths
    flat = mask.ravel()
    flat.setflags(write=False)
    return flat
