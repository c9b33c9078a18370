"""Compressed answers: which encoding `Accept-Encoding` asks for, and from which size on it is worth its time."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import NamedTuple

WORTHWHILE_BYTES = 4096
"""Shorter answers are only compressed for who accepts one encoding and names no other (bytes): the HTTP libraries of
most languages accept several with every request, and on a quick network compressing costs more time than it saves."""

_LEVEL = 1
"""Of zlib: numbers become hardly smaller with more effort, which the model's thread would spend."""
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Encoding(NamedTuple):
    """How an answer may be compressed.

    Attributes:
        name: as in `Content-Encoding`.
        from_bytes: smallest body that is.
    """

    name: str
    from_bytes: int


@lru_cache(maxsize=256)
def accepted(header: bytes) -> Encoding | None:
    """The encoding that an `Accept-Encoding` header prefers among gzip, deflate and none; RFC 9110, 12.5.3."""
    weights: dict[str, float] = {}
    for part in header.decode("latin-1").lower().split(","):
        coding, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            weights[coding] = float(weight)
        except ValueError:
            weights[coding] = 0.0
    rest = weights.get("*", 0.0)
    of_gzip, of_deflate = weights.get("gzip", weights.get("x-gzip", rest)), weights.get("deflate", rest)
    best = max(of_gzip, of_deflate)
    if not best > 0 or best < weights.get("identity", 0.0):
        return None
    on_purpose = len(weights) == 1 or "identity" in weights
    return Encoding("gzip" if of_gzip == best else "deflate", 0 if on_purpose else WORTHWHILE_BYTES)


def compressed(body: bytes, encoding: str) -> bytes:
    """A body as gzip (RFC 1952) or, as HTTP means by `deflate`, in the zlib format (RFC 1950)."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return compressor.compress(body) + compressor.flush()
