"""The server as a process: start, signals, workers, and clients that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

GRIDLOOP = [sys.executable, "-m", "service"]


class Server:
    """A running `gridloop serve`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port, self.url = process, port, f"http://127.0.0.1:{port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(models: Path, **settings: Any) -> Iterator[Server]:
    """Start a server on a free port and wait until it is ready; end it whatever happens."""
    port = free_port()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [*GRIDLOOP, "serve", f"--models={models}", f"--port={port}", "--log-format=json", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_ready(process, port)
        yield Server(process, port)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stderr
        process.stderr.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[str], port: int) -> None:
    for _ in range(600):
        if process.poll() is not None:
            assert process.stderr
            raise AssertionError(f"the server ended: {process.stderr.read()}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def detect(server: Server, **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/anomaly-detection", json={"values": [0, 0, 5]}, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it running; short patience with slow clients."""
    from tests import graphs

    models = tmp_path_factory.mktemp("models")
    graphs.colour_model(models)
    graphs.detector_model(models)
    with serving(models, workers=1, body_timeout_s=0.5) as running:
        yield running


def raw(server: Server, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send bytes as they are and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(pause_s)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except OSError:
            pass
        return received


def status_and_problem(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    assert b"x-request-id" in head.lower()
    problem = json.loads(body)
    return int(head.split()[1]), problem


def test_a_url_without_end_is_414(server: Server) -> None:
    status, problem = status_and_problem(raw(server, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (status, problem["status"]) == (414, 414)


def test_headers_over_64_kib_are_431(server: Server) -> None:
    many = b"".join(b"X-%d: %s\r\n" % (n, b"v" * 4000) for n in range(20))
    status, _ = status_and_problem(raw(server, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n"))
    assert status == 431


def test_an_unknown_expectation_is_417(server: Server) -> None:
    status, _ = status_and_problem(raw(server, b"POST /livez HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n"))
    assert status == 417


def test_what_is_no_http_is_400(server: Server) -> None:
    answer = raw(server, b"\x16\x03\x01 hello\r\n\r\n")
    status, _ = status_and_problem(answer)
    assert status == 400
    assert b"x-content-type-options: nosniff" in answer


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/docs/",
        "/v1/models/",
        "/v1/anomaly-detection/",
        "//evil.example/docs/",
        "/%2F/evil.example/docs/",
        "/\\evil.example/docs/",
        "/docs/?next=//evil.example",
        "/docs//evil.example/",
        "http://evil.example/",
        "http://evil.example/docs/",
        "http://evil.example//evil.example/docs/",
        "http://evil.example@127.0.0.1/docs/",
        "https://evil.example:8443/v1/models/",
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        "Host: evil.example",
        "Host: evil.example:80\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https",
        "Host: x\r\nForwarded: host=evil.example;proto=https\r\nX-Forwarded-Server: evil.example",
        "Host: x\r\nX-Original-URL: //evil.example/\r\nX-Rewrite-URL: //evil.example/",
        "Host: x\r\nX-Forwarded-Prefix: //evil.example",
        "Host: x\r\nX-Forwarded-Prefix: http://evil.example",
    ],
)
def test_no_redirect_leads_to_a_host_that_a_client_names(server: Server, target: str, fields: str) -> None:
    """The peer is one of this machine, and trusted: even so."""
    for method in ("GET", "HEAD", "POST"):
        request = f"{method} {target} HTTP/1.1\r\n{fields}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        head, _, _ = raw(server, request.encode()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        (location,) = re.findall(rb"(?im)^location: (.*)$", head) or [b""]
        path = location.partition(b"?")[0].strip()
        assert not re.match(rb"[/\\]{2}|[a-z]+:", path), head
        assert b"evil.example" not in re.sub(rb"^/(?!/).*", b"", path), head


def test_headers_that_arrive_too_slowly_are_408(server: Server) -> None:
    pieces = [b"GET /livez HTTP/1.1\r\n", *[b"X: y\r\n"] * 8]
    status, problem = status_and_problem(raw(server, *pieces, pause_s=0.1))
    assert status == 408
    assert "GRIDLOOP_BODY_TIMEOUT_S" in problem["detail"]


def test_a_body_that_arrives_too_slowly_is_408(server: Server) -> None:
    head = b"POST /v1/anomaly-detection HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    status, problem = status_and_problem(raw(server, head))
    assert (status, problem["type"]) == (408, "/problems/body-timeout")


def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    assert raw(server) == b""


def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_read(server: Server) -> None:
    head = b"POST /v1/image-classification HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
    status, problem = status_and_problem(raw(server, head))
    assert status == 413
    assert "99,999,999" in problem["detail"]


def test_after_all_that_the_server_answers_and_a_connection_is_kept(server: Server) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(f"{server.url}/v1/anomaly-detection", json={"values": [0, 0, 5]}).json()[
                "anomalies"
            ] == [2]
            time.sleep(0.6)  # longer than the patience with slow headers: an idle connection is not slow


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_0(models: Path, workers: int, number: int) -> None:
    with serving(models, workers=workers) as server:
        assert detect(server).status_code == 200
        assert server.stop(number) == 0


def test_what_was_accepted_before_the_signal_is_answered(models: Path) -> None:
    """A request whose body is still arriving when SIGTERM comes gets its answer."""
    body = b'{"values": [0, 0, 5]}'
    with serving(models, workers=1) as server, socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        head = f"POST /v1/anomaly-detection HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:5])
        time.sleep(0.3)
        server.process.terminate()
        time.sleep(0.3)
        connection.sendall(body[5:])
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        assert b" 200 OK" in answer
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_start_ends_with_one_line_that_says_where_to_ask_and_what_failed(models: Path, workers: int) -> None:
    (models / "colours" / "1" / "labels.txt").unlink()
    port = free_port()
    command = [*GRIDLOOP, "serve", f"--models={models}", f"--port={port}", f"--workers={workers}", "--log-format=json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        lines = iter(process.stderr.readline, "")
        ready = next(line for line in map(json.loads, lines) if line["event"] == "ready")
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stderr.close()
    assert (ready["url"], ready["docs"]) == (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/docs")
    assert ready["models"] == ["steps"]
    assert list(ready["failed"]) == ["colours@1"]
    assert "labels.txt: is missing" in ready["failed"]["colours@1"]


@pytest.mark.parametrize("workers", [1, 2])
def test_readiness_goes_first_and_requests_are_taken_for_the_time_of_grace(models: Path, workers: int) -> None:
    with serving(models, workers=workers, drain_grace_s=3) as server, httpx.Client() as kept:
        url = f"{server.url}/v1/anomaly-detection"
        assert "connection" not in kept.post(url, json={"values": [0, 0, 5]}).headers
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: answers(f"{server.url}/readyz") == 503)
        last = kept.post(url, json={"values": [0, 0, 5]})
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert kept.get(f"{server.url}/v1/models").headers["connection"] == "close"
        assert detect(server).status_code == 200, "a new connection"
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_ends_the_time_of_grace(models: Path, workers: int) -> None:
    with serving(models, workers=workers, drain_grace_s=3600) as server:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: answers(f"{server.url}/readyz") == 503)
        assert server.stop() == 0


def test_no_request_that_was_begun_is_reset_while_the_server_drains(models: Path) -> None:
    """Eight clients that never retry, each request on a connection of its own, until the port is closed."""
    with serving(models, workers=2, drain_grace_s=1) as server, ThreadPoolExecutor(8) as clients:
        stopped = threading.Event()

        def ask() -> list[int]:
            seen = []
            while not stopped.is_set():
                try:
                    seen.append(detect(server, timeout=20).status_code)
                except httpx.ConnectError:
                    break  # the port is closed
            return seen

        asking = [clients.submit(ask) for _ in range(8)]
        time.sleep(0.5)
        assert server.stop() == 0
        stopped.set()
        seen = [status for one in asking for status in one.result()]
        assert len(seen) >= 8
        assert set(seen) <= {200, 503}
        assert seen.count(503) <= 8


def test_metrics_cover_all_workers(models: Path) -> None:
    with serving(models, workers=2) as server:
        for _ in range(12):  # each a new connection, so that both workers have some
            assert detect(server).status_code == 200
        wait_for(lambda: {counted(server) for _ in range(4)} == {12})  # whichever worker answers


def counted(server: Server, route: str = "/v1/anomaly-detection") -> int:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    wanted = f'gridloop_requests_total{{method="POST",route="{route}",status="200"}}'
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted)))


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(models: Path) -> None:
    with serving(models, workers=2) as server:
        victim, other = workers_of(server.process.pid)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in (now := workers_of(server.process.pid)) and len(now) == 2)
        assert other in workers_of(server.process.pid)
        assert all(detect(server).status_code == 200 for _ in range(6))
        assert server.stop() == 0


def test_a_worker_that_hangs_gets_no_connections_and_is_replaced(models: Path) -> None:
    """Stopped, as a process that waits for a disk or a lock for ever; all others go on meanwhile."""
    with serving(models, workers=2) as server:
        victim, other = workers_of(server.process.pid)
        os.kill(victim, signal.SIGSTOP)
        wait_for(lambda: victim not in (now := workers_of(server.process.pid)) and len(now) == 2, seconds=30)
        assert other in workers_of(server.process.pid)
        assert all(detect(server).status_code == 200 for _ in range(6))
        assert server.stop() == 0


def test_connections_that_a_dead_worker_had_not_taken_are_answered_by_another(models: Path) -> None:
    with serving(models, workers=2) as server, ThreadPoolExecutor(8) as clients:
        victim, _ = workers_of(server.process.pid)
        os.kill(victim, signal.SIGSTOP)
        waiting = [clients.submit(detect, server, timeout=20) for _ in range(8)]
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        assert [answer.result().status_code for answer in waiting] == [200] * 8


def test_a_worker_that_dies_again_and_again_is_not_the_end_of_the_service(models: Path) -> None:
    with serving(models, workers=2) as server:
        _, other = workers_of(server.process.pid)
        for _ in range(5):
            wait_for(lambda: len(workers_of(server.process.pid)) == 2, seconds=30)
            (victim,) = set(workers_of(server.process.pid)) - {other}
            os.kill(victim, signal.SIGKILL)
            assert detect(server).status_code == 200
            assert httpx.get(f"{server.url}/readyz").status_code == 200
        wait_for(lambda: len(workers_of(server.process.pid)) == 2, seconds=30)
        assert server.stop() == 0


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder on a file system in which nothing fits any more."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        (place / "filler").write_bytes(b"x" * 48 * 1024)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_temporary_folder_costs_metrics_only(
    models: Path, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with holes on a full disk would end the process that writes into one."""
    monkeypatch.setenv("TMPDIR", str(full_disk))
    with serving(models, workers=2) as server:
        workers = workers_of(server.process.pid)
        assert all(detect(server).status_code == 200 for _ in range(20))
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        assert workers_of(server.process.pid) == workers
        assert server.stop() == 0


def test_what_a_killed_server_left_is_removed_by_the_next(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serving(models, workers=2) as server:
        (left,) = tmp_path.glob("gridloop-metrics-*")
        workers = workers_of(server.process.pid)
        server.process.kill()
        wait_for(lambda: not any(is_running(worker) for worker in workers))
    os.utime(left, (0, 0))  # a while ago
    with serving(models, workers=2) as server:
        (own,) = tmp_path.glob("gridloop-metrics-*")
        assert own != left
        os.utime(own, (0, 0))
        with serving(models, workers=2):
            assert own in tmp_path.glob("gridloop-metrics-*"), "it is still in use"
    assert list(tmp_path.glob("gridloop-metrics-*")) == []


def test_workers_do_not_outlive_their_supervisor(models: Path) -> None:
    """Killed without a chance to stop them; they notice, and give the port back."""
    with serving(models, workers=2) as server:
        workers = workers_of(server.process.pid)
        assert len(workers) == 2
        server.process.kill()
        wait_for(lambda: not any(is_running(worker) for worker in workers))
        with pytest.raises(httpx.ConnectError):
            detect(server)


def test_probes_are_answered_while_the_models_are_loaded(models: Path, tmp_path: Path) -> None:
    """The greeter says that it is alive and not ready, and hands over without losing a connection."""
    held = tmp_path / "go"
    script = f"""
import time, pathlib
from service.registry.registry import Registry
renew = Registry.renew
def slow(self, *given):
    while not pathlib.Path({str(held)!r}).exists():
        time.sleep(0.01)
    return renew(self, *given)
Registry.renew = slow
from service.cli import main
main()
"""
    port = free_port()
    command = [sys.executable, "-c", script, "serve", f"--models={models}", f"--port={port}", "--workers=2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: answers(f"{url}/livez") == 200)
            assert answers(f"{url}/readyz") == 503
            refused = httpx.post(f"{url}/v1/anomaly-detection", json={"values": [0, 0, 5]})
            assert refused.status_code == 503
            assert refused.json()["type"] == "/problems/model-not-ready"
            held.touch()
            seen = []
            wait_for(lambda: seen.append(answers(f"{url}/readyz")) or seen[-1] == 200)
            assert set(seen) <= {200, 503, None}
            assert len(workers_of(process.pid)) == 2
        finally:
            process.terminate()
            assert process.wait(30) == 0


def answers(url: str) -> int | None:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return None


def serving_into(stderr: int, models: Path) -> subprocess.Popen[str]:
    """A server on a free port whose log lines go to a descriptor; `port` is where it listens."""
    port = free_port()
    command = [*GRIDLOOP, "serve", f"--models={models}", f"--port={port}", "--log-format=json", "--workers=2"]
    process = subprocess.Popen(command, stderr=stderr, text=True)
    process.port = port  # type: ignore[attr-defined]
    return process


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("trouble", ["full", "gone", "stalled"])
def test_what_becomes_of_the_log_keeps_nobody_waiting(models: Path, trouble: str) -> None:
    """160 requests of 16 clients are answered though no line can be written; SIGTERM ends the server all the same."""
    reading, writing = os.pipe()
    target = os.open("/dev/full", os.O_WRONLY) if trouble == "full" else writing
    if trouble == "gone":
        os.close(reading)
    if trouble == "stalled":  # from the beginning: not a byte more fits
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x")
        os.set_blocking(writing, True)
    process = serving_into(target, models)
    try:
        url = f"http://127.0.0.1:{process.port}"  # type: ignore[attr-defined]
        wait_until_ready(process, process.port)  # type: ignore[attr-defined]

        def ask(_: int) -> int:
            with httpx.Client(timeout=20) as client:
                answers = [client.post(f"{url}/v1/anomaly-detection", json={"values": [0, 0, 5]}) for _ in range(10)]
                return sum(answer.status_code == 200 for answer in answers)

        with ThreadPoolExecutor(16) as clients:
            assert sum(clients.map(ask, range(16))) == 160
        if trouble != "stalled":  # there the lines still wait
            lost = re.search(r"^gridloop_lost_log_lines_total (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
            assert lost
            assert float(lost[1]) >= 100
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for descriptor in {writing, target, *([reading] if trouble != "gone" else [])}:
            os.close(descriptor)


def test_connections_are_spread_evenly(models: Path) -> None:
    """Kept-alive connections, opened one after another; some are closed and others opened in between."""
    with serving(models, workers=2) as server, contextlib.ExitStack() as stack:
        wait_for(lambda: len(connections_of(server)) == 2)
        for _ in range(2):
            clients = [stack.enter_context(httpx.Client()) for _ in range(8)]
            for client in clients:
                assert client.get(f"{server.url}/livez").status_code == 200
            counts = sorted(connections_of(server).values())
            assert counts[1] - counts[0] <= 1, counts
            clients[0].close()
            clients[2].close()


def workers_of(pid: int) -> list[int]:
    """A server's processes that answer, without the one that holds the models."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if name_of(child) == "gridloop worker"]


def name_of(pid: int) -> str:
    """A process's name; empty of one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def connections_of(server: Server) -> dict[int, int]:
    """Established connections of each worker."""
    established = {
        f"socket:[{line.split()[9]}]"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "01" and int(line.split()[1].split(":")[1], 16) == server.port
    }
    return {
        worker: sum(
            str(fd.readlink()) in established for fd in list(Path(f"/proc/{worker}/fd").iterdir()) if fd.is_symlink()
        )
        for worker in workers_of(server.process.pid)
    }


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_port_that_is_taken_is_an_error_and_not_shared(server: Server, models: Path) -> None:
    """SO_REUSEPORT would let a second server take half of the first one's connections in silence."""
    command = [*GRIDLOOP, "serve", f"--models={models}", f"--port={server.port}"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "cannot listen" in second.stderr


@pytest.mark.parametrize(
    ("argument", "place"),
    [("--port=99999", "GRIDLOOP_PORT"), ("--workers=-1", "GRIDLOOP_WORKERS"), ("--nope", "--nope")],
)
def test_a_wrong_setting_is_wrong_usage(argument: str, place: str) -> None:
    result = subprocess.run([*GRIDLOOP, "serve", argument], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert place in result.stderr


def test_the_environment_sets_what_options_do_not(models: Path) -> None:
    command = [*GRIDLOOP, "serve", "--port=99999"]
    environment = {**os.environ, "GRIDLOOP_WORKERS": "many", "GRIDLOOP_MODELS": str(models)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert result.returncode == 2
    assert "GRIDLOOP_WORKERS" in result.stderr
