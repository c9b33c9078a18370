"""`Accept: text/event-stream`: an answer part by part, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel, Field

from service.api import accept
from service.api.accept import Wish
from service.errors import InvalidInput, TaskUnusable
from service.runtime.unread import MOST_UNREAD
from service.tasks import discover
from service.tasks.base import MediaAnswer, Run, Steps
from tests import graphs
from tests.api.test_short_way import Served, serving
from tests.conftest import running
from tests.counting import Counting, CountingInput, CountingOutput


class Counted(BaseModel):
    """A number that was counted, and what makes its event as large as is asked for."""

    count: float
    padding: str


class TellingInput(CountingInput):
    """How far to count, and where to fail."""

    steps: int = Field(default=1, ge=0, le=100_000)
    fail_at: int | None = None
    padding: int = 0


class Telling(Counting):
    """Counting that tells each number at once."""

    name = "telling"
    Input = TellingInput
    events: ClassVar[Any] = {"count": Counted}
    told: ClassVar[int] = 0

    def steps(self, request: Any) -> Steps[CountingOutput | MediaAnswer]:
        encoded = yield Run({"x": np.array([[request.x]], np.float32)})
        count, counts = np.zeros((1, 1), np.float32), []
        for place in range(request.steps):
            if place == request.fail_at:
                raise InvalidInput("That is far enough.")
            outputs = yield Run({"stride": encoded["stride"], "count": count}, graph="decoder")
            count = outputs["next_count"]
            counts.append(float(count[0, 0]))
            yield self.settled(lambda: [Counted(count=counts[-1], padding="." * request.padding)])
            Telling.told += 1
        return CountingOutput(model=self.folder.ref, counts=counts)


TASKS = {"counting": Counting, "telling": Telling}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    graphs.counting_model(models)
    telling = graphs.counting_model(models, "teller")
    (telling / "manifest.toml").write_text('task = "telling"\narchitecture = "rnn"\n')
    return models


@pytest.fixture
async def served(folder: Path) -> AsyncIterator[Served]:
    Telling.told = 0
    async with serving(folder, tasks=TASKS) as there:
        yield there


def request(body: dict[str, Any], *fields: str, path: str = "/v1/telling", events: bool = True) -> bytes:
    data = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *fields]
    head += ["Accept: text/event-stream"] * events
    return "\r\n".join([*head, "", ""]).encode() + data


class Stream:
    """An answer as it comes in."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader, self.head, self._text = reader, "", b""

    async def begin(self) -> int:
        self.head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()
        return int(self.head.split()[1])

    async def event(self) -> dict[str, str]:
        """The next event's fields."""
        while b"\n\n" not in self._text:
            size = int(await asyncio.wait_for(self.reader.readline(), 20), 16)
            assert size, f"it ended after {self._text!r}"
            self._text += (await self.reader.readexactly(size + 2))[:-2]
        event, _, self._text = self._text.partition(b"\n\n")
        lines = [line.split(": ", 1) for line in event.decode().split("\n")]
        assert len(lines) == len({name for name, _ in lines})
        return dict(lines)  # type: ignore[arg-type]

    async def rest(self) -> list[dict[str, str]]:
        events = [await self.event()]
        while events[-1]["event"] not in ("done", "error"):
            events.append(await self.event())
        assert await asyncio.wait_for(self.reader.readexactly(5), 20) == b"0\r\n\r\n"
        return events


async def ask(served: Served, body: dict[str, Any], *fields: str) -> tuple[Stream, asyncio.StreamWriter]:
    reader, writer = await served.connect()
    writer.write(request(body, *fields))
    stream = Stream(reader)
    assert await stream.begin() == 200
    return stream, writer


async def test_each_part_is_an_event_and_the_last_one_is_the_whole_answer(served: Served) -> None:
    stream, writer = await ask(served, {"x": 2, "steps": 3}, "X-Request-ID: abc")
    events = await stream.rest()
    assert [event["event"] for event in events] == ["count", "count", "count", "done"]
    assert [json.loads(event["data"])["count"] for event in events[:-1]] == [20, 40, 60]
    assert json.loads(events[-1]["data"]) == {"model": {"name": "teller", "version": "1"}, "counts": [20, 40, 60]}
    assert re.fullmatch(r"decode;dur=[\d.]+, queue;.*, infer;.*, encode;dur=[\d.]+", events[-1]["server-timing"])
    assert "content-type: text/event-stream\r\n" in stream.head
    assert "x-request-id: abc\r\n" in stream.head
    assert "cache-control: no-store\r\n" in stream.head
    writer.write(request({"x": 1}))  # the connection is kept
    assert await stream.begin() == 200
    writer.close()


