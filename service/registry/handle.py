"""ModelHandle: one loaded model version. Task, session and batcher behind one `predict`.

The typed routes, the command line and the golden check all go through here, so limits, batching and metrics are the
same for each.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from service.errors import ManifestInvalid
from service.graph import Run, Signature, Steps
from service.registry.golden import FILENAME, check_golden, golden_request, read_golden
from service.registry.manifest import Manifest
from service.runtime.batcher import Batcher, Done, drive
from service.runtime.session import OnnxSession
from service.tasks import AnyTask
from service.tasks.base import Limits, ModelFolder, ModelRef, TaskInput, TaskOutput

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the server decides for every model alike.

    Attributes:
        threads: ONNX Runtime threads of each session.
        max_queue: rows that may wait per model.
        limits: largest requests taken.
    """

    threads: int = 1
    max_queue: int = 1024
    limits: Limits = field(default_factory=Limits)


class ModelHandle:
    """A model version that is ready to answer.

    Attributes:
        ref: its name and version.
        task: the loaded task.
        signature: the graph's inputs and outputs.
        digest: SHA-256 of the graph file, to tell replicas apart.
        size_bytes: of the graph file.
    """

    def __init__(self, folder: Path, manifest: Manifest, task: type[AnyTask], options: LoadOptions) -> None:
        """Load one version folder: open the graph, check its golden samples, warm it up.

        Args:
            folder: `models/<name>/<version>`.
            manifest: of the model.
            task: the task that the manifest names.
            options: the server's share of the decisions.

        Raises:
            ManifestInvalid: anything about the folder that keeps it from being served.
        """
        name, version = folder.parent.name, folder.name
        graph = folder / "model.onnx"
        self._session = OnnxSession(graph, threads=options.threads)
        self.signature: Signature = self._session.signature
        self.ref = ModelRef(name=name, version=version)
        model_folder = ModelFolder(name, version, folder, self.signature, manifest.preprocessing)
        self.task = task(model_folder)
        self.digest = _sha256(graph)
        self.size_bytes = graph.stat().st_size
        where = f"{name}/{version}/{FILENAME}"
        self._max_batch_size = manifest.batching.max_batch_size
        if (folder / FILENAME).exists():
            samples = read_golden(folder, where)
            check_golden(self.task, self._session, samples, folder, where)
            self._warm_up(golden_request(self.task, samples[0], folder), where)
        else:
            log.warning("no golden samples: the model is served unchecked and cold", model=name, version=version)
        # Only now: a server with tight limits still checks its models with whatever samples they bring.
        self.task.folder = dataclasses.replace(model_folder, limits=options.limits)
        self._max_queue = options.max_queue
        self._batcher: Batcher | None = None

    def _warm_up(self, request: TaskInput, where: str) -> None:
        """Run the largest batch once, and see that a row's answer does not depend on its company."""
        steps: Steps[TaskOutput] = self.task.steps(request)
        try:
            run = next(steps)
        except StopIteration:
            return
        finally:
            steps.close()
        one = Run({n: a[:1] for n, a in run.tensors.items()}, run.outputs)
        rows = self.signature.fixed_batch or self._max_batch_size
        alone = self._session.run(one.tensors, one.outputs)
        together = self._session.run({n: np.repeat(a, rows, axis=0) for n, a in one.tensors.items()}, one.outputs)
        for name, value in alone.items():
            if value.dtype.kind == "f" and not np.allclose(value[0], together[name][-1], rtol=1e-2, atol=1e-3):
                raise ManifestInvalid(
                    where, f"output {name!r} of one row changes with the batch it is in; set max_batch_size = 1."
                )

    async def predict(self, request: TaskInput, *, timeout_s: float) -> Done[bytes]:
        """Answer a request, batched with whatever else waits for this model.

        Returns:
            The answer as JSON bytes, and where the time went.

        Raises:
            ServiceError: see `Batcher.submit` and the task.
        """
        return await self.submit(self._answer(request), rows=request.rows, timeout_s=timeout_s)

    async def submit(self, steps: Steps[T], *, rows: int, timeout_s: float) -> Done[T]:
        """Work on any generator of runs, batched with whatever else waits for this model; see `Batcher.submit`."""
        if self._batcher is None:
            self._batcher = Batcher(
                self._session,
                model=self.ref.name,
                max_batch_size=self._max_batch_size,
                max_queue=self._max_queue,
            )
        return await self._batcher.submit(steps, rows=rows, timeout_s=timeout_s)

    def _answer(self, request: TaskInput) -> Steps[bytes]:
        output: TaskOutput = yield from self.task.steps(request)
        return output.to_json()

    def predict_now(self, request: TaskInput) -> TaskOutput:
        """Answer a request in the calling thread, unbatched: for the command line."""
        steps: Steps[TaskOutput] = self.task.steps(request)
        return drive(self._session, steps)

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish what was accepted and release the thread; says whether that worked in time."""
        return self._batcher is None or self._batcher.close(timeout_s)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
