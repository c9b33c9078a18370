"""Values of tensors on the wire: JSON lists and little-endian bytes into arrays, and arrays into bytes.

Values are checked strictly but not one by one: `struct.pack` writes a list of numbers into the bytes of an array and
itself refuses what is no number, or out of range. Only when it does, the values are looked at singly, to say which.
"""

from __future__ import annotations

import json
import struct
from itertools import chain
from typing import Any

import numpy as np

from service.api.open_inference.datatypes import Datatype
from service.api.open_inference.interface import GraphTensor
from service.errors import BadRequest
from service.graph import Array

MAX_DEPTH = 100
"""Depth of lists in `data` (count)."""

MAX_OTHER_VALUES = 10_000
"""Values that JSON, or a tensor of strings, may have beside those that the shapes say (count)."""

_PIECE_VALUES = 65_536
"""Values that are written into an array in one go (count): other threads run in between."""


def flatten(data: list[Any], *, look: bool) -> list[Any]:
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


def from_json(data: Any, tensor: GraphTensor, count: int, *, words: bool) -> Array:
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
    flat = flatten(data, look=strict)
    try:
        if len(flat) == count <= _PIECE_VALUES and not (strict and _misfit(flat, datatype)):
            if datatype.code:
                return np.frombuffer(struct.pack(f"<{count}{datatype.code}", *flat), datatype.dtype)
            return np.array(flat, object)
    except (struct.error, OverflowError):
        pass
    return _from_pieces(data, tensor, count)


def _misfit(flat: list[Any], datatype: Datatype) -> bool:
    """Whether the types of some values are not the datatype's, where `struct.pack` would not mind."""
    kinds = set(map(type, flat))
    if datatype.code == "?":
        return not kinds <= {bool}
    return bool in kinds if datatype.code else not kinds <= {str}


def _from_pieces(data: list[Any], tensor: GraphTensor, count: int) -> Array:
    """The same for many values, for lists and values side by side, and for the error that says where it is."""
    flat, datatype = flatten(data, look=True), tensor.datatype
    if len(flat) != count:
        raise BadRequest(f"Input {tensor.name!r} has {len(flat)} values in `data`; its shape has {count}.")
    array = np.empty(count, datatype.dtype)
    for start in range(0, count, _PIECE_VALUES):
        piece = flat[start : start + _PIECE_VALUES]
        if not _fill(array[start : start + _PIECE_VALUES], piece, datatype):
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


def from_bytes(body: bytes, start: int, size: int, tensor: GraphTensor, count: int) -> Array:
    """An input's values from the bytes after the JSON part, flat; without a copy where memory alignment allows."""
    if start + size > len(body):
        raise BadRequest(
            f"Input {tensor.name!r} has binary_data_size {size}, but only {len(body) - start} bytes are left."
        )
    datatype = tensor.datatype
    if not datatype.code:
        return from_utf8(_prefixed(memoryview(body)[start : start + size], tensor, count), tensor)
    if size != count * datatype.dtype.itemsize:
        raise BadRequest(
            f"Input {tensor.name!r} has binary_data_size {size}; {count} values of {datatype.name} have "
            f"{count * datatype.dtype.itemsize} bytes."
        )
    array = np.frombuffer(body, datatype.dtype, count, start) if count else np.empty(0, datatype.dtype)
    if datatype.code == "?" and count and array.view(np.uint8).max() > 1:
        raise BadRequest(f"Input {tensor.name!r}: a BOOL is a byte 0 or 1.")
    return array if array.flags.aligned else array.copy()


def _prefixed(data: memoryview, tensor: GraphTensor, count: int) -> list[bytes]:
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


def from_utf8(values: list[bytes], tensor: GraphTensor) -> Array:
    """An input's strings, flat."""
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        try:
            array[index] = value.decode()
        except UnicodeDecodeError:
            raise BadRequest(
                f"Input {tensor.name!r}: element {index} is not UTF-8; the strings of ONNX graphs are."
            ) from None
    return array


def to_bytes(array: Array) -> bytes:
    """A tensor as it follows the JSON part."""
    if array.dtype.kind != "O":
        return array.tobytes()
    strings = [value.encode() for value in array.ravel().tolist()]
    return b"".join(chain.from_iterable((len(value).to_bytes(4, "little"), value) for value in strings))
