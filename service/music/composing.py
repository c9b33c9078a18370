"""What lies between a tune as text and a walk: prompts that are gone on from, and composed measures as notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.music.abc import BadTune, Note, Tune, header, write_bar
from service.music.alphabet import (
    HOLD,
    LENGTHS,
    NONE,
    PITCHES,
    TICKS,
    UPBEAT,
    Symbol,
    length_index,
    note_of,
    pitch_of,
)
from service.music.form import placed
from service.music.theory import Key, Meter
from service.music.walk import LOOKBACKS, Event, Walk

REMEMBERED = max(LOOKBACKS) + 2
"""Measures that a tune which is gone on with must know: those looked back to, and the one before."""
UNIT = Fraction(1, 8)
"""What a note without a length lasts in a composed tune, in whole notes."""
BARS_A_LINE = 4
NEW_LINE = "\n"


@dataclass(frozen=True)
class Read:
    """A note of a prompt, before it is added to a walk.

    Attributes:
        features: what the model is shown before it.
        allowed: which symbols might have been composed, bool (symbols,); None where none fits the place.
        number: of the nearest symbol.
    """

    features: list[int]
    allowed: NDArray[np.bool_] | None
    number: int


@dataclass
class Score:
    """A tune on its way to paper: composed notes, bar by bar, behind a prompt or nothing.

    Attributes:
        walk: where the tune is.
        prompt: that it goes on from.
        bars: composed; the first may finish a bar of the prompt.
        start: where in its measure the first of them begins, in ticks.
        last: note written before the next.
    """

    walk: Walk
    prompt: Tune | None = None
    bars: list[list[Note]] = field(default_factory=lambda: [[]])
    start: Fraction = field(init=False)
    last: Note | None = field(init=False)

    def __post_init__(self) -> None:
        self.start = Fraction(self.walk.place)
        bars = self.prompt.bars if self.prompt is not None else []
        self.last = bars[-1].notes[-1] if bars else None

    @property
    def held(self) -> bool:
        """Whether the prompt's last note has a tie, so that the first one composed is the same."""
        return not self.walk.events and self.last is not None and self.last.tied

    def add(self, symbol: Symbol) -> None:
        """Compose a symbol that may come next."""
        walk, number = self.walk, self.walk.number
        if symbol.pitch == UPBEAT:
            walk.take(symbol)
            self.start = Fraction(walk.place)
            return
        note = note_of(symbol, walk.key)
        if symbol.pitch == HOLD and self.last is not None:
            note = replace(self.last, length=note.length, tied=False)
            self._tie()
        self.bars[-1].append(note)
        self.last = note
        walk.take(symbol)
        if walk.number != number:
            self.bars.append([])

    def _tie(self) -> None:
        """Tie the last composed note to the next; where there is none, the prompt's text has the tie."""
        for bar in reversed(self.bars):
            if bar:
                bar[-1] = replace(bar[-1], tied=True)
                return

    def head(self, title: str) -> str:
        """What stands before the first composed bar: the header, and the prompt."""
        prompt = self.prompt
        unit = prompt.unit if prompt is not None else UNIT
        begin = _up_to_here(prompt, bool(self.start))[0] if prompt is not None else ""
        return f"{header(self.walk.key, self.walk.meter, unit, (prompt.title if prompt else '') or title)}{begin}"

    def settled(self) -> int:
        """How many composed bars will not change any more: the next note may be a tie from the last one before it."""
        open_end = not self.bars[-1] and self.walk.bars_left > 0
        return max(0, len(self.bars) - 1 - open_end)

    def bar(self, place: int) -> str:
        """A composed bar that is settled, with the bar line and the space or the line break after it.

        Args:
            place: among the composed bars, from 0.
        """
        walk, prompt, is_first = self.walk, self.prompt, place == 0
        unit, end, altered = UNIT, "|]", set[int]()
        if prompt is not None:
            unit, end = prompt.unit, ":|" if _repeat_is_open(prompt.music) else end
            altered = _up_to_here(prompt, bool(self.start))[1] if is_first else altered
        start = self.start / TICKS if is_first else Fraction(0)
        text = write_bar(self.bars[place], walk.key, walk.meter, unit, start, altered)
        if not walk.bars_left and place == len(self.bars) - 2:
            return f"{text} {end}\n"
        in_line = place + (0 if self.start else 1)  # what is before the first whole bar stands in its line
        return f"{text} |{' ' if in_line % BARS_A_LINE or not in_line else NEW_LINE}"

    def body(self) -> str:
        """All that was composed, when that is the whole tune."""
        return "".join(self.bar(place) for place in range(self.settled()))


