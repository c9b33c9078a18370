"""Batcher: many callers in, one run out, in one worker thread per model.

The loop reads as its specification: *wait for somebody; begin the work of all who wait until a batch is full; run the
oldest and everybody who fits beside it; send each its own rows; hand out what is finished; never die.*

Waking a thread takes as long as a small run. So a few small requests that arrive together while the thread has nothing
to do are worked on in the event loop's thread, if they should be done soon. A lock lets only one of the two work.

There is no gather delay. While the graph is busy, requests gather; what waits when it becomes free is the next batch
(continuous batching, as in Orca, Yu et al., OSDI 2022). A request that needs several runs (a beam search, a long
series) goes back to the line after each one, so it never keeps a short one waiting for longer than a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import structlog

from service import telemetry
from service.errors import DeadlineExceeded, Draining, InferenceFailed, Overloaded
from service.graph import Array, Run, Signature, Steps
from service.runtime.tensors import batch_key, split, stack

log = structlog.get_logger(__name__)

T = TypeVar("T")

HERE_S = 0.004
"""A few requests that should take no longer are worked on in the event loop's thread (seconds)."""
FEW = 4
"""So many requests at most (count)."""
_FORGETS = 0.95
"""How quickly an unusually long turn of a few requests is forgotten (factor per turn)."""
_DECODED_AHEAD = 4
"""Batches of rows that may be decoded and waiting for a run (count)."""


class Runnable(Protocol):
    """What the batcher needs of a session."""

    signature: Signature

    def run(
        self, tensors: Mapping[str, Array], outputs: tuple[str, ...] = (), *, alone: bool = False
    ) -> Mapping[str, Array]:
        """Compute the outputs of one batch, on every core when nothing else runs."""


@dataclass(slots=True)
class Timings:
    """Where the time of one request went, in seconds."""

    queue: float = 0.0
    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0


@dataclass(slots=True)
class Done(Generic[T]):
    """A finished request: what its steps returned, and how long each stage took."""

    value: T
    timings: Timings


