"""Job: one request on its way through the batcher, from its first line of code to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.graph import Array, Run, Settled, Signature, Steps
from service.runtime.graphs import Graphs, Runnable
from service.runtime.tensors import batch_key
from service.runtime.unread import Unread

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class BatchedGraph:
    """A graph, and how many rows of it are worked on together.

    Attributes:
        session: runs it.
        signature: of it.
        max_batch_size: most rows in one run (count).
        turn_rows: most rows stacked at a time and then run one after another (count).
    """

    session: Runnable
    signature: Signature
    max_batch_size: int
    turn_rows: int


@dataclass(slots=True)
class Timings:
    """Where the time of one request went, in seconds."""

    queue: float = 0.0
    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0

    def sum(self) -> float:
        """All of it."""
        return self.queue + self.decode + self.infer + self.encode


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
    kind: int = 0  # of its size
    size_bytes: int = 0
    is_waiting: bool = False  # counted among those whose work has not begun; guarded by the batcher's lock
    left_s: float = 0.0  # for which the model will be busy with it, as expected
    begun: float = 0.0  # when work on it began
    run_s: float = 0.0  # its share of its runs so far
    with_few: bool = True  # in all of them
    timer: asyncio.TimerHandle | None = None
    unread: Unread | None = None  # parts of its answer, where they are read as they come
    is_settled: bool = False  # answered, or nobody waits for it any more; written on its loop only
    timings: Timings = field(default_factory=Timings)
    run: Run = field(init=False)  # which it waits for
    run_rows: int = 0  # of that run
    graph: BatchedGraph = field(init=False)  # of that run
    key: Hashable = None  # equal for runs that fit together
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

    def advance(self, outputs: Mapping[str, Array] | None, graphs: Graphs[BatchedGraph], *, crowd: int) -> None:
        """Continue the request's own code until it asks for a run, returns, or raises.

        Args:
            outputs: of the run it waited for; None begins.
            graphs: those that a run may be for.
            crowd: rows of others that wait (count); from half a batch on the model is busy.
        """
        begun = time.perf_counter()
        self.timings.queue += begun - self.since
        try:
            run = self.steps.send(outputs)  # type: ignore[arg-type]  # None starts a generator
            while isinstance(run, Settled):
                if self.unread is not None:
                    self.unread.put(run.parts())
                run = next(self.steps)
            graph = graphs[run.graph]
            if run.when_busy:
                run = run.chosen(busy=crowd >= graph.max_batch_size // 2)
                graph = graphs[run.graph]
            self.run, self.graph, self.run_rows = run, graph, run.rows
            self.key = graph, batch_key(run, graph.signature)
        except StopIteration as stop:
            self.timings.encode += time.perf_counter() - begun
            self.outcome = Done(stop.value, self.timings)
        except Exception as error:  # one caller's bad input, or a bug in a task: the others go on
            self.outcome = error  # whoever awaits it logs what is not a ServiceError
        else:
            self.since = time.perf_counter()
            self.timings.decode += self.since - begun
