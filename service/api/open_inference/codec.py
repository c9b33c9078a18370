"""A body of the protocol into the tensors of a run, and a run's outputs into the body of the answer.

A body is a JSON object; with the binary tensor extension the raw bytes of tensors follow it, little-endian and without
padding, in the order in which the JSON names them. One `Codec` belongs to one graph of a model version. `Codec.steps`
is the generator that the batcher drives, so all of the work here is done in the model's thread, and rows of several
callers share a run.

Frames are remembered, and where the bytes before and after the one array of values came before, only that array is
parsed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from service.api.open_inference import values
from service.api.open_inference.classes import highest
from service.api.open_inference.compression import Encoding, compressed
from service.api.open_inference.datatypes import DATATYPES
from service.api.open_inference.frame import Frame, FrameReader
from service.api.open_inference.interface import BATCH, Interface
from service.api.open_inference.message import COUNTED_BYTES, array_of_values, parse
from service.errors import BadRequest, DeadlineExceeded, InferenceFailed, TooLarge
from service.graph import SEQUENCE_LENS, Array, Run, Signature, Steps, ValuesRefused
from service.tasks.base import ModelRef

REMEMBERED_FRAMES = 256
"""Kinds of requests remembered for a model (count)."""

REMEMBERED_BYTES = 4096
"""Longest JSON, without its values, of a kind of request that is remembered (bytes)."""


Watch = Callable[[Run, Mapping[str, Array], float], None]
"""Is shown a run that was answered."""


@dataclass(slots=True)
class Reply:
    """An answer's body.

    Attributes:
        body: as it is sent.
        json_bytes: length of its JSON part before compression, where tensors follow it; else None.
        encoding: how it is compressed; empty where it is not.
    """

    body: bytes
    json_bytes: int | None
    encoding: str = ""


class Codec:
    """Reads requests for one graph and writes its answers.

    Args:
        ref: the model, as answers name it.
        signature: of the graph.
        graph: its name; left out, the main one.
        max_bytes: largest answer, as tensors.
        max_length: most steps along the ragged axis of a recurrent graph.
        max_rows: most rows of a request.
        whole: axis 0 is no batch, whatever it looks like. Where it cannot be one, that is seen from the signature.
        labels: what the classes are called, by index.
    """

    def __init__(
        self,
        ref: ModelRef,
        signature: Signature,
        *,
        graph: str = "",
        max_bytes: int,
        max_length: int,
        max_rows: int,
        whole: bool = False,
        labels: Sequence[str] = (),
    ) -> None:
        self._labels = labels
        self._name, self._version, self._graph = ref.name, ref.version, graph
        self._interface = Interface(signature, whole=whole)
        self._max_bytes, self._max_rows = max_bytes, max_rows
        self._frames = FrameReader(self._interface, max_length)
        self._frame_again = lru_cache(REMEMBERED_FRAMES)(self._frames.read)
        self._frame_around: dict[tuple[bytes, bytes], Frame] = {}

    def steps(
        self,
        body: bytes,
        json_bytes: int | None,
        encoding: Encoding | None = None,
        *,
        since: float = 0.0,
        watch: Watch | None = None,
    ) -> Steps[Reply]:
        """Answer a request.

        Args:
            body: JSON, and the bytes of tensors after it.
            json_bytes: length of the JSON part; None when there is nothing else, 0 when there are only the bytes of
                the one input.
            encoding: how the answer may be compressed; None: it may not.
            since: when the request came, by `time.perf_counter`.
            watch: is shown the run, its outputs and the seconds that it took.

        Raises:
            BadRequest: the request is malformed or does not fit the model.
            DeadlineExceeded: the time that the request allows has passed.
            TooLarge: the answer would be, or a series is, or there are too many rows.
        """
        identity, frame, tensors = self._read(body, json_bytes)
        if frame.timeout_s:
            _check_time(frame, since)
        if frame.rows > self._max_rows:
            most, setting = self._max_rows, "GRIDLOOP_MAX_ROWS"
            raise TooLarge("The request", limit=most, unit="rows", setting=setting, actual=frame.rows)
        if frame.answer_bytes > self._max_bytes:  # it would need far more memory than the request
            limit, setting = self._max_bytes, "GRIDLOOP_MAX_BODY_BYTES"
            raise TooLarge("The answer", limit=limit, unit="bytes", setting=setting, actual=frame.answer_bytes)
        try:
            run = Run(tensors, frame.run_outputs, whole=self._interface.whole, graph=self._graph)
            begun = time.perf_counter() if watch is not None else 0.0
            outputs = (yield run) if frame.rows else self._no_rows(frame)
            if watch is not None and frame.rows:
                watch(run, outputs, time.perf_counter() - begun)
        except InferenceFailed as failure:
            if isinstance(failure.__cause__, ValuesRefused):  # a typed task would never send them
                raise BadRequest(f"The graph cannot compute with these values: {failure.__cause__}.") from None
            raise
        if frame.timeout_s:
            _check_time(frame, since)
        reply = self._write(identity, frame, outputs)
        if encoding is not None and len(reply.body) >= encoding.from_bytes:
            return Reply(compressed(reply.body, encoding.name), reply.json_bytes, encoding.name)
        return reply

    # --- requests

    def _read(self, body: bytes, json_bytes: int | None) -> tuple[str | None, Frame, dict[str, Array]]:
        """The request's id, what it asks for, and every input of the graph."""
        if json_bytes is not None:
            return self._read_raw(body) if json_bytes == 0 else self._read_json(body, json_bytes)
        begin, end = array_of_values(body)
        if len(body) - (end - begin) > REMEMBERED_BYTES:
            return self._read_json(body, None)
        around = body[:begin], body[end:]
        frame = self._frame_around.get(around)
        if frame is not None and end - begin <= COUNTED_BYTES:
            text = body[begin:end]
            with contextlib.suppress(orjson.JSONDecodeError):  # what is wrong is said with its place in the whole body
                data, (given,) = orjson.loads(text), frame.given
                array = values.from_json(data, given.tensor, given.count, words=b"t" in text or b"f" in text)
                return None, frame, self._complete(frame, {given.tensor.name: array.reshape(given.shape)})
        identity, frame, tensors = self._read_json(body, None)
        if identity is None and len(frame.given) == 1 and body.count(b",", begin, end) == frame.given[0].count - 1:
            self._remember(around, frame)
        return identity, frame, tensors

    def _remember(self, around: tuple[bytes, bytes], frame: Frame) -> None:
        """Keep the frame of a request of one input, if the array between these bytes is where its values are read."""
        try:
            (entry,) = orjson.loads(b"[null]".join(around))["inputs"]
            is_there = values.flatten([entry.get("data")], look=True) == [None]
        except (ValueError, TypeError, KeyError):  # as it is no JSON any more, or has no such field
            return
        if is_there:
            if len(self._frame_around) >= REMEMBERED_FRAMES:
                self._frame_around.clear()
            self._frame_around[around] = frame

    def _read_json(self, body: bytes, json_bytes: int | None) -> tuple[str | None, Frame, dict[str, Array]]:
        """A body of JSON, and the bytes of tensors after it."""
        message = parse(body, json_bytes)
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
        frame = self._frame_again(text) if len(text) <= REMEMBERED_BYTES else self._frames.read(text)
        end = len(body) if json_bytes is None else json_bytes
        # A boolean can only hide among numbers where the JSON has the word at all; a letter is found much sooner.
        words = body.find(b"true", 0, end) >= 0 or (body.find(b"f", 0, end) >= 0 and body.find(b"false", 0, end) >= 0)
        tensors: dict[str, Array] = {}
        for given, listed in zip(frame.given, data, strict=True):
            tensor, size = given.tensor, given.binary_bytes
            if size is None:
                array = values.from_json(listed, tensor, given.count, words=words)
            elif listed is not None:
                raise BadRequest(f"Input {tensor.name!r} has both `data` and `binary_data_size`. Send one of them.")
            elif json_bytes is None:
                raise BadRequest(
                    f"Input {tensor.name!r} has binary_data_size: the header Inference-Header-Content-Length is needed."
                )
            else:
                array = values.from_bytes(body, end, size, tensor, given.count)
                end += size
            tensors[tensor.name] = array.reshape(given.shape)
        if end != len(body):
            raise BadRequest(f"{len(body) - end} bytes are left over after the last input.")
        return identity, frame, self._complete(frame, tensors)

    def _read_raw(self, body: bytes) -> tuple[None, Frame, dict[str, Array]]:
        """A body that is nothing but the one input's bytes: a batch of one, all outputs in binary form."""
        needed = [tensor for name, tensor in self._interface.inputs.items() if name not in self._interface.optional]
        if len(needed) != 1:
            names = ", ".join(tensor.name for tensor in needed) or "none"
            raise BadRequest(f"Only a model with one input takes a body without JSON; this one needs: {names}.")
        (tensor,) = needed
        free = [axis for axis, size in enumerate(tensor.shape) if size != BATCH and not isinstance(size, int)]
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
            array = values.from_bytes(body, 0, len(body), tensor, math.prod(shape))
        else:
            if math.prod(shape) != 1:
                raise BadRequest(f"Input {tensor.name!r} of shape {tensor.wire_shape} takes more than one string.")
            array = values.from_utf8([body], tensor)
        frame = self._frames.of_one_input(tensor, shape, len(body))
        return None, frame, self._complete(frame, {tensor.name: array.reshape(shape)})

    def _complete(self, frame: Frame, tensors: dict[str, Array]) -> dict[str, Array]:
        """Every input of the graph, in one order, so that runs fit together."""
        lengths = tensors.get(SEQUENCE_LENS) if self._interface.ragged else None
        if lengths is not None and lengths.size and not 0 <= lengths.min() <= lengths.max() <= (frame.steps or 0):
            raise BadRequest(f"Input {SEQUENCE_LENS!r} has a length that is not within 0 and {frame.steps}.")
        tensors.update(frame.left_out)
        return {name: tensors[name] for name in self._interface.inputs}

    # --- answers

    def _no_rows(self, frame: Frame) -> dict[str, Array]:
        """The outputs of an empty batch; an axis of which only a run would tell the size is 0."""
        return {
            name: np.empty(output.shape_with(frame.axes, unknown=0), output.datatype.dtype)
            for name, output in self._interface.outputs.items()
        }

    def _write(self, identity: str | None, frame: Frame, arrays: Mapping[str, Array]) -> Reply:
        outputs: list[dict[str, Any]] = []
        parts: list[bytes] = []
        any_binary = False
        for name, binary, classes in frame.wanted:
            array, datatype = arrays[name], self._interface.outputs[name].datatype
            if array.dtype != datatype.dtype:  # float16, which tasks take as float32
                array = array.astype(datatype.dtype)
            if classes:
                array = highest(array, classes, self._labels, whole=self._interface.whole)
                datatype = DATATYPES["object"]
            entry: dict[str, Any] = {"name": name, "datatype": datatype.name, "shape": array.shape}
            if binary:
                raw = values.to_bytes(array)
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
            for entry, (name, binary, classes) in zip(outputs, frame.wanted, strict=True):
                array = arrays[name]
                if array.dtype.kind != "f" or binary or classes:
                    continue
                if lost := np.count_nonzero(~np.isfinite(array)):
                    entry["parameters"] = {"nonfinite_count": lost}
            head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
        return Reply(b"".join([head, *parts]), len(head)) if any_binary else Reply(head, None)


def _check_time(frame: Frame, since: float) -> None:
    if time.perf_counter() > since + frame.timeout_s:
        raise DeadlineExceeded(frame.timeout_s)
