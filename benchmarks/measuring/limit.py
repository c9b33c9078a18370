"""The in-process limit: the same work with no HTTP, queue or thread, in as many processes as the server has workers."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measuring import BenchmarkFailed
from measuring.workloads import Workload
from service.client.load import percentile
from service.graph import Run, Signature, next_run
from service.registry.manifest import read_manifest
from service.runtime.eight_bits import keep_sums_exact
from service.runtime.memory import keep_freed_memory
from service.runtime.session import OnnxSession
from service.runtime.tensors import batch_key, split, stack
from service.tasks import discover
from service.tasks.base import MediaInput, ModelFolder, Upload

BATCHES = (1, 8, 32)
"""Batch sizes that the in-process limit tries (rows)."""


@dataclass(frozen=True)
class Direct:
    """Graphs in ONNX Runtime with its own defaults and one thread: none of the service's choices are in the limit."""

    sessions: Mapping[str, Any]
    signatures: Mapping[str, Signature]
    task: Any
    content_type: str

    @classmethod
    def open(cls, folder: Path, content_type: str) -> Direct:
        """Load `models/<name>/<version>`."""
        import onnxruntime  # after the service, which switches its telemetry off

        manifest = read_manifest(folder.parent)
        task = discover()[manifest.task]
        signatures = {name: OnnxSession(folder / f"{name}.onnx").signature for name in task.graphs}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # of what it leaves out of a graph it would warn
        keep_sums_exact(options)
        sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in task.graphs
        }
        place = ModelFolder(
            folder.parent.name,
            folder.name,
            folder,
            signatures[task.graphs[0]],
            manifest.options(folder),
            signatures=signatures,
        )
        return cls(sessions, signatures, task(place), content_type)

    def answer(self, bodies: Sequence[bytes]) -> list[bytes]:
        """The answers' bytes to several requests' bytes, their runs batched; no queue, no thread, no HTTP."""
        busy = len(bodies) >= max(BATCHES) // 2  # from where on the service takes the run with less work, too
        steps = [self.task.steps(self._parse(body)) for body in bodies]
        answers: list[bytes] = [b""] * len(bodies)
        waiting: list[tuple[int, Any]] = []

        def advance(index: int, outputs: Mapping[str, Any] | None) -> None:
            try:
                waiting.append((index, next_run(steps[index], outputs).chosen(busy=busy)))
            except StopIteration as stop:
                answers[index] = stop.value.to_json()

        for index in range(len(bodies)):
            advance(index, None)
        while waiting:
            graph, key = self._group_of(waiting[0][1])
            batch = [(index, run) for index, run in waiting if self._group_of(run) == (graph, key)]
            waiting[:] = [(index, run) for index, run in waiting if self._group_of(run) != (graph, key)]
            runs, signature = [run for _, run in batch], self.signatures[graph]
            names = list(runs[0].outputs or signature.outputs)
            values = self.sessions[graph].run(names, self.task.prepare(stack(runs, signature)))
            outputs = self.task.finish(dict(zip(names, values, strict=True)))
            for (index, _), share in zip(batch, split(outputs, runs, signature), strict=True):
                advance(index, share)
        return answers

    def _group_of(self, run: Run) -> tuple[str, Hashable]:
        """Equal for runs that can be one: the graph's name, and what the rows must have in common."""
        graph = run.graph or self.task.graphs[0]
        return graph, batch_key(run, self.signatures[graph])

    def _parse(self, body: bytes) -> Any:
        if issubclass(self.task.Input, MediaInput):
            return self.task.Input.model_validate({"files": (Upload(body, content_type=self.content_type),)})
        return self.task.Input.model_validate_json(body)


@dataclass(frozen=True)
class LimitSample:
    """What the in-process limit did for a while.

    Attributes:
        rate: requests per second of all its processes.
        batch_ms: median time of one batch.
        cpu_ms: CPU time per request.
    """

    rate: float
    batch_ms: float
    cpu_ms: float


def limit_process(pipe: Connection, folder: Path, content_type: str, bodies: Sequence[bytes]) -> None:
    """Answer in batches for as long as the pipe says, until None comes; first send the answer to each body."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        keep_freed_memory()  # as the server does
        try:
            direct = Direct.open(folder, content_type)
            pipe.send([json.loads(direct.answer([body])[0]) for body in bodies])
        except Exception as error:
            pipe.send(BenchmarkFailed(f"the model cannot be run in process: {error}"))
            return
        turn = itertools.cycle(bodies)
        while (job := pipe.recv()) is not None:
            batch, start_at, seconds = job
            direct.answer([next(turn) for _ in range(batch)])
            time.sleep(max(0.0, start_at - time.monotonic()))
            steps: list[float] = []
            cpu = time.process_time()
            began = now = time.perf_counter()
            while now - began < seconds:
                direct.answer([next(turn) for _ in range(batch)])
                before, now = now, time.perf_counter()
                steps.append(now - before)
            count = len(steps) * batch
            cpu_ms = (time.process_time() - cpu) / count * 1e3
            pipe.send(LimitSample(count / (now - began), percentile(sorted(steps), 0.5) * 1e3, cpu_ms))


class Limit:
    """The in-process limit of one endpoint: as many one-thread processes as the server has inference threads.

    Args:
        processes: how many.
        folder: `models/<name>/<version>`.
        workload: whose content type is sent.
        bodies: as sent to the server.
    """

    def __init__(self, processes: int, folder: Path, workload: Workload, bodies: Sequence[bytes]) -> None:
        self._children = [Child(limit_process, folder, workload.content_type, tuple(bodies)) for _ in range(processes)]
        self.answers: list[Any] = self._receive(60)[0]

    def measure(self, batch: int, seconds: float) -> LimitSample:
        """Have all processes answer batches of this size at the same time."""
        start_at = time.monotonic() + 0.05
        for child in self._children:
            child.send((batch, start_at, seconds))
        each: list[LimitSample] = self._receive(seconds + 60)
        return LimitSample(
            sum(sample.rate for sample in each),
            statistics.median(sample.batch_ms for sample in each),
            statistics.mean(sample.cpu_ms for sample in each),
        )

    def _receive(self, timeout_s: float) -> list[Any]:
        return [child.receive(timeout_s) for child in self._children]

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()


# Forked from a process that has imported the runtime and started nothing: a limit is ready at once.
_CONTEXT = multiprocessing.get_context("forkserver")


class Child:
    """A process with a pipe."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        _CONTEXT.set_forkserver_preload(["measuring.limit", "onnxruntime"])
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=target, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        """Give it work."""
        self._pipe.send(message)

    def receive(self, timeout_s: float) -> Any:
        """Its next result.

        Raises:
            BenchmarkFailed: it sent one, ended, or did not answer in time.
        """
        try:
            if not self._pipe.poll(timeout_s):
                raise BenchmarkFailed(f"a process of the benchmark did not answer within {timeout_s:.0f} s")
            message = self._pipe.recv()
        except EOFError:
            raise BenchmarkFailed("a process of the benchmark has died") from None
        if isinstance(message, BenchmarkFailed):
            raise message
        return message

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(2)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
