"""Servers that answer as a test says, and loads for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from service.client.http import ServerAddress, http_request
from service.client.load import Load, Request


def http(status: int, body: bytes, *headers: bytes) -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"Content-Length: %d" % len(body), *headers))
    return b"HTTP/1.1 %d X\r\n%b\r\n%b" % (status, head, body)


Reply = Callable[[bytes], bytes | None]
"""What a server in these tests answers to a request's body; None: it hangs up; nothing: it says nothing."""


@asynccontextmanager
async def answering(reply: Reply) -> AsyncIterator[tuple[int, list[int]]]:
    """A server that answers as told, its port, and how many connections it has taken."""
    taken: list[int] = []
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(1)
        writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int((head.lower().partition(b"content-length: ")[2].split() or [b"0"])[0])
                said = reply(await reader.readexactly(length))
                if said is None:
                    break
                for piece in (said[:20], said[20:]):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"connection: close" in said:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], taken
        for writer in writers:
            writer.close()


def load_for(port: int, **given: Any) -> Load:
    """A short load of two requests, `0` and `1`, that the model `m` must answer, over three connections."""
    requests = [Request(http_request("127.0.0.1", port, "/", "text/plain", b"%d" % n), "m") for n in (0, 1)]
    usual = {"connections": 3, "seconds": 0.2, "warm_up_s": 0.02, "grace_s": 5.0}
    return Load(ServerAddress("127.0.0.1", port), requests, **{**usual, **given})


def echo(body: bytes) -> bytes:
    timing = b"Server-Timing: decode;dur=1.00, queue;dur=2.00, infer;dur=3.00, encode;dur=4.00"
    return http(200, b'{"model":{"name":"m","version":"1"},"n":%b}' % body, timing)
