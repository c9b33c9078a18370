"""State tokens: a recurrent model's memory as an opaque string that travels with the client.

No replica keeps anything between two requests, so any replica continues any stream and a crash loses nothing.

Layout, before base64url without padding: 4 bytes CRC-32 of the rest · 4 bytes length of the header · header as
JSON · the arrays' bytes one after another. The header holds the model's name and version, each array's name, dtype and
shape, and a small `extra` dict of the task. The checksum notices every changed byte; it is no signature: a token must
still be treated as untrusted input: its size is bounded and its numbers must be finite. Recurrent state hardly
compresses, so nothing is compressed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from service.errors import InvalidState, shortened

MAX_TOKEN_CHARS = 64 * 1024
"""A longer token is refused unread (characters)."""

_CHECKSUM_BYTES = 4
_DTYPES = {"<f4", "<f8", "<i8", "<i4"}


@dataclass(frozen=True)
class State:
    """What a stream remembers: named arrays without a batch axis, and a small dict that JSON can hold."""

    arrays: Mapping[str, NDArray[Any]]
    extra: Mapping[str, Any] = field(default_factory=dict)


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