async def test_a_part_comes_while_the_rest_is_worked_on(served: Served) -> None:
    """A thousand runs are left when the first event is here, and more than that when its reader stops."""
    stream, writer = await ask(served, {"x": 1, "steps": 100_000})
    assert (await stream.event())["event"] == "count"
    assert Telling.told < 100_000
    writer.transport.abort()
    await served.has_in_flight(0)


async def test_nothing_more_is_done_for_a_client_who_has_left(served: Served) -> None:
    before = dropped("cancelled")
    stream, writer = await ask(served, {"x": 1, "steps": 100_000})
    await stream.event()
    writer.transport.abort()
    await served.has_in_flight(0)
    assert dropped("cancelled") == before + 1
    assert counted(served, 499) >= 1
    assert Telling.told < 100_000


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("gridloop_dropped_requests_total", {"model": "teller", "reason": reason}) or 0.0


def counted(served: Served, status: int) -> float:
    served.edge.flush_metrics()
    labels = {"route": "/v1/telling", "method": "POST", "status": str(status)}
    return REGISTRY.get_sample_value("gridloop_requests_total", labels) or 0.0


async def test_a_client_that_does_not_read_stops_the_work(served: Served) -> None:
    """What waits for it is what the sockets hold, and so many parts: then its request rests."""
    stream, writer = await ask(served, {"x": 1, "steps": 100_000, "padding": 20_000})
    (handle,) = [version.handle for version in served.edge.app.state.registry.get("teller").versions.values()]
    rests = 0  # turns of the event loop, which is the server's too, in which nothing was taken
    for _ in range(3000):
        before = Telling.told
        await asyncio.sleep(0.01)
        rests = rests + 1 if handle.batcher._paused and Telling.told == before else 0
        if rests == 20:
            break
    told = Telling.told
    assert handle.batcher._paused
    async with asyncio.timeout(20):
        assert (await asyncio.to_thread(handle.predict_now, TellingInput(x=1, steps=1))).counts == [10]
    assert Telling.told <= told + 1
    first = [await stream.event() for _ in range(2 * MOST_UNREAD)]
    assert [json.loads(event["data"])["count"] for event in first] == [10.0 * n for n in range(1, 2 * MOST_UNREAD + 1)]
    writer.transport.abort()
    await served.has_in_flight(0)


async def test_what_fails_later_is_the_last_event(served: Served) -> None:
    before = counted(served, 422)
    stream, writer = await ask(served, {"x": 2, "steps": 5, "fail_at": 2}, "X-Request-ID: abc")
    *parts, last = await stream.rest()
    problem = json.loads(last["data"])
    assert (len(parts), last["event"]) == (2, "error")
    assert (problem["type"], problem["status"], problem["request_id"]) == ("/problems/invalid-input", 422, "abc")
    assert (problem["detail"], problem["instance"]) == ("That is far enough.", "/v1/telling")
    await served.has_in_flight(0)
    assert counted(served, 422) == before + 1
    writer.close()


async def test_a_deadline_that_passes_meanwhile_is_told_so(served: Served) -> None:
    stream, writer = await ask(served, {"x": 2, "steps": 100_000}, "X-Request-Timeout: 0.5")
    last = (await stream.rest())[-1]
    assert (last["event"], json.loads(last["data"])["status"]) == ("error", 504)
    writer.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [({"x": 2, "fail_at": 0, "steps": 3}, 422), ({"y": 2}, 422), ({"x": 1, "model": "nobody"}, 404)],
)
async def test_what_is_refused_before_any_part_has_its_own_status(
    served: Served, body: dict[str, Any], status: int
) -> None:
    reader, writer = await served.connect()
    writer.write(request(body))
    stream = Stream(reader)
    assert await stream.begin() == status
    assert "content-type: application/problem+json" in stream.head
    writer.close()


async def test_an_answer_without_parts_is_the_last_event_alone(served: Served) -> None:
    stream, writer = await ask(served, {"x": 2, "steps": 0})
    assert [event["event"] for event in await stream.rest()] == ["done"]
    writer.close()


