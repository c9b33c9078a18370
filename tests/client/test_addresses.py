"""The ways to a server: TCP, TLS, a Unix socket. A real server behind each, asked by the whole commands."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli import main
from service.client.bench import measure
from service.client.http import ClientFailed, ServerAddress, _trust, split_url
from tests import graphs
from tests.test_listening import serving as serving_on_a_socket
from tests.test_tls import issue, serving_tls


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("ways") / "models"
    models.mkdir()
    graphs.detector_model(models)
    return models


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path must be short
        yield Path(folder) / "http.sock"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ServerAddress("127.0.0.1", 8000)),
        ("https://example.org", ServerAddress("example.org", 443, tls=True)),
        ("https://[::1]:9/", ServerAddress("::1", 9, tls=True)),
        ("unix:/run/gridloop/http.sock", ServerAddress("localhost", 80, unix_path="/run/gridloop/http.sock")),
    ],
)
def test_an_address_says_how_a_server_is_reached(url: str, expected: ServerAddress) -> None:
    assert split_url(url) == expected
    assert split_url(expected.url) == expected


def bench(url: str, models: Path) -> dict[str, Any]:
    options = ["--model", "steps", "--url", url, "--models", str(models), "--connections", "2", "--seconds", "0.3"]
    result = CliRunner().invoke(main, ["bench", *options, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_server_on_a_unix_socket_is_measured(repository: Path, socket_path: Path) -> None:
    with serving_on_a_socket(repository, socket_path, f"--host=unix:{socket_path}", "--workers=1"):
        seen = bench(f"unix:{socket_path}", repository)
    assert seen["requests"] > 0
    assert seen["url"] == f"unix:{socket_path}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_server_with_tls_is_measured_where_its_certificate_is_trusted(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = issue(tmp_path)
    _trust.cache_clear()
    with serving_tls(repository, certificate, tls_key=key, workers=1) as server:
        with pytest.raises(ClientFailed, match="certificate"):
            measure(server.url, "steps", connections=1, seconds=0.1)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        _trust.cache_clear()  # a command is a process of its own
        assert bench(server.url, repository)["requests"] > 0
    _trust.cache_clear()


def test_a_socket_that_is_not_there_is_a_failure_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(ClientFailed, match="no server answers at unix:"):
        measure(f"unix:{tmp_path}/none.sock", "steps")
