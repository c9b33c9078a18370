"""Pages of other origins: what a browser is told before and after it lets them call."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests import graphs
from tests.api.test_short_way import answer, post, serving
from tests.conftest import running

ORIGIN = "http://localhost:3000"
IMAGES, SERIES = "/v1/image-classification", "/v1/anomaly-detection"


def preflight(origin: str = ORIGIN, asked: str = "content-type") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
    }


def names(value: str) -> set[str]:
    return {name.strip().lower() for name in value.split(",")}


async def test_without_the_setting_no_header_is_sent_and_a_preflight_is_405(client: httpx.AsyncClient) -> None:
    asked = await client.options(IMAGES, headers=preflight())
    answered = await client.get("/v1/models", headers={"Origin": ORIGIN})
    assert asked.status_code == 405
    for there in (asked, answered):
        assert not [name for name in there.headers if name.startswith("access-control") or name == "vary"]


@pytest.mark.parametrize("path", [IMAGES, SERIES, "/v2/models/steps/infer", "/v1/models", "/nowhere"])
async def test_a_preflight_is_204_and_says_what_a_page_may_send(models: Path, path: str) -> None:
    async with running(models, cors_origins=(ORIGIN,), api_keys=("secret",)) as client:
        told = await client.options(path, headers=preflight(asked="authorization,content-type, X-Of-A-Library"))
    assert (told.status_code, told.content) == (204, b"")
    assert "content-length" not in told.headers
    assert told.headers["access-control-allow-origin"] == ORIGIN
    assert told.headers["vary"] == "Origin"
    assert names(told.headers["access-control-allow-methods"]) == {"get", "head", "post"}
    ours = {"authorization", "content-type", "content-encoding", "x-request-id", "x-request-timeout", "traceparent"}
    assert ours | {"x-of-a-library"} <= names(told.headers["access-control-allow-headers"])
    assert int(told.headers["access-control-max-age"]) > 0
    assert told.headers["x-request-id"]


async def test_headers_asked_for_in_a_form_that_none_have_are_not_repeated(models: Path) -> None:
    async with running(models, cors_origins=(ORIGIN,)) as client:
        told = await client.options(IMAGES, headers=preflight(asked="x-a: b; <script>"))
        assert "script" not in told.headers["access-control-allow-headers"]
        assert (await client.options(IMAGES, headers=preflight(asked=""))).status_code == 204


@pytest.mark.parametrize("origin", ["http://localhost:3001", "https://localhost:3000", "null", "http://localhost"])
async def test_pages_of_another_origin_are_told_nothing(models: Path, origin: str) -> None:
    async with running(models, cors_origins=(ORIGIN,)) as client:
        asked = await client.options(IMAGES, headers=preflight(origin))
        answered = await client.get("/v1/models", headers={"Origin": origin})
    assert (asked.status_code, answered.status_code) == (403, 200)
    assert "GRIDLOOP_CORS_ORIGINS" in asked.json()["detail"]
    for there in (asked, answered):
        assert not [name for name in there.headers if name.startswith("access-control")]
        assert there.headers["vary"] == "Origin"


async def test_an_options_request_that_is_no_preflight_is_as_ever(models: Path) -> None:
    async with running(models, cors_origins=(ORIGIN,)) as client:
        assert (await client.options(IMAGES, headers={"Origin": ORIGIN})).status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/models", b"", 200),
        ("HEAD", "/livez", b"", 200),
        ("GET", "/docs", b"", 200),
        ("POST", SERIES, b'{"values": [0, 0, 5]}', 200),
        ("POST", IMAGES, graphs.png(), 200),
        ("POST", SERIES, b"{", 422),
        ("POST", "/v1/image-classification?model=nobody", graphs.png(), 404),
        ("POST", "/v2/models/steps/infer", b"{", 400),
        ("GET", "/nowhere", b"", 404),
        ("PUT", "/livez", b"", 405),
    ],
)
@pytest.mark.parametrize(("setting", "told"), [(ORIGIN, ORIGIN), ("*", "*")])
async def test_answers_and_errors_can_be_read_by_the_page(
    models: Path, method: str, path: str, body: bytes, status: int, setting: str, told: str
) -> None:
    async with running(models, cors_origins=(setting,)) as client:
        there = await client.request(method, path, content=body, headers={"Origin": ORIGIN})
    assert there.status_code == status
    assert there.headers["access-control-allow-origin"] == told
    assert {"x-request-id", "server-timing", "retry-after"} <= names(there.headers["access-control-expose-headers"])
    assert there.headers.get("vary") == (None if told == "*" else "Origin")


async def test_a_missing_key_can_be_read_by_the_page(models: Path) -> None:
    async with running(models, cors_origins=(ORIGIN,), api_keys=("secret",)) as client:
        refused = await client.get("/v1/models", headers={"Origin": ORIGIN})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


async def test_without_an_origin_only_caches_are_told(models: Path) -> None:
    async with running(models, cors_origins=(ORIGIN,)) as client:
        there = await client.get("/v1/models")
        assert there.headers["vary"] == "Origin"
        assert "access-control-allow-origin" not in there.headers


async def test_the_short_way_a_known_head_and_the_parser_carry_the_headers_too(models: Path) -> None:
    async with serving(models, cors_origins=(ORIGIN,)) as served:
        reader, writer = await served.connect()
        for _ in range(3):  # from the second time on the head is known
            writer.write(post(b'{"values": [0, 0, 5]}', f"Origin: {ORIGIN}"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert f"access-control-allow-origin: {ORIGIN}\r\n".encode() in head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert b"anomalies" in await reader.readexactly(length)
        writer.write(post(b'{"values": [0, 0, 5]}', "Origin: http://other"))
        assert b"access-control-allow-origin" not in await reader.readuntil(b"\r\n\r\n")
        assert served.begun == 4
        writer.close()
        reader, writer = await served.connect()
        many = "".join(f"X-{n}: {'v' * 4000}\r\n" for n in range(20))
        writer.write(f"GET /livez HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\n{many}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert f"access-control-allow-origin: {ORIGIN}\r\n".encode() in head
        writer.close()


async def test_a_preflight_leaves_the_connection_open(models: Path) -> None:
    async with serving(models, cors_origins=(ORIGIN,)) as served:
        reader, writer = await served.connect()
        fields = "".join(f"{name}: {value}\r\n" for name, value in preflight().items())
        writer.write(f"OPTIONS {SERIES} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        writer.write(post(b'{"values": [0, 0, 5]}'))
        assert (await answer(reader))[0] == 200
        writer.close()
