"""Music composition: are the tunes right, are they in style, and are they new?

Without an `evaluate.py`, the tunes to compare with are those of `DIR/*.abc`, one or many a file.

- *Right*: an ABC text, read by a reader of this file's own, has the key, the meter and the number of bars that were
  asked for, and every bar is as long as the meter says.
- *In style*: Jensen-Shannon divergence between the composed and the known tunes of one meter, of the intervals from
  note to note, the lengths, and the pairs of degrees that follow each other; the mean of the three.
- *New*: the longest run of notes that a known tune has too, in any key and whatever their lengths.
- *Formed*: bars that have been heard before in the same tune.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.evaluation.base import (
    Ask,
    Breakdown,
    Conversation,
    DataMissing,
    Evaluation,
    Figure,
    Item,
    Outcome,
    Subject,
)
from service.evaluation.statistics import bootstrap_sums, ratio, wilson
from service.music.abc import BadTune, Tune, read
from service.music.theory import METERS

ASKED = 96
"""Tunes of all keys, meters and lengths (count)."""
COMPOSED = 128
"""Tunes of each meter whose style is compared (count)."""
BARS = 16
"""Length of these (bars)."""
LEAST_KNOWN = 100
"""With fewer known tunes of a meter, even these are far from each other: 0.02 between two halves of 56 (count)."""
KEYS = (
    *("C", "G", "D", "A", "E", "B", "F#", "C#", "F", "Bb", "Eb", "Ab", "Db", "Gb"),
    *("Am", "Em", "Bm", "F#m", "Dm", "Gm", "Cm", "Fm", "C#m", "Ador", "Edor", "Ddor", "Amix", "Dmix", "Gmix"),
    *("Ephr", "Aphr", "Flyd", "Clyd"),
)
"""Keys that are asked for, in turn."""


@dataclass(frozen=True, slots=True)
class Line:
    """A tune as what can be heard of it.

    Attributes:
        pitches: of each note in semitones above the tonic, rests left out.
        lengths: of each note, in whole notes.
        bars: the notes and lengths of each bar.
    """

    pitches: Sequence[int]
    lengths: Sequence[Fraction]
    bars: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Record:
    """A composed tune and what was asked for.

    Attributes:
        kind: `asked`, or the meter whose style it is compared with.
        right: whether key, meter, number of bars and the length of each are as asked.
        line: what can be heard.
        wrong: what is not right, for the breakdown.
    """

    kind: str
    right: bool
    line: Line
    wrong: str = ""


def line_of(tune: Tune) -> Line:
    """What can be heard of a tune."""
    tonic = 60 + tune.key.height
    pitches, lengths, bars = [], [], []
    for bar in tune.bars:
        heard = tuple((note.midi - tonic if note.step is not None else None, note.length) for note in bar.notes)
        bars.append(heard)
        pitches += [pitch for pitch, _ in heard if pitch is not None]
        lengths += [length for _, length in heard]
    return Line(pitches, lengths, bars)


# ------------------------------------------------------------------------------------------------------ the right form


_WRITTEN = re.compile(r"(?P<tuplet>\(3)|(?P<pitch>[_^=]*[A-Ga-g][,']*|z)(?P<length>\d*/*\d*)|(?P<tie>-)|(?P<space>\s+)")


def faults(abc: str, key: str, meter: str, bars: int) -> str:
    """What is not right with a composed tune; empty where nothing is.

    This reader knows only what composed tunes are written with, and shares nothing with the one that writes them.
    """
    lines = abc.strip().split("\n")
    fields = dict(line.split(":", 1) for line in lines if re.match(r"[A-Z]:", line))
    if not lines[0].startswith("X:") or list(fields)[-1:] != ["K"]:
        return "the header does not begin with X: and end with K:"
    if fields["K"] != key or fields["M"] != meter:
        return f"K:{fields['K']} and M:{fields['M']} instead of {key} and {meter}"
    unit, measure = Fraction(fields["L"]), Fraction({"C": "4/4", "C|": "2/2"}.get(meter, meter))
    music = " ".join(line for line in lines if not re.match(r"[A-Z]:", line))
    if not music.endswith("|]"):
        return "it does not end with |]"
    found = [_length(bar, unit) for bar in music.removesuffix("|]").split("|")]
    if None in found:
        return f"bar {found.index(None) + 1} is not understood"
    lengths = [length for length in found if length is not None]
    if lengths[0] < measure and len(lengths) > 1:
        lengths[0] += lengths.pop()
    if len(lengths) != bars:
        return f"{len(lengths)} bars instead of {bars}"
    wrong = next((number for number, length in enumerate(lengths, 1) if length != measure), None)
    return "" if wrong is None else f"bar {wrong} is not {measure} long"


def _length(bar: str, unit: Fraction) -> Fraction | None:
    """What the notes of a bar last together; None where it holds anything else."""
    total, at, in_triplet = Fraction(0), 0, 0
    while at < len(bar):
        token = _WRITTEN.match(bar, at)
        if token is None:
            return None
        at = token.end()
        if token["tuplet"]:
            in_triplet = 3
        elif token["pitch"]:
            over, slashes, under = re.fullmatch(r"(\d*)(/*)(\d*)", token["length"]).groups()  # type: ignore[union-attr]
            lasting = unit * Fraction(int(over or 1), int(under or 2 ** len(slashes)))
            total += lasting * Fraction(2, 3) if in_triplet else lasting
            in_triplet = max(0, in_triplet - 1)
    return None if in_triplet else total


# ------------------------------------------------------------------------------------------------------------- measures


def divergence(some: Counter[Any], others: Counter[Any]) -> float:
    """Jensen-Shannon divergence of two counts, in bits."""
    things = list(some | others)
    p, q = (np.array([count[thing] for thing in things], float) for count in (some, others))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def against(share: NDArray[np.float64]) -> float:
        there = share > 0
        return float((share[there] * np.log2(share[there] / middle[there])).sum())

    return (against(p) + against(q)) / 2


def style(lines: Iterable[Line]) -> tuple[Counter[Any], Counter[Any], Counter[Any]]:
    """How often there is each interval, length and pair of degrees."""
    intervals, lengths, pairs = Counter[Any](), Counter[Any](), Counter[Any]()
    for line in lines:
        for a, b in zip(line.pitches, line.pitches[1:], strict=False):
            intervals[b - a] += 1
            pairs[a % 12, b % 12] += 1
        lengths.update(line.lengths)
    return intervals, lengths, pairs


def style_distance(some: Iterable[Line], others: Iterable[Line]) -> float:
    """The mean divergence of intervals, lengths and pairs of degrees."""
    return float(np.mean([divergence(a, b) for a, b in zip(style(some), style(others), strict=True)]))


class Known:
    """All runs of notes of the known tunes."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._text = "\n".join(self._written(line) for line in lines)

    @staticmethod
    def _written(line: Line) -> str:
        return "".join(chr(200 + pitch) for pitch in line.pitches)

    def longest_run(self, line: Line) -> int:
        """Of the notes of a tune, how many in a row a known tune has too."""
        text, longest = self._written(line), 0
        for begin in range(len(text)):
            while begin + longest < len(text) and text[begin : begin + longest + 1] in self._text:
                longest += 1
        return longest


