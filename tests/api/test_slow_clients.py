"""A client that sends a byte now and then, or takes no answer, does not hold its connection for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.api import protocol
from service.api.protocol import LimitedHttpProtocol
from tests.api.test_short_way import Served, answer, post, serving

LONG = post(json.dumps({"values": [0.123456] * 5000}).encode())


@pytest.fixture
async def hasty(models: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """A server that waits for nobody longer than a fifth of a second."""
    monkeypatch.setattr(LimitedHttpProtocol, "header_timeout_s", 0.2)
    monkeypatch.setattr(protocol, "BODY_GRACE_S", 0.0)
    async with serving(models, keep_alive_s=60) as there:
        yield there


async def trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def closed(reader: asyncio.StreamReader) -> None:
    """Wait until the server has ended the connection, which is a reset where it had not read all that was sent."""
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 20) == b""


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/nowhere", "/v2/models"])
async def test_a_body_that_trickles_where_none_is_needed_is_cut_off(hasty: Served, path: str) -> None:
    reader, writer = await hasty.connect()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
    sending = asyncio.ensure_future(trickle(writer))
    assert (await answer(reader))[0] in (200, 404)
    await closed(reader)
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(sending, 20)
    writer.close()
    await hasty.has_in_flight(0)


async def test_a_body_in_chunks_that_never_ends_is_cut_off(hasty: Served) -> None:
    reader, writer = await hasty.connect()
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    assert (await answer(reader))[0] == 200
    await closed(reader)
    writer.close()


async def test_a_whole_body_where_none_is_needed_does_no_harm(hasty: Served) -> None:
    reader, writer = await hasty.connect()
    for _ in range(2):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        await asyncio.sleep(0.05)
        writer.write(b"cd")
        assert (await answer(reader))[0] == 200
        await asyncio.sleep(0.5)  # longer than a body may take
    writer.close()


async def test_a_client_that_never_reads_its_answers_is_cut_off(hasty: Served) -> None:
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(peer, ("127.0.0.1", hasty.port))

    async def ask_for_ever() -> None:
        while True:
            await loop.sock_sendall(peer, LONG)
            await asyncio.sleep(0)

    with peer, pytest.raises(ConnectionError):
        await asyncio.wait_for(ask_for_ever(), 50)
    await hasty.has_in_flight(0)


async def test_a_client_that_reads_slowly_gets_its_whole_answer(hasty: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MIN_TAKEN_BYTES", 1)
    reader, writer = await hasty.connect()
    writer.write(LONG * 10)
    for _ in range(10):
        status, _ = await answer(reader)
        assert status == 200
        await asyncio.sleep(0.05)
    writer.close()
