"""The endpoints as a caller sees them, on the real application with tiny models."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
from pydantic import ConfigDict

from service import __version__
from service.tasks.base import ModelFolder, Run, Steps, Task, TaskInput, TaskOutput
from tests import graphs
from tests.conftest import running


async def test_models_are_listed_with_their_tensors_and_a_line_to_paste(client: httpx.AsyncClient) -> None:
    listed = {model["name"]: model for model in (await client.get("/v1/models")).json()["models"]}
    assert list(listed) == ["colours", "steps"]
    colours = listed["colours"]
    assert colours["task"] == "image-classification"
    assert colours["is_default"]
    assert colours["versions"][0]["state"] == "ready"
    assert colours["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["batch", 2, 2, 3]}]
    assert colours["curl"] == ("curl 'http://test/v1/image-classification?model=colours' -F file=@photo.jpg")
    assert listed["steps"]["curl"].startswith('curl http://test/v1/anomaly-detection --json \'{"model":')


async def test_one_model_comes_with_its_card(client: httpx.AsyncClient) -> None:
    assert "Tells red from green and blue." in (await client.get("/v1/models/colours")).json()["card"]
    answer = await client.get("/v1/models/nobody")
    assert answer.status_code == 404
    assert "There are: colours, steps" in answer.json()["detail"]


async def test_a_broken_folder_is_listed_with_its_reason(models: Path) -> None:
    (models / "empty").mkdir()
    async with running(models) as client:
        listed = {m["name"]: m for m in (await client.get("/v1/models")).json()["models"]}
        assert "manifest.toml: is missing" in listed["empty"]["reason"]
        assert (await client.get("/readyz")).status_code == 200
        answer = await client.post("/v1/image-classification?model=empty", content=graphs.png())
        assert answer.status_code == 503
        assert "manifest.toml: is missing" in answer.json()["detail"]


async def test_ready_only_when_every_required_model_is(models: Path) -> None:
    (models / "colours" / "1" / "model.onnx").write_bytes(b"broken")
    async with running(models) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "not an ONNX file" in answer.json()["reasons"]["colours"]
        assert (await client.get("/livez")).status_code == 200
        assert (await client.post("/v1/anomaly-detection", json={"values": [1]})).status_code == 200


async def test_the_named_version_answers_and_says_so(models: Path) -> None:
    shutil.copytree(models / "colours" / "1", models / "colours" / "2")
    async with running(models) as client:
        for asked, version in (("colours@1", "1"), ("colours@2", "2"), ("colours", "2")):
            answer = await client.post(f"/v1/image-classification?model={asked}", content=graphs.png())
            assert answer.json()["model"] == {"name": "colours", "version": version}


async def test_a_heatmap_comes_only_when_asked_for(client: httpx.AsyncClient) -> None:
    for explain in (False, True):
        answer = await client.post(f"/v1/image-classification?explain={explain}", content=graphs.png())
        assert ("heatmap" in answer.json()["results"][0]) is explain


async def test_more_labels_than_there_are_gives_all(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/image-classification?top_k=1000", content=graphs.png())
    assert len(answer.json()["results"][0]["predictions"]) == 3


async def test_limits_are_the_servers(models: Path) -> None:
    async with running(models, max_image_pixels=3, max_series_points=3) as client:
        for answer in (
            await client.post("/v1/image-classification", content=graphs.png()),
            await client.post("/v1/anomaly-detection", json={"values": [1, 2, 3, 4]}),
        ):
            assert answer.status_code == 413
            assert "GRIDLOOP_MAX_" in answer.json()["detail"]


async def test_a_damaged_state_is_422_with_a_type_of_its_own(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/anomaly-detection", json={"values": [1], "state": "AAAA"})
    assert answer.status_code == 422
    assert answer.json()["type"].endswith("/invalid-state")


async def test_no_number_in_an_answer_is_nan_or_infinite(client: httpx.AsyncClient) -> None:
    body = {"values": [1e300, -1e300, None, 0], "sensitivity": 0}
    text = (await client.post("/v1/anomaly-detection", json=body)).text
    assert not re.search(r"nan|inf", text, re.IGNORECASE)


async def test_a_browser_at_the_root_finds_the_playground(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


async def test_metrics_count_requests_rows_and_runs(client: httpx.AsyncClient) -> None:
    before = await scrape(client)
    await client.post("/v1/image-classification", files=[("file", graphs.png())] * 3)
    await client.get("/nobody/knows/this")
    after = await scrape(client)
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert grown['gridloop_requests_total{method="POST",route="/v1/image-classification",status="200"}'] == 1
    assert grown['gridloop_requests_total{method="GET",route="none",status="404"}'] == 1
    assert grown['gridloop_batch_rows_sum{model="colours"}'] == 3
    assert grown['gridloop_run_seconds_count{model="colours"}'] == 1


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


# --- a fourth task is one class, and nothing else


class ShoutInput(TaskInput):
    """A number to shout."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"number": 3}]})
    number: float


