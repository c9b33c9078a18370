"""The frame of a request: all of it but values and id. Names, shapes, parameters, which outputs; checked.

A client asks the same kind of thing again and again, so the codec remembers frames instead of checking each again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from service.api.open_inference.interface import BATCH, GraphTensor, Interface
from service.errors import BadRequest, TooLarge, quoted
from service.graph import Array

MAX_ELEMENTS = 2**32
"""Most elements of an input that is left out: more than a body has rows, fewer than NumPy cannot count with (count)."""

MAX_EMPTY_ELEMENTS = 2**24
"""Product of the non-zero axes of a tensor without elements (count): no bytes of the caller's bound it."""

_SCALARS = (str, int, float, bool)
_RESERVED: Mapping[str, tuple[type, ...]] = {
    "binary_data_output": (bool,),
    "priority": (int,),
    "sequence_end": (bool,),
    "sequence_id": (int, str),
    "sequence_start": (bool,),
    "timeout": (int,),
}


@dataclass(frozen=True, slots=True)
class GivenInput:
    """An input that a request gives, but for its values.

    Attributes:
        tensor: which.
        shape: as given.
        count: of its elements.
        binary_bytes: its size after the JSON part; None where the values are in the JSON.
    """

    tensor: GraphTensor
    shape: tuple[int, ...]
    count: int
    binary_bytes: int | None


class Wanted(NamedTuple):
    """An output that a request asks for.

    Attributes:
        name: which.
        binary: whether after the JSON part.
        classes: how many of the highest values are wanted instead of the tensor, each with its place and label (the
            classification extension); 0: the tensor itself.
    """

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """A request but for its values and its id.

    Attributes:
        given: the inputs, in the order of the request.
        left_out: inputs of one value throughout, which take no memory for that.
        wanted: the outputs to return, in this order.
        run_outputs: names of what the graph is to compute; empty means all.
        rows: of every input.
        steps: along the ragged axis; None without one.
        answer_bytes: of the outputs wanted, where an axis of unknown size counts as 1.
        axes: symbol -> size.
        timeout_s: after which the answer is of no use (seconds); 0 where nothing is said.
    """

    given: tuple[GivenInput, ...]
    left_out: Mapping[str, Array]
    wanted: tuple[Wanted, ...]
    run_outputs: tuple[str, ...]
    rows: int
    steps: int | None
    answer_bytes: int
    axes: Mapping[str, int]
    timeout_s: float = 0.0


