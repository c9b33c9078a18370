"""Batcher: many callers in, one run out, in one worker thread per model.

The loop reads as its specification: *wait for somebody; begin the work of all who wait until a batch is full; run the
oldest and everybody who fits beside it; send each its own rows; hand out what is finished; never die.*

Waking a thread takes as long as a small run. So a few small requests that arrive together while the thread has nothing
to do are worked on in the event loop's thread, if others of their size were done soon. A lock lets only one of the two
work; the other watches, and stops a run that takes too long there.

Work is begun only for callers who can have its result. The batcher measures its own pace, so it knows how long those
take who wait, and refuses at once who could not be done in time (`docs/decisions/0007-refuse-by-predicted-time.md`). A
run whose callers have all left is stopped.

There is no gather delay. While the graph is busy, requests gather; what waits when it becomes free is the next batch
(continuous batching, as in Orca, Yu et al., OSDI 2022). A request that needs several runs (a beam search, a long
series) goes back to the line after each one, so it never keeps a short one waiting for longer than a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import structlog

from service import telemetry
from service.errors import DeadlineExceeded, InferenceFailed, Unavailable
from service.graph import Array, Run, Steps
from service.runtime.admission import Admission
from service.runtime.graphs import Graphs, Runnable
from service.runtime.job import BatchedGraph, Done, Job, Outcome
from service.runtime.pace import kind_of
from service.runtime.statistics import Statistics
from service.runtime.stop import Stop
from service.runtime.tensors import split, stack
from service.runtime.unread import Unread
from service.schemas.model_info import Tuning

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_INLINE_S = 0.004
"""A few requests that should take no longer are worked on in the event loop's thread (seconds)."""
MAX_INLINE_REQUESTS = 4
"""So many requests at most (count)."""
INLINE_BUDGET_S = 0.05
"""A run in the event loop's thread that takes longer is stopped, and done again by the worker thread (seconds)."""
REST_S = 30.0
"""After that, the event loop's thread runs nothing of this model for so long (seconds)."""
WATCH_S = 0.05
"""So often the worker thread looks at what the event loop's thread does (seconds)."""
WATCHED_S = 10.0
"""It does so for so long after the last request; a request that comes later wakes it (seconds)."""
_DECODED_AHEAD = 4
"""Batches of rows that may be decoded and waiting for a run (count)."""


@dataclass(slots=True)
class _Group:
    """Jobs whose next runs fit together, oldest first, and how many rows these have."""

    graph: BatchedGraph
    jobs: deque[Job] = field(default_factory=deque)
    rows: int = 0


