"""Too many requests, as their senders see it: refused early, with the time after which to try again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.media.images import pixels_in
from service.runtime.batcher import Batcher
from service.runtime.pace import kind_of
from service.tasks.anomaly_detection import AnomalyDetectionInput
from service.tasks.base import Upload
from service.tasks.image_classification import ImageClassificationInput
from service.tasks.next_word_prediction import NextWordInput
from tests import graphs
from tests.conftest import running
from tests.media.reading import encoded, noise

ROUTE = "/v1/anomaly-detection"
V2 = "/v2/models/steps/infer"
LONG = b" " * 4096
"""White space, so that a body is worth a look at the queue."""


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    graphs.detector_model(models, "other")
    (models / "steps" / "manifest.toml").write_text('task = "anomaly-detection"\ndefault = true\n')
    async with running(models) as client:
        yield client


def batcher_of(client: httpx.AsyncClient, name: str) -> Batcher:
    found: Batcher = client.app.app.state.registry.get(name).versions["1"].handle.batcher  # type: ignore[attr-defined]
    return found


@contextmanager
def busy(batcher: Batcher, seconds: float) -> Iterator[None]:
    """The model has that much to do, and does nothing."""
    batcher.pace.note(kind_of(1), seconds, seconds, with_few=False)
    with batcher._turn:
        job = batcher.begin((_ for _ in ()), lambda _: None, timeout_s=3600)  # type: ignore[arg-type]
        yield
        batcher.abandon(job)


async def post(client: httpx.AsyncClient, path: str, body: bytes, timeout_s: float) -> httpx.Response:
    headers = {"Content-Type": "application/json", "X-Request-Timeout": f"{timeout_s:g}"}
    return await client.post(path, content=body, headers=headers)


async def test_an_answer_that_would_be_late_is_refused_with_the_time_to_wait(client: httpx.AsyncClient) -> None:
    with busy(batcher_of(client, "steps"), 20.0):
        answer = await post(client, ROUTE, b'{"values": [1, 2]}', 12)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/overloaded")
    assert answer.headers["Retry-After"] == "30"  # 20 s, and 20 s for itself, less 90 % of 12 s
    assert "'steps' is too busy" in answer.json()["detail"]
    assert (await post(client, ROUTE, b'{"values": [1, 2]}', 10)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (ROUTE, b"{" + LONG, 503),
        (ROUTE, b"{", 422),  # as soon read as refused
        (ROUTE, b'{"model": "other", "values": ["x"]}' + LONG, 422),
        (ROUTE, b'{"model": "other", "values": [1]}' + LONG, 200),
        (ROUTE, b'{"values": [' + b"1, " * 50_000, 503),  # too large for the short way
        (V2, b"{", 503),
        ("/v2/models/other/infer", b"{", 422),
    ],
)
async def test_a_body_is_not_read_where_no_answer_would_be_in_time(
    client: httpx.AsyncClient, path: str, body: bytes, status: int
) -> None:
    with busy(batcher_of(client, "steps"), 20.0):
        answer = await post(client, path, body, 10)
    assert answer.status_code in ((400, 422) if status == 422 else (status,))
    assert ("Retry-After" in answer.headers) == (status == 503)


async def test_nobody_waits_for_a_request_that_was_refused(client: httpx.AsyncClient) -> None:
    batcher = batcher_of(client, "steps")
    with busy(batcher, 20.0):
        await asyncio.gather(*(post(client, ROUTE, b'{"values": [1]}', 1) for _ in range(20)))
        assert batcher.waiting == 1
    assert batcher.waiting == 0


# --- how much is asked for


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_pictures_pixels_are_known_without_decoding_it(form: str) -> None:
    """A WebP of 6 kB may have 49 million pixels."""
    whole = encoded(noise(60, 40), form)
    assert pixels_in(whole) == 2400
    assert pixels_in(b"no picture") == 10
    assert pixels_in(whole[:24]) in (24, 2400)


def test_the_pixels_of_a_large_file_are_guessed() -> None:
    assert pixels_in(encoded(noise(10, 10), "BMP") + bytes(100_000)) > 100_000


def test_requests_say_how_much_they_ask_for() -> None:
    pictures = tuple(Upload(encoded(noise(side, side))) for side in (10, 20))
    asked: dict[int, Any] = {
        500: ImageClassificationInput(files=pictures),
        3: AnomalyDetectionInput(values=[1, 2, 3]),
        4: AnomalyDetectionInput(values=[1, 2], timestamps=[1, 2]),
        5: NextWordInput(text="Some "),
        10: NextWordInput(text="Some ", explain=True),
        5 + 16 * 6 * 2: NextWordInput(text="Some ", words=2),
    }
    assert {request.work for request in asked.values()} == set(asked)
    assert all(request.work == work for work, request in asked.items())
