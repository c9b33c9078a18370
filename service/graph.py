"""The words that tasks and the runtime share: what a graph takes and gives, and what a task asks it to run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SEQUENCE_LENS = "sequence_lens"
"""Name of the graph input, int32 (batch,), that makes the axis after the batch ragged."""

MAIN_GRAPH = "model"
"""Name of the only graph of most versions: their file is `model.onnx`."""


class ValuesRefused(Exception):
    """A run found values that its graph cannot compute with, such as an index beyond a table; the text says which."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output.

    Attributes:
        name: as in the graph.
        dtype: NumPy's name of the element type (`float32`, `int64`; `object` for strings).
        shape: one entry per axis: a number where it is fixed, a symbol's name (or None) where it is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def continued_by(self, after: TensorSpec) -> bool:
        """Whether an output could be this input's next value: of its type, and its shape as far as both are known."""
        if self.dtype != after.dtype or self.dtype == "object" or not self.shape:
            return False
        if not after.shape:
            return True  # of a graph that does not tell
        return len(self.shape) == len(after.shape) and all(
            one == other
            for one, other in zip(self.shape, after.shape, strict=True)
            if isinstance(one, int) and isinstance(other, int)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join('?' if d is None else str(d) for d in self.shape)})"


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, read from the ONNX file itself.

    Attributes:
        inputs: by name; those that have a value in the graph are not among them.
        outputs: by name; those that are no tensors, such as a list of dictionaries, are not among them.
        activations: outputs that are probabilities already, by name: `softmax`, `log_softmax` (their logarithms) or
            `sigmoid`, whichever of these operators they come from.
        declared_states: recurrent state whose names do not say it: input name -> output name.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    activations: Mapping[str, str] = field(default_factory=dict)
    declared_states: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def states(self) -> Mapping[str, str]:
        """Recurrent state: input name -> output name, as declared, and for every input `x` with an output `next_x`."""
        following = {name: self.declared_states.get(name, f"next_{name}") for name in self.inputs}
        return {name: output for name, output in following.items() if output in self.outputs}

    @cached_property
    def fixed_batch(self) -> int | None:
        """Rows of every run, when the graph's batch axis is a number; None when it is free."""
        sizes = {spec.shape[0] if spec.shape else None for spec in self.inputs.values()}
        fixed = {size for size in sizes if isinstance(size, int)}
        return fixed.pop() if len(fixed) == 1 and len(sizes) == 1 else None

    @cached_property
    def batch_problem(self) -> str | None:
        """Why rows of this graph's tensors cannot be batched along axis 0; None when they can."""
        sizes: set[int | None] = set()
        for spec in self.inputs.values():
            if not spec.shape:
                return f"input {spec.name!r} has no axis"
        # An output without axes is one whose shape the graph does not tell.
        tensors = [spec for spec in (*self.inputs.values(), *self.outputs.values()) if spec.shape]
        symbols = {spec.shape[0] for spec in tensors if isinstance(spec.shape[0], str)}
        for spec in tensors:
            sizes.add(spec.shape[0] if isinstance(spec.shape[0], int) else None)
            if symbols & set(spec.shape[1:]):
                return f"{spec} has its batch axis twice"
        return None if len(sizes) == 1 else f"axis 0 is not the same in all of: {'; '.join(map(str, tensors))}"

    @cached_property
    def ragged_axis(self) -> str | None:
        """Symbol of the axis along which rows may differ in length, for graphs with a `sequence_lens` input."""
        if SEQUENCE_LENS not in self.inputs:
            return None
        symbols = [s.shape[1] for s in self.inputs.values() if len(s.shape) > 1 and isinstance(s.shape[1], str)]
        return symbols[0] if symbols else None

    @cached_property
    def ragged_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that have the ragged axis."""
        axis = self.ragged_axis
        return tuple(n for n, s in self.inputs.items() if axis is not None and axis in s.shape[1:2])

    @cached_property
    def free_shape(self) -> bool:
        """Whether any axis but the batch is free, so that runs differ in shape."""
        return any(not isinstance(d, int) for spec in self.inputs.values() for d in spec.shape[1:])

    def widened(self) -> Signature:
        """The same with float32 in place of float16: what tasks compute with, whatever the graph does."""

        def wide(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
            halves = {name: replace(s, dtype="float32") for name, s in specs.items() if s.dtype == "float16"}
            return {**specs, **halves}

        return replace(self, inputs=wide(self.inputs), outputs=wide(self.outputs))

    def fresh_state(self, rows: int = 1) -> dict[str, Array]:
        """The state of a stream that has just begun: zeros (rows, ...) for every recurrent state."""
        return {
            name: np.zeros((rows, *(d if isinstance(d, int) else 1 for d in self.inputs[name].shape[1:])), dtype)
            for name, dtype in ((name, self.inputs[name].dtype) for name in self.states)
        }


@dataclass(slots=True)  # made for every request; frozen, it would take four times as long
class Run:
    """One execution of a graph that a task asks for.

    Attributes:
        tensors: every graph input by name; axis 0 of each is the batch, of equal length in all.
        outputs: names of the outputs wanted; empty means all.
        when_busy: what to run instead while many callers wait: less work in all, but another run will follow it. The
            outputs must tell the task which of the two was run.
        whole: axis 0 of the tensors is no batch: it is run by itself, neither stacked with others nor cut.
        most_rows: most rows of a batch that this run is part of, where rows are so long that many of them would hold up
            everybody else; left out, as many as any batch may have.
        graph: name of the graph, of those that the task declares (`Task.graphs`); left out, the main one.
    """

    tensors: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    when_busy: Run | None = None
    most_rows: int | None = None
    whole: bool = False
    graph: str = ""

    @property
    def rows(self) -> int:
        """Rows of the batch axis."""
        return 1 if self.whole else len(next(iter(self.tensors.values())))

    def chosen(self, *, busy: bool) -> Run:
        """The run to execute: this one, or `when_busy` where there is one and many callers wait."""
        return (busy and self.when_busy) or self


@dataclass(frozen=True, slots=True)
class Part:
    """Something of an answer that is settled while the rest is still worked on.

    Attributes:
        event: what kind of part it is.
        data: the part as JSON.
    """

    event: str
    data: bytes


@dataclass(slots=True)
class Settled:
    """Parts of the answer that will not change any more: yielded between runs, and made only for who reads them.

    Attributes:
        parts: makes them; called at once, by the thread that works on the request, or never.
    """

    parts: Callable[[], Iterable[Part]]


ResultT = TypeVar("ResultT")

Steps = Generator[Run | Settled, Mapping[str, Array], ResultT]
"""Yields runs, is sent the outputs of each (name -> array), returns the result; may yield what is settled in between,
and is sent nothing then."""


def next_run(steps: Steps[Any], outputs: Mapping[str, Array] | None) -> Run:
    """Let a request go on to its next run; what is settled meanwhile nobody reads here.

    Args:
        steps: of the request.
        outputs: of the run before; None begins.

    Raises:
        StopIteration: it has returned its result.
    """
    asked = steps.send(outputs)  # type: ignore[arg-type]  # None starts a generator
    while isinstance(asked, Settled):
        asked = next(steps)
    return asked
