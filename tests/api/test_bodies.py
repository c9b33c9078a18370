"""How requests may be sent, and what is said when they may not."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import graphs
from tests.conftest import running

IMAGES, SERIES = "/v1/image-classification", "/v1/anomaly-detection"
BODY = json.dumps({"values": [0, 0, 5]}).encode()


async def test_an_image_is_answered_alike_raw_and_multipart(client: httpx.AsyncClient) -> None:
    raw = await client.post(IMAGES, content=graphs.png(), headers={"Content-Type": "image/png"})
    untyped = await client.post(IMAGES, content=graphs.png())
    form = await client.post(IMAGES, files={"file": ("pink.png", graphs.png())})
    answers = [answer.json()["results"][0] for answer in (raw, untyped, form)]
    assert [answer.pop("filename") for answer in answers] == [None, None, "pink.png"]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["predictions"][0]["label"] == "red"


async def test_an_image_may_be_a_data_url_as_pages_in_a_browser_have_them(client: httpx.AsyncClient) -> None:
    url = b"data:image/png;base64," + base64.b64encode(graphs.png())
    answer = await client.post(IMAGES, content=url, headers={"Content-Type": "text/plain"})
    assert answer.json()["results"][0]["predictions"][0]["label"] == "red"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        (b"data:image/png,abc", 400),
        (b"data:image/png;base64,%%", 400),
        (b"data:text/html;base64,YQ==", 415),
        (b"no data URL", 415),
    ],
)
async def test_an_unusable_data_url_is_refused(client: httpx.AsyncClient, url: bytes, status: int) -> None:
    assert (await client.post(IMAGES, content=url, headers={"Content-Type": "text/plain"})).status_code == status


async def test_several_parts_are_answered_in_the_order_sent(client: httpx.AsyncClient) -> None:
    files = [
        ("file", (f"{i}.png", graphs.png(colour))) for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    ]
    results = (await client.post(IMAGES, files=files)).json()["results"]
    assert [(r["filename"], r["predictions"][0]["label"]) for r in results] == [
        ("0.png", "red"),
        ("1.png", "green"),
        ("2.png", "blue"),
    ]


async def test_options_may_be_form_fields_beside_the_file(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMAGES, files={"file": graphs.png()}, data={"top_k": "1"})
    assert len(answer.json()["results"][0]["predictions"]) == 1


@pytest.mark.parametrize(
    ("query", "place"), [("topk=3", "topk"), ("top_k=0", "top_k"), ("top_k=1001", "top_k"), ("files=x", "files")]
)
async def test_an_unknown_or_unbounded_query_parameter_is_refused(
    client: httpx.AsyncClient, query: str, place: str
) -> None:
    answer = await client.post(f"{IMAGES}?{query}", content=graphs.png())
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["query", place]


async def test_a_parameter_given_twice_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{IMAGES}?top_k=1&top_k=2", content=graphs.png())).status_code == 422


@pytest.mark.parametrize(
    "kind", [None, "application/json", "application/json; charset=utf-8", "application/problem+json"]
)
async def test_json_is_accepted_with_and_without_a_content_type(client: httpx.AsyncClient, kind: str | None) -> None:
    answer = await client.post(SERIES, content=BODY, headers={"Content-Type": kind} if kind else {})
    assert answer.json()["anomalies"] == [2]


@pytest.mark.parametrize(
    ("path", "kind"),
    [(SERIES, "text/plain"), (SERIES, "image/png"), (IMAGES, "application/json"), (IMAGES, "text/html")],
)
async def test_another_content_type_is_415_and_lists_those_taken(
    client: httpx.AsyncClient, path: str, kind: str
) -> None:
    answer = await client.post(path, content=BODY, headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "Send one of" in answer.json()["detail"]


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_body_may_be_compressed(client: httpx.AsyncClient, encoding: str, encode: Any) -> None:
    answer = await client.post(SERIES, content=encode(BODY), headers={"Content-Encoding": encoding})
    assert answer.json()["anomalies"] == [2]


async def test_an_unknown_compression_is_415(client: httpx.AsyncClient) -> None:
    answer = await client.post(SERIES, content=BODY, headers={"Content-Encoding": "br"})
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("body", [BODY, gzip.compress(BODY)[:-9]])
async def test_a_body_that_is_not_what_its_compression_says_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    assert (await client.post(SERIES, content=body, headers={"Content-Encoding": "gzip"})).status_code == 400


async def test_a_body_over_the_limit_is_413_and_names_the_setting(models: Path) -> None:
    async with running(models, max_body_bytes=100) as client:
        answer = await client.post(SERIES, content=b"[" * 101)
        assert answer.status_code == 413
        assert "GRIDLOOP_MAX_BODY_BYTES" in answer.json()["detail"]


async def test_the_limit_holds_without_a_content_length(models: Path) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 10

    async with running(models, max_body_bytes=100) as client:
        assert (await client.post(SERIES, content=chunks())).status_code == 413


async def test_the_limit_holds_after_decompression(models: Path) -> None:
    async with running(models, max_body_bytes=2000) as client:
        bomb = gzip.compress(b"0" * 1_000_000)
        assert len(bomb) < 2000
        assert (await client.post(SERIES, content=bomb, headers={"Content-Encoding": "gzip"})).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"values": "1"}',
        b'{"values": [true]}',
        b'{"values": [NaN]}',
        b'{"values": [1e999]}',
        b'{"values": ["1"]}',
        b'{"values": []}',
        b"{}",
        b'{"values": [1], "sensitivity": 2}',
        b'{"values": [1], "colour": 1}',
        b"\xff",
    ],
)
async def test_unusable_json_is_422_with_the_place(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(SERIES, content=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][0] == "body"


async def test_a_query_on_a_json_endpoint_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{SERIES}?sensitivity=1", content=BODY)).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n\r\n",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
        b"nonsense",
    ],
)
async def test_malformed_multipart_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(IMAGES, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400


async def test_multipart_without_a_boundary_is_400(client: httpx.AsyncClient) -> None:
    assert (await client.post(IMAGES, content=b"x", headers={"Content-Type": "multipart/form-data"})).status_code == 400


async def test_a_file_under_another_name_is_422_and_says_the_right_one(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMAGES, files={"image": ("a.png", graphs.png())})
    assert answer.status_code == 422
    assert "'file'" in answer.json()["detail"]


@pytest.mark.parametrize("large", [10, 200_000])
async def test_large_bodies_give_the_same_answers_as_small_ones(client: httpx.AsyncClient, large: int) -> None:
    """Above a size bodies are parsed in a thread; this is to be seen nowhere else."""
    answer = await client.post(SERIES, content=BODY + b" " * large)
    assert answer.json()["anomalies"] == [2]
