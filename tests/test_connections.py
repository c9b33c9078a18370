"""Connections are bounded: idle ones make room for new ones, and what finds no room is told so."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import graphs
from tests.test_server import Server, serving, status_and_problem

LIMIT = 8
PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
BEGUN = b"POST /v1/anomaly-detection HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    graphs.detector_model(folder)
    return folder


@contextlib.contextmanager
def connections(server: Server) -> Iterator[list[socket.socket]]:
    """A list whose connections are closed in the end; `connect` adds to it."""
    with contextlib.ExitStack() as stack:
        opened: list[socket.socket] = []
        stack.callback(lambda: [connection.close() for connection in opened])
        yield opened


def connect(server: Server, opened: list[socket.socket]) -> socket.socket:
    opened.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
    return opened[-1]


def ask(connection: socket.socket, request: bytes = PROBE) -> bytes:
    """The answer's head and body; empty when the connection was closed."""
    try:
        connection.sendall(request)
        received = connection.recv(65536)
        while not request.startswith(b"HEAD") and received and not whole(received):
            if not (chunk := connection.recv(65536)):
                break
            received += chunk
    except (BrokenPipeError, ConnectionResetError):
        return b""
    return received


def whole(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return len(body) >= int(length.split(b":")[1])


def refused(server: Server) -> float:
    (line,) = [
        line
        for line in httpx.get(f"{server.url}/metrics").text.splitlines()
        if line.startswith("gridloop_refused_connections_total")
    ]
    return float(line.split()[1])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_longest_idle_make_room_for_new_connections(models: Path, workers: int) -> None:
    with serving(models, workers=workers, max_connections=LIMIT, log_level="warning") as server:
        with connections(server) as opened:
            for _ in range(3 * LIMIT):
                assert ask(connect(server, opened)).startswith(b"HTTP/1.1 200")
                time.sleep(0.01)  # the server's clock has milliseconds
            still = [ask(connection).startswith(b"HTTP/1.1 200") for connection in opened]
            assert sum(still) == LIMIT
            assert still[-LIMIT:] == [True] * LIMIT  # the latest
        assert refused(server) == 0


def test_connections_that_have_sent_nothing_are_idle_too(models: Path) -> None:
    with serving(models, workers=1, max_connections=LIMIT) as server, connections(server) as opened:
        for _ in range(5 * LIMIT):
            connect(server, opened)
        assert ask(connect(server, opened)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("request_", "body"),
    [(PROBE, True), (PROBE.replace(b"GET", b"HEAD"), False), (BEGUN + b'{"values":[0, 0, 5]}', True)],
    ids=["GET", "HEAD", "POST"],
)
def test_where_none_is_idle_a_new_connection_is_503_until_there_is_room(
    models: Path, workers: int, request_: bytes, body: bool
) -> None:
    with (
        serving(models, workers=workers, max_connections=LIMIT, log_level="warning") as server,
        connections(server) as opened,
    ):
        for _ in range(LIMIT):
            connect(server, opened).sendall(BEGUN)
        answer = ask(connect(server, opened), request_)
        while answer.startswith(b"HTTP/1.1 200"):  # not all have arrived yet, and one was idle until now
            connect(server, opened).sendall(BEGUN)
            answer = ask(connect(server, opened), request_)
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 503")
        assert b"\r\nconnection: close" in head
        assert b"\r\nretry-after: 1" in head
        if body:
            status, problem = status_and_problem(answer)
            assert (status, problem["type"]) == (503, "/problems/too-many-connections")
            assert "GRIDLOOP_MAX_CONNECTIONS" in problem["detail"]
        assert opened[-1].recv(1) == b""
        for connection in opened[:-1]:
            connection.close()
        until = time.monotonic() + 20
        while not ask(connect(server, opened)).startswith(b"HTTP/1.1 200"):
            assert time.monotonic() < until
        assert refused(server) >= 1


def test_who_finds_no_room_and_asks_nothing_is_closed_after_a_moment(models: Path) -> None:
    with serving(models, workers=1, max_connections=1) as server, connections(server) as opened:
        connect(server, opened).sendall(BEGUN)
        time.sleep(0.1)
        silent = connect(server, opened)
        began = time.monotonic()
        received = b""
        while chunk := silent.recv(65536):
            received += chunk
        assert status_and_problem(received)[0] == 503
        assert time.monotonic() - began < 10
        opened[0].sendall(b'{"values":[0, 0, 5]}')  # and the one that was there is answered
        assert opened[0].recv(65536).startswith(b"HTTP/1.1 200")


def test_a_flood_of_connections_is_told_at_once_and_leaves_no_log_lines(models: Path) -> None:
    with serving(models, workers=1, max_connections=2, log_level="warning") as server:
        with connections(server) as opened:
            for _ in range(2):
                connect(server, opened).sendall(BEGUN)
            time.sleep(0.2)
            for _ in range(300):
                connect(server, opened)
            for connection in opened[2:]:
                received = b""
                with contextlib.suppress(ConnectionResetError):
                    while chunk := connection.recv(65536):
                        received += chunk
                assert received.startswith(b"HTTP/1.1 503")
            assert opened[0].sendall(b'{"values":[0, 0, 5]}') is None
            assert opened[0].recv(65536).startswith(b"HTTP/1.1 200")
        server.stop()
        assert server.process.stderr
        lines = [json.loads(line) for line in server.process.stderr.read().splitlines()]
        assert [line["event"] for line in lines] == []


@pytest.mark.parametrize(("hard", "taken"), [(700, 444), (2000, 1000)])
def test_a_server_has_the_descriptors_that_its_connections_need_or_takes_fewer(hard: int, taken: int) -> None:
    """In a process of its own, which may lower its limits."""
    script = f"""if True:
        import resource
        from service.server import OTHER_DESCRIPTORS, _with_descriptors
        from service.settings import Settings
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, {hard}))
        settings = _with_descriptors(Settings(max_connections=1000))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        print(settings.max_connections, soft - OTHER_DESCRIPTORS)
        """
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("needs a higher limit of open files")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[-2:] == [str(taken), str(taken)]
