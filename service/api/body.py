"""Request bodies: received within limits of size and time, and decompressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from service.api.context import EXCHANGE, ClientDisconnected, Exchange
from service.api.in_flight import BodyBytes
from service.errors import BadRequest, BodyTimeout, TooLarge, UnsupportedMedia
from service.settings import Settings

INLINE_BYTES = 64 * 1024
"""Larger bodies are parsed, and always worked on, outside the event loop: it answers probes meanwhile (bytes)."""

MAX_ENCODINGS = 2
"""Encodings on top of each other that are undone (count)."""
MAX_GZIP_MEMBERS = 10_000
"""Members that a gzip body may have (count): each costs the same, however short it is."""

_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS
_PIECE_BYTES = 64 * 1024

PARSERS = ThreadPoolExecutor(2, "parser")
"""Parse large bodies. Two, as they share the interpreter with the event loop: what waits here takes the memory of its
bytes only."""

Headers = Mapping[bytes, bytes]


async def receive_body(settings: Settings, headers: Headers, scope: Any, receive: Any, counted: BodyBytes) -> bytes:
    """The whole body, decompressed.

    Args:
        settings: limits of size and time.
        headers: of the request, names in lower case.
        scope: ASGI's.
        receive: ASGI's, of which nothing has been read.
        counted: where the body's bytes are counted, compressed or not.

    Raises:
        TooLarge: more than the settings allow, compressed or not; when `Content-Length` says so, nothing is read.
        TooManyBytes: there is no room for it beside others.
        BodyTimeout: it did not arrive in time.
        UnsupportedMedia: its `Content-Encoding` is not gzip, deflate, or one on the other.
        BadRequest: it cannot be decompressed.
        ClientDisconnected: the client closed the connection first.
    """
    max_bytes, timeout_s = settings.max_body_bytes, settings.body_timeout_s
    encodings = _encodings(headers, scope)
    length = headers.get(b"content-length", b"")
    declared = int(length) if length.isdigit() else 0
    if declared > max_bytes:
        raise _too_large(max_bytes, declared)
    counted.grow_to(declared)
    exchange: Exchange | None = scope.get(EXCHANGE)
    body = exchange.whole_body() if exchange else None  # mostly it came with the head: nothing to wait for
    if body is None:
        try:
            async with asyncio.timeout(timeout_s):
                body = await _receive(receive, counted, max_bytes)
        except TimeoutError:
            raise BodyTimeout(timeout_s) from None
    elif len(body) > max_bytes:
        raise _too_large(max_bytes, None)
    if not encodings:
        return body
    return await asyncio.get_running_loop().run_in_executor(PARSERS, _decode, body, encodings, counted, max_bytes)


async def _receive(receive: Any, counted: BodyBytes, max_bytes: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes, None)
        counted.grow_to(size)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int, actual: int | None) -> TooLarge:
    return TooLarge("The request body", limit=limit, unit="bytes", setting="GRIDLOOP_MAX_BODY_BYTES", actual=actual)


def _encodings(headers: Headers, scope: Any) -> tuple[str, ...]:
    """Encodings of the body, in the order in which they were applied; RFC 9110, 8.4."""
    if b"content-encoding" not in headers:
        return ()
    sent = b",".join(value for name, value in scope["headers"] if name == b"content-encoding").decode("latin-1")
    named = [name for part in sent.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    encodings = tuple(_ENCODINGS.get(name, "") for name in named)
    if "" in encodings:
        raise UnsupportedMedia("Content-Encoding", named[encodings.index("")], ("gzip", "deflate"))
    if len(encodings) > MAX_ENCODINGS:
        raise UnsupportedMedia("Content-Encoding", ", ".join(named), ("gzip", "deflate"))
    return encodings


def _decode(body: bytes, encodings: Sequence[str], counted: BodyBytes, max_bytes: int) -> bytes:
    """Undo encodings, the last one first, never producing more than `max_bytes`."""
    for encoding in reversed(encodings):
        body = _inflate(body, encoding, counted, max_bytes)
    return body


def _inflate(body: bytes, encoding: str, counted: BodyBytes, max_bytes: int) -> bytes:
    """Decompress gzip (RFC 1952), zlib (RFC 1950) or raw deflate data (RFC 1951), whichever it is.

    All of it: of gzip every member; anything that comes after is an error.
    """
    if body[:2] == _GZIP_MAGIC:
        window_bits = _GZIP
    elif encoding == "gzip" or (len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0):
        window_bits = zlib.MAX_WBITS
    else:  # what some clients take deflate for
        window_bits = -zlib.MAX_WBITS
    rest, pieces, size, members = memoryview(body), [], 0, 0
    while not members or (window_bits == _GZIP and rest[:2] == _GZIP_MAGIC):
        members += 1
        if members > MAX_GZIP_MEMBERS:
            raise BadRequest(f"The compressed body has more than {MAX_GZIP_MEMBERS:,} gzip members. Compress it whole.")
        inflater = zlib.decompressobj(window_bits)
        while not inflater.eof:
            if not rest:
                raise BadRequest("The compressed body is cut short. Send it whole.")
            piece = rest[:_PIECE_BYTES]  # what is left over at the end of a member is copied: not the whole rest
            try:
                pieces.append(inflater.decompress(piece, max_bytes - size + 1))
            except zlib.error as error:
                raise BadRequest(f"The body is not what its Content-Encoding says: {error}.") from None
            size += len(pieces[-1])
            if size > max_bytes:
                raise _too_large(max_bytes, None)
            counted.grow_to(len(body) + size)
            rest = rest[len(piece) - len(inflater.unused_data) :]
    if rest:
        raise BadRequest(f"The compressed body ends before the body does ({len(rest):,} bytes). Send nothing after it.")
    return b"".join(pieces)
