"""Read tunes in ABC notation, as far as one voice needs it, and write them.

Read is what https://abcnotation.com/wiki/abc:standard:v2.1 says of notes, rests, lengths, broken rhythm, tuplets, ties,
bar lines, repeats and endings. Chords count by their highest note. Grace notes, chord symbols, decorations, words and
comments are passed over. What changes key, meter or unit within a tune, or has several voices, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TypeVar

from service.music.theory import LETTERS, SEMITONES, Key, Meter

Parsed = TypeVar("Parsed")

_FIELD = re.compile(r"([A-Za-z+]):(?![|:])\s*(.*)")
_TOKEN = re.compile(
    r"""
      (?P<skip>"[^"]*"|![^!\n]*!|\+[^+\n]*\+|\{[^}]*\}|[\s`\\.~HLMOPSTuvJRy)*$]+|\((?!\d))
    | \[(?P<inline>[A-Za-z]:[^\]]*)\]
    | (?P<ending>\[\s*[1-9][0-9,\-]*)
    | (?P<bar>:*\|[|:\]]*(?:\s*\[?(?P<barred>[1-9][0-9,\-]*)(?![/0-9]))?|:+(?:\|[|:\]]*)?|\[\|[:\]]*)
    | \((?P<tuplet>[2-9](?::[0-9]*(?::[0-9]*)?)?)
    | \[(?P<chord>[^\[\]|:]+)\](?P<chord_length>[0-9]*/*[0-9]*)
    | (?P<note>[\^_=]*[A-Ga-g][,']*)(?P<note_length>[0-9]*/*[0-9]*)
    | (?P<rest>[zx])(?P<rest_length>[0-9]*/*[0-9]*)
    | (?P<bars_of_rest>[ZX])(?P<rest_count>[0-9]*)
    | (?P<tie>-)
    | (?P<broken><+|>+)
    """,
    re.VERBOSE,
)
_IN_CHORD = re.compile(r"([\^_=]*[A-Ga-g][,']*)([0-9]*/*[0-9]*)")
_PITCH = re.compile(r"([\^_=]*)([A-Ga-g])([,']*)")
_LENGTH = re.compile(r"([0-9]*)(/*)([0-9]*)")
_ACCIDENTALS = {"": None, "=": 0, "^": 1, "^^": 2, "_": -1, "__": -2}
_TUPLET_TIMES = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}
LONGEST = 10**4
"""The most bars of rest, and the largest number in a length: what is over it is no music."""


class BadTune(ValueError):
    """A text that is no tune which can be gone on from.

    Attributes:
        bar: number of the bar at fault, from 1; None where it is the header.
    """

    def __init__(self, message: str, bar: int | None = None) -> None:
        super().__init__(message if bar is None else f"bar {bar}: {message}")
        self.bar = bar


