"""A graph's inputs and outputs as the protocol shows them: names, datatypes, shapes, which may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.api.open_inference.datatypes import DATATYPES, Datatype
from service.graph import SEQUENCE_LENS, Signature, TensorSpec

BATCH = "batch axis"
"""Stands for axis 0 in `GraphTensor.shape`, whatever the graph calls it."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output of the graph: an axis is a number, or the symbol of a free one, or None."""

    name: str
    datatype: Datatype
    shape: tuple[int | str | None, ...]

    @property
    def wire_shape(self) -> list[int]:
        """The shape as metadata show it: -1 for every free axis."""
        return [axis if isinstance(axis, int) else -1 for axis in self.shape]

    def shape_with(self, sizes: Mapping[str, int], unknown: int) -> tuple[int, ...]:
        """The shape where free axes have these sizes, by symbol, and every other free one the size `unknown`."""
        return tuple(axis if isinstance(axis, int) else sizes.get(axis or "", unknown) for axis in self.shape)

    def metadata(self) -> dict[str, Any]:
        """The tensor as the protocol's metadata."""
        return {"name": self.name, "datatype": self.datatype.name, "shape": self.wire_shape}


class Interface:
    """What a graph takes and gives.

    Attributes:
        inputs: by name, in the graph's order.
        outputs: likewise.
        whole: axis 0 is no batch.
        states: input of recurrent state -> the output that continues it.
        ragged: symbol of the axis along which rows may differ in length; None without one.
        optional: names of the inputs that may be left out.

    Args:
        signature: the graph's.
        whole: axis 0 is no batch, whatever it looks like. Where it cannot be one, that is seen from the signature.
    """

    def __init__(self, signature: Signature, *, whole: bool = False) -> None:
        self.whole = whole or signature.batch_problem is not None
        self.inputs = {name: _tensor(spec, batched=not self.whole) for name, spec in signature.inputs.items()}
        self.outputs = {name: _tensor(spec, batched=not self.whole) for name, spec in signature.outputs.items()}
        self.states: Mapping[str, str] = signature.states
        self.ragged = None if self.whole else signature.ragged_axis
        self.optional = {*self.states, *([SEQUENCE_LENS] if self.ragged else [])}

    def metadata(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Inputs and outputs as the protocol's metadata."""
        inputs = [
            tensor.metadata() | ({"parameters": {"optional": True}} if name in self.optional else {})
            for name, tensor in self.inputs.items()
        ]
        return inputs, [tensor.metadata() for tensor in self.outputs.values()]


def _tensor(spec: TensorSpec, *, batched: bool) -> GraphTensor:
    shape = (BATCH, *spec.shape[1:]) if batched and spec.shape else spec.shape
    return GraphTensor(spec.name, DATATYPES[spec.dtype], shape)
