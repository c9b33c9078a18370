"""What a request tells before its end, where somebody reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from service.graph import Run, Settled, Steps
from service.registry.handle import ModelHandle
from service.tasks.base import TaskInput


class Told(NamedTuple):
    """A part of an answer, and after how many runs it was told."""

    event: str
    data: Any
    runs: int


def told(handle: ModelHandle, request: TaskInput) -> tuple[list[Told], Any]:
    """The parts of an answer, and the whole of it as JSON."""
    events, answer = listened(
        handle.answer(request), lambda run: handle.graphs[run.graph].run(run.tensors, run.outputs)
    )
    return events, orjson.loads(answer)


def listened(steps: Steps[Any], answer: Callable[[Run], Mapping[str, Any]]) -> tuple[list[Told], Any]:
    """The parts that steps tell whose runs are answered by a function, and what they return."""
    events: list[Told] = []
    outputs: Mapping[str, Any] | None = None
    runs = 0
    try:
        while True:
            asked = steps.send(outputs)  # type: ignore[arg-type]  # None starts a generator
            if isinstance(asked, Settled):
                events += [Told(part.event, orjson.loads(part.data), runs) for part in asked.parts()]
                outputs = None
            else:
                outputs = answer(asked)
                runs += 1
    except StopIteration as stop:
        return events, stop.value
