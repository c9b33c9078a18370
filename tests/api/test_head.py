"""HEAD: what GET would answer, without its body."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.api.test_short_way import Served, served
from tests.conftest import running

__all__ = ["served"]

PAGES = ["/", "/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css"]
READ = [
    "/livez",
    "/readyz",
    "/v1/models",
    "/v1/models/colours",
    "/v1/models/nobody",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/colours",
    "/v2/models/colours/versions/1/ready",
    "/v2/models/nobody",
    "/nowhere",
    "/docs/",
]
OTHER_EACH_TIME = {"x-request-id", "server-timing", "date"}


def same(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OTHER_EACH_TIME}


@pytest.mark.parametrize("path", [*PAGES, *READ])
async def test_head_has_the_status_and_headers_of_get_and_no_body(client: httpx.AsyncClient, path: str) -> None:
    headers = {"X-Request-ID": "mine"}
    get, head = await client.get(path, headers=headers), await client.head(path, headers=headers)
    assert (head.status_code, same(head)) == (get.status_code, same(get))
    assert head.headers["x-request-id"] == "mine"
    assert head.content == b""


async def test_head_of_the_metrics_is_answered(client: httpx.AsyncClient) -> None:
    head = await client.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 1000


async def test_head_is_503_where_get_is(models: Path) -> None:
    (models / "colours" / "1" / "model.onnx").write_bytes(b"broken")
    async with running(models) as client:
        for path in ("/readyz", "/v2/health/ready"):
            head = await client.head(path)
            assert (head.status_code, head.content) == (503, b"")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/anomaly-detection", "POST"),
        ("/v2/models/colours/infer", "POST"),
        ("/v2/models/colours/versions/1/infer", "POST"),
    ],
)
async def test_head_is_405_where_get_is_and_says_what_is_allowed(
    client: httpx.AsyncClient, path: str, allowed: str
) -> None:
    for method in ("GET", "HEAD"):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.content == b""


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/docs", "/static-offline-docs/swagger-ui.css", "/"])
async def test_a_405_of_what_can_be_read_allows_head(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.put(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_head_needs_a_key_where_get_does(models: Path) -> None:
    async with running(models, api_keys=("secret",)) as client:
        head = await client.head("/v1/models")
        assert (head.status_code, head.content) == (401, b"")
        assert (await client.head("/v1/models", headers={"Authorization": "Bearer secret"})).status_code == 200


async def test_heads_are_counted_and_logged_as_heads(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(models, log_level="info", log_format="json") as client:
        await client.head("/v1/models/colours", headers={"X-Request-ID": "a-head"})
        metrics = (await client.get("/metrics")).text
    assert 'gridloop_requests_total{method="HEAD",route="/v1/models/{name}",status="200"}' in metrics
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "a-head" in line]
    assert (line["method"], line["path"], line["status"]) == ("HEAD", "/v1/models/colours", 200)


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/v1/anomaly-detection", "/docs", "/"])
@pytest.mark.parametrize("field", ["", "Expect: a miracle\r\n", "X-Request-Timeout: soon\r\n"])
async def test_the_connection_goes_on_after_a_head(served: Served, path: str, field: str) -> None:
    """Were there a body, the next answer would not begin where the client looks for it."""
    reader, writer = await served.connect()
    for _ in range(2):
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n{field}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(len(b'{"status":"alive"}')) == b'{"status":"alive"}'
    writer.close()


async def test_a_head_that_is_refused_by_the_parser_has_no_body_either(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(b"HEAD /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 414 ")
    assert await reader.read() == b""
    writer.close()
