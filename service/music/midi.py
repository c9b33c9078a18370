"""Tunes as Standard MIDI Files: one track, one voice.

The format is https://midi.org/standard-midi-files-specification: a header, and a track of events, each after so many
ticks. What a library would add (reading, ports, other chunks) is not needed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from service.music.abc import Note
from service.music.theory import Key, Meter

TICKS_PER_QUARTER = 480
QUARTERS_PER_MINUTE = 180
"""A reel as it is danced; jigs have three eighths of it to the beat."""
VIOLIN = 40
VELOCITY = 88


def write(notes: Iterable[Note], key: Key, meter: Meter) -> bytes:
    """A file that plays the notes one after another.

    Args:
        notes: in the order played; tied ones sound as one.
        key: for the signature that the file tells.
        meter: likewise.
    """
    over, under = (int(part) for part in meter.name.split("/"))
    tempo = 60_000_000 // QUARTERS_PER_MINUTE
    track = bytearray()
    track += b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big")
    track += b"\x00\xff\x58\x04" + bytes([over, under.bit_length() - 1, 36 if under == 8 else 24, 8])
    track += b"\x00\xff\x59\x02" + bytes([key.fifths & 0xFF, key.is_minor])
    track += b"\x00\xc0" + bytes([VIOLIN])
    written = 0
    for begin, end, pitch in _sounding(notes):
        track += _delta(begin - written) + bytes([0x90, pitch, VELOCITY])
        track += _delta(end - begin) + bytes([0x80, pitch, 0])
        written = end
    track += b"\x00\xff\x2f\x00"
    head = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1]) + TICKS_PER_QUARTER.to_bytes(2, "big")
    return head + b"MTrk" + len(track).to_bytes(4, "big") + bytes(track)


def _sounding(notes: Iterable[Note]) -> Iterator[tuple[int, int, int]]:
    """When each sound begins and ends, in ticks, and its pitch."""
    at = Fraction(0)
    held: tuple[Fraction, int] | None = None
    for note in notes:
        begin, at = at, at + note.length
        if note.step is None:
            held = None
            continue
        pitch = min(max(note.midi, 0), 127)
        start = held[0] if held is not None and held[1] == pitch else begin
        held = (start, pitch) if note.tied else None
        if held is None:
            yield _ticks(start), _ticks(at), pitch


def _ticks(place: Fraction) -> int:
    return round(place * 4 * TICKS_PER_QUARTER)


def _delta(ticks: int) -> bytes:
    """A number as MIDI writes it: seven bits a byte, the last one without the high bit."""
    digits = [ticks & 0x7F]
    while ticks := ticks >> 7:
        digits.append(0x80 | ticks & 0x7F)
    return bytes(reversed(digits))