async def test_the_whole_answer_is_the_same_without_events(served: Served) -> None:
    stream, writer = await ask(served, {"x": 2, "steps": 4})
    (*_, last) = await stream.rest()
    writer.close()
    ((status, whole),) = await served.ask(request({"x": 2, "steps": 4}, events=False))
    assert (status, whole) == (200, json.loads(last["data"]))
    assert served.begun == 1  # the short way is for whole answers


# --- who gets events


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        ("", Wish.WHOLE),
        ("*/*", Wish.WHOLE),
        ("application/json", Wish.WHOLE),
        ("text/html", Wish.WHOLE),
        ("text/event-stream", Wish.EVENTS_ONLY),
        ("Text/Event-Stream; charset=utf-8", Wish.EVENTS_ONLY),
        ("text/event-stream, text/html", Wish.EVENTS_ONLY),
        ("text/event-stream, */*", Wish.EVENTS),
        ("*/*, text/event-stream", Wish.EVENTS),
        ("text/event-stream, application/json", Wish.EVENTS),
        ("application/json, text/event-stream", Wish.WHOLE),
        ("application/json;q=0.5, text/event-stream", Wish.EVENTS),
        ("text/event-stream;q=0.5, application/json", Wish.WHOLE),
        ("text/event-stream;q=0, */*", Wish.WHOLE),
        ("text/event-stream;q=much, */*", Wish.WHOLE),
        ("text/event-stream, application/json;q=0", Wish.EVENTS_ONLY),
        ("text/event-stream, application/*", Wish.EVENTS),
    ],
)
def test_events_are_for_those_who_name_them(header: str, wish: Wish) -> None:
    assert accept.wish(header.encode()) is wish


async def test_a_task_without_parts_refuses_who_takes_nothing_else(folder: Path) -> None:
    async with running(folder, tasks=TASKS) as client:
        refused = await client.post("/v1/counting", json={"x": 1}, headers={"Accept": "text/event-stream"})
        assert (refused.status_code, refused.json()["type"]) == (406, "/problems/not-acceptable")
        assert "application/json" in refused.json()["detail"]
        whole = await client.post("/v1/counting", json={"x": 1}, headers={"Accept": "text/event-stream, */*"})
        assert whole.json()["counts"] == [10]


async def test_a_picture_or_a_tune_as_a_file_does_not_come_in_parts(tmp_path: Path) -> None:
    from tests.tasks.test_music_composition import composer

    graphs.write_model(tmp_path / "piper", task="music-composition", graph=composer)
    async with running(tmp_path) as client:
        body = {"key": "D", "meter": "2/4", "bars": 2, "format": "midi"}
        for accepted, status in (("text/event-stream", 406), ("text/event-stream, */*", 200)):
            answer = await client.post("/v1/music-composition", json=body, headers={"Accept": accepted})
            assert answer.status_code == status
        assert answer.headers["content-type"] == "audio/midi"


async def test_the_document_describes_the_events(folder: Path) -> None:
    async with running(folder, tasks=TASKS) as client:
        document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/v1/telling"]["post"]["responses"]["200"]["content"]
    assert next(iter(content)) == "application/json"
    kinds = {
        kind["properties"]["event"]["const"]: kind["properties"]["data"]["$ref"].rpartition("/")[2]
        for kind in content["text/event-stream"]["schema"]["oneOf"]
    }
    assert kinds == {"count": "Counted", "done": "CountingOutput", "error": "Problem"}
    assert document["components"]["schemas"]["Counted"]["properties"]["count"]["type"] == "number"
    other = document["paths"]["/v1/counting"]["post"]["responses"]["200"]["content"]
    assert list(other) == ["application/json"]


@pytest.mark.parametrize("name", ["done", "error", "Bar", ""])
def test_an_event_that_ends_every_stream_or_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "wrong.py").write_text(
        "from tests.api.test_event_stream import Telling\n"
        "class Wrong(Telling):\n"
        '    """Wrong."""\n'
        '    name, summary = "wrong", "Wrong?"\n'
        f"    events = {{{name!r}: Telling.events['count']}}\n"
    )
    with pytest.raises(TaskUnusable, match="events has"):
        discover(tmp_path)
