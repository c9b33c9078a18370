"""Statistics: what a model version has done since it was loaded, summed over the workers of the server.

Each worker counts for itself, in plain numbers, and now and then adds what is new to a row of its own in memory that
all workers share, made before they are forked. So nobody waits for anybody, any worker can tell the sums, and the
successor of a worker that died goes on where that one ended.
"""

from __future__ import annotations

import mmap
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from service.runtime.job import Timings

_TOTALS = ("requests", "queue", "decode", "infer", "encode", "failures", "failed", "rows", "runs")
_OF_A_SIZE = 3  # count of runs, and the times of stacking and running
_NS = 1e9


class RunsOfSize(NamedTuple):
    """Runs of the same number of rows.

    Attributes:
        runs: how many (count).
        stack_s: time in which the rows of several requests became one tensor (seconds).
        run_s: time of the runs themselves.
    """

    runs: int
    stack_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class Totals:
    """What a model version has done.

    Attributes:
        requests: that were answered (count).
        timings: where their time went, summed; a run counts for each request in it.
        failures: requests that got an error (count).
        failed_s: their time (seconds).
        rows: of all runs.
        runs: of the graphs.
        last_unix_s: when the last request was answered; 0 when none was.
        by_rows: rows in a run -> the runs of so many.
    """

    requests: int
    timings: Timings
    failures: int
    failed_s: float
    rows: int
    runs: int
    last_unix_s: float
    by_rows: dict[int, RunsOfSize] = field(default_factory=dict)


class Statistics:
    """Counts for one model version.

    Args:
        workers: processes that will count.
        most_rows: most rows in a run.
    """

    def __init__(self, workers: int = 1, most_rows: int = 32) -> None:
        self._workers, self._most_rows = workers, most_rows
        columns = len(_TOTALS) + 1 + _OF_A_SIZE * (most_rows + 1)
        shared = mmap.mmap(-1, workers * columns * 8)  # stays shared with processes that are forked
        self._all = np.frombuffer(shared, np.int64).reshape(workers, columns)
        self._told = np.zeros(columns, np.int64)
        self._requests = self._rows = self._runs = self._failures = 0
        self._queue_s = self._decode_s = self._infer_s = self._encode_s = self._failed_s = self._last = 0.0
        self._by_rows: dict[int, list[float]] = {}
        self._failing = threading.Lock()
        self._done_before = (0, 0, 0)  # when it was last published

    # --- by whoever has the turn to work

    def note_request(self, timings: Timings, now: float) -> None:
        """Count a request that is answered; `now` is of `time.perf_counter`."""
        self._requests += 1
        self._queue_s += timings.queue
        self._decode_s += timings.decode
        self._infer_s += timings.infer
        self._encode_s += timings.encode
        self._last = now

    def note_run(self, rows: int, run_s: float, stack_s: float = 0.0) -> None:
        """Count a run."""
        self._rows += rows
        self._runs += 1
        known = self._by_rows.get(rows)
        if known is None:
            known = self._by_rows[rows] = [0, 0.0, 0.0]
        known[0] += 1
        known[1] += stack_s
        known[2] += run_s

    # --- from any thread

    def note_failure(self, seconds: float) -> None:
        """Count a request that gets an error."""
        with self._failing:
            self._failures += 1
            self._failed_s += seconds

    def publish(self, worker: int) -> None:
        """Add what is new to the row of a worker, which is this process. On the event loop."""
        if (done := (self._requests, self._runs, self._failures)) == self._done_before:
            return
        self._done_before = done
        counted = self._counted()
        row = self._all[worker % self._workers]
        row[1:] += (counted - self._told)[1:]
        row[0] = max(row[0], counted[0])
        self._told = counted

    def totals(self, worker: int) -> Totals:
        """The sums of all workers; what the others have counted in the last moments may be missing. Also publishes."""
        self.publish(worker)
        last = int(self._all[:, 0].max())
        sums: list[int] = self._all[:, 1:].sum(axis=0).tolist()
        of = dict(zip(_TOTALS, sums, strict=False))
        of_sizes = np.reshape(sums[len(_TOTALS) :], (-1, _OF_A_SIZE)).tolist()
        return Totals(
            requests=of["requests"],
            timings=Timings(of["queue"] / _NS, of["decode"] / _NS, of["infer"] / _NS, of["encode"] / _NS),
            failures=of["failures"],
            failed_s=of["failed"] / _NS,
            rows=of["rows"],
            runs=of["runs"],
            last_unix_s=time.time() - time.perf_counter() + last / _NS if last else 0.0,
            by_rows={
                rows: RunsOfSize(runs, *(ns / _NS for ns in spent))
                for rows, (runs, *spent) in enumerate(of_sizes)
                if runs
            },
        )

    def _counted(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """What this process has counted, as a row: the time of the last request, the totals, the sizes of runs."""
        times = (self._queue_s, self._decode_s, self._infer_s, self._encode_s)
        counted = np.zeros_like(self._told)
        counted[: 1 + len(_TOTALS)] = (
            self._last * _NS,
            self._requests,
            *(seconds * _NS for seconds in times),
            self._failures,
            self._failed_s * _NS,
            self._rows,
            self._runs,
        )
        for rows, (runs, *spent) in list(self._by_rows.items()):
            at = 1 + len(_TOTALS) + _OF_A_SIZE * min(rows, self._most_rows)
            counted[at : at + _OF_A_SIZE] += np.array([runs, *(seconds * _NS for seconds in spent)], np.int64)
        return counted