def heard_before(line: Line) -> tuple[int, int]:
    """Bars that are like an earlier one of the tune, and all bars."""
    return len(line.bars) - len(set(line.bars)), len(line.bars)


# ----------------------------------------------------------------------------------------------------------- evaluation


class MusicCompositionEvaluation(Evaluation):
    """Tunes asked for in all keys, meters and lengths, and many of the usual kind. A model's own overrides `known`."""

    title = "Composed tunes, beside known ones"
    item = "note"

    def __init__(self, data: Any, subject: Subject, limit: int | None = None) -> None:
        super().__init__(data, subject, limit)
        if not self.tunes:
            raise DataMissing(self.data, "tunes in ABC notation", "Put ABC files there, with one tune or many in each.")

    def known(self) -> Iterator[str]:
        """Texts with the tunes that the model has learned from, or should resemble."""
        for path in sorted(self.data.glob("*.abc")):
            yield path.read_text(encoding="utf-8", errors="replace")

    @cached_property
    def tunes(self) -> list[tuple[str, Line]]:
        """The meter and the notes of each known tune that can be read."""
        found = []
        for text in self.known():
            for one in re.split(r"(?m)^(?=X:)", text):
                try:
                    tune = read(one)
                except BadTune:
                    continue
                if len(tune.bars) >= 4:
                    found.append((tune.meter.name, line_of(tune)))
        return found

    @cached_property
    def usual(self) -> list[str]:
        """Meters with enough known tunes."""
        counts = Counter(meter for meter, _ in self.tunes)
        return [meter for meter in METERS if counts[meter] >= LEAST_KNOWN]

    def items(self) -> Sequence[Item]:
        meters = (*METERS, "C", "C|")
        asked = [
            Item(
                f"tune {number}",
                partial(self._ask, "asked", KEYS[number % len(KEYS)], meters[number % len(meters)], bars, number),
            )
            for number, bars in enumerate([1, 2, 4, 7, 8, 12, 16, 16, 24, 32, 48, 64] * (ASKED // 12))
        ]
        composed = [
            Item(f"{meter} {seed}", partial(self._ask, meter, None, meter, BARS, seed))
            for meter in self.usual
            for seed in range(COMPOSED)
        ]
        return [*self.few(asked), *self.few(composed)]

    @staticmethod
    def _ask(kind: str, key: str | None, meter: str, bars: int, seed: int) -> Conversation:
        answer = yield Ask({"key": key, "meter": meter, "bars": bars, "seed": seed})
        tune = read(answer["abc"])
        wrong = faults(answer["abc"], key or str(tune.key), meter, bars)
        return Record(kind, not wrong, line_of(tune), wrong)

    def timed(self) -> Conversation:
        """A tune, whose last note is the run that is timed."""
        yield Ask({"key": "D", "meter": "6/8", "bars": BARS, "seed": 7})
        return None

    def outcome(self, records: Sequence[Record]) -> Outcome:
        right = sum(record.right for record in records)
        composed = [record for record in records if record.kind != "asked"]
        known = Known(line for _, line in self.tunes)
        runs = np.array([known.longest_run(record.line) / len(record.line.pitches) for record in composed])
        repeated = np.array([heard_before(record.line) for record in composed], float)
        distances = {
            meter: style_distance(
                [record.line for record in composed if record.kind == meter],
                [line for name, line in self.tunes if name == meter],
            )
            for meter in self.usual
            if any(record.kind == meter for record in composed)
        }
        notes = sum(len(record.line.pitches) for record in composed)
        figures = [
            Figure(
                "tunes with key, meter and bars as asked",
                right / len(records) if records else float("nan"),
                len(records),
                "tunes",
                *(wilson(right, len(records)) if records else (None, None)),
            ),
            Figure("style distance", _mean(distances.values()), notes, "notes", form=".4f"),
            Figure(
                "longest run shared with a known tune, 95 % of tunes", _high(runs), len(runs), "tunes", *_between(runs)
            ),
            _share("bars heard before in the tune", repeated, "bars"),
        ]
        wrong = [(str(n), record.wrong) for n, record in enumerate(records) if record.wrong]
        tables = [self._by_meter(distances)]
        if wrong:
            tables.append(Breakdown("Not right", ("tune", "fault"), wrong[:20]))
        return Outcome(figures, tables, (), self._notes(composed))

    def _by_meter(self, distances: dict[str, float]) -> Breakdown:
        """Style by meter, beside that of known tunes among each other."""
        rows = []
        for meter, distance in distances.items():
            lines = [line for name, line in self.tunes if name == meter]
            some = lines[:: max(2, len(lines) // COMPOSED)][:COMPOSED]
            chosen = set(map(id, some))
            others = [line for line in lines if id(line) not in chosen]
            rows.append((meter, f"{distance:.4f}", f"{style_distance(some, others):.4f}", str(len(lines))))
        return Breakdown("Style distance", ("meter", "composed", "known among each other", "known tunes"), rows)

    def _notes(self, composed: Sequence[Record]) -> list[str]:
        """What the known tunes reach."""
        sample = [line for _, line in self.tunes][:: max(1, len(self.tunes) // 100)]
        chosen = set(map(id, sample))
        rest = Known(line for _, line in self.tunes if id(line) not in chosen)
        runs = np.array([rest.longest_run(line) / len(line.pitches) for line in sample])
        repeated = np.array([heard_before(line) for _, line in self.tunes], float).sum(axis=0)
        return [
            f"Known tunes among each other: longest run {_high(runs):.1%} in 95 % of {len(sample)}, bars heard before "
            f"{repeated[0] / repeated[1]:.1%}.",
            f"Style, runs and bars: {len(composed)} tunes of {BARS} bars in {', '.join(self.usual)}, keys as drawn, "
            "at the default temperature and `top_p`. Runs are compared in any key, whatever the lengths of the notes.",
            "Intervals: Wilson's for the first row, else a bootstrap over tunes. The style distance has none: chance "
            "only ever adds to it, so it is to be compared with that of as many known tunes.",
        ]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


def _high(shares: NDArray[np.float64]) -> float:
    return float(np.quantile(shares, 0.95)) if len(shares) else float("nan")


def _between(shares: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The bootstrap interval of `_high`."""
    if len(shares) < 2:
        return None, None
    rng = np.random.default_rng(0)
    drawn = np.quantile(shares[rng.integers(0, len(shares), (1000, len(shares)))], 0.95, axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _share(name: str, sums: NDArray[np.float64], of: str) -> Figure:
    """A share of summed counts, with a bootstrap interval over tunes."""
    of_sums: Callable[[Any], Any] = ratio
    low, high = bootstrap_sums(sums, of_sums) or (None, None)
    total = sums.sum(axis=0) if len(sums) else np.zeros(2)
    return Figure(name, float(total[0] / total[1]) if total[1] else float("nan"), int(total[1]), of, low, high)