class Batcher:
    """Runs the steps of many callers on the graphs of one model version, batching the runs that fit together.

    Args:
        session: the graph, or the several of the version.
        model: name for metrics and messages.
        max_batch_size: most rows in one run.
        turn_rows: most rows stacked at a time and then run one after another; left out, as many as in a run.
        tunings: the same for graphs that have their own, by name.
        max_queue: rows that may wait before new requests are refused.
        max_queue_bytes: of the bodies that may wait.
        statistics: where requests and runs are counted; left out, nobody asks for them.

    Attributes:
        pace: how long requests take.
    """

    def __init__(
        self,
        session: Runnable | Graphs[Runnable],
        *,
        model: str,
        max_batch_size: int = 32,
        turn_rows: int | None = None,
        tunings: Mapping[str, Tuning] | None = None,
        max_queue: int = 1024,
        max_queue_bytes: int = 64 * 1024 * 1024,
        statistics: Statistics | None = None,
    ) -> None:
        every = Tuning(
            max_batch_size=max_batch_size, turn_rows=turn_rows or max_batch_size, lone_threads=1, source="default"
        )
        self._graphs = Graphs(
            {name: _batched(graph, (tunings or {}).get(name, every)) for name, graph in Graphs.of(session).items()}
        )
        self._model = model
        self._admission = Admission(model, max_queue=max_queue, max_queue_bytes=max_queue_bytes)
        self.pace = self._admission.pace
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._arrived: list[Job] = []  # small ones, until no more of them come; on the event loop only
        self._turn = threading.Lock()  # held by whoever works
        self._running: tuple[list[Job], Stop] | None = None  # written by whoever has the turn
        self._inline_since = 0.0  # when the event loop's thread began to work; 0 while it does not
        self._no_inline_before = 0.0
        self._watched_until = 0.0
        self._stopping = False  # of the worker thread: it ends when nobody waits
        self._ready: dict[Hashable, _Group] = {}
        self._ready_rows = 0
        self._finished: list[Job] = []
        self._paused: set[Job] = set()  # until what they have settled is read
        self._batch_rows = telemetry.Recorder(telemetry.BATCH_ROWS, model)
        self._run_seconds = telemetry.Recorder(telemetry.RUN_SECONDS, model)
        self._queue_seconds = telemetry.Recorder(telemetry.QUEUE_SECONDS, model)
        self._statistics = statistics or Statistics()
        self._told_waiting = 0
        self._waiting_rows = telemetry.WAITING_ROWS.labels(model)
        self._thread = threading.Thread(target=self._serve, name=f"batcher-{model}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows in the queue now."""
        return self._admission.waiting

    async def submit(
        self,
        steps: Steps[T],
        *,
        rows: int = 1,
        timeout_s: float = 30.0,
        alone: bool = False,
        small: bool = False,
        work: int = 1,
        size_bytes: int = 0,
    ) -> Done[T]:
        """Have a request worked on, together with others, and wait for its result; the arguments are those of `begin`.

        Cancelling the caller drops the request before its next run.

        Raises:
            Overloaded: the queue is full, or too much is to be done before for the time there is.
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

        job = self.begin(
            steps,
            deliver,
            rows=rows,
            timeout_s=timeout_s,
            alone=alone,
            small=small,
            work=work,
            size_bytes=size_bytes,
        )
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
        work: int = 1,
        size_bytes: int = 0,
        unread: Unread | None = None,
    ) -> Job:
        """Have a request worked on, together with others. On the event loop, without a coroutine.

        Args:
            steps: generator of runs; its code is executed by whichever thread has the turn.
            deliver: called once on this event loop with the outcome, maybe before this returns; never after `abandon`.
            rows: rows it will need at once, counted against the queue's limit.
            timeout_s: work that has not ended by then is dropped.
            alone: nothing else is being answered on this machine, nor was a moment ago.
            small: so little was sent that it may be worked on in the event loop's thread.
            work: how much is asked for; requests of about as much take about as long.
            size_bytes: of what is kept while it waits.
            unread: where parts of the result are put that are settled earlier; left out, nobody reads them. While as
                many as may be are unread, no more is worked on.

        Raises:
            Overloaded: the queue is full, or too much is to be done before for the time there is.
            Draining: the batcher is closing.
        """
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        job = Job(steps, rows, timeout_s, now + timeout_s, loop, deliver, now, alone, kind_of(work), size_bytes)
        try:
            self._admission.accept(job, now)
        except Unavailable:
            self._statistics.note_failure(0.0)
            raise
        job.timer = loop.call_later(timeout_s, self._expire, job)
        if unread is not None:
            job.unread, unread.resume = unread, lambda: self._queue.put(job)
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
            self._let_go(job)

    def check(self, timeout_s: float) -> None:
        """Refuse a request before anything is known of it, where not even a small one could be done in time.

        Raises:
            Overloaded: too much is to be done before.
        """
        self._admission.check(timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, finish what was accepted, stop the thread.

        Returns:
            Whether everything was finished within `timeout_s`.
        """
        if self._admission.close():
            self._queue.put(None)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            for recorder in (self._batch_rows, self._run_seconds, self._queue_seconds):
                recorder.close()
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
        longest_s = self.pace.longest_s
        if (
            len(jobs) <= MAX_INLINE_REQUESTS
            and sum([longest_s[job.kind] for job in jobs]) <= MAX_INLINE_S
            and self._may_work_inline()
        ):
            self._work_inline(jobs)
            return
        for job in jobs:
            self._queue.put(job)

    def _may_work_inline(self) -> bool:
        """Whether the event loop's thread may work now; it has the turn then.

        Only while it is watched. The second is for the worker thread, which may have looked at the clock just before.
        """
        now = time.perf_counter()
        return (
            self._no_inline_before <= now < self._watched_until - 1.0
            and not self._admission.is_closed
            and self._turn.acquire(blocking=False)
        )

    def _work_inline(self, jobs: list[Job]) -> None:
        """Work on a few requests in this thread, which has the turn; what takes longer goes on in the worker thread."""
        self._inline_since = begun = time.perf_counter()
        self._watched_until = begun + WATCHED_S
        end = begun + MAX_INLINE_S
        try:
            for job in jobs:
                if time.perf_counter() < end:
                    self._admit(job)
                else:
                    self._queue.put(job)
            while self._ready and time.perf_counter() < end:
                if batch := self._next_batch():
                    self._execute(batch)
            finished, self._finished = self._finished, []
            if self._ready:
                self._queue.put(None)
            else:
                self._admission.rest()
        finally:
            self._inline_since = 0.0
            self._turn.release()
        if (now := time.perf_counter()) > begun + INLINE_BUDGET_S:
            self._no_inline_before = now + REST_S
        self._deliver(finished)

    def _let_go(self, job: Job) -> None:
        """Forget a request that nobody waits for any more: its place in the line, or the run that is for it alone."""
        self._admission.leave(job)
        if self._running is not None:
            _stop_if_unwanted(*self._running)
        if job.unread is not None:  # it may be paused
            self._queue.put(job)

    def _expire(self, job: Job) -> None:
        telemetry.DROPPED.labels(self._model, "deadline").inc()
        if not job.is_settled:
            self._statistics.note_failure(job.timeout_s)
        job.settle(DeadlineExceeded(job.timeout_s))
        self._let_go(job)

    @staticmethod
    def _deliver(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.settle(job.outcome)

    # --- in the worker thread, or in whichever has the turn

    def _serve(self) -> None:
        while not self._stopping or self._admission.waiting or self._paused:
            job = self._next()
            while not self._turn.acquire(timeout=WATCH_S):
                self._watch()
            try:
                self._take(job)
                while self._gather():
                    if batch := self._next_batch():
                        self._execute(batch)
                    self._hand_out()
                self._admission.rest()
            finally:
                self._turn.release()
            self._watched_until = time.perf_counter() + WATCHED_S

    def _next(self) -> Job | None:
        """Wait for somebody, and watch the event loop's thread meanwhile."""
        while time.perf_counter() < self._watched_until:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=WATCH_S)
            self._watch()
        return self._queue.get()

    def _watch(self) -> None:
        """Stop a run in the event loop's thread that takes too long; `_work_inline` leaves it to this thread then."""
        begun, running = self._inline_since, self._running
        if begun and running and time.perf_counter() > begun + INLINE_BUDGET_S:
            running[1].set()

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
        if job and job.begun:
            self._go_on(job)
        elif job:
            self._admit(job)
        else:  # a call to look at what is there, or to end
            self._stopping = self._admission.is_closed

    def _admit(self, job: Job) -> None:
        """Begin the work on a request, if somebody waits for it still and can have its result."""
        was_waiting = self._admission.leave(job)
        job.begun = now = time.perf_counter()
        self._queue_seconds.observe(now - job.since)
        if not was_waiting or job.is_settled or now >= job.deadline:
            job.steps.close()
            return
        # The last one is tried, whatever is expected: how else would it be found wrong?
        if (self._admission.waiting or self._ready) and (refusal := self._admission.too_late(job, now)):
            job.steps.close()
            job.outcome = refusal
            self._statistics.note_failure(now - job.since)
            self._finished.append(job)
            return
        self._admission.begin(job)
        self._advance(job, None)

    def _advance(self, job: Job, outputs: Mapping[str, Array] | None) -> None:
        job.advance(outputs, self._graphs, crowd=self._admission.waiting + self._ready_rows)
        if job.outcome is None:
            if job.unread is not None and job.unread.pause():
                self._paused.add(job)
                self._admission.work_off(job, job.left_s)
            else:
                self._line_up(job)
            return
        self._finished.append(job)
        self._admission.work_off(job, job.left_s)
        if isinstance(job.outcome, Done) and job.timings.infer:  # what ran nothing says nothing of the model
            timings, now = job.timings, time.perf_counter()
            busy_s = timings.decode + job.run_s + timings.encode
            self.pace.note(job.kind, busy_s, now - job.begun, with_few=job.with_few)
            if not job.is_settled:  # too late: counted as a failure then
                self._statistics.note_request(timings, now)
        elif not job.is_settled and not isinstance(job.outcome, Done):
            self._statistics.note_failure(job.timings.sum())

    def _go_on(self, job: Job) -> None:
        """Go on with a request whose parts were read, or forget it."""
        if job not in self._paused:
            return
        self._paused.remove(job)
        now = time.perf_counter()
        if not self._is_dead(job, now):
            job.begun += now - job.since  # how long it waited for its reader says nothing of the model
            job.since = now
            self._line_up(job)

    def _line_up(self, job: Job) -> None:
        group = self._ready.get(job.key)
        if group is None:
            group = self._ready[job.key] = _Group(job.graph)
        group.jobs.append(job)
        group.rows += job.run_rows
        self._ready_rows += job.run_rows

    def _is_dead(self, job: Job, now: float) -> bool:
        """Whether nobody waits for the job any more: its caller left, or its deadline passed."""
        if job.is_settled or now >= job.deadline:  # an expired job is answered by the timer on the event loop
            job.steps.close()
            self._admission.work_off(job, job.left_s)
            return True
        return False

    def _is_full(self) -> bool:
        """Whether the next batch can grow no more, or so much is decoded ahead that more would only cost memory."""
        head = next(iter(self._ready.values()), None)
        return head is not None and (
            head.rows >= head.graph.turn_rows or self._ready_rows >= _DECODED_AHEAD * head.graph.turn_rows
        )

    def _next_batch(self) -> list[Job]:
        """The oldest of those whose turn it is, as many as fit in a batch; the departed are dropped.

        Runs that fit together form a group, and groups take turns.
        """
        if self._admission.waiting != self._told_waiting:
            self._told_waiting = self._admission.waiting
            self._waiting_rows.set(self._told_waiting)
        if not self._ready:
            return []
        key, group = next(iter(self._ready.items()))
        del self._ready[key]
        now = time.perf_counter()
        batch: list[Job] = []
        rows, most = 0, group.graph.turn_rows
        while group.jobs:
            job = group.jobs[0]
            if job.run.most_rows:
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
        runs = [job.run for job in batch]
        graph = batch[0].graph
        begun = time.perf_counter()
        for job in batch:
            job.timings.queue += begun - job.since
        stop = Stop()
        self._running = batch, stop
        _stop_if_unwanted(batch, stop)  # who left before the line above has stopped nothing
        try:
            alone = len(batch) == 1 and batch[0].alone
            if runs[0].whole:
                shares: Sequence[Mapping[str, Array]] = [self._run_whole(graph, runs[0], alone=alone, stop=stop)]
            else:
                feeds = stack(runs, graph.signature)
                stacked_s = time.perf_counter() - begun
                outputs = self._run(graph, feeds, runs[0].outputs, stacked_s, alone=alone, stop=stop)
                shares = split(outputs, runs, graph.signature)
        except Exception as error:  # the batch fails, the batcher lives
            if stop.is_set:
                self._after_stop(batch)
            else:
                self._after_failure(batch, error)
            return
        finally:
            self._running = None
        ended = time.perf_counter()
        took_s = ended - begun
        row_s = took_s / sum([job.run_rows for job in batch])
        with_few = len(batch) <= MAX_INLINE_REQUESTS
        for job, share in zip(batch, shares, strict=True):
            job.timings.infer += took_s
            job.since = time.perf_counter()
            share_s = row_s * job.run_rows
            job.run_s += share_s
            job.with_few &= with_few
            if job.left_s:
                self._admission.work_off(job, share_s)
            self._advance(job, share)

    def _after_stop(self, batch: list[Job]) -> None:
        """Drop those whom nobody waits for; the others, who took too long where they were, wait for another run."""
        now = time.perf_counter()
        for job in batch:
            if not self._is_dead(job, now):
                job.since = now
                self._line_up(job)

    def _run(
        self,
        graph: BatchedGraph,
        feeds: dict[str, Array],
        outputs: tuple[str, ...],
        stacked_s: float,
        *,
        alone: bool,
        stop: Stop,
    ) -> Mapping[str, Array]:
        """Run a graph, in slices when there are more rows than a run may have; stacking them took `stacked_s`."""
        rows, most = len(next(iter(feeds.values()))), graph.max_batch_size
        parts = []
        for start in range(0, rows, most):
            slice_ = {name: array[start : start + most] for name, array in feeds.items()} if rows > most else feeds
            begun = time.perf_counter()
            part = graph.session.run(slice_, outputs, alone=alone, stop=stop)
            took_s = time.perf_counter() - begun
            self._run_seconds.observe(took_s)
            expected = min(most, rows - start)
            self._batch_rows.observe(expected)
            self._statistics.note_run(expected, took_s, stacked_s * expected / rows if rows else 0.0)
            if any(len(array) != expected for array in part.values()):
                raise ValueError(f"{expected} rows in, {[len(a) for a in part.values()]} rows out")
            parts.append(part)
        return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}

    def _run_whole(self, graph: BatchedGraph, run: Run, *, alone: bool, stop: Stop) -> Mapping[str, Array]:
        """Run a graph with tensors whose axis 0 is no batch."""
        begun = time.perf_counter()
        outputs = graph.session.run(run.tensors, run.outputs, alone=alone, stop=stop)
        took_s = time.perf_counter() - begun
        self._run_seconds.observe(took_s)
        self._batch_rows.observe(1)
        self._statistics.note_run(1, took_s)
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
        self._admission.work_off(job, job.left_s)
        self._statistics.note_failure(job.timings.sum())
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


def _batched(session: Runnable, tuning: Tuning) -> BatchedGraph:
    """A graph, to be run as was chosen; one whose batch is a fixed number of rows is run with that."""
    most = session.signature.fixed_batch or tuning.max_batch_size
    return BatchedGraph(session, session.signature, most, max(most, tuning.turn_rows))


def _stop_if_unwanted(batch: Sequence[Job], stop: Stop) -> None:
    """Stop a run whose callers have all left or been told that it is too late."""
    if batch[0].is_settled and all(job.is_settled for job in batch):
        stop.set()
