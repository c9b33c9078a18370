"""TLS: a port that speaks HTTPS and nothing else, by one worker and by several, with certificates that are renewed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.api.address import Address
from service.api.context import Workers
from service.api.protocol import LimitedHttpProtocol
from service.errors import SettingUnusable
from service.settings import Settings
from service.tls import Certificate
from service.worker import make_server
from tests import graphs
from tests.test_deploy import run_health_check
from tests.test_server import Server, free_port

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

PASSWORD = "only for tests"


def issue(folder: Path, name: str = "server", password: str | None = None) -> tuple[Path, Path]:
    """A self-signed certificate for this machine, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    locked = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-days", "2", *kind, *locked, *names, *files], check=True, capture_output=True
    )
    return certificate, key


@contextlib.contextmanager
def serving_tls(models: Path, certificate: Path, **settings: Any) -> Iterator[Server]:
    """A server that speaks TLS, ready; its log lines are in the file `log` beside the models."""
    port = free_port()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "service", "serve", f"--models={models}", f"--port={port}", "--log-format=json"]
    log = models.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen([*command, f"--tls-cert={certificate}", *options], stderr=file, text=True)
    server = Server(process, port)
    server.url = f"https://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/readyz", verify=trusting(certificate)).status_code == 200:
                    break
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    models = folder / "models"
    models.mkdir()
    graphs.detector_model(models)
    certificate, key = issue(folder)
    with serving_tls(models, certificate, tls_key=key, workers=request.param, body_timeout_s=0.5) as running:
        yield running, certificate


def test_requests_are_answered_and_curl_lines_say_https(server: tuple[Server, Path]) -> None:
    running, certificate = server
    with httpx.Client(base_url=running.url, verify=trusting(certificate)) as client:
        for _ in range(3):  # on one connection: the short way, its remembered head, and the framework
            answer = client.post("/v1/anomaly-detection", json={"values": [0, 0, 5]})
            assert answer.status_code == 200
        (model,) = client.get("/v1/models").json()["models"]
        assert f"curl {running.url}/v1/" in model["curl"]
        large = client.post("/v1/anomaly-detection", json={"values": [0.125] * 60_000})
        assert len(large.json()["scores"]) == 60_000
    started = next(line for line in log_lines(certificate) if line["event"] == "starting")
    assert started["url"] == running.url


def test_the_containers_health_check_speaks_tls_where_the_server_does(server: tuple[Server, Path]) -> None:
    running, certificate = server
    assert run_health_check(running.port, GRIDLOOP_TLS_CERT=str(certificate)) == 0
    assert run_health_check(running.port) == 1


def log_lines(certificate: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (certificate.parent / "log").read_text().splitlines()]


def test_tls_older_than_1_2_is_refused_and_http_1_1_is_agreed_on(server: tuple[Server, Path]) -> None:
    running, certificate = server
    context = trusting(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with connected(running, context) as connection:
        assert connection.version() in ("TLSv1.2", "TLSv1.3")
        assert connection.selected_alpn_protocol() == "http/1.1"
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{running.port}", "-tls1_1", "-cipher", "ALL@SECLEVEL=0"]
    old = subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=30)
    assert "Cipher is (NONE)" in old.stdout