class FrameReader:
    """Checks what requests ask of one graph.

    Args:
        interface: the graph's.
        max_length: most steps along the ragged axis of a recurrent graph.
    """

    def __init__(self, interface: Interface, max_length: int) -> None:
        self._interface, self._max_length = interface, max_length

    def read(self, text: bytes) -> Frame:
        """The frame of a request, of its JSON without values and id; `inputs` is known to be a list of objects.

        Raises:
            BadRequest: it does not fit the graph.
            TooLarge: a series is too long.
        """
        message = orjson.loads(text)
        parameters = self._request_parameters(message)
        axes: dict[str, int] = {}
        given: list[GivenInput] = []
        for entry in message["inputs"]:
            tensor, shape = self._described(entry, [other.tensor.name for other in given], axes)
            given.append(GivenInput(tensor, shape, math.prod(shape), _binary_bytes(entry, tensor.name)))
        wanted = self._wanted(message, binary=parameters.get("binary_data_output", False))
        frame = self._framed(given, wanted, axes)
        timeout_us = parameters.get("timeout")
        return dataclasses.replace(frame, timeout_s=timeout_us / 1e6) if timeout_us else frame

    def of_one_input(self, tensor: GraphTensor, shape: list[int], size_bytes: int) -> Frame:
        """The frame of a body without JSON: the bytes of one input, and all outputs wanted in binary form."""
        axes: dict[str, int] = {}
        given = GivenInput(tensor, self._check_shape(tensor, shape, axes), math.prod(shape), size_bytes)
        return self._framed([given], [Wanted(name, binary=True) for name in self._interface.outputs], axes)

    def _request_parameters(self, message: dict[str, Any]) -> dict[str, Any]:
        parameters = _parameters(message, "the request")
        for key, value in parameters.items():
            if key.startswith("triton_"):
                raise BadRequest(f"The parameter {quoted(key)} is reserved.")
            if key in _RESERVED and type(value) not in _RESERVED[key]:
                kinds = " or ".join(kind.__name__ for kind in _RESERVED[key])
                raise BadRequest(f"The parameter {key!r} must be of type {kinds}.")
            if key in ("priority", "timeout") and value < 0:
                raise BadRequest(f"The parameter {key!r} must be 0 or more.")
        states = self._interface.states
        if states and parameters.get("sequence_id"):
            raise BadRequest(
                "This server keeps no sequences. Send the outputs "
                f"{', '.join(states.values())} of one answer as the inputs {', '.join(states)} of the next request."
            )
        return parameters

    def _described(
        self, entry: dict[str, Any], before: Collection[str], axes: dict[str, int]
    ) -> tuple[GraphTensor, tuple[int, ...]]:
        """Which input an entry of `inputs` is, and its shape; `before` are the names of those before it."""
        name = entry.get("name")
        tensor = self._interface.inputs.get(name) if type(name) is str else None
        if tensor is None:
            raise BadRequest(f"There is no input {quoted(name)}; the model has: {', '.join(self._interface.inputs)}.")
        if tensor.name in before:
            raise BadRequest(f"Input {name!r} is given twice.")
        if entry.get("datatype") != tensor.datatype.name:
            raise BadRequest(
                f"Input {name!r} has datatype {quoted(entry.get('datatype'))}; the model takes {tensor.datatype.name}."
            )
        return tensor, self._check_shape(tensor, entry.get("shape"), axes)

    def _check_shape(self, tensor: GraphTensor, shape: Any, axes: dict[str, int]) -> tuple[int, ...]:
        """The shape, if the input may have it; `axes` learns the sizes of its free axes."""
        if type(shape) is not list or not all(type(size) is int and size >= 0 for size in shape):
            raise BadRequest(f"Input {tensor.name!r}: `shape` must be an array of whole numbers, 0 or more.")
        fits = len(shape) == len(tensor.shape)
        if fits:
            for size, wanted in zip(shape, tensor.shape, strict=True):
                if isinstance(wanted, int):
                    fits = fits and size == wanted
                elif wanted is not None and axes.setdefault(wanted, size) != size:
                    raise BadRequest(
                        f"Input {tensor.name!r} of shape {quoted(shape)} does not fit beside the others: its {wanted} "
                        f"is {size}, theirs is {axes[wanted]}."
                    )
        if not fits:
            raise BadRequest(f"Input {tensor.name!r} has shape {quoted(shape)}; the model takes {tensor.wire_shape}.")
        if not math.prod(shape) and math.prod(filter(None, shape)) > MAX_EMPTY_ELEMENTS:
            raise BadRequest(f"Input {tensor.name!r} has shape {quoted(shape)}, which is too large.")
        return tuple(shape)

    def _check_steps(self, rows: int, steps: int) -> None:
        """See that a series is neither empty nor endless."""
        if rows and not steps:
            raise BadRequest(f"The axis {self._interface.ragged!r} is empty: the model needs at least one step.")
        if steps > self._max_length:
            raise TooLarge(
                f"The axis {self._interface.ragged!r}",
                limit=self._max_length,
                unit="points",
                setting="GRIDLOOP_MAX_SERIES_POINTS",
                actual=steps,
            )

    def _wanted(self, message: dict[str, Any], *, binary: bool) -> list[Wanted]:
        """The outputs to return; `binary` is what holds for those that do not say how."""
        entries, outputs = message.get("outputs"), self._interface.outputs
        if entries is not None and type(entries) is not list:
            raise BadRequest("`outputs` must be an array of objects with a `name`.")
        if not entries:
            return [Wanted(name, binary) for name in outputs]
        wanted: dict[str, Wanted] = {}
        for entry in entries:
            name = entry.get("name") if type(entry) is dict else None
            if type(name) is not str or name not in outputs:
                raise BadRequest(f"There is no output {quoted(name)}; the model has: {', '.join(outputs)}.")
            if name in wanted:
                raise BadRequest(f"Output {name!r} is asked for twice.")
            parameters = _parameters(entry, f"output {name!r}")
            _no_shared_memory(parameters, f"Output {name!r}")
            as_bytes, classes = parameters.get("binary_data", binary), parameters.get("classification", 0)
            if type(as_bytes) is not bool:
                raise BadRequest(f"Output {name!r}: `binary_data` must be true or false.")
            if type(classes) is not int or classes < 0:
                raise BadRequest(f"Output {name!r}: `classification` must be a whole number, 0 or more.")
            if classes and not outputs[name].datatype.code:
                raise BadRequest(f"Output {name!r} is text, which has no highest value: leave `classification` out.")
            wanted[name] = Wanted(name, as_bytes, classes)
        return list(wanted.values())

    def _framed(self, given: list[GivenInput], wanted: list[Wanted], axes: Mapping[str, int]) -> Frame:
        """Check that all needed inputs are there; state that is left out begins with zeros, lengths are full."""
        interface = self._interface
        there = {entry.tensor.name for entry in given}
        missing = [name for name in interface.inputs if name not in there]
        if needed := [name for name in missing if name not in interface.optional]:
            raise BadRequest(f"Inputs are missing: {', '.join(needed)}.")
        if BATCH not in axes and not interface.whole:
            raise BadRequest(f"No input is given; the model has: {', '.join(interface.inputs)}.")
        rows = 1 if interface.whole else axes[BATCH]
        steps = axes.get(interface.ragged) if interface.ragged else None
        if steps is not None:
            self._check_steps(rows, steps)
        left_out = {}
        for name in missing:
            tensor, is_state = interface.inputs[name], name in interface.states
            shape = tensor.shape_with(axes, unknown=1) if is_state else (rows,)
            if math.prod(shape) > MAX_ELEMENTS:
                raise BadRequest(f"The inputs have {rows} rows, which is too many.")
            value = 0 if is_state else steps or 0
            left_out[name] = np.broadcast_to(np.array(value, tensor.datatype.dtype), shape)
        names = {output.name for output in wanted}
        all_wanted = len(names) == len(interface.outputs)
        computed = () if all_wanted else tuple(name for name in interface.outputs if name in names)
        return Frame(
            tuple(given), left_out, tuple(wanted), computed, rows, steps, self._answer_bytes(wanted, axes), axes
        )

    def _answer_bytes(self, wanted: list[Wanted], axes: Mapping[str, int]) -> int:
        outputs = [self._interface.outputs[output.name] for output in wanted]
        return sum(o.datatype.dtype.itemsize * math.prod(o.shape_with(axes, unknown=1)) for o in outputs)


def _parameters(holder: dict[str, Any], whose: str) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise BadRequest(f"`parameters` of {whose} must be an object.")
    for key, value in parameters.items():
        if type(value) not in _SCALARS:
            raise BadRequest(f"The parameter {quoted(key)} of {whose} must be a string, a number, true or false.")
    return parameters


def _no_shared_memory(parameters: Mapping[str, Any], what: str) -> None:
    if any(key.startswith("shared_memory") for key in parameters):
        raise BadRequest(f"{what}: shared memory is not supported here; send tensors in the body.")


def _binary_bytes(entry: dict[str, Any], name: str) -> int | None:
    """Bytes of an input after the JSON part; None when its values are in `data`."""
    parameters = _parameters(entry, f"input {name!r}")
    if not parameters:
        return None
    _no_shared_memory(parameters, f"Input {name!r}")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise BadRequest(f"Input {name!r}: `binary_data_size` must be a whole number, 0 or more.")
    return size
