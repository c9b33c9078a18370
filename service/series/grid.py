"""The grid on which the points of a stream lie in time: its step, and the points that are missing on it.

The step is the commonest difference between a stamp and the one before, of about the last thousand. Differences
within a tenth of each other count as one, since real clocks jitter; the smaller one wins a tie. What is known at a
point comes from the stamps up to it, so a stream in pieces is on the same grid as in one.

A difference of k steps, rounded, is a hole of k - 1 missing points. Their number is bounded, or two stamps could ask
for a century of them: a stream may use `MAX_HOLE_POINTS`, and each point that it sends gives back `EARNED_POINTS`. A
hole that is longer counts as what is left. Less than half a step is a point of its own, and so is an equal stamp: the
repeated hour of a clock change is twice as many points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.series.timestamps import HOUR_NS, LATEST_NS, Stamps

MAX_HOLE_POINTS = 2048
"""Most missing points in a hole (count)."""

EARNED_POINTS = 3
"""By how much a point refills what holes may use (count): a stream of eight hours a day has two missing for each."""

_MAX_DIFFERENCES = 16
"""How many kinds of differences are counted at a time; the rarest makes way for a new one (count)."""

_REMEMBERED = 1024
"""Differences counted before all counts are halved, so that a stream may change its step (count)."""

_REPEATED_HOUR_STEP_NS = HOUR_NS // 3
"""Longest step at which a step back can be told to be a repeated hour, and not two points that changed places."""


class StepBack(ValueError):
    """A stamp that is earlier than the one before it.

    Attributes:
        index: which one; the one before number 0 is the last of the stream so far.
        before_ns: the stamp before it (nanoseconds).
    """

    def __init__(self, index: int, before_ns: int) -> None:
        super().__init__(f"timestamps[{index}] is earlier than the one before it")
        self.index, self.before_ns = index, before_ns


@dataclass
class _Difference:
    """Differences that count as one: how many there were, and their sum (nanoseconds)."""

    count: int
    total_ns: int

    @property
    def mean_ns(self) -> int:
        return max(self.total_ns // self.count, 1)

    def rank(self) -> tuple[int, int]:
        """The largest is the step: the commonest, of equally common ones the smallest."""
        return self.count, -self.mean_ns


@dataclass
class Grid:
    """What a stream remembers of its stamps.

    Attributes:
        last_ns: the last stamp; none: there was none yet, or the points after it came without stamps.
        last_is_local: the last stamp was a text without an offset.
        unit_ns: the unit of the stream's numbers, where it has had some.
        spare: missing points that holes may still use (count).
    """

    last_ns: int | None = None
    last_is_local: bool = False
    unit_ns: int | None = None
    spare: int = MAX_HOLE_POINTS
    _differences: list[_Difference] = field(default_factory=list)
    _commonest: _Difference | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._commonest = max(self._differences, key=_Difference.rank, default=None)

    @property
    def step_ns(self) -> int | None:
        """The step, as far as it is known."""
        return self._commonest.mean_ns if self._commonest else None

    def advance(self, stamps: Stamps) -> NDArray[np.int64]:
        """Go on by the stamps of a request.

        Returns:
            int64 (points,), how many points are missing before each.

        Raises:
            StepBack: a stamp is earlier than the one before it.
        """
        missing = np.zeros(len(stamps.nanoseconds), np.int64)
        for index, (now_ns, is_local) in enumerate(
            zip(stamps.nanoseconds.tolist(), stamps.local.tolist(), strict=True)
        ):
            if self.last_ns is not None:
                difference_ns = now_ns - self.last_ns
                if difference_ns > 0:
                    missing[index] = self._missing(difference_ns)
                elif difference_ns < 0 and not self._is_repeated_hour(difference_ns, is_local):
                    raise StepBack(index, self.last_ns)
            self.last_ns, self.last_is_local = now_ns, is_local
        self.unit_ns = stamps.unit_ns
        return missing

    def leave(self) -> None:
        """Go on by points without stamps: after them no hole can be seen, but the step stays known."""
        self.last_ns = None

    def _missing(self, difference_ns: int) -> int:
        """Count a difference, and say how many points are missing in it."""
        step_ns = self._count(difference_ns)
        missing = min(max((2 * difference_ns + step_ns) // (2 * step_ns) - 1, 0), self.spare)
        self.spare = min(self.spare - missing + EARNED_POINTS, MAX_HOLE_POINTS)
        return missing

    def _count(self, difference_ns: int) -> int:
        """Count a difference; the step with it (nanoseconds)."""
        for kind in self._differences:
            mean_ns = kind.mean_ns
            if abs(difference_ns - mean_ns) * 10 <= mean_ns:
                kind.count += 1
                kind.total_ns = min(kind.total_ns + difference_ns, LATEST_NS)  # a token holds 64 bits
                break
        else:
            if len(self._differences) == _MAX_DIFFERENCES:
                self._differences.remove(min(self._differences, key=_Difference.rank))
            kind = _Difference(1, min(difference_ns, LATEST_NS))
            self._differences.append(kind)
        if self._commonest is None or kind.rank() > self._commonest.rank():
            self._commonest = kind
        if kind.count >= _REMEMBERED:
            halves = ((other, other.count // 2) for other in self._differences)
            self._differences = [_Difference(half, other.mean_ns * half) for other, half in halves if half]
            self._commonest = max(self._differences, key=_Difference.rank)
        return self._commonest.mean_ns

    def _is_repeated_hour(self, difference_ns: int, is_local: bool) -> bool:
        """Whether a step back is that of local time when summer ends: an hour, less the step to the next point."""
        step_ns = self.step_ns
        return (
            is_local
            and self.last_is_local
            and step_ns is not None
            and step_ns <= _REPEATED_HOUR_STEP_NS
            and step_ns - difference_ns == HOUR_NS
        )

    def to_json(self) -> dict[str, Any]:
        """What a state token carries."""
        return {
            "last": self.last_ns,
            "local": self.last_is_local,
            "unit": self.unit_ns,
            "spare": self.spare,
            "differences": [[kind.count, kind.total_ns] for kind in self._differences],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Grid:
        """The way back from `to_json`.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        last_ns, unit_ns = (None if found[name] is None else _whole(found[name]) for name in ("last", "unit"))
        pairs: Sequence[Any] = found["differences"]
        differences = [_Difference(_whole(count, 1, _REMEMBERED - 1), _whole(total_ns, 1)) for count, total_ns in pairs]
        if (
            len(found) != len(cls().to_json())
            or type(found["local"]) is not bool
            or len(differences) > _MAX_DIFFERENCES
            or unit_ns not in (None, 1, 10**3, 10**6, 10**9)
        ):
            raise ValueError("not a grid")
        return cls(last_ns, found["local"], unit_ns, _whole(found["spare"], 0, MAX_HOLE_POINTS), differences)


def _whole(number: Any, least: int = -LATEST_NS, most: int = LATEST_NS) -> int:
    if type(number) is not int or not least <= number <= most:
        raise ValueError(number)
    return number
