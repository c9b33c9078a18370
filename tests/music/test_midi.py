"""MIDI files, read back byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest

from service.music import midi
from service.music.abc import Note
from service.music.theory import Key, Meter


def events(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Time in ticks and bytes of each event of a file with one track."""
    assert data[:14] == b"MThd\0\0\0\6\0\0\0\1" + midi.TICKS_PER_QUARTER.to_bytes(2, "big")
    assert data[14:18] == b"MTrk"
    assert int.from_bytes(data[18:22], "big") == len(data) - 22
    at, now = 22, 0
    while at < len(data):
        delta = 0
        while True:
            delta, more = delta << 7 | data[at] & 0x7F, data[at] & 0x80
            at += 1
            if not more:
                break
        now += delta
        length = 3 + data[at + 2] if data[at] == 0xFF else 2 if data[at] & 0xF0 == 0xC0 else 3
        yield now, data[at : at + length]
        at += length


def sounds(notes: list[Note]) -> list[tuple[int, int, int]]:
    """Pitch, begin and end in ticks of each sound."""
    found = [(time, event) for time, event in events(midi.write(notes, Key.parse("D"), Meter.parse("6/8")))]
    on = [(time, event[1]) for time, event in found if event[0] == 0x90]
    off = [(time, event[1]) for time, event in found if event[0] == 0x80]
    assert [pitch for _, pitch in on] == [pitch for _, pitch in off]
    return [(pitch, begin, end) for (begin, pitch), (end, _) in zip(on, off, strict=True)]


def note(step: int | None, quarters: float, *, tied: bool = False) -> Note:
    return Note(step, 0, Fraction(quarters) / 4, tied)


def test_notes_sound_one_after_another_and_rests_do_not() -> None:
    assert sounds([note(0, 1), note(None, 2), note(1, 0.5)]) == [(60, 0, 480), (62, 1440, 1680)]


def test_tied_notes_are_one_sound() -> None:
    assert sounds([note(0, 1, tied=True), note(0, 1), note(0, 1)]) == [(60, 0, 960), (60, 960, 1440)]


def test_thirds_of_a_beat_do_not_drift() -> None:
    third = Note(0, 0, Fraction(1, 12))
    assert sounds([third] * 7)[-1] == (60, 960, 1120)


@pytest.mark.parametrize(("key", "sharps", "minor"), [("D", 2, 0), ("Gm", 0xFE, 1), ("Ador", 1, 1)])
def test_key_and_meter_are_told(key: str, sharps: int, minor: int) -> None:
    told = {event[1]: event[3:] for _, event in events(midi.write([], Key.parse(key), Meter.parse("9/8")))}
    assert told[0x59] == bytes([sharps, minor])
    assert told[0x58] == bytes([9, 3, 36, 8])
