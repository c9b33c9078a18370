"""State tokens: a recurrent model's memory as an opaque string that travels with the client.

No replica keeps anything between two requests, so any replica continues any stream and a crash loses nothing.

Layout, before base64url without padding: 4 bytes CRC-32 of the rest · 4 bytes length of the header · header as
JSON · the arrays' bytes one after another. The header holds the model's name and version, each array's name, dtype and
shape, and a small `extra` dict of the task. Recurrent state hardly compresses, so nothing is compressed.

The checksum notices every changed byte, but it is no signature: anybody can make a token. So its size is bounded, and
`Bounds` says which numbers a graph can have left behind. The same bounds hold for what is issued: from a forged token
that passes, a graph may compute what does not, and then the request is refused, not the next one.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.errors import InvalidState, shortened

MAX_TOKEN_CHARS = 64 * 1024
"""A longer token is refused unread (characters)."""
MAX_ARRAY_BYTES = 44 * 1024
"""Most that the arrays of a token may have together: base64 leaves some 5,000 characters for the rest (bytes)."""

_CHECKSUM_BYTES = 4
_DTYPES = {"<f4", "<f8", "<i8", "<i4"}


@dataclass(frozen=True)
class State:
    """What a stream remembers: named arrays without a batch axis, and a small dict that JSON can hold."""

    arrays: Mapping[str, NDArray[Any]]
    extra: Mapping[str, Any] = field(default_factory=dict)


class StateRange(BaseModel):
    """Which numbers some columns of a recurrent state can have: a table in the manifest's `[state_ranges]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    """The first, and the one after the last, along the last axis; left out: all."""
    least: Annotated[float, Field(allow_inf_nan=False)] | None = None
    most: Annotated[float, Field(allow_inf_nan=False)] | None = None
    whole: bool = False
    """Whether they are whole numbers, such as counts."""

    @model_validator(mode="after")
    def _is_a_range(self) -> StateRange:
        if self.columns is not None and self.columns[0] >= self.columns[1]:
            raise ValueError(f"columns = {list(self.columns)} has none; write the first and the one after the last")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least = {self.least:g} is above most = {self.most:g}")
        return self


LEADS_NOWHERE = "leads, with this input, to numbers that the model cannot hold"
"""What is wrong with a state whose numbers could be, but not together."""


class OutOfRange(ArithmeticError):
    """A run has led to numbers that no token may hold, or no answer."""


class Bounds:
    """What a graph can have left behind in one array of its state.

    Args:
        shape: of the array, without a batch axis.
        dtype: of its elements.
        ranges: of its columns; where there are none, every finite number.

    Raises:
        ValueError: a range has columns that the array has not; the message names them.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], ranges: Sequence[StateRange] = ()) -> None:
        self.shape, self.dtype = shape, dtype
        columns = shape[-1] if shape else 1
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        least, most = np.full(columns, limits.min, dtype), np.full(columns, limits.max, dtype)
        whole = np.zeros(columns, np.bool_)
        for each in ranges:
            start, stop = each.columns or (0, columns)
            if stop > columns:
                raise ValueError(f"columns = [{start}, {stop}], but there are {columns}")
            if each.least is not None and each.least > float(limits.min):
                least[start:stop] = each.least
            if each.most is not None and each.most < float(limits.max):
                most[start:stop] = each.most
            whole[start:stop] |= each.whole
        self._least, self._most = least, most
        self._whole = np.flatnonzero(whole) if dtype.kind == "f" and whole.any() else None
        self._has_ranges = bool(ranges)

    def hold(self, array: NDArray[Any]) -> bool:
        """Whether a graph can have left this behind."""
        if not self.are_finite(array):
            return False
        if not self._has_ranges:
            return True
        inside = bool(((array >= self._least) & (array <= self._most)).all())
        if not inside or self._whole is None:
            return inside
        counts = array[..., self._whole]
        return bool((counts == np.rint(counts)).all())

    def are_finite(self, array: NDArray[Any]) -> bool:
        """Whether it is such an array and has finite numbers: all that can be wrong where no token was believed."""
        if array.shape != self.shape or array.dtype != self.dtype:
            return False
        # A product is several times as quick, and finite unless a number is not, or very large.
        return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def pack(model: str, version: str, state: State) -> str:
    """Turn a stream's memory into a token.

    Args:
        model: name of the model that made the state.
        version: its version.
        state: arrays of float32, float64, int32 or int64, all finite; some 45 KiB together at most. Its dict:
            text without lone surrogates, numbers of 64 bits, lists and dicts of such.

    Returns:
        URL-safe ASCII text.
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in state.arrays.items()}
    header = orjson.dumps(
        {
            "model": [model, version],
            "arrays": [[name, a.dtype.newbyteorder("<").str, a.shape] for name, a in arrays.items()],
            "extra": dict(state.extra),
        }
    )
    body = b"".join([len(header).to_bytes(4, "little"), header, *(a.data for a in arrays.values())])
    return _text(_checksum(body) + body)