@dataclass(frozen=True)
class Note:
    """A note or a rest.

    Attributes:
        step: white keys above middle C, ignoring accidentals; None is a rest.
        accidental: that sounds, in semitones: the signature's, or what is written in the bar.
        length: in whole notes.
        tied: whether it goes on in the next note, which has the same pitch.
    """

    step: int | None
    accidental: int
    length: Fraction
    tied: bool = False

    @property
    def midi(self) -> int:
        """The pitch as MIDI numbers it; 60 is middle C."""
        step = self.step or 0
        return 60 + 12 * (step // 7) + SEMITONES[step % 7] + self.accidental


@dataclass
class Bar:
    """What stands between two bar lines.

    Attributes:
        notes: in order.
        before: the bar line at its beginning as far as it says something, such as `|:` or `[1`.
        after: the bar line at its end; empty where the text breaks off.
    """

    notes: list[Note] = field(default_factory=list)
    before: str = ""
    after: str = ""

    @property
    def length(self) -> Fraction:
        """In whole notes."""
        return sum((note.length for note in self.notes), Fraction(0))


@dataclass(frozen=True)
class Tune:
    """A tune as read.

    Attributes:
        key: from the header.
        meter: from the header.
        unit: what a note without a length lasts, in whole notes.
        bars: those that have notes.
        music: the text of the notes, as written but for comments and fields.
        title: from the header; empty where there is none.
    """

    key: Key
    meter: Meter
    unit: Fraction
    bars: list[Bar]
    music: str
    title: str = ""


def read(text: str, key: Key | None = None, meter: Meter | None = None) -> Tune:
    """Read one tune.

    Args:
        text: header and notes, or notes alone.
        key: where the header has none; where it has one, it must be this.
        meter: likewise.

    Raises:
        BadTune: it cannot be used; the message says why and where.
    """
    header, body = _split(text)
    if "K" in header:
        found = _parsed(Key.parse, header["K"].split("clef=")[0], "K:")
        if key is not None and found != key:
            raise BadTune(f"its K: says {found}, and `key` says {key}")
        key = found
    if "M" in header:
        measured = _parsed(Meter.parse, header["M"], "M:")
        if meter is not None and measured.name != meter.name:
            raise BadTune(f"its M: says {measured}, and `meter` says {meter}")
        meter = measured
    if key is None:
        raise BadTune("it has no K: field; add one, such as K:D, or give `key`")
    if meter is None:
        raise BadTune("it has no M: field; add one, such as M:6/8, or give `meter`")
    unit = _parsed(_unit, header["L"], "L:") if "L" in header else meter.default_unit
    music = "\n".join(_music_lines(body, key, meter, unit))
    return Tune(key, meter, unit, _Reader(key, meter, unit).read(music), music, header.get("T", ""))


def _parsed(parse: Callable[[str], Parsed], text: str, what: str) -> Parsed:
    try:
        return parse(text)
    except (ValueError, ZeroDivisionError) as error:
        raise BadTune(f"its {what} is not usable: {error}") from None


def _unit(text: str) -> Fraction:
    unit = Fraction(text.strip())
    if not Fraction(1, 64) <= unit <= 1:
        raise ValueError(f"{text.strip()} is not within 1/64 and 1")
    return unit


def _split(text: str) -> tuple[dict[str, str], list[str]]:
    """The fields of the header, and the lines below; comments are gone."""
    header: dict[str, str] = {}
    lines = [line.split("%")[0].rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    for at, line in enumerate(lines):
        found = _FIELD.fullmatch(line.strip())
        if found is None and line.strip():
            return header, lines[at:]
        if found is not None:
            header.setdefault(found[1], found[2].strip())
            if found[1] == "K":
                return header, lines[at + 1 :]
    return header, []


def _music_lines(lines: Sequence[str], key: Key, meter: Meter, unit: Fraction) -> Iterator[str]:
    """The lines that hold notes; fields between them must not change what the tune is in."""
    for line in lines:
        found = _FIELD.fullmatch(line.strip())
        if found is None:
            if line.strip():
                yield line.strip()
        elif found[1] == "X":
            raise BadTune("it holds more than one tune; send one")
        else:
            _check_field(found[1], found[2], key, meter, unit, None)


def _check_field(name: str, value: str, key: Key, meter: Meter, unit: Fraction, bar: int | None) -> None:
    """See that a field among the notes leaves key, meter and unit as they are, and that there is one voice."""
    if name == "K" and value.strip() and _parsed(Key.parse, value, "K:") != key:
        raise BadTune(f"the key changes to {value.strip()}; a tune is composed in one key", bar)
    if name == "M" and _parsed(Meter.parse, value, "M:").length != meter.length:
        raise BadTune(f"the meter changes to {value.strip()}; a tune is composed in one meter", bar)
    if name == "L" and _parsed(_unit, value, "L:") != unit:
        raise BadTune(f"the unit changes to {value.strip()}; write all notes in one unit", bar)
    if name == "V":
        raise BadTune("it has voices; send the one with the melody", bar)


def length_of(text: str) -> Fraction:
    """The factor that a written length is: `3/2` and `/` and `2`.

    Raises:
        ValueError: it is 0 or out of all bounds.
    """
    found = _LENGTH.fullmatch(text)
    if found is None or len(found[1]) > 4 or len(found[3]) > 4 or len(found[2]) > 6:
        raise ValueError(text)
    under = int(found[3]) if found[3] else 2 ** len(found[2])
    over = int(found[1] or 1)
    if not over or not under:
        raise ValueError(text)
    return Fraction(over, under)


class _Reader:
    """Reads the notes of one tune."""

    def __init__(self, key: Key, meter: Meter, unit: Fraction) -> None:
        self.key, self.meter, self.unit = key, meter, unit
        self.bars: list[Bar] = []
        self.bar = Bar()
        self.written: dict[int, int] = {}  # accidentals in this bar, by letter
        self.broken = Fraction(1)  # what a < or > leaves for the next note
        self.tuplet: tuple[int, Fraction] = (0, Fraction(1))  # notes left, factor

    @property
    def number(self) -> int:
        return len(self.bars) + 1

    def read(self, music: str) -> list[Bar]:
        at = 0
        while at < len(music):
            found = _TOKEN.match(music, at)
            if found is None or found.end() == at:
                raise BadTune(f"{music[at : at + 10].split()[0]!r} is not understood", self.number)
            self._take(found)
            at = found.end()
        if self.tuplet[0]:
            raise BadTune("breaks off within a tuplet; write all its notes", self.number)
        if self.broken != 1:
            raise BadTune("breaks off after < or >; write the note that it shortens or lengthens", self.number)
        if self.bar.notes:
            self.bars.append(self.bar)
        return self.bars

    def _take(self, found: re.Match[str]) -> None:
        match found.lastgroup:
            case "skip":
                pass
            case "inline":
                name, value = found["inline"].split(":", 1)
                _check_field(name, value, self.key, self.meter, self.unit, self.number)
            case "ending":
                self._bar_line(found["ending"])
            case "bar" | "barred":
                self._bar_line(found["bar"])
            case "tuplet":
                self._start_tuplet(found["tuplet"])
            case "chord_length":
                self._chord(found["chord"], found["chord_length"])
            case "note_length":
                step, accidental = self._pitch(found["note"])
                self._add(step, accidental, found["note_length"])
            case "rest_length":
                self._add(None, 0, found["rest_length"])
            case "rest_count":
                self._bars_of_rest(found["rest_count"])
            case "tie":
                if self.bar.notes and self.bar.notes[-1].step is not None:
                    self.bar.notes[-1] = replace(self.bar.notes[-1], tied=True)
            case "broken":
                self._break(found["broken"])

    def _bar_line(self, text: str) -> None:
        text = "".join(text.split())
        if self.tuplet[0]:
            raise BadTune("a tuplet goes over its end", self.number)
        if self.broken != 1:
            raise BadTune("< or > stands at its end", self.number)
        if self.bar.notes:
            self.bar.after = text
            self.bars.append(self.bar)
            self.bar = Bar()
        if text != "|":
            self.bar.before += text
        self.written = {}

    def _start_tuplet(self, text: str) -> None:
        if self.tuplet[0]:
            raise BadTune("a tuplet stands within another", self.number)
        notes, times, count = ([int(part) if part else 0 for part in text.split(":")] + [0, 0])[:3]
        compound = self.meter.length.denominator == 8 or self.meter.name in ("6/8", "9/8", "12/8")
        times = times or _TUPLET_TIMES.get(notes, 3 if compound else 2)
        if times > LONGEST or count > LONGEST:
            raise BadTune(f"({text} is no tuplet", self.number)
        self.tuplet = (count or notes, Fraction(times, notes))

    def _pitch(self, text: str) -> tuple[int, int]:
        """Step and sounding accidental of a written pitch."""
        found = _PITCH.fullmatch(text)
        if found is None or found[1] not in _ACCIDENTALS or len(found[3]) > 3:
            raise BadTune(f"{text!r} is no pitch", self.number)
        letter = LETTERS.index(found[2].upper())
        step = letter + 7 * (found[2].islower() + found[3].count("'") - found[3].count(","))
        accidental = _ACCIDENTALS[found[1]]
        if accidental is not None:
            self.written[letter] = accidental
        return step, self.written.get(letter, self.key.signature[letter])

    def _chord(self, inside: str, length: str) -> None:
        notes = _IN_CHORD.findall(inside)
        if not notes or _IN_CHORD.sub("", inside).strip(" -.()~uv"):
            raise BadTune(f"[{inside}] is not understood", self.number)
        pitches = [self._pitch(pitch) for pitch, _ in notes]
        step, accidental = max(pitches, key=lambda pitch: Note(pitch[0], pitch[1], Fraction(1)).midi)
        self._add(step, accidental, length, self._factor(notes[0][1]))
        if "-" in inside:
            self.bar.notes[-1] = replace(self.bar.notes[-1], tied=True)

    def _factor(self, text: str) -> Fraction:
        try:
            return length_of(text)
        except ValueError:
            raise BadTune(f"{text!r} is no length", self.number) from None

    def _add(self, step: int | None, accidental: int, length: str, factor: Fraction = Fraction(1)) -> None:
        left, by = self.tuplet
        lasting = self.unit * self._factor(length) * factor * self.broken * (by if left else 1)
        if lasting > LONGEST:
            raise BadTune(f"{length!r} is no length", self.number)
        self.tuplet = (max(left - 1, 0), by)
        self.broken = Fraction(1)
        self.bar.notes.append(Note(step, accidental, lasting))

    def _bars_of_rest(self, count: str) -> None:
        bars = int(count or 1) if len(count) < 5 else LONGEST + 1
        if self.bar.notes or not 0 < bars <= LONGEST:
            raise BadTune(f"Z{count} is no rest of whole bars", self.number)
        for _ in range(bars - 1):
            self.bars.append(Bar([Note(None, 0, self.meter.length)], self.bar.before, "|"))
            self.bar = Bar()
        self.bar.notes.append(Note(None, 0, self.meter.length))

    def _break(self, signs: str) -> None:
        if not self.bar.notes or len(signs) > 3:
            raise BadTune(f"{signs} stands where no note is before it", self.number)
        less = Fraction(1, 2 ** len(signs))
        first, then = (2 - less, less) if signs[0] == ">" else (less, 2 - less)
        last = self.bar.notes[-1]
        self.bar.notes[-1] = replace(last, length=last.length * first)
        self.broken = then


# -------------------------------------------------------------------------------------------------------------- writing


def header(key: Key, meter: Meter, unit: Fraction, title: str) -> str:
    """The fields that a tune begins with, each on its line."""
    return f"X:1\nT:{title}\nM:{meter}\nL:{unit}\nK:{key}\n"


def write_bar(
    notes: Sequence[Note],
    key: Key,
    meter: Meter,
    unit: Fraction,
    start: Fraction = Fraction(0),
    altered: Iterable[int] = (),
) -> str:
    """The notes of a bar, beamed by the beat.

    A letter that has been altered in the bar is written with its accidental from then on, in every octave: programs do
    not agree for how long, and in which octaves, an accidental holds.

    Args:
        notes: in order; three of the same length that divide a binary length by three are written as a triplet.
        key: says what needs no accidental.
        meter: says where beams end.
        unit: what a note without a length lasts, in whole notes.
        start: where in the bar the first note begins, in whole notes.
        altered: letters, as indices of `LETTERS`, that were altered in the bar before `start`.
    """
    text, place, marked = "", start, set(altered)
    left_of_triplet = 0
    for note in notes:
        if text and not left_of_triplet and place % meter.beat == 0:
            text += " "
        length = note.length
        if length.denominator % 3 == 0:
            if not left_of_triplet:
                text += "(3"
                left_of_triplet = 3
            left_of_triplet -= 1
            length = length * Fraction(3, 2)
        text += _pitch_text(note, key, marked) + _length_text(length / unit) + ("-" if note.tied else "")
        place += note.length
    return text


def _pitch_text(note: Note, key: Key, marked: set[int]) -> str:
    if note.step is None:
        return "z"
    octave, letter = divmod(note.step, 7)
    sign = ""
    if letter in marked or note.accidental != key.signature[letter]:
        marked.add(letter)
        sign = {0: "=", 1: "^", 2: "^^", -1: "_", -2: "__"}[note.accidental]
    return sign + (LETTERS[letter] + "," * -octave if octave < 1 else LETTERS[letter].lower() + "'" * (octave - 1))


def _length_text(factor: Fraction) -> str:
    over = "" if factor.numerator == 1 else str(factor.numerator)
    if factor.denominator == 1:
        return over
    return over + ("/" if factor.denominator == 2 else f"/{factor.denominator}")


def played(bars: Sequence[Bar]) -> list[Bar]:
    """The bars in the order in which they are played: repeats twice, each time with its ending."""
    order: list[Bar] = []
    endings = _endings(bars)
    at, begin, turn = 0, 0, 1
    while at < len(bars):
        bar, ending = bars[at], endings[at]
        opens = bar.before.rstrip("0123456789,-[").endswith(":") and at != begin
        if opens or (turn == 2 and at and endings[at - 1] and not ending):
            begin, turn = at, 1
        at += 1
        if ending and not _has_turn(ending, turn):
            continue
        order.append(bar)
        if bar.after.startswith(":"):
            if turn == 1:
                at, turn = begin, 2
            else:
                begin, turn = at, 1
    return order


def _endings(bars: Sequence[Bar]) -> list[str]:
    """For each bar the numbers of the ending that it belongs to; empty where it is always played."""
    endings, ending = [], ""
    for bar in bars:
        digits = bar.before[len(bar.before.rstrip("0123456789,-")) :]
        if digits or any(sign in bar.before for sign in (":", "||", "|]")):
            ending = digits
        endings.append(ending)
    return endings


def _has_turn(ending: str, turn: int) -> bool:
    for part in ending.split(","):
        first, _, last = part.partition("-")
        if first and int(first) <= turn <= int(last or first):
            return True
    return False