def _up_to_here(prompt: Tune, within: bool) -> tuple[str, set[int]]:
    """A prompt's text as more can follow it, and the letters that are altered in the bar it leaves open."""
    if not prompt.bars:
        return "", set()
    last = prompt.bars[-1]
    if last.after == "|" and within:  # a section ends here: the bar is completed by what follows
        return prompt.music.removesuffix("|") + "||\n", set()
    if last.after:
        return prompt.music + "\n", set()
    if not within:
        return prompt.music + " |\n", set()
    signature = prompt.key.signature
    altered = {
        note.step % 7 for note in last.notes if note.step is not None and note.accidental != signature[note.step % 7]
    }
    return prompt.music + " ", altered


def _repeat_is_open(music: str) -> bool:
    """Whether a repeat begins in the text and does not end."""
    begun = max(music.rfind("|:"), music.rfind("::"))
    return begun >= 0 and ":|" not in music[begun + 2 :]


def follow(tune: Tune, bars: int) -> tuple[Walk, list[Read]]:
    """Walk through a prompt.

    Args:
        tune: as read.
        bars: that the tune will have.

    Returns:
        The walk behind it, and each of its notes.

    Raises:
        BadTune: a bar is longer or shorter than the meter says, the text breaks off within a note value, or it has as
            many bars as the tune will have.
    """
    walk = Walk(tune.key, tune.meter, bars)
    notes: list[Read] = []
    tied, number = False, 1
    for bar in placed(tune.bars, tune.meter.length):
        number = bar.number
        if number == 1 and bar.start:
            if bar.start * TICKS % 3:
                raise BadTune("is an upbeat that ends within a triplet; write all its notes", 1)
            walk.begin_with(walk.measure - bar.start * TICKS)
        elif number > 1 and not bar.joined:
            walk.close()
            walk.number -= 0 if bar.counts else 1
            walk.place = bar.start * TICKS
        for at, note in enumerate(bar.notes):
            pitch = HOLD if tied and at == 0 and note.step is not None else pitch_of(note, tune.key)
            length = length_index(note.length)
            notes.append(Read(walk.features(), _allowed(walk), Symbol(pitch, length).number))
            walk.put(pitch, length, note.length * TICKS)
            tied = note.tied
    if notes and (walk.bars_left < 1 or (walk.bars_left == 1 and walk.left <= 0)):
        there = bars + 1 - walk.bars_left
        raise BadTune(f"it has {there} bars, and `bars` is {bars} with these; ask for more")
    if walk.place % 3:
        raise BadTune("breaks off where no note value leads; finish its beat", number)
    if notes and walk.left == 0:
        walk.close()
    walk.events = 0
    return walk, notes


def _allowed(walk: Walk) -> NDArray[np.bool_] | None:
    try:
        return walk.allowed()
    except ValueError:
        return None


# ---------------------------------------------------------------------------------------------------------------- state


def remember(walk: Walk) -> dict[str, Any]:
    """What a tune that goes on must know of the one before it, as JSON can hold it."""
    measures = walk.measures[:-1] if not walk.measures[-1] else walk.measures
    return {
        "key": str(walk.key),
        "meter": str(walk.meter),
        "upbeat": int(walk.upbeat),
        "last": list(walk.last),
        "measures": [
            [[event.start, event.end, event.pitch, event.length] for event in measure]
            for measure in measures[-REMEMBERED:]
        ],
    }


def recall(found: Mapping[str, Any], bars: int) -> Walk:
    """The walk that goes on after what `remember` told.

    Raises:
        ValueError: it is nothing that `remember` tells.
    """
    if found.keys() != {"key", "meter", "upbeat", "last", "measures"}:
        raise ValueError("other fields")
    texts, upbeat, last, measures = (found["key"], found["meter"]), found["upbeat"], found["last"], found["measures"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(measures, list):
        raise ValueError("other types")
    walk = Walk(Key.parse(texts[0]), Meter.parse(texts[1]), bars)
    most = walk.measure
    if type(upbeat) is not int or upbeat % 3 or not 0 <= upbeat < most or not 1 <= len(measures) <= REMEMBERED:
        raise ValueError("no upbeat or no measures")
    walk.measures = [_measure(measure, most) for measure in measures]
    pitch, length = _whole(last, (PITCHES, len(LENGTHS)))
    walk.last = (pitch, length)
    if upbeat:
        walk.upbeat, walk.place = upbeat, most - upbeat
    else:
        walk.measures.append([])
    if pitch in (NONE, UPBEAT):
        raise ValueError("no note")
    return walk


def _measure(found: Any, most: int) -> list[Event]:
    if not isinstance(found, list) or len(found) > most:
        raise ValueError("no measure")
    events = [Event(*_whole(each, (most + 1, most + 1, PITCHES, len(LENGTHS)))) for each in found]
    if any(event.end < event.start for event in events):
        raise ValueError("an event ends before it begins")
    return events


def _whole(found: Any, below: Sequence[int]) -> list[int]:
    """Whole numbers from 0, each below its bound."""
    if not isinstance(found, list) or len(found) != len(below):
        raise ValueError("another length")
    if not all(type(value) is int and 0 <= value < most for value, most in zip(found, below, strict=True)):
        raise ValueError("another number")
    return found
