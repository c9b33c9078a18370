"""Requests that go from the connection to their model without a task: over real sockets, beside those that do not."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client import REGISTRY
from uvicorn.server import ServerState

from service.api import protocol
from service.api.edge import Edge
from service.api.protocol import LimitedHttpProtocol
from service.keys import Keyring
from service.runtime.pace import KINDS
from tests import graphs
from tests.conftest import running

SERIES = b'{"values": [0, 0, 5]}'


class Served:
    """An application behind a listening socket, and who went the short way."""

    def __init__(self, edge: Edge, port: int) -> None:
        self.edge, self.port = edge, port
        self.begun = 0
        self._before = {status: self._counted(status) for status in (200, 499)}

    @property
    def in_flight(self) -> int:
        return sum(self.edge._workers.in_flight)

    def answered(self, status: int) -> int:
        return self._counted(status) - self._before[status]

    def _counted(self, status: int) -> int:
        self.edge.flush_metrics()
        labels = {"route": "/v1/anomaly-detection", "method": "POST", "status": str(status)}
        return int(REGISTRY.get_sample_value("gridloop_requests_total", labels) or 0)

    async def has_in_flight(self, count: int) -> None:
        for _ in range(1000):
            if self.in_flight == count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.in_flight} requests are in flight")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, *pieces: bytes, pause_s: float = 0.05) -> list[tuple[int, Any]]:
        """Send pieces on one connection; status and body of each answer until the server is silent."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
        asked = sum(piece.count(b"HTTP/1.1\r\n") for piece in pieces)
        answers = [await answer(reader) for _ in range(asked)]
        writer.close()
        return answers


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    assert b"x-request-id" in head
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


def post(body: bytes = SERIES, *fields: str, path: str = "/v1/anomaly-detection") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def serving(models: Path, keep_alive_s: int = 5, **settings: Any) -> AsyncIterator[Served]:
    async with running(models, **settings) as client:
        edge: Edge = client.app  # type: ignore[attr-defined]
        config = uvicorn.Config(edge, log_config=None, ws="none", proxy_headers=False, timeout_keep_alive=keep_alive_s)
        config.load()
        state = ServerState()

        class Protocol(LimitedHttpProtocol):
            workers = edge._workers

        Protocol.edge = edge
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
        served = Served(edge, server.sockets[0].getsockname()[1])
        begin = edge.begin

        def counted(*call: Any) -> None:
            served.begun += 1
            begin(*call)

        edge.begin = counted  # type: ignore[method-assign]
        try:
            yield served
        finally:
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()
            await server.wait_closed()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[LimitedHttpProtocol]:
    """An entry for each request that went through the parser: its connection."""
    found: list[LimitedHttpProtocol] = []
    begin = LimitedHttpProtocol.on_message_begin

    def noted(self: LimitedHttpProtocol) -> None:
        found.append(self)
        begin(self)

    monkeypatch.setattr(LimitedHttpProtocol, "on_message_begin", noted)
    return found


@pytest.fixture
async def served(models: Path) -> AsyncIterator[Served]:
    async with serving(models) as there:
        yield there


async def test_a_small_request_goes_the_short_way(served: Served) -> None:
    assert [status for status, _ in await served.ask(post(), post())] == [200, 200]
    assert (served.begun, served.in_flight, served.answered(200)) == (2, 0, 2)


@pytest.mark.parametrize(
    "pieces",
    [
        [post()[:-3], post()[-3:]],
        [post()[: -len(SERIES)], SERIES[:4], SERIES[4:]],
        [post(SERIES + b" " * 70_000)],
        [post(gzip.compress(SERIES), "Content-Encoding: gzip")],
        [b"POST /v1/anomaly-detection HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
         b"15\r\n" + SERIES + b"\r\n0\r\n\r\n"],
    ],
    ids=["body cut", "head alone", "large", "compressed", "chunked"],
)  # fmt: skip
async def test_others_go_the_long_way_and_get_the_same_answer(served: Served, pieces: list[bytes]) -> None:
    (expected,) = await served.ask(post())
    assert await served.ask(*pieces) == [expected]
    assert (served.begun, served.in_flight, served.answered(200)) == (1, 0, 2)


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    bodies = [json.dumps({"values": [0, 0, value]}).encode() for value in (5, 6, 7)]
    alone = [(await served.ask(post(body)))[0] for body in bodies]
    assert await served.ask(b"".join(map(post, bodies))) == alone
    assert served.in_flight == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(b'{"values": "none"}'), 422),
        (post(b'{"values": [1]}', "X-Request-Timeout: soon"), 400),
        (post(b'{"values": [1]}', "X-Request-Timeout: 1e-9"), 504),
        (post(b'{"values": [1], "model": "nobody"}'), 404),
        (post(b"{}", path="/v2/models/nobody/infer"), 404),
        (post(b"{}", path="/v1/nothing"), 404),
    ],
    ids=["validation", "deadline unread", "deadline passed", "model", "tensors", "path"],
)
async def test_what_is_wrong_is_said_as_on_the_long_way(served: Served, request_: bytes, status: int) -> None:
    ((short, problem),) = await served.ask(request_)
    ((long, same),) = await served.ask(request_[:-1], request_[-1:])
    assert short == long == status
    for facts in (problem, same):
        facts.pop("request_id", None)
    assert problem == same
    assert served.in_flight == 0


