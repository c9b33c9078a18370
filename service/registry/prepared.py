"""PreparedGraph: a graph as its task sees it, with what the task does for whole batches before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import numpy as np

from service.graph import Array
from service.runtime.graphs import Conditions
from service.runtime.session import OnnxSession
from service.tasks import AnyTask


class PreparedGraph:
    """A graph whose every batch passes through `Task.prepare` first and `Task.finish` last.

    Where the graph computes in float16, the task does not: it gives and gets float32.

    Attributes:
        session: the graph itself.
        signature: what it takes and gives.
    """

    def __init__(self, task: AnyTask, session: OnnxSession) -> None:
        self._task, self.session, self.signature = task, session, session.signature
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
        self, tensors: Mapping[str, Array], outputs: tuple[str, ...] = (), **conditions: Unpack[Conditions]
    ) -> Mapping[str, Array]:
        """Compute the outputs of one batch, as a `Runnable` does."""
        given: Mapping[str, Array] = self.session.run(self.prepare(tensors), outputs, **conditions)
        if self._gives_halves:
            given = {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in given.items()}
        return self._task.finish(given)
