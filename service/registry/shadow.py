"""Shadow: a version whose answers nobody gets. They are only compared with those of the version that answers.

It works on copies of requests that were answered, in a thread of its own, one at a time, and only while the machine has
nothing better to do: what comes while it works, while anybody waits or while other requests are being answered is
dropped, and so is what it is at when they come, before its next run. And it rests after each: a caller whose requests
follow each other closely would else meet it every time, and a sample tells as much as all of them.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Unpack

import numpy as np
import orjson
import structlog

from service import telemetry
from service.graph import Array, Run, Signature, Steps
from service.registry.manifest import Shadowing
from service.runtime.drive import drive
from service.runtime.graphs import Conditions, Graphs, Runnable
from service.runtime.stop import Stop
from service.tasks.base import MediaAnswer, TaskInput, TaskOutput
from service.tasks.comparison import comparable

if TYPE_CHECKING:
    from service.registry.handle import ModelHandle

log = structlog.get_logger(__name__)

REST = 200
"""It rests so many times as long as it has worked: half a percent of a core's time is its share (factor)."""


class Shadow:
    """Compares what one version of a model answers with what another one would have.

    Args:
        served: the version that answers.
        tried: the other one.
        declared: what the manifest says of it.
        is_busy: whether the machine has other things to do.

    Attributes:
        idle: set while it is at no request.
    """

    def __init__(
        self, served: ModelHandle, tried: ModelHandle, declared: Shadowing, is_busy: Callable[[], bool]
    ) -> None:
        self.served, self.tried, self.declared = served, tried, declared
        self._is_busy = is_busy
        self._stop = Stop()
        self._graphs: Graphs[Runnable] = Graphs({name: _GivesWay(self, name) for name in tried.graphs})
        names = tried.ref.name, tried.ref.version
        self._outcomes = {
            outcome: telemetry.SHADOW_REQUESTS.labels(*names, outcome) for outcome in telemetry.SHADOW_OUTCOMES
        }
        self._seconds = {who: telemetry.SHADOW_SECONDS.labels(*names, who) for who in ("served", "shadow")}
        self._work: queue.SimpleQueue[Callable[[], str | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # not before a server has forked its workers
        self.idle = threading.Event()
        self.idle.set()
        self._has_failed = False
        self._rests_until = 0.0

    # --- by whoever has the turn to work for the version that answers

    def offer(self, request: TaskInput, answer: bytes | MediaAnswer, seconds: float) -> None:
        """Compare an answer, where there is time; it took so many seconds without waiting for its turn.

        Not one that is no JSON, nor one to a stream that goes on: its state is for one version alone.
        """
        if getattr(request, "state", None) is not None or isinstance(answer, MediaAnswer):
            return
        self._accept(lambda: self._compare_answers(request, answer, seconds))

    def offer_run(self, run: Run, outputs: Mapping[str, Array], seconds: float) -> None:
        """The same for a request for the tensors of a graph."""
        self._accept(lambda: self._compare_outputs(run, outputs, seconds))

    def _accept(self, compare: Callable[[], str | None]) -> None:
        if self.declared.percent < 100 and random.random() * 100 >= self.declared.percent:
            return
        rests = time.perf_counter() < self._rests_until
        if rests or not self.idle.is_set() or self.served.is_waited_for or self._is_busy():
            self._outcomes["dropped"].inc()
            return
        self.idle.clear()
        self._work.put(compare)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=f"shadow-{self.tried.name}", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Compare nothing more."""
        self._stop.set()
        self._work.put(None)

    # --- in the thread of its own

    def _serve(self) -> None:
        while compare := self._work.get():
            begun = time.perf_counter()
            try:
                outcome = "differed" if compare() else "agreed"
            except _Busy:
                outcome = "dropped"
            except Exception as error:  # whatever it is, nobody waits for this answer
                outcome = "dropped" if self._stop.is_set else "failed"
                if outcome == "failed" and not self._has_failed:
                    log.warning("a shadow fails where an answer was given", model=self.tried.name, reason=str(error))
                    self._has_failed = True
            self._outcomes[outcome].inc()
            del compare
            now = time.perf_counter()
            self._rests_until = now + REST * (now - begun)
            self.idle.set()

    def _compare_answers(self, request: TaskInput, answer: bytes, seconds: float) -> str | None:
        task = self.tried.task
        begun = time.perf_counter()
        steps: Steps[TaskOutput | MediaAnswer] = task.steps(task.widened(request))
        got = orjson.loads(drive(self._graphs, steps, stop=self._stop).to_json())
        self._note(seconds, time.perf_counter() - begun)
        return task.difference(request, comparable(orjson.loads(answer)), got, self.declared.tolerance)

    def _compare_outputs(self, run: Run, outputs: Mapping[str, Array], seconds: float) -> str | None:
        begun = time.perf_counter()
        got = self._graphs[run.graph].run(run.tensors, run.outputs, stop=self._stop)
        self._note(seconds, time.perf_counter() - begun)
        different = (name for name, array in outputs.items() if not self._is_near(array, got.get(name)))
        return next(different, None)

    def _is_near(self, one: Array, other: Array | None) -> bool:
        if other is None or one.shape != other.shape:
            return False
        if one.dtype.kind != "f":
            return np.array_equal(one, other)
        return np.allclose(one, other, rtol=0, atol=self.declared.tolerance, equal_nan=True)

    def _note(self, served_s: float, shadow_s: float) -> None:
        self._seconds["served"].observe(served_s)
        self._seconds["shadow"].observe(shadow_s)

    def give_way(self) -> None:
        """See that the machine still has nothing better to do.

        Raises:
            _Busy: it has.
        """
        if self._is_busy() or self.tried.is_waited_for:
            raise _Busy


class _Busy(Exception):
    """There are requests to be answered."""


class _GivesWay:
    """A graph that is run in batches no larger than its version would be, and only while nobody else needs the core."""

    def __init__(self, shadow: Shadow, name: str) -> None:
        tried = shadow.tried
        self._shadow, self._graph = shadow, tried.graphs[name]
        self.signature: Signature = self._graph.signature
        self._most_rows = self.signature.fixed_batch or tried.tunings[name].max_batch_size

    def run(
        self, tensors: Mapping[str, Array], outputs: tuple[str, ...] = (), **conditions: Unpack[Conditions]
    ) -> Mapping[str, Array]:
        """Compute the outputs, as a `Runnable` does."""
        self._shadow.give_way()
        rows = 1 if self._shadow.tried.task.runs_whole else len(next(iter(tensors.values())))
        if rows <= self._most_rows:
            return self._graph.run(tensors, outputs, **conditions)
        parts = []
        for start in range(0, rows, self._most_rows):
            self._shadow.give_way()
            part = {name: array[start : start + self._most_rows] for name, array in tensors.items()}
            parts.append(self._graph.run(part, outputs, **conditions))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