async def test_a_client_who_leaves_is_dropped_and_counted(served: Served) -> None:
    handle = served.edge.app.state.registry.resolve("anomaly-detection", None)
    entered, gate = threading.Event(), threading.Event()
    run, rows = handle.graphs.main.run, list[int]()

    def held(tensors: Any, *args: Any, **options: Any) -> Any:
        rows.append(len(next(iter(tensors.values()))))
        entered.set()
        assert gate.wait(10)
        return run(tensors, *args, **options)

    handle.graphs.main.run = held
    stays, leaves = await served.connect(), await served.connect()
    stays[1].write(post())
    await asyncio.to_thread(entered.wait, 10)
    leaves[1].write(post())
    await served.has_in_flight(2)
    leaves[1].close()
    await served.has_in_flight(1)
    gate.set()
    assert (await answer(stays[0]))[0] == 200
    assert (served.in_flight, served.answered(200), served.answered(499)) == (0, 1, 1)
    assert rows == [1]  # nobody ran the other one
    stays[1].close()


async def test_a_crash_is_a_500_and_the_others_are_answered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = served.edge.app.state.registry.resolve("anomaly-detection", None)

    def crash(request: Any) -> Any:
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(handle, "answer", crash)
        ((status, problem),) = await served.ask(post())
    assert (status, "bug" in json.dumps(problem)) == (500, False)
    assert [status for status, _ in await served.ask(post())] == [200]
    assert served.in_flight == 0


async def test_a_head_that_comes_again_is_not_parsed_again(served: Served, parsed: list[LimitedHttpProtocol]) -> None:
    (first,) = await served.ask(post())
    other = b'{"values": [0, 0, 6]}'
    assert len(other) == len(SERIES)
    (second,) = await served.ask(post(other))
    again = await served.ask(post(), post(other), post())
    assert again == [first, second, first]
    assert second != first
    assert (len(parsed), served.begun, served.in_flight, served.answered(200)) == (1, 5, 0, 5)


@pytest.mark.parametrize(
    "pieces",
    [
        [post()[:-3], post()[-3:]],
        [post()[: -len(SERIES)], SERIES],
        [post()[:10], post()[10:]],
        [post() + post()],
        [post() + post()[:10], post()[10:]],
    ],
    ids=["body cut", "head alone", "head cut", "two at once", "one and a half"],
)
async def test_a_known_head_in_other_pieces_is_parsed(
    served: Served, parsed: list[LimitedHttpProtocol], pieces: list[bytes]
) -> None:
    (expected,) = await served.ask(post())
    answers = await served.ask(*pieces, post())
    assert answers == [expected] * len(answers)
    assert len(answers) == sum(map(len, pieces)) // len(post()) + 1
    assert len(parsed) == len(answers)  # the first, and all but the last
    assert served.in_flight == 0


@pytest.mark.parametrize(
    "field",
    [
        "X-Request-ID: a",
        "traceparent: 00-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "Connection: close",
        "X: " + "a" * 3000,
    ],
    ids=["id", "trace", "last of its connection", "long"],
)
async def test_a_head_that_may_not_come_again_is_not_remembered(served: Served, field: str) -> None:
    assert [status for status, _ in await served.ask(post(SERIES, field))] == [200]
    assert not served.edge.heads


