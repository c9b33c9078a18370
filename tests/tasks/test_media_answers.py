"""Answers that are no JSON: bytes under their own content type, through every way in which a model is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx
import numpy as np
import pytest
from pydantic import BaseModel

from service.client.http import Server, split_url
from service.evaluation.base import Ask, Subject
from service.evaluation.transport import InProcess
from service.registry.handle import LoadOptions
from service.registry.loading import load_version
from service.registry.repository import read_folder
from service.tasks.base import (
    Array,
    FailedFile,
    MediaAnswer,
    MediaInput,
    MediaTask,
    Run,
    Steps,
    Task,
    TaskInput,
    TaskOutput,
    Upload,
)
from tests import graphs
from tests.conftest import running

BYTES = "application/octet-stream"


class TwiceInput(MediaInput):
    """Which format."""

    format: Literal["json", "raw"] = "json"


class TwiceResult(BaseModel):
    """One file's bytes, each doubled and one more."""

    numbers: list[float]


class TwiceOutput(TaskOutput):
    """One result for each file."""

    results: list[TwiceResult | FailedFile]


class Twice(MediaTask[TwiceInput, TwiceOutput, Array]):
    """Doubles bytes."""

    name, summary, noun = "twice", "How much is twice as much?", "Recording"
    Input, Output = TwiceInput, TwiceOutput
    media: ClassVar[tuple[str, ...]] = ("audio/L16",)
    other_answers: ClassVar[Mapping[str, str]] = {"raw": "audio/L16"}

    def decode_file(self, file: Upload, what: str) -> Array:
        return np.frombuffer(file.data, np.uint8).astype(np.float32)

    def answer_files(
        self, request: TwiceInput, files: Sequence[Upload], decoded: Sequence[Array]
    ) -> Steps[list[dict[str, Any]]]:
        results = []
        for samples in decoded:
            outputs = yield Run({"x": samples[None]})
            results.append({"numbers": outputs["y"][0]})
        return results

    def render(self, request: TwiceInput, file: Upload, decoded: Array, result: Any) -> bytes:
        return bytes(result["numbers"].astype(np.uint8))


class TuneInput(TaskInput):
    """A number to play."""

    number: float
    format: Literal["abc", "midi"] = "abc"


class TuneOutput(TaskOutput):
    """What is played."""

    abc: str


class Tune(Task[TuneInput, TuneOutput]):
    """Plays a number."""

    name, summary, Input, Output = "tune", "How does that sound?", TuneInput, TuneOutput
    other_answers: ClassVar[Mapping[str, str]] = {"midi": "audio/midi"}
    other_headers: ClassVar[Mapping[str, str]] = {"X-Seed": "The seed."}

    def steps(self, request: TuneInput) -> Steps[TuneOutput | MediaAnswer]:
        outputs = yield Run({"x": np.array([[request.number]], np.float32)})
        note = int(outputs["y"][0, 0])
        if kind := self.other_answer(request):
            return MediaAnswer(self.folder.ref, bytes([note]), kind, {"X-Seed": "7"})
        return TuneOutput(model=self.folder.ref, abc=f"K:{note}")


TASKS = {"twice": Twice, "tune": Tune}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    graphs.write_model(tmp_path / "doubler", task="twice", graph=graphs.affine)
    graphs.write_model(tmp_path / "player", task="tune", graph=graphs.affine)
    return tmp_path


@pytest.fixture
async def client(repository: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(repository, tasks=TASKS) as client:
        yield client


async def test_a_file_is_answered_in_the_format_that_was_asked_for(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/twice?format=raw", content=b"\1\2", headers={"content-type": BYTES})
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "audio/L16", b"\3\5")
    assert answer.headers["x-model"] == "doubler@1"
    assert "x-request-id" in answer.headers
    plain = await client.post("/v1/twice", content=b"\1\2", headers={"content-type": BYTES})
    assert plain.json()["results"] == [{"numbers": [3, 5]}]


async def test_several_files_have_no_answer_in_bytes(client: httpx.AsyncClient) -> None:
    files = [("file", ("a", b"\1")), ("file", ("b", b"\2"))]
    answer = await client.post("/v1/twice?format=raw", files=files)
    assert answer.status_code == 422
    assert "format=raw answers one recording, and 2 were sent" in answer.json()["detail"]
    assert (await client.post("/v1/twice", files=files)).status_code == 200
    none = await client.post("/v1/twice?format=raw", content=b"", headers={"content-type": BYTES})
    assert none.status_code == 422
    assert "No recording was sent" in none.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/twice?format=png", "/v1/tune"])
async def test_a_format_that_is_not_declared_is_refused(client: httpx.AsyncClient, path: str) -> None:
    body = {"json": {"number": 1, "format": "png"}} if path == "/v1/tune" else {"content": b"\1"}
    answer = await client.post(path, headers=None if "json" in body else {"content-type": BYTES}, **body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][-1] == "format"


async def test_a_json_task_may_answer_bytes_and_headers(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/tune", json={"number": 20, "format": "midi"})
    assert (answer.headers["content-type"], answer.headers["x-seed"], answer.content) == ("audio/midi", "7", b"\x29")
    assert (await client.post("/v1/tune", json={"number": 20})).json()["abc"] == "K:41"


async def test_the_document_lists_every_content_type_of_an_answer(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    success = paths["/v1/tune"]["post"]["responses"]["200"]
    assert list(success["content"]) == ["application/json", "audio/midi"]
    assert success["content"]["audio/midi"]["schema"] == {"type": "string", "format": "binary"}
    assert success["headers"]["X-Seed"]["description"] == "The seed. Not with JSON."
    assert list(success["headers"]) == ["X-Model", "X-Seed"]


async def test_a_page_of_another_origin_may_read_their_headers(repository: Path) -> None:
    async with running(repository, tasks=TASKS, cors_origins="*") as client:
        answer = await client.post("/v1/tune", json={"number": 1}, headers={"origin": "https://app.example.com"})
        assert {"X-Model", "X-Seed"} <= set(answer.headers["access-control-expose-headers"].split(", "))


async def test_an_evaluation_may_ask_for_bytes(repository: Path) -> None:
    found = read_folder(repository / "player")
    assert found.manifest
    transport = InProcess(load_version(repository / "player" / "1", found.manifest, Tune, LoadOptions()))
    try:
        answer = await transport.ask(Ask({"number": 20, "format": "midi"}))
    finally:
        await transport.close()
    assert answer == {"model": {"name": "player", "version": "1"}, "content_type": "audio/midi", "data": b"\x29"}


async def test_an_evaluation_gets_the_same_bytes_through_http(repository: Path) -> None:
    from service.evaluation.transport import Http
    from service.graph import Signature

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What a server sends; the other tests hold that it does."""
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/midi\r\nx-model: player@1\r\ncontent-length: 1\r\n\r\n"
        writer.write(head + b"\x29")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport = Http(
            Server(split_url(f"http://127.0.0.1:{port}"), ""), Subject("player", "1", "tune", Signature({}, {}))
        )
        told = await transport.ask(Ask({"number": 20, "format": "midi"}))
        await transport.close()
    assert told == {"model": {"name": "player", "version": "1"}, "content_type": "audio/midi", "data": b"\x29"}
