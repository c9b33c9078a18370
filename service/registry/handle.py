"""ModelHandle: one loaded model version. Task, graphs and batcher behind one `predict`.

The typed routes, the command line and the evaluations all go through here, so limits, batching and metrics are the
same for each. `service.registry.loading` makes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.errors import Draining
from service.graph import Signature, Steps
from service.registry.drift import Drift, read_sketch
from service.registry.manifest import OfVersion
from service.registry.prepared import PreparedGraph
from service.registry.shadow import Shadow
from service.runtime.batcher import Batcher
from service.runtime.drive import drive
from service.runtime.graphs import Graphs
from service.runtime.job import Done
from service.runtime.session import joint_digest
from service.runtime.statistics import Statistics
from service.schemas.model_info import Tuning
from service.tasks import AnyTask
from service.tasks.base import Limits, MediaAnswer, ModelRef, TaskInput, TaskOutput
from service.tasks.validation import validation


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the server decides for every model alike.

    Attributes:
        cores: threads that a run may take which has the machine to itself.
        max_queue: rows that may wait per model.
        max_queue_bytes: of bodies that may wait per model.
        limits: largest requests taken.
        tune: whether to measure how each graph runs best.
        remember: whether such measurements are kept for the next start: not those made while others are answered.
        like: a version of the same model that is served: graphs that look like its own are run as they are.
        load_timeout_s: time for loading one version (seconds).
        workers: processes that will serve it.
        lazy: whether versions that say so are loaded when they are first asked for.
    """

    cores: int = 1
    max_queue: int = 1024
    max_queue_bytes: int = 64 * 1024 * 1024
    limits: Limits = field(default_factory=Limits)
    tune: bool = False
    remember: bool = True
    like: ModelHandle | None = None
    load_timeout_s: float = 120.0
    workers: int = 1
    lazy: bool = False


class ModelHandle:
    """A model version that is ready to answer.

    Args:
        ref: its name and version.
        task: the loaded task.
        graphs: the open graphs.
        tunings: how each of them is run, by name.
        claims: what the folder says of the version's weights.
        golden_samples: how many real inputs it was checked with (count).
        options: the server's limits.

    Attributes:
        name: the same as `name@version`.
        signature: the main graph's inputs and outputs.
        digest: SHA-256 of the graph file, to tell replicas apart; of all of its files, where there are several.
        size_bytes: of all these files.
        tuning: how the main graph is run.
        statistics: what it has done, in all workers.
        drift: how its answers compare with its sketch; None where it has none.
        shadow: what its answers are compared with; None where there is nothing.
    """

    def __init__(
        self,
        ref: ModelRef,
        task: AnyTask,
        graphs: Graphs[PreparedGraph],
        *,
        tunings: Mapping[str, Tuning],
        claims: OfVersion,
        golden_samples: int,
        options: LoadOptions,
    ) -> None:
        self.ref, self.name = ref, f"{ref.name}@{ref.version}"
        self.task, self.graphs, self.tunings = task, graphs, tunings
        self.claims, self.golden_samples = claims, golden_samples
        self.signature: Signature = graphs.main.signature
        self.tuning = next(iter(tunings.values()))
        sessions = [graph.session for graph in graphs.values()]
        self.digest = joint_digest([bytes.fromhex(session.digest) for session in sessions])
        self.size_bytes = sum(session.size_bytes for session in sessions)
        sizes = [graph.signature.fixed_batch or tunings[name].max_batch_size for name, graph in graphs.items()]
        self.statistics = Statistics(options.workers, max(sizes))
        sketch = read_sketch(task.folder.path)
        self.drift = Drift(sketch, options.workers) if sketch else None
        self._options = options
        self._batcher: Batcher | None = None
        self._is_closed = False
        self.shadow: Shadow | None = None

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
        """Where any generator of runs is worked on, batched with whatever else waits for this model.

        Raises:
            Draining: the handle was closed before anybody asked.
        """
        if self._batcher is None:  # not before a server has forked its workers: threads do not survive that
            if self._is_closed:
                raise Draining
            self._batcher = Batcher(
                self.graphs,
                model=self.ref.name,
                tunings=self.tunings,
                max_queue=self._options.max_queue,
                max_queue_bytes=self._options.max_queue_bytes,
                statistics=self.statistics,
            )
        return self._batcher

    def answer(self, request: TaskInput) -> Steps[bytes | MediaAnswer]:
        """The steps that answer a request; JSON as its bytes."""
        shadow = self.shadow
        begun = time.perf_counter() if shadow is not None else 0.0
        output: TaskOutput | MediaAnswer = yield from self.task.steps(request)
        if self.drift is not None and not isinstance(output, MediaAnswer):
            self.drift.note(self.task.traits(request, output))
        answer = output if isinstance(output, MediaAnswer) else output.to_json()
        if shadow is not None:
            shadow.offer(request, answer, time.perf_counter() - begun)
        return answer

    @property
    def is_waited_for(self) -> bool:
        """Whether requests wait for their turn."""
        return self._batcher is not None and self._batcher.waiting > 0

    def validate(self, request: TaskInput) -> Steps[bytes]:
        """The steps that say how a request would be read, as JSON; they run nothing."""
        found = yield from validation(self.task, request)
        return found.to_json()

    def predict_now(self, request: TaskInput) -> TaskOutput | MediaAnswer:
        """Answer a request in the calling thread, unbatched: for the command line."""
        steps: Steps[TaskOutput | MediaAnswer] = self.task.steps(request)
        return drive(self.graphs, steps)

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish what was accepted and release the thread; says whether that worked in time."""
        self._is_closed = True
        if self.shadow is not None:
            self.shadow.close()
        return self._batcher is None or self._batcher.close(timeout_s)
