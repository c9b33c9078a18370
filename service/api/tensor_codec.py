"""Tensors on the wire: the Open Inference Protocol's requests into arrays, and arrays into its answers.

A body is a JSON object; with the binary tensor extension the raw bytes of tensors follow it, little-endian and without
padding, in the order in which the JSON names them. One `Codec` belongs to one model version. `Codec.steps` is the
generator that the batcher drives, so all of the work here is done in the model's thread, and rows of several callers
share a run.

A client asks the same kind of thing again and again. So the *frame* of a request, all of it but values and id, is
checked once and remembered: names, shapes, parameters, which outputs. Where the bytes before and after the one array of
values came before, only that array is parsed.

Values are checked strictly but not one by one: `struct.pack` writes a list of numbers into the bytes of an array and
itself refuses what is no number, or out of range. Only when it does, the values are looked at singly, to say which.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import numpy as np
import orjson

from service.api.json_size import holds_more_values
from service.errors import BadRequest, InferenceFailed, TooLarge, quoted
from service.graph import SEQUENCE_LENS, Array, Run, Signature, Steps, TensorSpec, ValuesRefused
from service.tasks.base import ModelRef

MAX_DEPTH = 100
"""Depth of lists in `data` (count)."""

REMEMBERED_FRAMES = 256
"""Kinds of requests remembered for a model (count)…"""
REMEMBERED_BYTES = 4096
"""…and how long the JSON of one may be without its values (bytes)."""

MAX_ELEMENTS = 2**32
"""Most elements of an input that is left out: more than a body has rows, fewer than NumPy cannot count with (count)."""
MAX_EMPTY_ELEMENTS = 2**24
"""Product of the non-zero axes of a tensor without elements (count): no bytes of the caller's bound it."""

COUNTED_BYTES = 64 * 1024
"""Longer JSON is only parsed when its values have been counted (bytes)."""
MAX_OTHER_VALUES = 10_000
"""Values that JSON may have beside those of its tensors (count)."""
MAX_SHAPES = 1000
"""Tensors that JSON may describe (count)."""
MAX_SEARCHED_BYTES = 1024 * 1024
"""In longer text that is no JSON, the place of a NaN is not looked for (bytes)."""

_PIECE = 65_536
"""Values that are written into an array in one go (count): other threads run in between."""
_SHAPE = re.compile(rb'"shape"\s*:\s*\[([\d\s,]{0,1000})\]')

_BATCH = "batch axis"
"""Stands for axis 0 in `_Tensor.shape`, whatever the graph calls it."""

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
class Datatype:
    """An element type.

    Attributes:
        name: the protocol's.
        dtype: NumPy's; object for text.
        code: the letter of `struct`; empty for text.
        takes: what JSON values it takes, in words.
    """

    name: str
    dtype: np.dtype[Any]
    code: str
    takes: str


def _integer(name: str, dtype: str, code: str) -> Datatype:
    info = np.iinfo(dtype)
    return Datatype(name, np.dtype(dtype), code, f"whole numbers from {info.min} to {info.max}")


def _float(name: str, dtype: str, code: str) -> Datatype:
    return Datatype(name, np.dtype(dtype), code, f"numbers up to ±{float(np.finfo(dtype).max):.4g}")


DATATYPES: Mapping[str, Datatype] = {
    str(datatype.dtype): datatype
    for datatype in (
        Datatype("BOOL", np.dtype(bool), "?", "true and false"),
        *(_integer(f"UINT{8 * 2**n}", f"uint{8 * 2**n}", code) for n, code in enumerate("BHIQ")),
        *(_integer(f"INT{8 * 2**n}", f"int{8 * 2**n}", code) for n, code in enumerate("bhiq")),
        *(_float(f"FP{16 * 2**n}", f"float{16 * 2**n}", code) for n, code in enumerate("efd")),
        Datatype("BYTES", np.dtype(object), "", "strings"),
    )
}
"""NumPy's name of an element type -> how it goes over the wire."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or output of the graph: an axis is a number, or the symbol of a free one, or None."""

    name: str
    datatype: Datatype
    shape: tuple[int | str | None, ...]

    @property
    def wire_shape(self) -> list[int]:
        """The shape as metadata show it: -1 for every free axis."""
        return [axis if isinstance(axis, int) else -1 for axis in self.shape]