Outcome = Done[T] | BaseException
"""How a request ended: finished, or with what it is to be refused."""


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way through the batcher."""

    steps: Steps[Any]
    rows: int
    timeout_s: float
    deadline: float
    loop: asyncio.AbstractEventLoop
    deliver: Callable[[Outcome[Any]], None]
    since: float  # when it last began to wait
    alone: bool = False  # the only request being answered
    timer: asyncio.TimerHandle | None = None
    is_settled: bool = False  # answered, or nobody waits for it any more; written on its loop only
    timings: Timings = field(default_factory=Timings)
    run: Run | None = None
    run_rows: int = 0  # of the run it waits for
    key: Hashable = None
    outcome: Outcome[Any] | None = None

    def settle(self, outcome: Outcome[Any] | None) -> None:
        """End it, once: hand its caller how it ended; None where the caller has left. On its loop."""
        if self.is_settled:
            return
        self.is_settled = True
        if self.timer:
            self.timer.cancel()
        if outcome is not None:
            self.deliver(outcome)

    def advance(self, outputs: Mapping[str, Array] | None, signature: Signature, *, busy: bool) -> None:
        """Continue the request's own code until it asks for a run, returns, or raises.

        Args:
            outputs: of the run it waited for; None begins.
            signature: of the graph.
            busy: many others wait.
        """
        begun = time.perf_counter()
        self.timings.queue += begun - self.since
        try:
            run = self.steps.send(outputs)  # type: ignore[arg-type]  # None starts a generator
            self.run = run.chosen(busy=busy)
            self.run_rows = self.run.rows
            self.key = batch_key(self.run, signature)
        except StopIteration as stop:
            self.timings.encode += time.perf_counter() - begun
            self.outcome = Done(stop.value, self.timings)
        except Exception as error:  # one caller's bad input, or a bug in a task: the others go on
            self.outcome = error  # whoever awaits it logs what is not a ServiceError
        else:
            self.since = time.perf_counter()
            self.timings.decode += self.since - begun


@dataclass(slots=True)
class _Group:
    """Jobs whose next runs fit together, oldest first, and how many rows these have."""

    jobs: deque[Job] = field(default_factory=deque)
    rows: int = 0


class Batcher:
    """Runs the steps of many callers on one session, batching the runs that fit together.

    Args:
        session: the graph.
        model: name for metrics and messages.
        max_batch_size: most rows in one run.
        turn_rows: most rows stacked at a time and then run one after another; left out, as many as in a run.
        max_queue: rows that may wait before new requests are refused.
    """

    def __init__(
        self,
        session: Runnable,
        *,
        model: str,
        max_batch_size: int = 32,
        turn_rows: int | None = None,
        max_queue: int = 1024,
    ) -> None:
        self._session = session
        self._model = model
        self._max_batch_size = session.signature.fixed_batch or max_batch_size
        self._turn_rows = max(self._max_batch_size, turn_rows or 0)
        self._max_queue = max_queue
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._arrived: list[Job] = []  # small ones, until no more of them come; on the event loop only
        self._turn = threading.Lock()  # held by whoever works
        self._waiting = 0
        self._lock = threading.Lock()
        self._closing = False  # guarded by the lock: no new requests
        self._stopping = False  # of the worker thread: it ends when nobody waits
        self._ready: dict[Hashable, _Group] = {}
        self._ready_rows = 0
        self._row_s = math.inf  # longest time per row of late, of a few requests; none were seen yet
        self._finished: list[Job] = []
        self._batch_rows = telemetry.Recorder(telemetry.BATCH_ROWS, model)
        self._run_seconds = telemetry.Recorder(telemetry.RUN_SECONDS, model)
        self._queue_seconds = telemetry.Recorder(telemetry.QUEUE_SECONDS, model)
        self._told_waiting = 0
        self._waiting_rows = telemetry.WAITING_ROWS.labels(model)
        self._thread = threading.Thread(target=self._serve, name=f"batcher-{model}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows in the queue now."""
        return self._waiting

    async def submit(
        self,
        steps: Steps[T],
        *,
        rows: int = 1,
        timeout_s: float = 30.0,
        alone: bool = False,
        small: bool = False,
    ) -> Done[T]:
        """Have a request worked on, together with others, and wait for its result; the arguments are those of `begin`.

        Cancelling the caller drops the request before its next run.

        Raises:
            Overloaded: the queue is full.
            Draining: the batcher is closing.
            DeadlineExceeded: the time was not enough.
            InferenceFailed: the runtime refused the run.
        """
        future: asyncio.Future[Done[T]] = asyncio.get_running_loop().create_future()

        def deliver(outcome: Outcome[T]) -> None:
            if future.done():  # cancelled; it is abandoned in a moment
                return
            if isinstance(outcome, Done):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        job = self.begin(steps, deliver, rows=rows, timeout_s=timeout_s, alone=alone, small=small)
        try:
            return await future
        except asyncio.CancelledError:
            self.abandon(job)
            raise

    def begin(
        self,
        steps: Steps[T],
        deliver: Callable[[Outcome[T]], None],
        *,
        rows: int = 1,
        timeout_s: float = 30.0,
        alone: bool = False,
        small: bool = False,
    ) -> Job:
        """Have a request worked on, together with others. On the event loop, without a coroutine.

        Args:
            steps: generator of runs; its code is executed by whichever thread has the turn.
            deliver: called once on this event loop with the outcome, maybe before this returns; never after `abandon`.
            rows: rows it will need at once, counted against the queue's limit.
            timeout_s: work that has not ended by then is dropped.
            alone: nothing else is being answered on this machine, nor was a moment ago.
            small: so little was sent that it may be worked on in the event loop's thread.

        Raises:
            Overloaded: the queue is full.
            Draining: the batcher is closing.
        """
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        job = Job(steps, rows, timeout_s, now + timeout_s, loop, deliver, now, alone)
        self._accept(job)
        job.timer = loop.call_later(timeout_s, self._expire, job)
        if not small:
            self._queue.put(job)
            return job
        self._arrived.append(job)
        if alone:  # nobody else comes
            self._begin_arrived()
        elif len(self._arrived) == 1:
            loop.call_soon(self._look_again, 0)
        return job

    def abandon(self, job: Job) -> None:
        """Drop a request whose caller has left, before its next run. On the event loop."""
        if not job.is_settled:
            telemetry.DROPPED.labels(self._model, "cancelled").inc()
            job.settle(None)

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, finish what was accepted, stop the thread.

        Returns:
            Whether everything was finished within `timeout_s`.
        """
        with self._lock:
            if not self._closing:
                self._closing = True
                self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # --- on the event loop

    def _look_again(self, before: int) -> None:
        """Begin with those who have arrived, once the event loop finds nobody more: they usually come in a bunch."""
        if len(self._arrived) > before:
            asyncio.get_running_loop().call_soon(self._look_again, len(self._arrived))
        else:
            self._begin_arrived()

    def _begin_arrived(self) -> None:
        jobs, self._arrived = self._arrived, []
        seconds = self._row_s * sum(job.rows for job in jobs)
        if len(jobs) <= FEW and seconds <= HERE_S and not self._closing and self._turn.acquire(blocking=False):
            self._work_here(jobs)
            return
        for job in jobs:
            self._queue.put(job)

    def _work_here(self, jobs: list[Job]) -> None:
        """Work on a few requests in this thread, which has the turn; what takes longer goes on in the worker thread."""
        end = time.perf_counter() + HERE_S
        try:
            for job in jobs:
                self._admit(job)
            while self._ready and time.perf_counter() < end:
                if batch := self._next_batch():
                    self._execute(batch)
            finished, self._finished = self._finished, []
            if self._ready:
                self._queue.put(None)
        finally:
            self._turn.release()
        self._deliver(finished)

    def _accept(self, job: Job) -> None:
        """Count a request among those who wait, if there is room for it."""
        with self._lock:
            if self._closing:
                telemetry.DROPPED.labels(self._model, "draining").inc()
                raise Draining
            # A request larger than the whole queue is taken when nobody waits; else it could never be served.
            if self._waiting and self._waiting + job.rows > self._max_queue:
                telemetry.DROPPED.labels(self._model, "overloaded").inc()
                raise Overloaded(self._model, waiting=self._waiting, limit=self._max_queue)
            self._waiting += job.rows

    def _expire(self, job: Job) -> None:
        telemetry.DROPPED.labels(self._model, "deadline").inc()
        job.settle(DeadlineExceeded(job.timeout_s))

    @staticmethod
    def _deliver(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.settle(job.outcome)

    # --- in the worker thread, or in whichever has the turn

    def _serve(self) -> None:
        while not self._stopping or self._waiting:
            job = self._queue.get()
            with self._turn:
                self._take(job)
                while self._gather():
                    if batch := self._next_batch():
                        self._execute(batch)
                    self._hand_out()

    def _gather(self) -> bool:
        """Begin the work of those who wait, until a batch is full or nobody waits.

        Returns:
            Whether there is anything to do.
        """
        with contextlib.suppress(queue.Empty):
            while not self._is_full():
                self._take(self._queue.get_nowait())
        return bool(self._ready or self._finished)

    def _take(self, job: Job | None) -> None:
        if job:
            self._admit(job)
        else:  # a call to look at what is there, or to end
            self._stopping = self._closing

    def _admit(self, job: Job) -> None:
        with self._lock:
            self._waiting -= job.rows
        now = time.perf_counter()
        self._queue_seconds.observe(now - job.since)
        if self._is_dead(job, now):
            return
        self._advance(job, None)

    def _advance(self, job: Job, outputs: Mapping[str, Array] | None) -> None:
        busy = self._waiting + self._ready_rows >= self._max_batch_size // 2
        job.advance(outputs, self._session.signature, busy=busy)
        if job.outcome is not None:
            self._finished.append(job)
        else:
            self._line_up(job)

    def _line_up(self, job: Job) -> None:
        group = self._ready.get(job.key)
        if group is None:
            group = self._ready[job.key] = _Group()
        group.jobs.append(job)
        group.rows += job.run_rows
        self._ready_rows += job.run_rows

    @staticmethod
    def _is_dead(job: Job, now: float) -> bool:
        """Whether nobody waits for the job any more: its caller left, or its deadline passed."""
        if job.is_settled or now >= job.deadline:  # an expired job is answered by the timer on the event loop
            job.steps.close()
            return True
        return False

    def _is_full(self) -> bool:
        """Whether the next batch can grow no more, or so much is decoded ahead that more would only cost memory."""
        head = next(iter(self._ready.values()), None)
        return head is not None and (
            head.rows >= self._turn_rows or self._ready_rows >= _DECODED_AHEAD * self._turn_rows
        )

    def _next_batch(self) -> list[Job]:
        """The oldest of those whose turn it is, as many as fit in a batch; the departed are dropped.

        Runs that fit together form a group, and groups take turns.
        """
        if self._waiting != self._told_waiting:
            self._told_waiting = self._waiting
            self._waiting_rows.set(self._told_waiting)
        if not self._ready:
            return []
        key, group = next(iter(self._ready.items()))
        del self._ready[key]
        now = time.perf_counter()
        batch: list[Job] = []
        rows, most = 0, self._turn_rows
        while group.jobs:
            job = group.jobs[0]
            if job.run and job.run.most_rows:
                most = min(most, job.run.most_rows)
            if batch and rows + job.run_rows > most:
                break
            group.jobs.popleft()
            group.rows -= job.run_rows
            self._ready_rows -= job.run_rows
            if not self._is_dead(job, now):
                batch.append(job)
                rows += job.run_rows
        if group.jobs:
            self._ready[key] = group  # at the end of the line
        return batch

    def _execute(self, batch: list[Job]) -> None:
        runs = [job.run for job in batch if job.run]
        begun = time.perf_counter()
        for job in batch:
            job.timings.queue += begun - job.since
        try:
            alone = len(batch) == 1 and batch[0].alone
            if runs[0].whole:
                shares: Sequence[Mapping[str, Array]] = [self._run_whole(runs[0], alone=alone)]
            else:
                outputs = self._run(stack(runs, self._session.signature), runs[0].outputs, alone=alone)
                shares = split(outputs, runs, self._session.signature)
        except Exception as error:  # the batch fails, the batcher lives
            self._after_failure(batch, error)
            return
        ended = time.perf_counter()
        for job, share in zip(batch, shares, strict=True):
            job.timings.infer += ended - begun
            job.since = time.perf_counter()
            self._advance(job, share)
        if len(batch) <= FEW:
            self._took((time.perf_counter() - begun) / sum(job.run_rows for job in batch))

    def _took(self, seconds: float) -> None:
        """Remember how long a row takes when there are few: the longest of late."""
        self._row_s = max(seconds, self._row_s * _FORGETS if math.isfinite(self._row_s) else 0.0)

    def _run(self, feeds: dict[str, Array], outputs: tuple[str, ...], *, alone: bool) -> Mapping[str, Array]:
        """Run the graph, in slices when there are more rows than a run may have."""
        rows, most = len(next(iter(feeds.values()))), self._max_batch_size
        parts = []
        for start in range(0, rows, most):
            slice_ = {name: array[start : start + most] for name, array in feeds.items()} if rows > most else feeds
            begun = time.perf_counter()
            part = self._session.run(slice_, outputs, alone=alone)
            self._run_seconds.observe(time.perf_counter() - begun)
            expected = min(most, rows - start)
            self._batch_rows.observe(expected)
            if any(len(array) != expected for array in part.values()):
                raise ValueError(f"{expected} rows in, {[len(a) for a in part.values()]} rows out")
            parts.append(part)
        return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}

    def _run_whole(self, run: Run, *, alone: bool) -> Mapping[str, Array]:
        """Run the graph with tensors whose axis 0 is no batch."""
        begun = time.perf_counter()
        outputs = self._session.run(run.tensors, run.outputs, alone=alone)
        self._run_seconds.observe(time.perf_counter() - begun)
        self._batch_rows.observe(1)
        return outputs

    def _after_failure(self, batch: list[Job], error: Exception) -> None:
        """Run each job of a failed batch alone, so that one caller's values cannot fail another's request."""
        telemetry.FAILED_RUNS.labels(self._model).inc()
        if len(batch) > 1:
            for job in batch:
                job.since = time.perf_counter()
                self._execute([job])
            return
        (job,) = batch
        job.outcome = self._failed(job, error)
        self._finished.append(job)

    def _failed(self, job: Job, error: Exception) -> Exception:
        """What the job's caller is told. The steps hear of it where they asked for the run, and may know the reason."""
        failure = InferenceFailed(self._model)
        failure.__cause__ = error
        try:
            job.steps.throw(failure)
        except (InferenceFailed, StopIteration):
            pass
        except Exception as explained:
            log.warning("a run failed", model=self._model, reason=str(error), told=str(explained))
            return explained
        finally:
            job.steps.close()
        log.error("a run failed", model=self._model, exc_info=error)
        return failure

    def _hand_out(self) -> None:
        """Wake the callers whose requests are finished: one wake-up for all of them."""
        finished, self._finished = self._finished, []
        for loop in {job.loop for job in finished}:
            mine = [job for job in finished if job.loop is loop]
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to answer
                loop.call_soon_threadsafe(self._deliver, mine)


def drive(session: Runnable, steps: Steps[T]) -> T:
    """Work on one request in the calling thread, with no queue: for the command line, warm-up and checks."""
    outputs: Mapping[str, Array] | None = None
    while True:
        try:
            run = steps.send(outputs)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as stop:
            value: T = stop.value
            return value
        outputs = session.run(run.tensors, run.outputs)
