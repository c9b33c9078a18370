"""Where the server listens: a Unix socket, a socket that is handed over; ports are in test_server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.listening import listening
from service.settings import Settings
from tests.test_server import GRIDLOOP, wait_for, workers_of

SERIES = {"values": [0, 0, 5]}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for the address of a socket (107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="gl-") as name:
        yield Path(name)


@contextmanager
def serving(models: Path, path: Path, *options: str, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A server that can be asked at `path`, once it is ready."""
    command = [*GRIDLOOP, "serve", f"--models={models}", "--log-format=json", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=pass_fds)
    try:
        wait_for(lambda: process.poll() is not None or is_ready(path))
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        assert process.stderr
        process.stderr.close()


def client_of(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost")


def is_ready(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:  # the client's own attempt would leave a socket open
        if probe.connect_ex(str(path)):
            return False
    with contextlib.suppress(httpx.TransportError), client_of(path) as client:  # the first process may just be ending
        return client.get("/readyz").status_code == 200
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unix_socket_is_served_and_removed_in_the_end(models: Path, folder: Path, workers: int) -> None:
    path = folder / "http.sock"
    with serving(models, path, f"--host=unix:{path}", f"--workers={workers}") as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        for _ in range(3):  # each a connection of its own
            with client_of(path) as client:
                for _ in range(2):
                    assert client.post("/v1/anomaly-detection", json=SERIES).json()["anomalies"] == [2]
        assert len(workers_of(process.pid)) == workers
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not path.exists()


def test_the_curl_lines_name_the_socket_unless_a_proxy_names_a_host(models: Path, folder: Path) -> None:
    path = folder / "http.sock"
    with serving(models, path, f"--host=unix:{path}", "--workers=1"), client_of(path) as client:

        def line(**headers: str) -> str:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            return str(client.get("/v1/models/steps", headers=fields).json()["curl"])

        assert line().startswith(f"curl --unix-socket {path} http://localhost/v1/")
        assert line(Host="api.example.com").startswith("curl http://api.example.com/v1/")
        told = line(X_Forwarded_Host="api.example.com", X_Forwarded_Proto="https", X_Forwarded_Prefix="/ml")
        assert told.startswith("curl https://api.example.com/ml/v1/")
        printed = subprocess.run(
            [*GRIDLOOP, "models", f"--models={models}", "--json"],
            env={**os.environ, "GRIDLOOP_HOST": f"unix:{path}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert f"curl --unix-socket {path} " in printed.stdout


def test_a_socket_left_by_a_server_that_was_killed_is_replaced(models: Path, folder: Path) -> None:
    path = folder / "http.sock"
    with serving(models, path, f"--host=unix:{path}", "--workers=1") as process:
        process.kill()
        process.wait()
    assert path.is_socket()
    with serving(models, path, f"--host=unix:{path}", "--workers=1"):
        assert is_ready(path)
    assert not path.exists()


def test_a_socket_that_somebody_listens_on_is_left_alone(models: Path, folder: Path) -> None:
    path = folder / "http.sock"
    with serving(models, path, f"--host=unix:{path}", "--workers=1"):
        second = subprocess.run(
            [*GRIDLOOP, "serve", f"--models={models}", f"--host=unix:{path}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert "cannot listen" in second.stderr
        assert "in use" in second.stderr
        assert is_ready(path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("notes.txt", "is no socket"),
        ("missing/http.sock", "No such file"),
        ("x" * 120, "too long"),
        ("", "is no socket"),
    ],
)
def test_a_path_that_cannot_be_listened_on_is_refused_and_nothing_is_removed(
    folder: Path, path: str, reason: str
) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=reason), listening(Settings(host=f"unix:{folder / path}")):
        pass
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_socket_of_a_server_that_came_after_is_left_to_it(folder: Path) -> None:
    path = folder / "http.sock"
    with listening(Settings(host=f"unix:{path}")):
        path.unlink()
        with listening(Settings(host=f"unix:{path}")) as (second, _):
            later = path.stat().st_ino
            assert second.getsockname() == str(path)
            path.rename(folder / "moved")
            (folder / "moved").rename(path)
            assert path.stat().st_ino == later
    assert not path.exists()


def test_a_relative_path_is_told_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with listening(Settings(host="unix:http.sock")) as (_, settings):
        assert settings.host == f"unix:{folder / 'http.sock'}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_listening_socket_that_is_handed_over_is_served_and_kept(models: Path, folder: Path, workers: int) -> None:
    """As systemd does: it made the socket and will hand it to the next server."""
    path = folder / "http.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        descriptor = made.fileno()
        options = [f"--host=fd:{descriptor}", f"--workers={workers}"]
        with serving(models, path, *options, pass_fds=(descriptor,)), client_of(path) as client:
            assert client.post("/v1/anomaly-detection", json=SERIES).json()["anomalies"] == [2]
            line = client.get("/v1/models/steps").json()["curl"]
            assert line.startswith(f"curl --unix-socket {path} ")
    assert path.exists()


def test_a_port_that_is_handed_over_is_known_by_its_address() -> None:
    made = socket.create_server(("127.0.0.1", 0))
    place = made.getsockname()
    with listening(Settings(host=f"fd:{made.detach()}")) as (listener, settings):
        assert (settings.host, settings.port) == place
        listener.close()


@pytest.mark.parametrize("descriptor", [0, 999])
def test_a_descriptor_that_is_no_listening_socket_is_refused(descriptor: int) -> None:
    command = [sys.executable, "-m", "service", "serve", f"--host=fd:{descriptor}"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "cannot listen" in result.stderr