@contextlib.contextmanager
def connected(server: Server, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


@pytest.mark.parametrize(
    "sent", [b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\0" * 4096]
)
def test_what_is_no_tls_is_closed_and_harms_nobody(server: tuple[Server, Path], sent: bytes) -> None:
    running, certificate = server
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    assert httpx.get(f"{running.url}/livez", verify=trusting(certificate)).status_code == 200
    assert not [line for line in log_lines(certificate) if line["level"] in ("error", "warning")]


def test_a_client_that_says_nothing_is_closed_before_and_after_the_handshake(server: tuple[Server, Path]) -> None:
    running, certificate = server
    closed = contextlib.suppress(ConnectionResetError, ssl.SSLEOFError)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as silent, closed:
        assert silent.recv(1) == b""
    with connected(running, trusting(certificate)) as silent, closed:
        assert silent.recv(1) == b""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_renewed_certificate_is_shown_without_a_restart_and_a_broken_one_is_not(tmp_path: Path, workers: int) -> None:
    models = tmp_path / "models"
    models.mkdir()
    graphs.detector_model(models)
    certificate, key = issue(tmp_path)
    first = certificate.read_text()
    with serving_tls(models, certificate, tls_key=key, workers=workers) as running:
        key.write_text("no key")
        until = time.monotonic() + 20
        while time.monotonic() < until:
            told = [line for line in log_lines(certificate) if "TLS certificate cannot be used" in line["event"]]
            if len(told) == workers:
                break
            time.sleep(0.1)
        assert len(told) == workers
        assert shown(running) == {first}
        new, new_key = issue(tmp_path, "new")
        new.replace(certificate)
        new_key.replace(key)
        second = certificate.read_text()
        while (seen := shown(running)) != {second} and time.monotonic() < until:
            time.sleep(0.1)
        assert seen == {second}
        assert httpx.get(f"{running.url}/livez", verify=trusting(certificate)).status_code == 200


def shown(server: Server) -> set[str]:
    """Certificates seen on a few connections, which several workers serve."""
    return {ssl.get_server_certificate(("127.0.0.1", server.port)) for _ in range(4)}


# --- what is refused at the start


def test_a_key_may_be_in_the_file_of_its_certificate_and_may_have_a_password(tmp_path: Path) -> None:
    certificate, key = issue(tmp_path, password=PASSWORD)
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    assert Certificate.of(Settings(tls_cert=certificate, tls_key=key, tls_key_password_file=password))
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    assert Certificate.of(Settings(tls_cert=both, tls_key_password_file=password))
    for wrong in ("", "another", "x" * 2000):
        password.write_text(wrong)
        with pytest.raises(
            SettingUnusable, match=r"GRIDLOOP_TLS_CERT: certificate server.pem and key server.key cannot"
        ):
            Certificate.of(Settings(tls_cert=certificate, tls_key=key, tls_key_password_file=password))
    with pytest.raises(SettingUnusable, match="cannot be used"):  # and nobody is asked on the terminal
        Certificate.of(Settings(tls_cert=certificate, tls_key=key))
    with pytest.raises(SettingUnusable, match=r"GRIDLOOP_TLS_KEY_PASSWORD_FILE: none cannot be read: No such file"):
        Certificate.of(Settings(tls_cert=certificate, tls_key=key, tls_key_password_file=tmp_path / "none"))


def test_a_certificate_and_a_key_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    certificate, _ = issue(tmp_path)
    _, other = issue(tmp_path, "other")
    with pytest.raises(SettingUnusable, match="do not belong together"):
        Certificate.of(Settings(tls_cert=certificate, tls_key=other))
    with pytest.raises(SettingUnusable, match="cannot be read: No such file"):
        Certificate.of(Settings(tls_cert=tmp_path / "none.pem", tls_key=other))
    command = [sys.executable, "-m", "service", "serve", "--port=0", f"--tls-cert={certificate}", f"--tls-key={other}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "do not belong together" in ended.stderr


def test_a_key_without_a_certificate_is_no_setting(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="would leave the port without TLS"):
        Settings(tls_key=tmp_path / "key.pem")
    assert Certificate.of(Settings()) is None
    assert Settings(tls_cert="").tls_cert is None  # type: ignore[arg-type]


def test_the_configured_address_is_https(tmp_path: Path) -> None:
    assert Address.configured(Settings(tls_cert=tmp_path / "x.pem", port=8443)).url == "https://127.0.0.1:8443"
    over_socket = Address.configured(Settings(tls_cert=tmp_path / "x.pem", host="unix:/run/x.sock"))
    assert (over_socket.curl, over_socket.url) == ("curl --unix-socket /run/x.sock", "https://localhost")


async def test_a_failed_handshake_counts_as_a_closed_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the supervisor, which knows how many it has handed over, would take the worker for ever busier."""
    models = tmp_path / "models"
    models.mkdir()
    graphs.detector_model(models)
    certificate, key = issue(tmp_path)
    workers = Workers()
    for name in ("edge", "header_timeout_s", "max_connections", "workers"):  # of the whole process
        monkeypatch.setattr(LimitedHttpProtocol, name, getattr(LimitedHttpProtocol, name))
    server = make_server(Settings(models=models, workers=1, tls_cert=certificate, tls_key=key), workers=workers)
    server._loop = asyncio.get_running_loop()
    server.lifespan = server.config.lifespan_class(server.config)
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b""):
        here, there = socket.socketpair()
        here.sendall(sent)
        here.shutdown(socket.SHUT_WR)
        await server._adopt(there)
        here.close()
    assert list(workers.closed) == [2]
