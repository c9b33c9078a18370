"""Drive: work on one request in the calling thread, with no queue, for the command line, checks and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from service.graph import Array, Steps, next_run
from service.runtime.graphs import Graphs, Runnable
from service.runtime.stop import Stop

T = TypeVar("T")


def drive(session: Runnable | Graphs[Runnable], steps: Steps[T], *, stop: Stop | None = None) -> T:
    """Run what a request asks for, one run after another, and return what it returns.

    Args:
        session: the graph, or the several of a version.
        steps: of the request.
        stop: ends the runs.
    """
    graphs = Graphs.of(session)
    outputs: Mapping[str, Array] | None = None
    while True:
        try:
            run = next_run(steps, outputs)
        except StopIteration as end:
            value: T = end.value
            return value
        outputs = graphs[run.graph].run(run.tensors, run.outputs, stop=stop)