class ShoutOutput(TaskOutput):
    """The number, doubled and one more."""

    louder: float


class Shout(Task[ShoutInput, ShoutOutput]):
    """Doubles a number and adds one."""

    name = "shout"
    summary = "How loud is this?"
    Input = ShoutInput
    Output = ShoutOutput
    gate: ClassVar[threading.Event] = threading.Event()

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        folder.input("x", dtype="float32", rank=2)

    def steps(self, request: ShoutInput) -> Steps[ShoutOutput]:
        outputs = yield Run({"x": np.array([[request.number]], np.float32)})
        return ShoutOutput(model=self.folder.ref, louder=float(outputs["y"][0, 0]))


async def test_a_new_task_needs_no_change_elsewhere(tmp_path: Path) -> None:
    """Route, schema, example, model list, errors and batching come with the class."""
    golden = [{"input": {"number": 1}, "output": {"louder": 3}}]
    graphs.write_model(tmp_path / "twice", task="shout", graph=graphs.affine, golden=golden)
    async with running(tmp_path, tasks={"shout": Shout}) as client:
        answer = await client.post("/v1/shout", json={"number": 20})
        assert answer.json() == {"model": {"name": "twice", "version": "1"}, "louder": 41}
        assert (await client.post("/v1/shout", json={"loud": 20})).status_code == 422
        document = (await client.get("/openapi.json")).json()
        assert document["paths"]["/v1/shout"]["post"]["summary"] == "How loud is this?"
        assert "ShoutInput" in document["components"]["schemas"]
        (listed,) = (await client.get("/v1/models")).json()["models"]
        assert listed["curl"].endswith('/v1/shout --json \'{"model": "twice", "number": 3}\'')


def test_tasks_are_found_by_being_there() -> None:
    from service.tasks import discover

    found = list(discover())
    assert {"anomaly-detection", "image-classification", "next-word-prediction", "tensor"} <= set(found)
    assert found == sorted(found)


# --- what a caller does to others


async def test_a_caller_who_leaves_is_dropped_and_the_others_are_answered(models: Path) -> None:
    """The client closes its connection while its request waits; nobody runs it."""
    async with running(models) as client:
        handle = client.app.app.state.registry.resolve("anomaly-detection", None)  # type: ignore[attr-defined]
        entered, gate = threading.Event(), threading.Event()
        run = handle.graphs.main.run

        def held(*args: Any, **options: Any) -> Any:
            entered.set()
            assert gate.wait(10)
            return run(*args, **options)

        handle.graphs.main.run = held
        first = asyncio.create_task(client.post("/v1/anomaly-detection", json={"values": [1]}))
        await asyncio.to_thread(entered.wait, 10)
        status = await hang_up(client.app, b'{"values": [2, 3]}')  # type: ignore[attr-defined]
        gate.set()
        assert (await first).status_code == 200
        assert status == 0
        counted = await scrape(client)
        assert counted['gridloop_dropped_requests_total{model="steps",reason="cancelled"}'] >= 1
        assert counted['gridloop_requests_total{method="POST",route="/v1/anomaly-detection",status="499"}'] >= 1


async def hang_up(app: Any, body: bytes) -> int:
    """Send a request over ASGI and disconnect once the body is sent; the status answered, 0 for none."""
    scope = {
        "type": "http", "method": "POST", "path": "/v1/anomaly-detection", "raw_path": b"", "query_string": b"",
        "headers": [], "client": ("127.0.0.1", 1), "server": ("test", 80), "scheme": "http", "root_path": "",
        "http_version": "1.1", "asgi": {"version": "3.0"}, "state": {},
    }  # fmt: skip
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    status = 0

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status


async def test_the_version_is_the_packages(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json()["info"]["version"] == __version__
