"""Pace: how long a model's requests take, by size, as measured of late.

A request says how much it asks for in units of its task (points, characters, pixels; `TaskInput.work`). Requests whose
amounts have the same power of two are one *kind*: what a series of 2,000 points takes says little of one of 5.
"""

from __future__ import annotations

import math

KINDS = 64
"""Powers of two told apart; what is larger is the last kind (count)."""
_NEW_SHARE = 0.2
"""Share of the newest request in the mean of its kind."""
_FORGETS = 0.95
"""How quickly an unusually slow request of a few is forgotten (factor for each one after it)."""


def kind_of(work: int) -> int:
    """The kind of a request, by how much it asks for."""
    return min(work.bit_length(), KINDS - 1)


class Pace:
    """What the requests of each kind took.

    Attributes:
        longest_s: by kind, the longest time of late that one took which was worked on with few others or none;
            infinite where there was none (seconds).
    """

    def __init__(self) -> None:
        self._busy_s = [math.nan] * KINDS
        self._through_s = [0.0] * KINDS
        self._expected_s = [0.0] * KINDS
        self.longest_s = [math.inf] * KINDS

    def busy_s(self, kind: int) -> float:
        """How long the model is expected to be busy with a request, its share of batches counted (seconds).

        A kind that was never seen is taken for the nearest smaller one, else for the nearest larger one: too little is
        better than too much, which nobody would ever find wrong. 0 while nothing is known at all.
        """
        return self._expected_s[kind]

    def through_s(self, kind: int) -> float:
        """How long after its beginning a request is expected to be done, with whatever shares its batches (seconds)."""
        return max(self._through_s[kind], self._expected_s[kind])

    def note(self, kind: int, busy_s: float, through_s: float, *, with_few: bool) -> None:
        """Remember what a request took.

        Args:
            kind: of it.
            busy_s: its own code, and its share of its runs.
            through_s: from its beginning to its end.
            with_few: it shared its runs with few others or none.
        """
        before = self._busy_s[kind]
        if before == before:  # a number
            self._busy_s[kind] = self._expected_s[kind] = before + _NEW_SHARE * (busy_s - before)
            self._through_s[kind] += _NEW_SHARE * (through_s - self._through_s[kind])
        else:
            self._busy_s[kind], self._through_s[kind] = busy_s, through_s
            self._expected_s = [self._guess(k) for k in range(KINDS)]
        if with_few:
            longest = self.longest_s[kind]
            self.longest_s[kind] = max(busy_s, longest * _FORGETS) if longest < math.inf else busy_s

    def _guess(self, kind: int) -> float:
        known = [k for k in range(KINDS) if not math.isnan(self._busy_s[k])]
        return self._busy_s[max((k for k in known if k <= kind), default=known[0])]
