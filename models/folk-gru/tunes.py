"""The tunes: read from ABC, made one line of music, and walked through as the model does when it composes."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.music.abc import BadTune, Bar, Note, Tune, read
from service.music.alphabet import HOLD, LENGTHS, TICKS, UPBEAT, Symbol, length_index, pitch_of
from service.music.theory import Key, Meter
from service.music.walk import Walk
from training.data import DataSet, part_of

NOTTINGHAM = DataSet(
    "Nottingham Music Database, cleaned by Jukedeck",
    "https://github.com/jukedeck/nottingham-dataset (ABC_cleaned)",
    "GPL-3.0",
    ("nottingham_abc/nottingham_abc.zip",),
)
SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Line:
    """A tune as one line of music: sections once, second endings only, each measure full.

    Attributes:
        name: title and file, which settle the part it belongs to.
        upbeat: in ticks.
        measures: notes of each measure after the upbeat; those of an upbeat come first, if there is one.
    """

    name: str
    key: Key
    meter: Meter
    upbeat: Fraction
    measures: tuple[tuple[Note, ...], ...]

    @property
    def bars(self) -> int:
        return len(self.measures) - (1 if self.upbeat else 0)


def texts(data: Path) -> Iterator[tuple[str, str]]:
    """Title and ABC of every tune."""
    (path,) = NOTTINGHAM.paths(data)
    with zipfile.ZipFile(path) as archive:
        for file in sorted(archive.namelist()):
            if file.endswith(".abc"):
                whole = archive.read(file).decode("latin1").replace("\r", "")
                for text in re.split(r"(?m)^(?=X:)", whole):
                    if text.startswith("X:"):
                        title = re.search(r"(?m)^T:\s*(.*)", text)
                        yield (title[1] if title else ""), text


def lines(data: Path) -> list[Line]:
    """All tunes that can be made a line; those with the same notes once."""
    found, seen = [], set()
    for title, text in texts(data):
        try:
            line = as_line(title, read(text))
        except BadTune:
            continue
        if line is not None and 4 <= line.bars <= 72 and line.measures not in seen:
            seen.add(line.measures)
            found.append(line)
    return found


def part(line: Line) -> str:
    """The part that a tune belongs to; those with one title stay together."""
    return part_of(line.name.lower(), SHARES)


def as_line(title: str, tune: Tune) -> Line | None:
    """A tune played once from left to right, without its first endings; None where its bars do not come out even."""
    measure = tune.meter.length
    bars = without_first_endings(tune.bars)
    if not bars:
        return None
    upbeat = bars[0].length if bars[0].length < measure else Fraction(0)
    measures: list[list[Note]] = []
    open_ = False
    for number, bar in enumerate(bars):
        notes, length = list(bar.notes), bar.length
        section = number == 0 or ":" in bar.before or "||" in bar.before or "||" in bars[number - 1].after
        if length > measure:
            return None
        if open_:
            gap = measure - sum((note.length for note in measures[-1]), Fraction(0))
            open_ = False
            if section and length == gap:
                measures[-1] += notes
                continue
            measures[-1][-1] = _longer(measures[-1][-1], gap)
        if length < measure and number and number < len(bars) - 1:
            if section and bar.after == "|":
                continue  # an upbeat after a full bar: left out
            open_ = True
        measures.append(notes)
    if open_:
        return None
    final, wanted = sum((note.length for note in measures[-1]), Fraction(0)), measure - upbeat
    if final < wanted:
        measures[-1][-1] = _longer(measures[-1][-1], wanted - final)
    elif final > wanted:
        last = measures[-1][-1]
        if last.length <= final - wanted:
            return None
        measures[-1][-1] = _longer(last, wanted - final)
    return Line(title, tune.key, tune.meter, upbeat * TICKS, tuple(tuple(_joined(one)) for one in measures))


def _longer(note: Note, by: Fraction) -> Note:
    return replace(note, length=note.length + by)


def _joined(notes: Sequence[Note]) -> Iterator[Note]:
    """Tied notes of a bar as one, where one symbol is so long."""
    notes = list(notes)
    while notes:
        note = notes.pop(0)
        while note.tied and notes and (note.length + notes[0].length) * TICKS in LENGTHS:
            following = notes.pop(0)
            note = replace(note, length=note.length + following.length, tied=following.tied)
        yield note


def without_first_endings(bars: Sequence[Bar]) -> list[Bar]:
    """The bars that are played the second time."""
    kept, skipping = [], False
    for bar in bars:
        if bar.before[-1:] == "1" or bar.before[-3:] in ("1,3", "1-3"):
            skipping = True
        elif bar.before[-1:].isdigit() or (skipping and (":" in bar.before or "||" in bar.before)):
            skipping = False
        if not skipping:
            kept.append(bar)
    return kept


@dataclass(frozen=True)
class Walked:
    """A line, step by step.

    Attributes:
        features: int16 (steps, WIDTH).
        symbols: int16 (steps,): what came next.
        allowed: bool (steps, SYMBOLS): what might have.
    """

    line: Line
    features: NDArray[np.int16]
    symbols: NDArray[np.int16]
    allowed: NDArray[np.bool_]


def walked(line: Line) -> Walked | None:
    """Walk through a line; None where a note has a length that is never composed."""
    walk = Walk(line.key, line.meter, line.bars)
    features, symbols, allowed = [], [], []
    todo: list[list[Symbol]] = []
    tied = False
    for measure in line.measures:
        row = []
        for note in measure:
            if note.length * TICKS not in LENGTHS:
                return None
            pitch = HOLD if tied and not row and note.step is not None else pitch_of(note, line.key)
            row.append(Symbol(pitch, length_index(note.length)))
            tied = note.tied
        todo.append(row)
    if line.upbeat:
        if line.upbeat not in LENGTHS:
            return None
        todo.insert(0, [Symbol(UPBEAT, LENGTHS.index(int(line.upbeat)))])
    for symbol in [symbol for row in todo for symbol in row]:
        try:
            mask = walk.allowed()
        except ValueError:
            return None
        if (not mask[symbol.number] and symbol.pitch < 4) or (symbol.ticks > walk.left and symbol.pitch != UPBEAT):
            return None
        features.append(walk.features())
        symbols.append(symbol.number)
        allowed.append(mask)
        walk.take(symbol)
    if walk.bars_left:
        return None
    return Walked(line, np.array(features, np.int16), np.array(symbols, np.int16), np.array(allowed))


# ------------------------------------------------------------------------------------------------------------- variants


def sections(line: Line) -> list[Line]:
    """Its first and its last half, where these are phrases of eight bars; what a tune of fewer bars is learned from."""
    if line.bars < 16 or line.bars % 16 or line.upbeat:
        return []
    half = line.bars // 2
    return [replace(line, measures=line.measures[:half]), replace(line, measures=line.measures[half:])]


def in_other_meter(line: Line) -> list[Line]:
    """The same music in meters that the data have few tunes of: two bars as one, or all lengths doubled."""
    name = line.meter.name
    if name == "4/4":
        return [replace(line, meter=Meter.parse("2/2"))]
    if name == "2/4":
        return [_doubled(line, "2/2"), _doubled(line, "4/4")]
    if name == "3/4":
        return [_doubled(line, "3/2"), *_in_pairs(line, "6/4"), *_swung(line)]
    if name == "6/8":
        return [*_in_pairs(line, "12/8"), _doubled(line, "6/4")]
    return []


def _doubled(line: Line, meter: str) -> Line:
    measures = tuple(tuple(replace(note, length=2 * note.length) for note in one) for one in line.measures)
    return replace(line, meter=Meter.parse(meter), upbeat=2 * line.upbeat, measures=measures)


def _in_pairs(line: Line, meter: str) -> list[Line]:
    if line.bars % 2:
        return []
    if not line.upbeat:
        pairs = zip(line.measures[::2], line.measures[1::2], strict=True)
        return [replace(line, meter=Meter.parse(meter), measures=tuple(a + b for a, b in pairs))]
    upbeat, full, last = line.measures[:1], line.measures[1:-1], line.measures[-1]
    if len(full) % 2 == 0:
        return []
    joined = [a + b for a, b in zip(full[:-1:2], full[1::2], strict=True)]
    return [replace(line, meter=Meter.parse(meter), measures=(*upbeat, *joined, full[-1] + last))]


def _swung(line: Line) -> list[Line]:
    """A waltz as a slip jig: the first half of each beat lasts twice as long as the second."""
    at = {0: 0, 12: 24}

    def moved(place: Fraction) -> int:
        return 36 * int(place // 24) + at[int(place % 24)]

    measures = []
    place = 72 - line.upbeat if line.upbeat else Fraction(0)
    start = place
    try:
        for measure in line.measures:
            made = []
            for note in measure:
                end = place + note.length * TICKS
                if place % 12 or end % 12:
                    return []
                made.append(replace(note, length=Fraction(moved(end) - moved(place), TICKS)))
                place = end
            measures.append(tuple(made))
            place %= 72
    except KeyError:
        return []
    upbeat = Fraction(108 - moved(start)) if line.upbeat else Fraction(0)
    return [replace(line, meter=Meter.parse("9/8"), upbeat=upbeat, measures=tuple(measures))]
