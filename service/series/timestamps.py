"""Time stamps as callers write them, read to whole nanoseconds since 1970.

A stamp is a text of ISO 8601, or a number in Unix seconds, milli-, micro- or nanoseconds. The unit of a stream's
numbers is recognised from the first of them, so that a counter which starts at 0 and grows past 10^11 keeps its unit.

References:
    ISO 8601-1:2019 (calendar, ordinal and week dates; basic and extended form; fractions of the last part given).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS

LATEST_NS = 2**63 - 1
"""Stamps are 64-bit numbers: the years 1678 to 2261."""

_UNITS_NS = ((1e11, SECOND_NS), (1e14, 1_000_000), (1e17, 1_000), (float("inf"), 1))
"""Below which size a number is in which unit: 10^11 s is the year 5138, 10^11 ms the year 1973."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_TEXT = re.compile(
    r"""
    (?P<date> \d{4}-\d\d-\d\d | \d{8} | \d{4}-?W\d\d(?:-?\d)? | (?P<ordinal> \d{4}-?\d{3}) | (?P<month> \d{4}-\d\d))
    (?:
        [T\ ] (?P<hour> \d\d) (?: :?(?P<minute> \d\d) (?: :?(?P<second> \d\d))? )? (?: [.,](?P<fraction> \d+))?
        \ ?(?P<offset> Z | UTC | [+-]\d\d (?: :?\d\d)? )?
    )?
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)

_NUMBER = re.compile(r"-?(?:\d{9,11}|\d{13}|\d{16}|\d{19})(?:\.\d+)?", re.ASCII)
"""A text that can only be a Unix time: `20240131` is a date, and of 12 or 14 digits it could be one with a time."""

_PLAIN_CHARS = 26
"""`datetime.fromisoformat` reads shorter texts exactly; in longer ones it would cut fractions (characters)."""


class Unreadable(ValueError):
    """A stamp that cannot be read.

    Attributes:
        index: which one.
        remedy: what to do about it, such as "send ISO 8601 …".
    """

    def __init__(self, index: int, remedy: str) -> None:
        super().__init__(f"timestamps[{index}]: {remedy}")
        self.index, self.remedy = index, remedy


@dataclass(frozen=True)
class Stamps:
    """The stamps of one request.

    Attributes:
        nanoseconds: int64 (points,), since 1970-01-01 UTC.
        local: bool (points,): a text without an offset, which may be local time; it is read as UTC.
        offsets_s: int64 (points,): how far east of UTC the clock was that wrote it (seconds); 0 for numbers.
        unit_ns: the unit of the numbers among this stream's stamps so far (nanoseconds); none: all were texts.
    """

    nanoseconds: NDArray[np.int64]
    local: NDArray[np.bool_]
    offsets_s: NDArray[np.int64]
    unit_ns: int | None


def read(stamps: Sequence[Any], unit_ns: int | None = None) -> Stamps:
    """Read the stamps of a request.

    Args:
        stamps: texts, ints or floats.
        unit_ns: the unit of the numbers, where the stream has had some.

    Raises:
        Unreadable: one is no stamp, or outside the years 1678 to 2261.
    """
    found = np.empty(len(stamps), np.int64)
    local = np.zeros(len(stamps), np.bool_)
    offsets_s = np.zeros(len(stamps), np.int64)
    for index, stamp in enumerate(stamps):
        number = _as_number(stamp)
        if number is not None:
            unit_ns = unit_ns or _unit_of(number)
            whole = math.floor(number)
            nanoseconds = whole * unit_ns + round((number - whole) * unit_ns)  # their product at once would be rounded
        elif isinstance(stamp, str):
            try:
                nanoseconds, local[index], offsets_s[index] = _read_text(stamp)
            except ValueError:
                raise Unreadable(index, "send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds") from None
        else:
            raise Unreadable(index, "send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds")
        if abs(nanoseconds) > LATEST_NS:
            raise Unreadable(index, "send a time between the years 1678 and 2261")
        found[index] = nanoseconds
    return Stamps(found, local, offsets_s, unit_ns)


def written(nanoseconds: int, unit_ns: int | None) -> str:
    """A stamp as its stream writes them: in its unit, or as ISO 8601."""
    if unit_ns is not None:
        whole, rest = divmod(nanoseconds, unit_ns)
        return str(whole if not rest else nanoseconds / unit_ns)
    moment = _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    return moment.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Form:
    """How a caller writes stamps, so that those which follow look the same.

    Attributes:
        sample: a stamp as it was sent.
        unit_ns: what numbers count (nanoseconds); none: they are texts of ISO 8601.
    """

    sample: Any
    unit_ns: int | None

    def write(self, nanoseconds: int, offset_s: int) -> Any:
        """A moment in this form.

        Args:
            nanoseconds: since 1970-01-01 UTC.
            offset_s: how far east of UTC the clock is that writes it, for texts with an offset.
        """
        if (number := _as_number(self.sample)) is not None and self.unit_ns is not None:
            whole, rest = divmod(nanoseconds, self.unit_ns)
            value = whole if not rest and isinstance(number, int) else nanoseconds / self.unit_ns
            return str(value) if isinstance(self.sample, str) else value
        match = _TEXT.fullmatch(self.sample)
        if match is None:
            raise ValueError(self.sample)  # only what was read is a form
        moment = _EPOCH + timedelta(seconds=offset_s, microseconds=nanoseconds // 1000)
        has_clock = match["hour"] is not None or (moment.hour, moment.minute, moment.second) != (0, 0, 0)
        compact = "-" not in match["date"]
        if match["month"] and moment.day == 1 and not has_clock:
            return moment.strftime("%Y-%m")
        text = moment.strftime("%Y%m%d" if compact else "%Y-%m-%d")
        if not has_clock:
            return text
        rest_ns = nanoseconds % SECOND_NS
        colon = "" if compact and ":" not in self.sample else ":"
        text += (self.sample[match.end("date")] if match["hour"] else "T") + moment.strftime("%H")
        if match["minute"] or not match["hour"] or moment.minute or moment.second or rest_ns:
            text += colon + moment.strftime("%M")
        if match["second"] or not match["hour"] or moment.second or rest_ns:
            text += colon + moment.strftime("%S")
        if match["second"] and match["fraction"]:
            digits = len(match["fraction"])
            text += f".{rest_ns:09d}"[: digits + 1].ljust(digits + 1, "0")
        elif rest_ns:
            text += f".{rest_ns:09d}".rstrip("0")
        offset = match["offset"] or ""
        return text + (_offset_like(offset, offset_s) if offset else "")


def _offset_like(sample: str, offset_s: int) -> str:
    """An offset as the sample writes its own: `Z`, `+01:00`, `+0100` or `+01`."""
    if sample[0] not in "+-":
        return sample
    minutes = abs(offset_s) // 60
    text = f"{'-' if offset_s < 0 else '+'}{minutes // 60:02d}"
    if len(sample) == 3 and not minutes % 60:
        return text
    return f"{text}{':' if ':' in sample or len(sample) == 3 else ''}{minutes % 60:02d}"


def _as_number(stamp: Any) -> int | float | None:
    if isinstance(stamp, bool):
        return None
    if isinstance(stamp, int):
        return stamp  # of any size: `math.isfinite` takes none over 10^308
    if isinstance(stamp, float):
        return stamp if math.isfinite(stamp) else None
    if isinstance(stamp, str) and _NUMBER.fullmatch(stamp):
        return float(stamp) if "." in stamp else int(stamp)
    return None


def _unit_of(number: float) -> int:
    """What a number counts, judged by its size (nanoseconds)."""
    return next(unit_ns for below, unit_ns in _UNITS_NS if abs(number) < below)


def _read_text(text: str) -> tuple[int, bool, int]:
    """Nanoseconds since 1970, whether the text has no offset, and the offset (seconds).

    Raises:
        ValueError: it is not ISO 8601.
    """
    if 19 <= len(text) < _PLAIN_CHARS and text[10] in "T ":
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:  # such as a lower-case z
            pass
        else:
            if moment.tzinfo is None:
                return (moment.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND * 1000, True, 0
            east_s = 0 if (east := moment.utcoffset()) is None else int(east.total_seconds())
            return (moment - _EPOCH) // _MICROSECOND * 1000, False, east_s
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(text)
    day = _read_date(match)
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    if hour > 24 or (hour == 24 and (minute or second or match["fraction"])) or minute > 59 or second > 60:
        raise ValueError(text)
    seconds = ((day - _EPOCH.date()).days * 24 + hour) * 3600 + minute * 60 + second
    smallest_s = 1 if match["second"] else 60 if match["minute"] else 3600
    fraction = (match["fraction"] or "0")[:18]
    nanoseconds = int(fraction) * smallest_s * SECOND_NS // 10 ** len(fraction)
    offset = match["offset"]
    east_s = _offset_s(offset)
    return (seconds - east_s) * SECOND_NS + nanoseconds, offset is None, east_s


def _read_date(match: re.Match[str]) -> date:
    text = match["date"].upper()
    if match["ordinal"]:
        first, of_year = date(int(text[:4]), 1, 1), int(text[-3:])
        day = first + timedelta(days=of_year - 1)
        if of_year < 1 or day.year != first.year:
            raise ValueError(text)
        return day
    return date.fromisoformat(text + "-01" if match["month"] else text)


def _offset_s(offset: str | None) -> int:
    """`+01:30` as seconds east of UTC."""
    if offset is None or offset[0] not in "+-":
        return 0
    hours, minutes = int(offset[1:3]), int(offset[-2:]) if len(offset) > 3 else 0
    if hours > 23 or minutes > 59:
        raise ValueError(offset)
    return (hours * 60 + minutes) * (-60 if offset[0] == "-" else 60)
