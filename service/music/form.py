"""Bars as they are written, and the measures that they stand for: upbeats, and bars that a repeat sign divides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from service.music.abc import BadTune, Bar, Note


@dataclass(frozen=True, slots=True)
class Placed:
    """A written bar at its place.

    Attributes:
        number: of the bar as written, from 1.
        notes: in order.
        start: where in its measure it begins, in whole notes.
        joined: whether it goes on in the measure of the bar before.
        counts: whether it counts as a bar: an upbeat, and the second part of a divided bar, do not.
    """

    number: int
    notes: Sequence[Note]
    start: Fraction
    joined: bool = False
    counts: bool = True


def placed(bars: Sequence[Bar], measure: Fraction) -> Iterator[Placed]:
    """Find the place of each bar.

    A bar may be shorter than a measure where a section begins (an upbeat), and where one ends, if the upbeat of that
    section or of the next completes it; the last one, where the text breaks off.

    Raises:
        BadTune: a bar is shorter or longer than that, which the message names.
    """
    upbeat = Fraction(0)  # of this section
    opening = bars[0].length % measure if bars else Fraction(0)  # the upbeat of the whole, if it has one
    gap = Fraction(0)  # that the bar before leaves open
    for number, bar in enumerate(bars, 1):
        length, first, last = bar.length, number == 1, number == len(bars)
        begins = first or _divides(bar.before)
        was_open, gap = gap, Fraction(0)
        if begins and not (bar.before and bar.before[-1].isdigit()):
            upbeat = Fraction(0)
        if length > measure:
            raise BadTune(f"lasts {length} of a whole note, and a bar of the meter {measure}", number)
        if length == measure or (last and not bar.after and not (was_open and length <= was_open)):
            yield Placed(number, bar.notes, Fraction(0))
        elif begins and was_open and length <= was_open:
            upbeat = length
            yield Placed(number, bar.notes, measure - was_open, joined=True, counts=False)
        elif begins and (bar.after == "|" or first) and not was_open and not _is_ending(bar.before):
            upbeat = length
            yield Placed(number, bar.notes, measure - length, counts=False)
        elif (_divides(bar.after) or last) and (
            measure - length in (upbeat, opening) or (not last and length + bars[number].length == measure)
        ):
            gap = measure - length
            yield Placed(number, bar.notes, Fraction(0))
        else:
            raise BadTune(f"lasts {length} of a whole note, and a bar of the meter {measure}", number)


def _divides(bar_line: str) -> bool:
    """Whether a bar line ends a section."""
    return any(sign in bar_line for sign in (":", "||", "|]", "[|", "[", "1", "2"))


def _is_ending(bar_line: str) -> bool:
    return bar_line[-1:].isdigit()
