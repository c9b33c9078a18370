"""What is told beside the figures: the model's size and speed, the machine, the versions, the commit."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
from pydantic import ValidationError

from service import __version__
from service.cpu import cpu_budget, processor_name
from service.errors import ServiceError, as_sentence
from service.evaluation.base import Answer, Conversation, EvaluationFailed, Infer, Question
from service.evaluation.transport import as_answer, task_request
from service.graph import Array, Run, Steps, next_run
from service.registry.handle import ModelHandle
from service.registry.prepared import PreparedGraph
from service.runtime.drive import drive
from service.runtime.graphs import Graphs
from service.runtime.onnx_file import read_model, tensors_of
from service.runtime.session import OnnxSession
from service.tasks.base import MediaAnswer, TaskOutput

T = TypeVar("T")

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
    return Facts(
        parameters=sum(parameters(folder / f"{name}.onnx") for name in handle.graphs),
        size_bytes=handle.size_bytes,
        digest=handle.digest,
        item_ms=run_ms(handle, folder, timed),
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


def run_ms(handle: ModelHandle, folder: Path, timed: Conversation) -> float:
    """Median CPU time of the last run of a conversation, by sessions of one thread (milliseconds).

    Raises:
        EvaluationFailed: the conversation asks nothing.
    """
    graphs = Graphs({name: _reopened(handle, folder, name) for name in handle.graphs})
    last: list[Run] = []
    try:
        question = next(timed)
        while True:
            question = timed.send(_answer(handle, graphs, question, last))
    except StopIteration:
        pass
    except (ServiceError, ValidationError) as error:
        raise EvaluationFailed(f"what is timed: {as_sentence(error)}") from error
    finally:
        timed.close()
    if not last:
        raise EvaluationFailed("nothing was run that could be timed")
    (run,) = last
    graph = graphs[run.graph]
    tensors = graph.prepare(run.tensors)
    times: list[float] = []
    until = time.perf_counter() + TIMED_S
    while len(times) < 10 or (len(times) < TIMED_RUNS and time.perf_counter() < until):
        began = time.thread_time()  # the run is this thread's alone, so what else the machine does is not counted
        graph.session.run(tensors, run.outputs)
        times.append(time.thread_time() - began)
    return 1e3 * float(np.median(times[len(times) // 10 :]))


def _reopened(handle: ModelHandle, folder: Path, name: str) -> PreparedGraph:
    """A graph of a loaded model, opened once more."""
    session = OnnxSession(folder / f"{name}.onnx", handle.claims.constants, some_constants=len(handle.graphs) > 1)
    return PreparedGraph(handle.task, session)


def _answer(handle: ModelHandle, graphs: Graphs[PreparedGraph], question: Question, last: list[Run]) -> Answer:
    """A question answered in this thread; the last run that it took is noted."""
    if isinstance(question, Infer):
        last[:] = [Run(dict(question.tensors), question.outputs)]
        return graphs.main.run(question.tensors, question.outputs)
    steps: Steps[TaskOutput | MediaAnswer] = handle.task.steps(task_request(handle, question))
    answer = drive(graphs, _noting(steps, last))
    return as_answer(answer if isinstance(answer, MediaAnswer) else answer.to_json())


def _noting(steps: Steps[T], last: list[Run]) -> Steps[T]:
    """The same steps; the last run that they ask for is noted."""
    outputs: Mapping[str, Array] | None = None
    while True:
        try:
            run = next_run(steps, outputs)
        except StopIteration as end:
            value: T = end.value
            return value
        last[:] = [run]
        outputs = yield run


# ------------------------------------------------------------------------------------------------------- the graph file

_INTEGERS_AND_TEXT = frozenset({5, 6, 7, 8, 9, 12, 13})
"""Element types that hold indices, shapes and flags, not weights: (u)int16..64, bool, string."""


def parameters(graph: Path) -> int:
    """How many numbers the weights of a graph are: elements of float and 8-bit tensors with at least one axis.

    BatchNorm that was folded into convolutions is not there to count.
    """
    weights = (t for t in tensors_of(read_model(graph)) if t.dims and t.data_type not in _INTEGERS_AND_TEXT)
    return sum(math.prod(tensor.dims) for tensor in weights)


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
