"""Keys and meters of folk tunes, as ABC names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

LETTERS = "CDEFGAB"
SEMITONES = (0, 2, 4, 5, 7, 9, 11)
"""Of the white keys above C, in the order of `LETTERS`."""
MODES = ("", "m", "dor", "mix", "phr", "lyd")
"""Major, minor, Dorian, Mixolydian, Phrygian, Lydian."""

_FIFTHS_OF_LETTERS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
_FIFTHS_OF_MODES = {"": 0, "m": -3, "dor": -2, "mix": -1, "phr": -4, "lyd": 1}
_SHARPS = "FCGDAEB"
"""The letters in the order in which sharps are added; flats come from the other end."""
_KEY = re.compile(r"([A-G])([#b]?)\s*([A-Za-z]*)")
_SPELLINGS = {"": "", "maj": "", "ion": "", "min": "m", "m": "m", "aeo": "m", "dor": "dor", "mix": "mix"} | {
    "phr": "phr",
    "lyd": "lyd",
}
METERS = ("2/4", "3/4", "4/4", "2/2", "3/2", "6/4", "6/8", "9/8", "12/8")
"""Those a tune can be composed in; `C` and `C|` are other names of 4/4 and 2/2."""


@dataclass(frozen=True)
class Key:
    """A tonic and a mode, such as `D`, `F#m` or `Ador`.

    Attributes:
        letter: of the tonic, `A` to `G`.
        accidental: of the tonic in semitones, -1 to 1.
        mode: one of `MODES`.
    """

    letter: str
    accidental: int
    mode: str

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read a key; a mode may be written out, in any case: `A Dorian`, `E minor`.

        Raises:
            ValueError: it is none, or would need double sharps or flats in its signature.
        """
        found = _KEY.fullmatch(text.strip())
        mode = None if found is None else _SPELLINGS.get(found[3] if found[3] == "m" else found[3][:3].lower())
        if found is None or mode is None or found[3] == "M":
            raise ValueError(f"{text!r} is no key: write A to G, # or b, then nothing, {', '.join(MODES[1:])}")
        key = cls(found[1], {"": 0, "#": 1, "b": -1}[found[2]], mode)
        if abs(key.fifths) > 7:
            raise ValueError(f"{text!r} has {abs(key.fifths)} {'sharps' if key.fifths > 0 else 'flats'}; 7 are written")
        return key

    def __str__(self) -> str:
        return f"{self.letter}{('b', '', '#')[self.accidental + 1]}{self.mode}"

    @cached_property
    def fifths(self) -> int:
        """Sharps of the signature; flats are negative."""
        return _FIFTHS_OF_LETTERS[self.letter] + 7 * self.accidental + _FIFTHS_OF_MODES[self.mode]

    @cached_property
    def signature(self) -> tuple[int, ...]:
        """What the signature does to each of `LETTERS`, in semitones."""
        altered = _SHARPS[: self.fifths] if self.fifths > 0 else _SHARPS[self.fifths :] if self.fifths else ""
        return tuple((1 if self.fifths > 0 else -1) if letter in altered else 0 for letter in LETTERS)

    @property
    def is_minor(self) -> bool:
        """Whether the third above the tonic is the minor one."""
        return self.mode in ("m", "dor", "phr")

    @cached_property
    def tonic(self) -> int:
        """The tonic's place on the staff in steps above middle C, 0 to 6."""
        return LETTERS.index(self.letter)

    @cached_property
    def height(self) -> int:
        """The tonic in semitones above middle C, 0 to 11."""
        return (SEMITONES[self.tonic] + self.accidental) % 12


@dataclass(frozen=True)
class Meter:
    """How long a bar is, and what it is called.

    Attributes:
        text: as written, such as `6/8` or `C|`.
        length: of a bar, in whole notes.
    """

    text: str
    length: Fraction

    @classmethod
    def parse(cls, text: str) -> Meter:
        """Read a meter such as `6/8`, `C` or `C|`.

        Raises:
            ValueError: it is none, or not one of those a tune can be composed in.
        """
        text = text.strip()
        name = {"C": "4/4", "C|": "2/2"}.get(text, text)
        if name not in METERS:
            raise ValueError(f"{text!r} is none of {', '.join(METERS)}, C, C|")
        return cls(text, Fraction(name))

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        """One of `METERS`."""
        return {"C": "4/4", "C|": "2/2"}.get(self.text, self.text)

    @property
    def default_unit(self) -> Fraction:
        """What a note without a length lasts where the header has no `L:`, in whole notes."""
        return Fraction(1, 16) if self.length < Fraction(3, 4) else Fraction(1, 8)

    @property
    def beat(self) -> Fraction:
        """What is beamed together, in whole notes."""
        if self.name in ("6/8", "9/8", "12/8"):
            return Fraction(3, 8)
        return Fraction(1, 4) if self.name in ("2/4", "3/4") else Fraction(1, 2)
