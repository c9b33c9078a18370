"""ModelHandle: one loaded model version. Task, session and batcher behind one `predict`.

The typed routes, the command line and the golden check all go through here, so limits, batching and metrics are the
same for each.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from service.errors import ManifestInvalid
from service.graph import Array, Run, Signature, Steps
from service.registry.golden import FILENAME, check_golden, golden_request, read_golden
from service.registry.manifest import MOST_ROWS, Batching, Manifest
from service.runtime.batcher import Batcher, Done, drive
from service.runtime.cancelling import Cancellation
from service.runtime.packed import forget, packed_copy
from service.runtime.session import OnnxSession
from service.runtime.stop import Stop
from service.runtime.tensors import pad_rows
from service.runtime.tuning import remembered, tune
from service.schemas.model_info import Tuning
from service.tasks import AnyTask
from service.tasks.base import Limits, MediaAnswer, ModelFolder, ModelRef, TaskInput, TaskOutput

log = structlog.get_logger(__name__)

PACKED_FROM_BYTES = 8 * 1024 * 1024
"""From this size of the graph file on, weights are packed into a file that is shared (bytes)."""
MOST_BYTES_TWICE = 64 * 1024 * 1024
"""A larger graph that could not be is not opened a second time for lone runs: its weights would be in memory twice
(bytes)."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the server decides for every model alike.

    Attributes:
        cores: threads that a run may take which has the machine to itself.
        max_queue: rows that may wait per model.
        max_queue_bytes: of bodies that may wait per model.
        limits: largest requests taken.
        tune: whether to measure how each graph runs best.
        load_timeout_s: time for loading one version (seconds).
    """

    cores: int = 1
    max_queue: int = 1024
    max_queue_bytes: int = 64 * 1024 * 1024
    limits: Limits = field(default_factory=Limits)
    tune: bool = False
    load_timeout_s: float = 120.0


class ModelHandle:
    """A model version that is ready to answer.

    Attributes:
        ref: its name and version.
        name: the same as `name@version`.
        task: the loaded task.
        signature: the graph's inputs and outputs.
        claims: what the folder says of the version's weights.
        digest: SHA-256 of the graph file, to tell replicas apart; of it and the files beside it that hold its weights,
            where there are some.
        size_bytes: of all these files.
        tuning: how it is run.
        golden_samples: how many real inputs it was checked with (count).
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        task: type[AnyTask],
        options: LoadOptions,
        *,
        cancellation: Cancellation | None = None,
    ) -> None:
        """Load one version folder: open the graph, check its golden samples, choose how to run it, warm it up.

        Args:
            folder: `models/<name>/<version>`.
            manifest: of the model.
            task: the task that the manifest names.
            options: the server's share of the decisions.
            cancellation: ends the loading.

        Raises:
            ManifestInvalid: anything about the folder that keeps it from being served.
        """
        name, version = folder.parent.name, folder.name
        graph = folder / "model.onnx"
        options_of_task = manifest.options(folder)
        self.claims = manifest.of_version(folder)
        self._graph = OnnxSession(graph, self.claims.constants, cancellation)
        self.signature: Signature = self._graph.signature
        self.ref, self.name = ModelRef(name=name, version=version), f"{name}@{version}"
        model_folder = ModelFolder(
            name, version, folder, self.signature.widened(), options_of_task, state_ranges=self.claims.state_ranges
        )
        self.task = task(model_folder)
        self._session = PreparedSession(self.task, self._graph)
        self.digest, self.size_bytes = self._graph.digest, self._graph.size_bytes
        self._options = options
        where = f"{name}/{version}/{FILENAME}"
        sample: Run | None = None
        self.golden_samples = 0
        if os.path.lexists(folder / FILENAME):
            samples = read_golden(folder, where)
            check_golden(self.task, self._session, samples, folder, where)
            self.golden_samples = len(samples)
            sample = self._one_row(golden_request(self.task, samples[0], folder))
        else:
            log.warning("no golden samples: the model is served unchecked and cold", model=name, version=version)
        if sample and options.tune and self.size_bytes >= PACKED_FROM_BYTES:
            self._pack(graph, sample)
        self.tuning = self._tune(manifest.batching, sample)
        self._graph.lone_threads = self.tuning.lone_threads
        if sample:
            self._warm_up(sample, where)
        # Only now: a server with tight limits still checks its models with whatever samples they bring.
        self.task.folder = dataclasses.replace(model_folder, limits=options.limits)
        self._graph.cannot_be_cancelled()
        self._batcher: Batcher | None = None

    def _one_row(self, request: TaskInput) -> Run | None:
        """One row of the first run that a request needs; None when it needs none, or has no rows."""
        steps: Steps[TaskOutput | MediaAnswer] = self.task.steps(request)
        try:
            run = next(steps)
        except StopIteration:
            return None
        finally:
            steps.close()
        if run.whole:
            return None
        return Run({name: array[:1] for name, array in run.tensors.items()}, run.outputs)

    def _pack(self, graph: Path, sample: Run) -> None:
        """Go on with a packed copy of the graph, whose weights all sessions and workers share."""
        if self._graph.constants:  # the trial repeats rows, which these do not have
            return
        inputs = pad_rows(self._session.prepare(sample.tensors), self.signature.fixed_batch or 1)
        copy = packed_copy(graph, self.digest, inputs)
        if copy:
            try:
                self._graph.check_unchanged()
            except ManifestInvalid:
                forget(copy)  # it may be of what the graph is now
                raise
            self._graph.use_copy(copy, inputs)

    def _tune(self, batching: Batching, sample: Run | None) -> Tuning:
        """Choose how to run the graph; the manifest's word counts most."""
        once = self.size_bytes > MOST_BYTES_TWICE and self._graph.copy is None
        cores, most = 1 if once else self._options.cores, batching.max_batch_size or MOST_ROWS
        choice = Tuning(max_batch_size=most, turn_rows=most, lone_threads=1, source="default")
        if self._options.tune and sample is not None:
            choice = remembered(
                self.digest,
                most,
                cores,
                lambda: tune(
                    self._graph,
                    self._session.prepare(sample.tensors),
                    sample.outputs,
                    most_rows=most,
                    cores=cores,
                ),
            )
        if batching.max_batch_size:
            turn_rows = max(batching.max_batch_size, choice.turn_rows)
            choice = choice.model_copy(
                update={"max_batch_size": batching.max_batch_size, "turn_rows": turn_rows, "source": "manifest"}
            )
        if batching.lone_threads:
            choice = choice.model_copy(update={"lone_threads": batching.lone_threads})
        return choice

    def _warm_up(self, one: Run, where: str) -> None:
        """Run the largest batch once, and see that a row's answer does not depend on its company."""
        rows = self.signature.fixed_batch or self.tuning.max_batch_size
        alone = self._session.run(one.tensors, one.outputs)
        together = self._session.run({n: np.repeat(a, rows, axis=0) for n, a in one.tensors.items()}, one.outputs)
        for name, value in alone.items():
            if value.dtype.kind == "f" and not np.allclose(value[0], together[name][-1], rtol=1e-2, atol=1e-3):
                raise ManifestInvalid(
                    where, f"output {name!r} of one row changes with the batch it is in; set max_batch_size = 1."
                )

    async def predict(self, request: TaskInput, *, timeout_s: float) -> Done[bytes | MediaAnswer]:
        """Answer a request, batched with whatever else waits for this model.

        Returns:
            The answer, JSON as its bytes, and where the time went.

        Raises:
            ServiceError: see `Batcher.submit` and the task.
        """
        return await self.batcher.submit(self.answer(request), rows=request.rows, timeout_s=timeout_s)

    @property
    def batcher(self) -> Batcher:
        """Where any generator of runs is worked on, batched with whatever else waits for this model."""
        if self._batcher is None:  # not before a server has forked its workers: threads do not survive that
            self._batcher = Batcher(
                self._session,
                model=self.ref.name,
                max_batch_size=self.tuning.max_batch_size,
                turn_rows=self.tuning.turn_rows,
                max_queue=self._options.max_queue,
                max_queue_bytes=self._options.max_queue_bytes,
            )
        return self._batcher

    def answer(self, request: TaskInput) -> Steps[bytes | MediaAnswer]:
        """The steps that answer a request; JSON as its bytes."""
        output: TaskOutput | MediaAnswer = yield from self.task.steps(request)
        return output if isinstance(output, MediaAnswer) else output.to_json()

    def predict_now(self, request: TaskInput) -> TaskOutput | MediaAnswer:
        """Answer a request in the calling thread, unbatched: for the command line."""
        steps: Steps[TaskOutput | MediaAnswer] = self.task.steps(request)
        return drive(self._session, steps)

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish what was accepted and release the thread; says whether that worked in time."""
        return self._batcher is None or self._batcher.close(timeout_s)


class PreparedSession:
    """A graph as its task sees it: every batch passes through `Task.prepare` first and `Task.finish` last.

    Where the graph computes in float16, the task does not: it gives and gets float32.
    """

    def __init__(self, task: AnyTask, graph: OnnxSession) -> None:
        self._task, self._graph, self.signature = task, graph, graph.signature
        self._halves = {name for name, spec in self.signature.inputs.items() if spec.dtype == "float16"}
        self._gives_halves = any(spec.dtype == "float16" for spec in self.signature.outputs.values())

    def prepare(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's inputs, as it takes them."""
        prepared = dict(self._task.prepare(tensors))
        for name in self._halves & prepared.keys():
            with np.errstate(over="ignore"):  # what is too large becomes infinite
                prepared[name] = prepared[name].astype(np.float16, copy=False)
        return prepared

    def run(
        self,
        tensors: Mapping[str, Array],
        outputs: tuple[str, ...] = (),
        *,
        alone: bool = False,
        stop: Stop | None = None,
    ) -> Mapping[str, Array]:
        given = self._graph.run(self.prepare(tensors), outputs, alone=alone, stop=stop)
        if self._gives_halves:
            given = {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in given.items()}
        return self._task.finish(given)
