"""Admission: which requests a model takes, by the room in its line and by the time that is left to them.

The line is counted in rows and bytes, and in time: what those who wait, and those whose work has begun, will take by
the pace that was measured of late (`docs/decisions/0007-refuse-by-predicted-time.md`).
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict

from service import telemetry
from service.errors import Draining, Overloaded, TooBusy
from service.runtime.job import Job
from service.runtime.pace import Pace

PATIENCE = 0.9
"""Largest share of a caller's time that may be needed, by what is expected, for the caller to be taken."""
STANDING_S = 1.0
"""A line that has not been empty for so long stands: it would be no shorter if callers waited longer (seconds)…"""
STANDING_PATIENCE = 0.5
"""…and a smaller share of a caller's time is left to it, so that a change of pace makes nobody late."""


class Admission:
    """Takes requests into a model's line or refuses them, and counts those that wait.

    `accept`, `check` and `leave` may be called from any thread; the others by whoever has the turn to work.

    Args:
        model: name for metrics and messages.
        max_queue: rows that may wait before new requests are refused.
        max_queue_bytes: of the bodies that may wait.

    Attributes:
        pace: how long requests take.
        waiting: rows of those whose work has not begun (count).
        waiting_bytes: of their bodies.
        is_closed: whether no more requests are taken.
    """

    def __init__(self, model: str, *, max_queue: int, max_queue_bytes: int) -> None:
        self._model, self._max_queue, self._max_queue_bytes = model, max_queue, max_queue_bytes
        self.pace = Pace()
        self.waiting = self.waiting_bytes = 0
        self.is_closed = False
        self._lock = threading.Lock()  # guards these and the next, but for what has begun
        self._waiting_kinds: dict[int, int] = defaultdict(int)  # how many of each kind
        self._busy_since = 0.0  # when the line was last empty
        self._begun_s = 0.0  # for which those whose work has begun will keep the model busy

    def accept(self, job: Job, now: float) -> None:
        """Count a request among those who wait, if there is room for it and it can be done in time.

        Raises:
            Overloaded: there is no room, or too much is to be done before.
            Draining: no more requests are taken.
        """
        with self._lock:
            if self.is_closed:
                telemetry.DROPPED.labels(self._model, "draining").inc()
                raise Draining
            before_s = self._begun_s
            # A request larger than the whole queue is taken when nobody waits; else it could never be served.
            if self.waiting:
                before_s = self._before_s()
                self._check_room(job)
            if before_s > 0.0:
                self._check_time(before_s + self.pace.through_s(job.kind), job.timeout_s, now)
            else:  # tried, whatever is expected: how else would it be found wrong?
                self._busy_since = now
            job.is_waiting = True
            self.waiting += job.rows
            self.waiting_bytes += job.size_bytes
            self._waiting_kinds[job.kind] += 1

    def check(self, timeout_s: float) -> None:
        """Refuse a request before anything is known of it, where not even a small one could be done in time.

        Raises:
            Overloaded: too much is to be done before.
        """
        with self._lock:
            before_s = self._before_s()
            if before_s > 0.0:
                self._check_time(before_s, timeout_s, time.perf_counter())

    def leave(self, job: Job) -> bool:
        """Count a request no more among those who wait; says whether it was."""
        with self._lock:
            was_waiting, job.is_waiting = job.is_waiting, False
            if was_waiting:
                self.waiting -= job.rows
                self.waiting_bytes -= job.size_bytes
                self._waiting_kinds[job.kind] -= 1
            return was_waiting

    def close(self) -> bool:
        """Take no more requests; says whether this was the first call."""
        with self._lock:
            was_closed, self.is_closed = self.is_closed, True
            return not was_closed

    def too_late(self, job: Job, now: float) -> TooBusy | None:
        """What a request is to be told whose turn has come, and which will not be done by its deadline; else None."""
        through_s = self.pace.through_s(job.kind)
        if job.deadline - now >= through_s:
            return None
        telemetry.DROPPED.labels(self._model, "late").inc()
        with self._lock:
            before_s = self._before_s()
        needed_s = now - job.since + through_s
        return TooBusy(self._model, needed_s=needed_s, timeout_s=job.timeout_s, excess_s=before_s)

    def begin(self, job: Job) -> None:
        """Expect the work on a request, which begins now."""
        job.left_s = self.pace.busy_s(job.kind)
        self._begun_s += job.left_s

    def work_off(self, job: Job, seconds: float) -> None:
        """Expect so much less work on a request."""
        seconds = min(seconds, job.left_s)
        job.left_s -= seconds
        self._begun_s -= seconds

    def rest(self) -> None:
        """All that had begun is done: sums of many small numbers drift."""
        self._begun_s = 0.0

    def _before_s(self) -> float:
        """How long the model will be busy with all that was accepted, as expected now; the lock is held."""
        seconds = self._begun_s
        for kind, count in self._waiting_kinds.items():
            seconds += count * self.pace.busy_s(kind)
        return seconds

    def _check_room(self, job: Job) -> None:
        if self.waiting + job.rows > self._max_queue:
            telemetry.DROPPED.labels(self._model, "overloaded").inc()
            raise Overloaded(
                self._model, waiting=self.waiting, limit=self._max_queue, retry_after_s=math.ceil(self._before_s())
            )
        if self.waiting_bytes + job.size_bytes > self._max_queue_bytes:
            telemetry.DROPPED.labels(self._model, "bytes").inc()
            raise Overloaded(
                self._model,
                waiting=self.waiting_bytes,
                limit=self._max_queue_bytes,
                unit="bytes",
                setting="GRIDLOOP_MAX_QUEUE_BYTES",
                retry_after_s=math.ceil(self._before_s()),
            )

    def _check_time(self, needed_s: float, timeout_s: float, now: float) -> None:
        stands = now - self._busy_since > STANDING_S
        allowed_s = timeout_s * (STANDING_PATIENCE if stands else PATIENCE)
        if needed_s > allowed_s:
            telemetry.DROPPED.labels(self._model, "predicted").inc()
            raise TooBusy(self._model, needed_s=needed_s, timeout_s=timeout_s, excess_s=needed_s - allowed_s)