def unpack(model: str, version: str, token: str) -> State:
    """Read a token made by `pack` for the same model and version.

    Raises:
        InvalidState: the token is too long, truncated, changed, not finite, or another model's.
    """
    if len(token) > MAX_TOKEN_CHARS:
        raise InvalidState(f"is longer than {MAX_TOKEN_CHARS:,} characters")
    try:
        if "+" in token or "/" in token:  # of the other base64 alphabet, which is read with a warning
            raise ValueError
        data = pybase64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are such
        raise InvalidState("is not a state token of this service") from None
    checksum, body = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    # Base64's last character has bits that decode to nothing: compare the text too, so that they count.
    if checksum != _checksum(body) or _text(data) != token:
        raise InvalidState("is damaged: its checksum does not match")
    try:
        header, payload = _divide(body)
        name, made_by = header["model"]
    except (ValueError, KeyError, TypeError):
        raise InvalidState("is not a state token of this service") from None
    if (name, made_by) != (model, version):
        raise InvalidState(f"was made by model {shortened(f'{name}@{made_by}', 100)}, not by {model}@{version}")
    try:
        return State(_arrays(header["arrays"], payload), dict(header["extra"]))
    except (ValueError, KeyError, TypeError):
        raise InvalidState("is not a state token of this service") from None


_BEGINS = re.compile(rb'.{%d}\{"model":\["([^"\\]*)","([^"\\]*)"\]' % (_CHECKSUM_BYTES + 4), re.DOTALL)
_BEGINS_CHARS = 400


def begun_by(token: str) -> tuple[str, str] | None:
    """Which model and version say that they made a token; only `unpack` finds out whether it is so.

    Returns:
        None for what is no token, or where the names are very long.
    """
    whole = token[: min(len(token), _BEGINS_CHARS) // 4 * 4]
    if "+" in whole or "/" in whole:  # as in `unpack`
        return None
    try:
        found = _BEGINS.match(pybase64.b64decode(whole.encode("ascii"), altchars=b"-_", validate=True))
        return (found[1].decode(), found[2].decode()) if found else None
    except ValueError:
        return None


def _text(data: bytes) -> str:
    return pybase64.b64encode_as_string(data, altchars=b"-_").rstrip("=")


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")


def _divide(body: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(body[:4], "little")
    header = orjson.loads(body[4 : 4 + length])  # refuses deep nesting, where `json` ends in a RecursionError
    if not isinstance(header, dict):
        raise TypeError("header is not an object")
    return header, body[4 + length :]


def _arrays(described: Any, payload: bytes) -> dict[str, NDArray[Any]]:
    arrays, offset = {}, 0
    for name, dtype, shape in described:
        if dtype not in _DTYPES:
            raise ValueError(dtype)
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        array = np.frombuffer(payload[offset:end], dtype=dtype).reshape(shape)
        if not np.isfinite(array).all():
            raise ValueError("not finite")
        arrays[str(name)], offset = array, end
    if offset != len(payload):
        raise ValueError("bytes left over")
    return arrays