@dataclass(frozen=True, slots=True)
class _Given:
    """An input that a request gives, but for its values."""

    tensor: _Tensor
    shape: tuple[int, ...]
    count: int  # of its elements
    binary_bytes: int | None  # its size after the JSON part; None where the values are in the JSON


@dataclass(frozen=True, slots=True)
class _Frame:
    """A request but for its values and its id."""

    given: tuple[_Given, ...]
    left_out: Mapping[str, Array]  # inputs of one value throughout, which take no memory for that
    wanted: tuple[tuple[str, bool], ...]  # name, and whether in binary form
    run_outputs: tuple[str, ...]  # names of what the graph is to compute; empty means all
    rows: int
    steps: int | None  # along the ragged axis
    answer_bytes: int  # of the outputs wanted, where an axis of unknown size counts as 1
    axes: Mapping[str, int]  # symbol -> size


@dataclass(slots=True)
class Reply:
    """An answer's body; `json_bytes` is the length of its JSON part where tensors follow, else None."""

    body: bytes
    json_bytes: int | None


class Codec:
    """Reads requests for one model version and writes its answers.

    Args:
        ref: the model, as answers name it.
        signature: of its graph.
        max_bytes: largest answer, as tensors.
        max_length: most steps along the ragged axis of a recurrent graph.
        max_rows: most rows of a request.
        whole: axis 0 is no batch, whatever it looks like. Where it cannot be one, that is seen from the signature.
    """

    def __init__(
        self,
        ref: ModelRef,
        signature: Signature,
        *,
        max_bytes: int,
        max_length: int,
        max_rows: int,
        whole: bool = False,
    ) -> None:
        self._name, self._version = ref.name, ref.version
        self._whole = whole or signature.batch_problem is not None
        self._inputs = {name: _tensor(spec, batched=not self._whole) for name, spec in signature.inputs.items()}
        self._outputs = {name: _tensor(spec, batched=not self._whole) for name, spec in signature.outputs.items()}
        self._states: Mapping[str, str] = {} if self._whole else signature.states
        self._ragged = None if self._whole else signature.ragged_axis
        self._max_bytes, self._max_length, self._max_rows = max_bytes, max_length, max_rows
        self._optional = {*self._states, *([SEQUENCE_LENS] if self._ragged else [])}
        self._frame_again = lru_cache(REMEMBERED_FRAMES)(self._frame)
        self._frame_around: dict[tuple[bytes, bytes], _Frame] = {}

    def metadata(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Inputs and outputs as the protocol's metadata."""
        inputs = [
            _metadata(tensor) | ({"parameters": {"optional": True}} if name in self._optional else {})
            for name, tensor in self._inputs.items()
        ]
        return inputs, [_metadata(tensor) for tensor in self._outputs.values()]

    def steps(self, body: bytes, json_bytes: int | None) -> Steps[Reply]:
        """Answer a request.

        Args:
            body: JSON, and the bytes of tensors after it.
            json_bytes: length of the JSON part; None when there is nothing else, 0 when there are only the bytes of
                the one input.

        Raises:
            BadRequest: the request is malformed or does not fit the model.
            TooLarge: the answer would be, or a series is, or there are too many rows.
        """
        identity, frame, tensors = self._read(body, json_bytes)
        if frame.rows > self._max_rows:
            most, setting = self._max_rows, "GRIDLOOP_MAX_ROWS"
            raise TooLarge("The request", limit=most, unit="rows", setting=setting, actual=frame.rows)
        if frame.answer_bytes > self._max_bytes:  # it would need far more memory than the request
            limit, setting = self._max_bytes, "GRIDLOOP_MAX_BODY_BYTES"
            raise TooLarge("The answer", limit=limit, unit="bytes", setting=setting, actual=frame.answer_bytes)
        try:
            outputs = (yield Run(tensors, frame.run_outputs, whole=self._whole)) if frame.rows else self._no_rows(frame)
        except InferenceFailed as failure:
            if isinstance(failure.__cause__, ValuesRefused):  # a typed task would never send them
                raise BadRequest(f"The graph cannot compute with these values: {failure.__cause__}.") from None
            raise
        return self._write(identity, frame, outputs)

    # --- requests

    def _read(self, body: bytes, json_bytes: int | None) -> tuple[str | None, _Frame, dict[str, Array]]:
        """The request's id, what it asks for, and every input of the graph."""
        if json_bytes is not None:
            return self._read_raw(body) if json_bytes == 0 else self._read_json(body, json_bytes)
        begin, end = _array_of_values(body)
        if len(body) - (end - begin) > REMEMBERED_BYTES:
            return self._read_json(body, None)
        around = body[:begin], body[end:]
        frame = self._frame_around.get(around)
        if frame is not None and end - begin <= COUNTED_BYTES:
            text = body[begin:end]
            with contextlib.suppress(orjson.JSONDecodeError):  # what is wrong is said with its place in the whole body
                values, (given,) = orjson.loads(text), frame.given
                array = _values(values, given.tensor, given.count, words=b"t" in text or b"f" in text)
                return None, frame, self._complete(frame, {given.tensor.name: array.reshape(given.shape)})
        identity, frame, tensors = self._read_json(body, None)
        if identity is None and len(frame.given) == 1 and body.count(b",", begin, end) == frame.given[0].count - 1:
            self._remember(around, frame)
        return identity, frame, tensors

    def _remember(self, around: tuple[bytes, bytes], frame: _Frame) -> None:
        """Keep the frame of a request of one input, if the array between these bytes is where its values are read."""
        try:
            (entry,) = orjson.loads(b"[null]".join(around))["inputs"]
            is_there = _flatten([entry.get("data")], look=True) == [None]
        except (ValueError, TypeError, KeyError):  # as it is no JSON any more, or has no such field
            return
        if is_there:
            if len(self._frame_around) >= REMEMBERED_FRAMES:
                self._frame_around.clear()
            self._frame_around[around] = frame

    def _read_json(self, body: bytes, json_bytes: int | None) -> tuple[str | None, _Frame, dict[str, Array]]:
        """A body of JSON, and the bytes of tensors after it."""
        message = _parse(body, json_bytes)
        identity = message.pop("id", None)
        if identity is not None and type(identity) is not str:
            raise BadRequest("`id` must be a string.")
        inputs = message.get("inputs")
        if type(inputs) is not list:
            raise BadRequest('`inputs` must be an array of tensors: {"inputs": [{"name": …, "shape": …, …}]}.')
        if not all(type(entry) is dict for entry in inputs):
            raise BadRequest("Every entry of `inputs` must be an object.")
        data = [entry.pop("data", None) for entry in inputs]
        try:
            text = orjson.dumps(message)
        except orjson.JSONEncodeError as error:
            raise BadRequest(f"The JSON part of the body cannot be understood: {error}.") from None
        frame = self._frame_again(text) if len(text) <= REMEMBERED_BYTES else self._frame(text)
        end = len(body) if json_bytes is None else json_bytes
        # A boolean can only hide among numbers where the JSON has the word at all; a letter is found much sooner.
        words = body.find(b"true", 0, end) >= 0 or (body.find(b"f", 0, end) >= 0 and body.find(b"false", 0, end) >= 0)
        tensors: dict[str, Array] = {}
        for given, values in zip(frame.given, data, strict=True):
            tensor, size = given.tensor, given.binary_bytes
            if size is None:
                array = _values(values, tensor, given.count, words=words)
            elif values is not None:
                raise BadRequest(f"Input {tensor.name!r} has both `data` and `binary_data_size`. Send one of them.")
            elif json_bytes is None:
                raise BadRequest(
                    f"Input {tensor.name!r} has binary_data_size: the header Inference-Header-Content-Length is needed."
                )
            else:
                array = _from_bytes(body, end, size, tensor, given.count)
                end += size
            tensors[tensor.name] = array.reshape(given.shape)
        if end != len(body):
            raise BadRequest(f"{len(body) - end} bytes are left over after the last input.")
        return identity, frame, self._complete(frame, tensors)

    def _read_raw(self, body: bytes) -> tuple[None, _Frame, dict[str, Array]]:
        """A body that is nothing but the one input's bytes: a batch of one, all outputs in binary form."""
        needed = [tensor for name, tensor in self._inputs.items() if name not in self._optional]
        if len(needed) != 1:
            names = ", ".join(tensor.name for tensor in needed) or "none"
            raise BadRequest(f"Only a model with one input takes a body without JSON; this one needs: {names}.")
        (tensor,) = needed
        free = [axis for axis, size in enumerate(tensor.shape) if size != _BATCH and not isinstance(size, int)]
        shape = [size if isinstance(size, int) else 1 for size in tensor.shape]
        if tensor.datatype.code:
            width = tensor.datatype.dtype.itemsize * math.prod(shape)
            if len(free) > 1:
                raise BadRequest(
                    f"Input {tensor.name!r} of shape {tensor.wire_shape} has more than one free axis besides the "
                    "batch: send it with JSON."
                )
            if free:
                shape[free[0]] = len(body) // width if width else 0
            if len(body) != width * (shape[free[0]] if free else 1):
                raise BadRequest(
                    f"The body has {len(body)} bytes; input {tensor.name!r} of shape {tensor.wire_shape} takes "
                    f"{'a multiple of ' if free else ''}{width}."
                )
            values = _from_bytes(body, 0, len(body), tensor, math.prod(shape))
        else:
            if math.prod(shape) != 1:
                raise BadRequest(f"Input {tensor.name!r} of shape {tensor.wire_shape} takes more than one string.")
            values = _strings([body], tensor)
        axes: dict[str, int] = {}
        given = _Given(tensor, self._check_shape(tensor, shape, axes), len(values), len(body))
        frame = self._framed([given], [(name, True) for name in self._outputs], axes)
        return None, frame, self._complete(frame, {tensor.name: values.reshape(shape)})

    def _frame(self, text: bytes) -> _Frame:
        """What a request asks for, checked; `text` is its JSON without values and id."""
        message = orjson.loads(text)
        parameters = self._request_parameters(message)
        axes: dict[str, int] = {}
        given: list[_Given] = []
        for entry in message["inputs"]:
            tensor, shape = self._described(entry, [other.tensor.name for other in given], axes)
            given.append(_Given(tensor, shape, math.prod(shape), _binary_bytes(entry, tensor.name)))
        return self._framed(given, self._wanted(message, binary=parameters.get("binary_data_output", False)), axes)

    def _framed(self, given: list[_Given], wanted: list[tuple[str, bool]], axes: Mapping[str, int]) -> _Frame:
        """Check that all needed inputs are there; state that is left out begins with zeros, lengths are full."""
        there = {entry.tensor.name for entry in given}
        missing = [name for name in self._inputs if name not in there]
        if needed := [name for name in missing if name not in self._optional]:
            raise BadRequest(f"Inputs are missing: {', '.join(needed)}.")
        if _BATCH not in axes and not self._whole:
            raise BadRequest(f"No input is given; the model has: {', '.join(self._inputs)}.")
        rows = 1 if self._whole else axes[_BATCH]
        steps = axes.get(self._ragged) if self._ragged else None
        if steps is not None:
            self._check_steps(rows, steps)
        left_out = {}
        for name in missing:
            tensor = self._inputs[name]
            shape: tuple[int, ...] = (rows,)
            if name in self._states:
                shape = tuple(axis if isinstance(axis, int) else axes.get(axis or "", 1) for axis in tensor.shape)
            if math.prod(shape) > MAX_ELEMENTS:
                raise BadRequest(f"The inputs have {rows} rows, which is too many.")
            value = 0 if name in self._states else steps or 0
            left_out[name] = np.broadcast_to(np.array(value, tensor.datatype.dtype), shape)
        names = {name for name, _ in wanted}
        computed = tuple(name for name in self._outputs if name in names) if len(names) < len(self._outputs) else ()
        return _Frame(
            tuple(given), left_out, tuple(wanted), computed, rows, steps, self._answer_bytes(wanted, axes), axes
        )

    def _complete(self, frame: _Frame, tensors: dict[str, Array]) -> dict[str, Array]:
        """Every input of the graph, in one order, so that runs fit together."""
        lengths = tensors.get(SEQUENCE_LENS) if self._ragged else None
        if lengths is not None and lengths.size and not 0 <= lengths.min() <= lengths.max() <= (frame.steps or 0):
            raise BadRequest(f"Input {SEQUENCE_LENS!r} has a length that is not within 0 and {frame.steps}.")
        tensors.update(frame.left_out)
        return {name: tensors[name] for name in self._inputs}

    def _request_parameters(self, message: dict[str, Any]) -> dict[str, Any]:
        parameters = _parameters(message, "the request")
        for key, value in parameters.items():
            if key.startswith("triton_"):
                raise BadRequest(f"The parameter {quoted(key)} is reserved.")
            if key in _RESERVED and type(value) not in _RESERVED[key]:
                kinds = " or ".join(kind.__name__ for kind in _RESERVED[key])
                raise BadRequest(f"The parameter {key!r} must be of type {kinds}.")
        if self._states and parameters.get("sequence_id"):
            raise BadRequest(
                "This server keeps no sequences. Send the outputs "
                f"{', '.join(self._states.values())} of one answer as the inputs {', '.join(self._states)} of the next "
                "request."
            )
        return parameters

    def _described(
        self, entry: dict[str, Any], before: Collection[str], axes: dict[str, int]
    ) -> tuple[_Tensor, tuple[int, ...]]:
        """Which input an entry of `inputs` is, and its shape; `before` are the names of those before it."""
        name = entry.get("name")
        tensor = self._inputs.get(name) if type(name) is str else None
        if tensor is None:
            raise BadRequest(f"There is no input {quoted(name)}; the model has: {', '.join(self._inputs)}.")
        if tensor.name in before:
            raise BadRequest(f"Input {name!r} is given twice.")
        if entry.get("datatype") != tensor.datatype.name:
            raise BadRequest(
                f"Input {name!r} has datatype {quoted(entry.get('datatype'))}; the model takes {tensor.datatype.name}."
            )
        return tensor, self._check_shape(tensor, entry.get("shape"), axes)

    def _check_shape(self, tensor: _Tensor, shape: Any, axes: dict[str, int]) -> tuple[int, ...]:
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
            raise BadRequest(f"The axis {self._ragged!r} is empty: the model needs at least one step.")
        if steps > self._max_length:
            raise TooLarge(
                f"The axis {self._ragged!r}",
                limit=self._max_length,
                unit="points",
                setting="GRIDLOOP_MAX_SERIES_POINTS",
                actual=steps,
            )

    def _wanted(self, message: dict[str, Any], *, binary: bool) -> list[tuple[str, bool]]:
        """Names of the outputs to return, and whether each is wanted in binary form."""
        entries = message.get("outputs")
        if entries is not None and type(entries) is not list:
            raise BadRequest("`outputs` must be an array of objects with a `name`.")
        if not entries:
            return [(name, binary) for name in self._outputs]
        wanted: dict[str, bool] = {}
        for entry in entries:
            name = entry.get("name") if type(entry) is dict else None
            if type(name) is not str or name not in self._outputs:
                raise BadRequest(f"There is no output {quoted(name)}; the model has: {', '.join(self._outputs)}.")
            if name in wanted:
                raise BadRequest(f"Output {name!r} is asked for twice.")
            parameters = _parameters(entry, f"output {name!r}")
            _no_shared_memory(parameters, f"Output {name!r}")
            if parameters.get("classification"):
                raise BadRequest(f"Output {name!r}: `classification` is not supported here; take the tensor itself.")
            wanted[name] = parameters.get("binary_data", binary)
            if type(wanted[name]) is not bool:
                raise BadRequest(f"Output {name!r}: `binary_data` must be true or false.")
        return list(wanted.items())

    # --- answers

    def _shape_of(self, output: _Tensor, axes: Mapping[str, int], unknown: int) -> list[int]:
        return [axis if isinstance(axis, int) else axes.get(axis or "", unknown) for axis in output.shape]

    def _answer_bytes(self, wanted: list[tuple[str, bool]], axes: Mapping[str, int]) -> int:
        outputs = [self._outputs[name] for name, _ in wanted]
        return sum(o.datatype.dtype.itemsize * math.prod(self._shape_of(o, axes, unknown=1)) for o in outputs)

    def _no_rows(self, frame: _Frame) -> dict[str, Array]:
        """The outputs of an empty batch; an axis of which only a run would tell the size is 0."""
        return {
            name: np.empty(self._shape_of(output, frame.axes, unknown=0), output.datatype.dtype)
            for name, output in self._outputs.items()
        }

    def _write(self, identity: str | None, frame: _Frame, arrays: Mapping[str, Array]) -> Reply:
        outputs: list[dict[str, Any]] = []
        parts: list[bytes] = []
        any_binary = False
        for name, binary in frame.wanted:
            array, datatype = arrays[name], self._outputs[name].datatype
            if array.dtype != datatype.dtype:  # float16, which tasks take as float32
                array = array.astype(datatype.dtype)
            entry: dict[str, Any] = {"name": name, "datatype": datatype.name, "shape": array.shape}
            if binary:
                raw = _to_bytes(array)
                entry["parameters"] = {"binary_data_size": len(raw)}
                parts.append(raw)
                any_binary = True
            elif not datatype.code:
                entry["data"] = array.ravel().tolist()
            else:
                entry["data"] = array.ravel()
            outputs.append(entry)
        message: dict[str, Any] = {"id": identity} if identity is not None else {}
        message |= {"model_name": self._name, "model_version": self._version, "outputs": outputs}
        head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" in head:  # what numbers that are not finite become; or a part of a name
            for entry, (name, binary) in zip(outputs, frame.wanted, strict=True):
                array = arrays[name]
                if array.dtype.kind == "f" and not binary and (lost := np.count_nonzero(~np.isfinite(array))):
                    entry["parameters"] = {"nonfinite_count": lost}
            head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
        return Reply(b"".join([head, *parts]), len(head)) if any_binary else Reply(head, None)


def _tensor(spec: TensorSpec, *, batched: bool) -> _Tensor:
    shape = (_BATCH, *spec.shape[1:]) if batched and spec.shape else spec.shape
    return _Tensor(spec.name, DATATYPES[spec.dtype], shape)


def _metadata(tensor: _Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype.name, "shape": tensor.wire_shape}


def _array_of_values(body: bytes) -> tuple[int, int]:
    """Begin and end of what is, in most requests, the first array of values: the innermost one after `"data"`."""
    data = body.find(b'"data"')
    end = body.find(b"]", data) + 1
    begin = body.rfind(b"[", data, end) if data >= 0 else -1
    return (begin, end) if begin >= 0 else (0, 0)


def _parse(body: bytes, json_bytes: int | None) -> dict[str, Any]:
    """The JSON part of a body."""
    text = body if json_bytes is None else body[:json_bytes]
    if len(text) > COUNTED_BYTES:
        _check_values(text)
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        _refuse_constants(text)
        raise BadRequest(f"The JSON part of the body cannot be read: {error}.") from None
    if type(message) is not dict:
        raise BadRequest("The JSON part of the body must be an object.")
    return message


def _check_values(text: bytes) -> None:
    """Refuse JSON that has more values than the shapes in it take, before anything is built of them."""
    most = MAX_OTHER_VALUES
    for number, match in enumerate(_SHAPE.finditer(text)):
        if number == MAX_SHAPES:
            raise BadRequest(f"The JSON part of the body describes more than {MAX_SHAPES:,} tensors.")
        sizes = [int(size) for size in match[1].split(b",") if size.strip().isdigit()]
        most += sum(accumulate(sizes, operator.mul))  # where `data` is nested, its lists are values as well
    if holds_more_values(text, most):
        raise BadRequest(
            "The JSON part of the body has more values than the shapes of its inputs. Send as many as the shapes say."
        )


def _refuse_constants(text: bytes) -> None:
    """Name the place where text that is no JSON has NaN or Infinity as a value, which is its likeliest fault."""
    if len(text) > MAX_SEARCHED_BYTES or (b"NaN" not in text and b"Infinity" not in text):
        return
    try:
        message = json.loads(text)  # takes them, unlike JSON itself
        inputs = [(entry["name"], _flatten([entry.get("data")], look=True)) for entry in message["inputs"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    for name, values in inputs:
        for index, value in enumerate(values):
            if isinstance(value, float) and not math.isfinite(value):
                raise BadRequest(
                    f"Input {quoted(name)}: element {index} is {json.dumps(value)}, which is not a number in JSON. "
                    "Send the tensor in binary form, which takes it."
                )


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


def _flatten(data: list[Any], *, look: bool) -> list[Any]:
    """The values of lists within lists, row by row.

    Args:
        data: as parsed from JSON.
        look: search every level for lists among values; otherwise a level that begins with a value is taken for the
            last, and a list further on stays in it.
    """
    for _ in range(MAX_DEPTH):
        if not data or not (look or type(data[0]) is list):
            return data
        kinds = set(map(type, data))
        if list not in kinds:
            return data
        if len(kinds) == 1:
            data = list(chain.from_iterable(data))
        else:
            data = list(chain.from_iterable(item if type(item) is list else (item,) for item in data))
    raise BadRequest(f"`data` has lists more than {MAX_DEPTH} deep.")


def _values(data: Any, tensor: _Tensor, count: int, *, words: bool) -> Array:
    """An input's values from JSON, flat.

    Args:
        data: the entry's field.
        tensor: which input.
        count: how many there must be.
        words: whether booleans may be among numbers.
    """
    if data is None:
        raise BadRequest(f"Input {tensor.name!r} has no values: send `data`, or the parameter `binary_data_size`.")
    if type(data) is not list:
        raise BadRequest(f"Input {tensor.name!r}: `data` must be an array.")
    datatype = tensor.datatype
    strict = words or datatype.code in ("?", "")
    flat = _flatten(data, look=strict)
    try:
        if len(flat) == count <= _PIECE and not (strict and _misfit(flat, datatype)):
            if datatype.code:
                return np.frombuffer(struct.pack(f"<{count}{datatype.code}", *flat), datatype.dtype)
            return np.array(flat, object)
    except (struct.error, OverflowError):
        pass
    return _values_in_pieces(data, tensor, count)


def _misfit(flat: list[Any], datatype: Datatype) -> bool:
    """Whether the types of some values are not the datatype's, where `struct.pack` would not mind."""
    kinds = set(map(type, flat))
    if datatype.code == "?":
        return not kinds <= {bool}
    return bool in kinds if datatype.code else not kinds <= {str}


def _values_in_pieces(data: list[Any], tensor: _Tensor, count: int) -> Array:
    """The same for many values, for lists and values side by side, and for the error that says where it is."""
    flat, datatype = _flatten(data, look=True), tensor.datatype
    if len(flat) != count:
        raise BadRequest(f"Input {tensor.name!r} has {len(flat)} values in `data`; its shape has {count}.")
    array = np.empty(count, datatype.dtype)
    for start in range(0, count, _PIECE):
        piece = flat[start : start + _PIECE]
        if not _fill(array[start : start + _PIECE], piece, datatype):
            index = next(i for i, value in enumerate(piece) if not _fill(array[:1], [value], datatype))
            shown = json.dumps(piece[index])
            shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
            raise BadRequest(
                f"Input {tensor.name!r}: element {start + index} is {shown}; {datatype.name} takes {datatype.takes}."
            )
    return array


def _fill(array: Array, values: list[Any], datatype: Datatype) -> bool:
    """Write as many values into an array, if they are all of its datatype."""
    if _misfit(values, datatype):
        return False
    try:
        if datatype.code:
            array[:] = np.frombuffer(struct.pack(f"<{len(values)}{datatype.code}", *values), datatype.dtype)
        else:
            array[:] = values
    except (struct.error, OverflowError):
        return False
    return True


def _from_bytes(body: bytes, start: int, size: int, tensor: _Tensor, count: int) -> Array:
    """An input's values from the bytes after the JSON part, flat; without a copy where memory alignment allows."""
    if start + size > len(body):
        raise BadRequest(
            f"Input {tensor.name!r} has binary_data_size {size}, but only {len(body) - start} bytes are left."
        )
    datatype = tensor.datatype
    if not datatype.code:
        return _strings(_prefixed(memoryview(body)[start : start + size], tensor, count), tensor)
    if size != count * datatype.dtype.itemsize:
        raise BadRequest(
            f"Input {tensor.name!r} has binary_data_size {size}; {count} values of {datatype.name} have "
            f"{count * datatype.dtype.itemsize} bytes."
        )
    array = np.frombuffer(body, datatype.dtype, count, start) if count else np.empty(0, datatype.dtype)
    if datatype.code == "?" and count and array.view(np.uint8).max() > 1:
        raise BadRequest(f"Input {tensor.name!r}: a BOOL is a byte 0 or 1.")
    return array if array.flags.aligned else array.copy()


def _prefixed(data: memoryview, tensor: _Tensor, count: int) -> list[bytes]:
    """Strings, each after its length in 4 bytes."""
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) <= count + MAX_OTHER_VALUES:
        begin = at + 4
        at = begin + (int.from_bytes(data[at:begin], "little") if begin <= len(data) else 0)
        if at > len(data):
            raise BadRequest(f"Input {tensor.name!r}: element {len(found)} runs past the end of the tensor.")
        found.append(bytes(data[begin:at]))
    if len(found) != count:
        more = "at least " if at < len(data) else ""
        raise BadRequest(f"Input {tensor.name!r} has {more}{len(found)} strings; its shape has {count}.")
    return found


def _strings(values: list[bytes], tensor: _Tensor) -> Array:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        try:
            array[index] = value.decode()
        except UnicodeDecodeError:
            raise BadRequest(
                f"Input {tensor.name!r}: element {index} is not UTF-8; the strings of ONNX graphs are."
            ) from None
    return array


def _to_bytes(array: Array) -> bytes:
    """A tensor as it follows the JSON part."""
    if array.dtype.kind != "O":
        return array.tobytes()
    strings = [value.encode() for value in array.ravel().tolist()]
    return b"".join(chain.from_iterable((len(value).to_bytes(4, "little"), value) for value in strings))
