"""Tensors in, tensors out: for graphs that fit no other task. They are served over the Open Inference Protocol alone.

`task = "tensor"` in the manifest is all that such a model needs. Every model of every task answers there; this one has
no endpoint of its own beside it, because there is nothing that could be told of its numbers. Its golden samples are
values by the names of the graph: `{"input": {"inputs": {"x": [[1, 2]]}}, "output": {"outputs": {"y": [[3]]}}}`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from service.errors import InvalidInput
from service.tasks.base import Array, ModelFolder, Run, Steps, Task, TaskInput, TaskOptions, TaskOutput, TensorSpec


class TensorInput(TaskInput):
    """Values for every input of the graph."""

    inputs: dict[str, Any] = Field(description="Name -> numbers, nested as the input's axes are.")


class TensorOutput(TaskOutput):
    """Values of every output."""

    outputs: dict[str, Any] = Field(description="Name -> numbers, nested as the output's axes are.")


class TensorOptions(TaskOptions):
    """What the manifest of such a model may say."""

    batched: bool = True
    """Whether axis 0 of all tensors is the batch, so that rows of several callers may share a run."""


class Tensor(Task[TensorInput, TensorOutput]):
    """The graph's own tensors."""

    name = "tensor"
    summary = "What does this graph compute?"
    Input, Output, Options = TensorInput, TensorOutput, TensorOptions
    options: TensorOptions
    has_route = False

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        self.runs_whole = not self.options.batched or folder.signature.batch_problem is not None

    def steps(self, request: TensorInput) -> Steps[TensorOutput]:
        specs = self.folder.signature.inputs
        if request.inputs.keys() != specs.keys():
            raise InvalidInput(f"The graph takes {', '.join(specs)}; given are {', '.join(request.inputs) or 'none'}.")
        tensors = {name: _array(spec, request.inputs[name]) for name, spec in specs.items()}
        outputs = yield Run(tensors, whole=self.runs_whole)
        values = {name: array.tolist() if array.dtype == object else array for name, array in outputs.items()}
        return TensorOutput.model_construct(model=self.folder.ref, outputs=values)


def _array(spec: TensorSpec, values: Any) -> Array:
    """An input's values as an array of its type and number of axes."""
    try:
        array = np.array(values, spec.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"Input {spec}: the values cannot be read: {error}.") from None
    fits = array.ndim == len(spec.shape) and all(
        size == wanted or not isinstance(wanted, int) for size, wanted in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(f"Input {spec}: the values have shape {list(array.shape)}.")
    return array
