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
        unit_ns: the unit of the numbers among this stream's stamps so far (nanoseconds); none: all were texts.
    """

    nanoseconds: NDArray[np.int64]
    local: NDArray[np.bool_]
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
    for index, stamp in enumerate(stamps):
        number = _as_number(stamp)
        if number is not None:
            unit_ns = unit_ns or _unit_of(number)
            whole = math.floor(number)
            nanoseconds = whole * unit_ns + round((number - whole) * unit_ns)  # their product at once would be rounded
        elif isinstance(stamp, str):
            try:
                nanoseconds, local[index] = _read_text(stamp)
            except ValueError:
                raise Unreadable(index, "send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds") from None
        else:
            raise Unreadable(index, "send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds")
        if abs(nanoseconds) > LATEST_NS:
            raise Unreadable(index, "send a time between the years 1678 and 2261")
        found[index] = nanoseconds
    return Stamps(found, local, unit_ns)


def written(nanoseconds: int, unit_ns: int | None) -> str:
    """A stamp as its stream writes them: in its unit, or as ISO 8601."""
    if unit_ns is not None:
        whole, rest = divmod(nanoseconds, unit_ns)
        return str(whole if not rest else nanoseconds / unit_ns)
    moment = _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    return moment.isoformat().replace("+00:00", "Z")


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


def _read_text(text: str) -> tuple[int, bool]:
    """Nanoseconds since 1970, and whether the text has no offset.

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
                return (moment.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND * 1000, True
            return (moment - _EPOCH) // _MICROSECOND * 1000, False
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
    return (seconds - _offset_s(offset)) * SECOND_NS + nanoseconds, offset is None


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
