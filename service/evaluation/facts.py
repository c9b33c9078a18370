"""What is told beside the figures: the model's size and speed, the machine, the versions, the commit."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
from pydantic import ValidationError

from service import __version__
from service.cpu import cpu_budget, processor_name
from service.errors import ServiceError, as_sentence
from service.evaluation.base import Answer, Conversation, EvaluationFailed, Infer, Question
from service.evaluation.transport import task_request
from service.graph import Array, Run, Steps
from service.registry.handle import ModelHandle
from service.runtime.batcher import drive
from service.runtime.session import OnnxSession
from service.tasks.base import TaskOutput

TIMED_RUNS = 200
TIMED_S = 3.0
"""The graph is timed for so many runs or so long, whichever is less (count, seconds)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the model and of the machine that measured it.

    Attributes:
        parameters: numbers stored in the graph's weights (count).
        size_bytes: of the graph file.
        digest: SHA-256 of the graph file.
        item_ms: median CPU time of the graph for one item, alone, on one core (milliseconds).
        item: what one item is.
        machine: processor and cores.
        versions: of what computes.
        commit: of the repository that holds the model; empty where there is none.
        date: UTC.
    """

    parameters: int
    size_bytes: int
    digest: str
    item_ms: float
    item: str
    machine: str
    versions: Mapping[str, str]
    commit: str
    date: str


def facts(handle: ModelHandle, folder: Path, timed: Conversation, item: str) -> Facts:
    """Gather them.

    Args:
        handle: the loaded model.
        folder: of its version.
        timed: a conversation whose last run is timed.
        item: what that run is for.
    """
    graph = folder / "model.onnx"
    return Facts(
        parameters=parameters(graph),
        size_bytes=handle.size_bytes,
        digest=handle.digest,
        item_ms=run_ms(handle, graph, timed),
        item=item,
        machine=machine(),
        versions={
            "gridloop": __version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        commit=commit(folder),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def run_ms(handle: ModelHandle, graph: Path, timed: Conversation) -> float:
    """Median CPU time of the last run of a conversation, by a session of one thread (milliseconds).

    Raises:
        EvaluationFailed: the conversation asks nothing.
    """
    listener = _Listener(handle, OnnxSession(graph))
    try:
        question = next(timed)
        while True:
            question = timed.send(_answer(handle, listener, question))
    except StopIteration:
        pass
    except (ServiceError, ValidationError) as error:
        raise EvaluationFailed(f"what is timed: {as_sentence(error)}") from error
    finally:
        timed.close()
    if listener.last is None:
        raise EvaluationFailed("nothing was run that could be timed")
    tensors = dict(handle.task.prepare(listener.last.tensors))
    times: list[float] = []
    until = time.perf_counter() + TIMED_S
    while len(times) < 10 or (len(times) < TIMED_RUNS and time.perf_counter() < until):
        began = time.thread_time()  # the run is this thread's alone, so what else the machine does is not counted
        listener.session.run(tensors, listener.last.outputs)
        times.append(time.thread_time() - began)
    return 1e3 * float(np.median(times[len(times) // 10 :]))


def _answer(handle: ModelHandle, listener: _Listener, question: Question) -> Answer:
    """A question answered in this thread."""
    if isinstance(question, Infer):
        return listener.run(question.tensors, question.outputs)
    steps: Steps[TaskOutput] = handle.task.steps(task_request(handle, question))
    answer: dict[str, Any] = orjson.loads(drive(listener, steps).to_json())
    return answer


class _Listener:
    """A session that remembers its last run."""

    def __init__(self, handle: ModelHandle, session: OnnxSession) -> None:
        self._handle, self.session, self.signature = handle, session, session.signature
        self.last: Run | None = None

    def run(
        self, tensors: Mapping[str, Array], outputs: tuple[str, ...] = (), *, alone: bool = False
    ) -> dict[str, Array]:
        self.last = Run(dict(tensors), outputs)
        return self.session.run(self._handle.task.prepare(tensors), outputs)


# ------------------------------------------------------------------------------------------------------- the graph file

# Field numbers of onnx.proto; https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_ATTRIBUTE, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 5, 5, 6, 11
_TENSOR_DIMS, _TENSOR_TYPE = 1, 2
_INTEGERS_AND_TEXT = frozenset({5, 6, 7, 8, 9, 12, 13})
"""Element types that hold indices, shapes and flags, not weights: (u)int16..64, bool, string."""


def parameters(graph: Path) -> int:
    """How many numbers the weights of a graph are: elements of float and 8-bit tensors with at least one axis.

    Read from the file's own format (protocol buffers), of which only sizes are looked at: no weight is copied, and
    nothing is needed that serving does not have. BatchNorm that was folded into convolutions is not there to count.
    """
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            return sum(_count(view, *span) for number, span in _fields(view, 0, len(view)) if number == _MODEL_GRAPH)
        finally:
            view.release()


def _count(view: memoryview, begin: int, end: int) -> int:
    """The weights of one graph and of the graphs in its nodes."""
    total = 0
    for number, span in _fields(view, begin, end):
        if number == _GRAPH_INITIALIZER:
            total += _elements(view, *span)
        elif number == _GRAPH_NODE:
            for inner, attribute in _fields(view, *span):
                if inner != _NODE_ATTRIBUTE:
                    continue
                for kind, value in _fields(view, *attribute):
                    if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                        total += _count(view, *value)
                    elif kind == _ATTRIBUTE_TENSOR:  # a Constant
                        total += _elements(view, *value)
    return total


def _elements(view: memoryview, begin: int, end: int) -> int:
    dims: list[int] = []
    kind = 0
    for number, (start, stop) in _fields(view, begin, end):
        if number == _TENSOR_DIMS:  # one varint, or several packed
            at = start
            while at < stop:
                value, at = _varint(view, at)
                dims.append(value)
        elif number == _TENSOR_TYPE:
            kind, _ = _varint(view, start)
    return 0 if not dims or kind in _INTEGERS_AND_TEXT else int(np.prod(dims))


def _fields(view: memoryview, begin: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Every field of a message: its number, and where its value begins and ends."""
    at = begin
    while at < end:
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            start = at
            _, at = _varint(view, at)
            yield number, (start, at)
        elif wire == 2:
            length, start = _varint(view, at)
            at = start + length
            yield number, (start, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise EvaluationFailed("model.onnx is not a protocol buffer as ONNX writes them")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


# ---------------------------------------------------------------------------------------------------------- the machine


def machine() -> str:
    """Processor and cores, in a few words."""
    cores = cpu_budget().cores
    return f"{processor_name()}, {cores} core{'s' * (cores > 1)}"


def commit(folder: Path) -> str:
    """The commit that is checked out around a folder, with what is changed in it; empty outside a repository."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        # Nothing of a caller's is in the command: the folder is that of a model which was loaded.
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=environment)  # noqa: S603
        return done.stdout.strip()

    try:
        number = git("rev-parse", "--short=10", "HEAD")
        return number + (" with changes to the model" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return ""