async def test_heads_are_remembered_within_bounds(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REMEMBERED_HEADS", 3)
    for number in range(8):
        assert [status for status, _ in await served.ask(post(SERIES, f"X: {number}"))] == [200]
        assert 1 <= len(served.edge.heads) <= 3


async def test_who_may_ask_is_checked_for_a_known_head_too(served: Served, parsed: list[LimitedHttpProtocol]) -> None:
    assert [status for status, _ in await served.ask(post())] == [200]
    served.edge._gate.draining = True
    assert [status for status, _ in await served.ask(post())] == [503]
    served.edge._gate.draining = False
    served.edge._gate.keys = Keyring(("key",))
    assert [status for status, _ in await served.ask(post())] == [401]
    assert len(parsed) == 1


async def test_a_client_who_leaves_after_a_known_head_is_counted(
    served: Served, parsed: list[LimitedHttpProtocol]
) -> None:
    await served.ask(post())
    handle = served.edge.app.state.registry.resolve("anomaly-detection", None)
    gate, run = threading.Event(), handle.graphs.main.run

    def held(*args: Any, **options: Any) -> Any:
        assert gate.wait(10)
        return run(*args, **options)

    handle.graphs.main.run = held
    handle.batcher.pace.longest_s = [math.inf] * KINDS  # so that it is not the event loop that is held
    first, second = await served.connect(), await served.connect()
    first[1].write(post())
    second[1].write(post())
    await served.has_in_flight(2)
    second[1].close()
    await served.has_in_flight(1)
    gate.set()
    assert (await answer(first[0]))[0] == 200
    assert (served.in_flight, served.answered(200), served.answered(499), len(parsed)) == (0, 2, 1, 1)
    first[1].close()


async def test_a_connection_is_closed_when_it_has_been_idle(models: Path) -> None:
    async with serving(models, keep_alive_s=1) as served:
        loop = asyncio.get_running_loop()
        reader, writer = await served.connect()
        for pause_s in (0.0, 0.7, 0.7):  # each less than the limit, together more
            await asyncio.sleep(pause_s)
            writer.write(post())
            assert (await answer(reader))[0] == 200
        since = loop.time()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert loop.time() - since >= 0.9
        writer.close()


# --- offers to go on in another protocol

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
CHUNKED = (
    b"POST /v1/anomaly-detection HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(H2C).encode() + b"\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n15\r\n" + SERIES + b"\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(
    "offer",
    [
        H2C,
        ("Connection: keep-alive, upgrade", "upgrade: H2C"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x"),
        ("Connection: Upgrade", "Upgrade: TLS/1.0"),
        ("Upgrade: h2c",),
    ],
    ids=["h2c", "lower case", "websocket", "TLS", "not named in Connection"],
)
async def test_an_offer_to_upgrade_is_passed_over(served: Served, offer: tuple[str, ...]) -> None:
    (expected,) = await served.ask(post())
    offered = post(SERIES, *offer)
    assert await served.ask(offered, post(), offered, offered) == [expected] * 4
    assert (served.in_flight, served.answered(200)) == (0, 5)


@pytest.mark.parametrize("request_", [post(SERIES, *H2C), CHUNKED], ids=["with a length", "chunked"])
@pytest.mark.parametrize("cut", [10, 45, 100, -len(SERIES) - 12, -len(SERIES), -8, -3, -1])
async def test_an_offer_to_upgrade_in_pieces_is_passed_over(served: Served, request_: bytes, cut: int) -> None:
    (expected,) = await served.ask(post())
    assert (await served.ask(request_[:cut], request_[cut:], post())) == [expected] * 2


async def test_an_offer_to_upgrade_byte_by_byte_is_passed_over(served: Served) -> None:
    (expected,) = await served.ask(post())
    reader, writer = await served.connect()
    for byte in CHUNKED:
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await answer(reader) == expected
    writer.close()


async def test_a_large_or_compressed_body_with_an_offer_to_upgrade_is_taken(served: Served) -> None:
    (expected,) = await served.ask(post())
    large = post(SERIES + b" " * 300_000, *H2C)
    small = post(gzip.compress(SERIES), "Content-Encoding: gzip", *H2C)
    assert await served.ask(large, small, large + small) == [expected] * 4


async def test_a_client_that_offers_to_upgrade_may_wait_for_leave_to_send_its_body(served: Served) -> None:
    (expected,) = await served.ask(post())
    reader, writer = await served.connect()
    request = post(SERIES, "Expect: 100-continue", *H2C)
    writer.write(request[: -len(SERIES)])
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(SERIES)
    assert await answer(reader) == expected
    writer.close()


async def test_pipelined_requests_after_an_offer_to_upgrade_are_answered(served: Served) -> None:
    offered, plain = post(b'{"values": [0, 0, 6]}', *H2C), post()
    alone = [(await served.ask(request))[0] for request in (plain, offered)]
    assert alone[0] != alone[1]
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(H2C).encode() + b"\r\n\r\n"
    answers = await served.ask(offered + plain + get + CHUNKED + offered + plain)
    assert answers == [alone[1], alone[0], (200, {"status": "alive"}), alone[0], alone[1], alone[0]]


async def test_a_head_with_an_offer_is_remembered(served: Served, parsed: list[LimitedHttpProtocol]) -> None:
    await served.ask(post(SERIES, *H2C))
    before = len(parsed)
    assert [status for status, _ in await served.ask(post(SERIES, *H2C))] == [200]
    assert len(parsed) == before


async def test_a_picture_with_an_offer_to_upgrade_is_classified(served: Served) -> None:
    kind = ("Content-Type: image/png",)
    picture, path = graphs.png((0, 255, 0), (300, 300)), "/v1/image-classification"
    (expected,) = await served.ask(post(picture, *kind, path=path))
    assert expected[0] == 200
    request = post(picture, *kind, *H2C, path=path)
    assert await served.ask(request[:200], request[200:], request) == [expected] * 2


async def test_an_offer_beside_a_request_to_close_is_answered_and_closed(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(post(SERIES, "Connection: close, Upgrade", "Upgrade: h2c"))
    assert (await answer(reader))[0] == 200
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_a_tunnel_is_refused(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n" + post())
    status, problem = await answer(reader)
    assert (status, problem["type"]) == (405, "/problems/method-not-allowed")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert served.in_flight == 0


async def test_endless_headers_are_refused_with_an_offer_to_upgrade_as_well(served: Served) -> None:
    fields = [f"X-{n}: {'y' * 1000}" for n in range(70)]
    for pieces in ([post(SERIES, *H2C, *fields)], [post(SERIES, *H2C, *fields)[:60_000], b"z" * 8_000]):
        reader, writer = await served.connect()
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.02)
        assert (await answer(reader))[0] == 431
        writer.close()
