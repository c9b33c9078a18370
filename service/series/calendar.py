"""The calendar on which the points of a series lie: a fixed step, working days or months; and where it goes on.

The step is the commonest difference between a stamp and the one before. From a day on, differences are those of the
clock that wrote the stamps, so that a day is a day when summer ends. A difference of about a month between stamps
that keep their day, or are the last of their months, is a step of months; one day between stamps that skip a weekend
and have none on one is a step of working days.

Each stamp has a *place*: a whole number of steps from the first. What lies between two places was not measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.series.timestamps import HOUR_NS, LATEST_NS, SECOND_NS, Stamps

DAY_NS = 24 * HOUR_NS

_TOLERANCE = 0.05
"""How far from the grid a stamp may be, in steps: clocks jitter, and a day at Unix time may have 23 hours."""

_MONTH_NS = (int(27.5 * DAY_NS), int(31.5 * DAY_NS))
"""A difference in this range may be a month, and several times it several months."""

_LAST_DAY = 31
"""Day of a series whose stamps are the last of their months."""

Places = NDArray[np.int64]
Moments = NDArray[Any]
"""What clocks showed, datetime64 of some unit."""


class OffGrid(ValueError):
    """A stamp that is not a whole number of steps after the one before, or is earlier.

    Attributes:
        index: which one.
        step: the step in words, such as "1 hour".
        is_earlier: it goes back.
    """

    def __init__(self, index: int, step: str, *, is_earlier: bool = False) -> None:
        super().__init__(f"timestamps[{index}] is off the grid of {step}")
        self.index, self.step, self.is_earlier = index, step, is_earlier


class Step(ABC):
    """How far the points of a series are apart."""

    @abstractmethod
    def places(self, stamps: Stamps) -> Places:
        """The place of each stamp, int64 (points,), from 0 on.

        Raises:
            OffGrid: a stamp is on no place.
        """

    @abstractmethod
    def after(self, stamps: Stamps, count: int) -> list[int]:
        """The moments of so many steps after the last stamp, nanoseconds since 1970 UTC, in the offset of that one."""


@dataclass(frozen=True)
class FixedStep(Step):
    """Always as long (nanoseconds)."""

    ns: int

    def __str__(self) -> str:
        for size_ns, name in ((DAY_NS, "day"), (HOUR_NS, "hour"), (60 * SECOND_NS, "minute"), (SECOND_NS, "second")):
            if self.ns % size_ns == 0:
                count = self.ns // size_ns
                return f"{count} {name}{'s' * (count > 1)}"
        return f"{self.ns / SECOND_NS:g} seconds"

    def places(self, stamps: Stamps) -> Places:
        differences = _differences(stamps, by_clock=self.ns >= DAY_NS)
        steps = (differences + self.ns // 2) // self.ns
        off = np.abs(differences - steps * self.ns) > _TOLERANCE * self.ns
        off |= (differences != 0) & (steps <= 0)
        repeated = _repeated_hours(stamps, differences, self.ns)
        steps[repeated | (differences == 0)] = 1
        off &= ~repeated
        _check(off, differences, str(self))
        return _summed(steps)

    def after(self, stamps: Stamps, count: int) -> list[int]:
        last = int(stamps.nanoseconds[-1])
        return [last + k * self.ns for k in range(1, count + 1)]


@dataclass(frozen=True)
class WorkingDays(Step):
    """Monday to Friday; holidays are not known."""

    def __str__(self) -> str:
        return "1 working day"

    def places(self, stamps: Stamps) -> Places:
        differences = _differences(stamps, by_clock=True)
        whole = (differences + DAY_NS // 2) // DAY_NS
        off = np.abs(differences - whole * DAY_NS) > _TOLERANCE * DAY_NS
        off |= (differences != 0) & (whole <= 0)
        days = _days(stamps)
        off |= ~np.is_busday(days[1:])
        _check(off, differences, str(self))
        steps = np.busday_count(days[:-1], days[1:]).astype(np.int64)
        steps[differences == 0] = 1
        return _summed(steps)

    def after(self, stamps: Stamps, count: int) -> list[int]:
        day = _days(stamps)[-1]
        following = np.busday_offset(day, np.arange(1, count + 1), roll="backward")
        days = (following - day).astype(np.int64).tolist()
        return [int(stamps.nanoseconds[-1]) + each * DAY_NS for each in days]


@dataclass(frozen=True)
class Months(Step):
    """So many months.

    Attributes:
        count: months of a step.
        day: of the month, 1..31; a month that has it not has its last day instead.
    """

    count: int
    day: int

    def __str__(self) -> str:
        return f"{self.count} month{'s' * (self.count > 1)}"

    def places(self, stamps: Stamps) -> Places:
        clock = _clock(stamps)
        months = clock.astype("datetime64[M]")
        differences = np.diff(months.astype(np.int64)).astype(np.int64)
        steps = differences // self.count
        off = differences % self.count != 0
        off |= np.abs(clock - self._moments(months, clock[0]))[1:].astype(np.int64) > _TOLERANCE * DAY_NS
        off |= (steps <= 0) & (np.diff(stamps.nanoseconds) != 0)
        _check(off, np.diff(stamps.nanoseconds), str(self))
        return _summed(np.maximum(steps, 1))

    def _moments(self, months: Moments, like: Any) -> Moments:
        """Its day of these months, at the time of day of a stamp."""
        first = months.astype("datetime64[D]")
        length = ((months + 1).astype("datetime64[D]") - first).astype(np.int64)
        days = first + (np.minimum(self.day, length) - 1)
        return np.asarray(days.astype("datetime64[ns]") + (like - like.astype("datetime64[D]")))

    def after(self, stamps: Stamps, count: int) -> list[int]:
        clock = _clock(stamps)
        month = clock[-1].astype("datetime64[M]")
        if int(month.astype(np.int64)) + (count + 1) * self.count > _LAST_MONTH:
            return [LATEST_NS + 1]
        months = month + np.arange(1, count + 1) * self.count
        moments = self._moments(months, clock[-1]).astype(np.int64)
        return [int(each) - int(stamps.offsets_s[-1]) * SECOND_NS for each in moments]


_LAST_MONTH = 12 * (2262 - 1970)
"""The first month since 1970 that stamps of 64 bits do not reach."""


def find_step(stamps: Stamps) -> Step | None:
    """The step of a series; none where it has fewer than two different stamps."""
    if len(stamps.nanoseconds) < 2:
        return None
    differences = _differences(stamps, by_clock=False)
    if not (differences > 0).any():
        return None
    step_ns = _commonest(differences[differences > 0])
    if step_ns >= _MONTH_NS[0] and (months := _months(stamps, step_ns)):
        return months
    if step_ns >= DAY_NS * (1 - _TOLERANCE):
        by_clock = _differences(stamps, by_clock=True)
        step_ns = _commonest(by_clock[by_clock > 0])
    return WorkingDays() if step_ns == DAY_NS and _skips_weekends(stamps) else FixedStep(step_ns)


def _commonest(differences: NDArray[np.int64]) -> int:
    """The commonest of differences above 0, with those nearly as large; of equally common ones the smallest."""
    ordered = np.sort(differences)
    values, counts = np.unique(ordered, return_counts=True)
    nearly = np.minimum(values * (1 + _TOLERANCE), 0.99 * LATEST_NS).astype(np.int64)
    reach = np.searchsorted(ordered, np.maximum(nearly, values), "right")
    begin = np.searchsorted(ordered, values, "left")
    first = int(np.argmax(reach - begin))
    within = (values >= values[first]) & (values <= values[first] * (1 + _TOLERANCE))
    best = np.flatnonzero(within)[int(np.argmax(counts[within]))]
    if counts[best] > 1 or within.sum() == 1:
        return int(values[best])
    return int(np.median(ordered[begin[first] : reach[first]]))


def _months(stamps: Stamps, step_ns: int) -> Months | None:
    """The step of months, if most stamps are on one day of their months, or on the last."""
    clock = _clock(stamps)
    months, days = clock.astype("datetime64[M]"), clock.astype("datetime64[D]")
    day = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    length = ((months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
    differences = np.diff(months.astype(np.int64))
    if not (differences > 0).any():
        return None
    values, counts = np.unique(differences[differences > 0], return_counts=True)
    count = int(values[np.argmax(counts)])
    if not _MONTH_NS[0] * count <= step_ns <= _MONTH_NS[1] * count:
        return None
    if (day == length).mean() > 0.5 and ((day == length) | (day != np.bincount(day).argmax())).all():
        return Months(count, _LAST_DAY)
    kept = int(np.bincount(day).argmax())
    largest = max(
        (int(each) for each in np.unique(day) if ((day == each) | (day == length)).mean() > 0.5), default=kept
    )
    wanted = np.minimum(largest, length)
    return Months(count, largest) if (day == wanted).mean() > 0.5 else None


def _skips_weekends(stamps: Stamps) -> bool:
    """Whether a weekend lies between the stamps, and none is on one."""
    days = _days(stamps)
    if not np.is_busday(days).all():
        return False
    working = int(np.busday_count(days[0], days[-1]))
    return int((days[-1] - days[0]).astype(np.int64)) > working


def _clock(stamps: Stamps) -> Moments:
    """What the clocks showed, datetime64[ns] (points,)."""
    return (stamps.nanoseconds + stamps.offsets_s * SECOND_NS).astype("datetime64[ns]")


def _days(stamps: Stamps) -> Moments:
    return _clock(stamps).astype("datetime64[D]")


def _differences(stamps: Stamps, *, by_clock: bool) -> NDArray[np.int64]:
    """Nanoseconds from each stamp to the next; by what clocks showed, or as time passes."""
    return np.diff(_clock(stamps).astype(np.int64) if by_clock else stamps.nanoseconds)


def _repeated_hours(stamps: Stamps, differences: NDArray[np.int64], step_ns: int) -> NDArray[np.bool_]:
    """Where local time without an offset goes back by an hour, less the step to the next point."""
    local = stamps.local[1:] & stamps.local[:-1]
    back = differences - step_ns
    return np.asarray(local & (differences < 0) & (np.abs(back + HOUR_NS) <= _TOLERANCE * step_ns))


def _check(off: NDArray[np.bool_], differences: NDArray[np.int64], step: str) -> None:
    if off.any():
        index = int(np.argmax(off))
        raise OffGrid(index + 1, step, is_earlier=bool(differences[index] < 0))


def _summed(steps: NDArray[np.int64]) -> Places:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(steps)])
