"""Versions that are loaded when they are first asked for: the first request waits, and readiness does not."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client.http import Server, split_url
from service.registry import registry as registries
from service.registry import time_limit
from tests import graphs
from tests.api.test_canary import infer_version
from tests.api.test_short_way import SERIES, post, serving
from tests.conftest import running

BODY = {"values": [0, 0, 5]}


def lazy(models: Path, name: str = "late") -> Path:
    """A second detector, which is loaded when it is first asked for."""
    return graphs.detector_model(models, name, load="lazy")


class Gate:
    """Holds the loading of a version until it is opened; counts."""

    def __init__(self, name: str) -> None:
        self.name, self.entered, self.opened, self.loads = name, threading.Event(), threading.Event(), 0
        self._load = registries.load_version

    def load(self, folder: Path, *args: Any, **kwargs: Any) -> Any:
        if f"{folder.parent.name}@{folder.name}" == self.name:
            self.loads += 1
            self.entered.set()
            assert self.opened.wait(20)
        return self._load(folder, *args, **kwargs)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate("late@1")
    monkeypatch.setattr(registries, "load_version", gate.load)
    yield gate
    gate.opened.set()


async def states(client: Any, name: str = "late") -> list[str]:
    return [version["state"] for version in (await client.get(f"/v1/models/{name}")).json()["versions"]]


async def index(client: Any) -> dict[str, tuple[str, str | None]]:
    entries = (await client.post("/v2/repository/index")).json()
    return {f"{e['name']}@{e['version']}": (e["state"], e.get("reason")) for e in entries}


async def test_a_lazy_model_is_ready_to_be_asked_and_not_loaded(models: Path, gate: Gate) -> None:
    lazy(models)
    async with running(models) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert await states(client) == ["lazy"]
        assert (await client.get("/v1/models/late")).json()["reason"] == "is loaded when it is first asked for"
        assert (await index(client))["late@1"] == ("READY", "lazy: is loaded when it is first asked for")
        assert "late" in (await client.get("/v2/models")).json()["models"]
        assert (await client.get("/v2/models/late/ready")).status_code == 200
        assert (await client.get("/v2/models/late/stats")).json() == {"model_stats": []}
        assert (await client.get("/v1/models/steps")).json()["is_default"]
        assert 'model="late",version="1"' not in (await client.get("/metrics")).text
        assert gate.loads == 0


async def test_first_requests_wait_for_one_load(models: Path, gate: Gate) -> None:
    lazy(models)
    async with running(models) as client:
        asked = [
            asyncio.create_task(client.post("/v1/anomaly-detection", json=BODY | {"model": "late"})) for _ in range(4)
        ]
        inferred = asyncio.create_task(infer_version(client, {}, "late"))
        await asyncio.to_thread(gate.entered.wait, 10)
        assert await states(client) == ["loading"]
        assert (await index(client))["late@1"][0] == "LOADING"
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/v1/anomaly-detection", json=BODY)).json()["model"]["name"] == "steps"
        gate.opened.set()
        for answer in await asyncio.gather(*asked):
            assert (answer.status_code, answer.json()["model"]["name"]) == (200, "late")
        assert await inferred == "1"
        assert (gate.loads, await states(client)) == (1, ["ready"])
        stats = (await client.get("/v2/models/late/stats")).json()["model_stats"]
        assert stats[0]["inference_stats"]["success"]["count"] == 5
        assert (await client.get("/v1/models/steps")).json()["is_default"]


async def test_who_has_no_time_to_wait_is_told_and_the_loading_goes_on(models: Path, gate: Gate) -> None:
    lazy(models)
    async with running(models) as client:
        late = BODY | {"model": "late"}
        answer = await client.post("/v1/anomaly-detection", json=late, headers={"X-Request-Timeout": "0.05"})
        assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
        gate.opened.set()
        assert (await client.post("/v1/anomaly-detection", json=late)).status_code == 200
        assert gate.loads == 1


async def test_one_that_cannot_be_loaded_is_503_with_the_reason(models: Path) -> None:
    (lazy(models) / "1" / "model.onnx").write_bytes(b"broken")
    async with running(models) as client:
        for _ in range(2):
            answer = await client.post("/v1/anomaly-detection", json=BODY | {"model": "late"})
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/model-not-ready")
            assert "not an ONNX file" in answer.json()["detail"]
        assert await states(client) == ["failed"]
        assert (await index(client))["late@1"][0] == "UNAVAILABLE"
        assert (await client.get("/readyz")).status_code == 200
        assert 'gridloop_model_ready{model="late",version="1"} 0.0' in (await client.get("/metrics")).text


async def test_golden_samples_are_checked_at_the_first_use(models: Path) -> None:
    golden = lazy(models) / "1" / "golden.json"
    golden.write_text(golden.read_text().replace("[2]", "[1]"))
    async with running(models) as client:
        answer = await client.post("/v1/anomaly-detection", json=BODY | {"model": "late"})
        assert (answer.status_code, "differs from its expected answer" in answer.json()["detail"]) == (503, True)


async def test_a_version_says_so_for_itself_and_is_no_default_once_it_is_loaded(models: Path) -> None:
    shutil.copytree(models / "steps" / "1", models / "steps" / "2")
    (models / "steps" / "2" / "manifest.toml").write_text('load = "lazy"\n')
    async with running(models) as client:
        assert await states(client, "steps") == ["ready", "lazy"]
        named = await client.post("/v1/anomaly-detection", json=BODY | {"model": "steps@2"})
        assert named.json()["model"]["version"] == "2"
        assert await states(client, "steps") == ["ready", "ready"]
        assert (await client.post("/v1/anomaly-detection", json=BODY)).json()["model"]["version"] == "1"


async def test_what_answers_unnamed_requests_is_loaded_at_the_start(models: Path) -> None:
    shutil.rmtree(models / "steps")
    lazy(models, "a")
    lazy(models, "b")
    graphs.colour_model(models, "must", load="lazy", required=True)
    folder = graphs.write_model(models / "lines", task="tensor", graph=graphs.affine, load="lazy")
    shutil.copytree(folder / "1", folder / "2")
    with (folder / "manifest.toml").open("a") as file:
        file.write('\nshadow = { version = "1" }\n')
    async with running(models) as client:
        assert {name: await states(client, name) for name in ("a", "b", "must", "lines")} == {
            "a": ["ready"],
            "b": ["lazy"],
            "must": ["ready"],
            "lines": ["ready", "ready"],
        }


async def test_a_lazy_model_takes_over_where_no_other_can(models: Path) -> None:
    lazy(models)
    (models / "steps" / "1" / "model.onnx").write_bytes(b"broken")
    async with running(models) as client:
        answer = await client.post("/v1/anomaly-detection", json=BODY)
        assert (answer.status_code, answer.json()["model"]["name"]) == (200, "late")


async def test_metadata_configuration_and_comparison_are_first_uses(models: Path) -> None:
    for name in ("one", "two", "three"):
        lazy(models, name)
    async with running(models) as client:
        assert (await client.get("/v2/models/one")).json()["inputs"][0]["name"] == "values"
        assert (await client.get("/v2/models/two/config")).json()["input"]
        compared = await client.post("/v1/compare/anomaly-detection?models=steps,three", json=BODY)
        assert [entry["agrees"] for entry in compared.json()["results"]] == [None, True]
        assert [await states(client, name) for name in ("one", "two", "three")] == [["ready"]] * 3


async def test_a_small_request_waits_on_the_short_way_too(models: Path, gate: Gate) -> None:
    lazy(models)
    body = SERIES[:-1] + b', "model": "late"}'
    async with serving(models) as served:
        asked = asyncio.create_task(served.ask(post(body), pause_s=0))
        _, writer = await served.connect()
        writer.write(post(body))
        await asyncio.to_thread(gate.entered.wait, 10)
        await served.has_in_flight(2)
        writer.close()  # a caller who leaves meanwhile
        await served.has_in_flight(1)
        gate.opened.set()
        assert [(status, told["model"]["name"]) for status, told in await asked] == [(200, "late")]
        assert served.begun == 2
        assert (served.answered(200), served.answered(499)) == (1, 1)


async def test_a_client_that_measures_is_a_first_use(models: Path) -> None:
    lazy(models)
    async with serving(models) as served:
        client = Server(split_url(f"http://127.0.0.1:{served.port}"))
        told = await asyncio.to_thread(client.model, "late")
        assert [version["state"] for version in told["versions"]] == ["ready"]


async def test_a_server_that_stops_tells_those_who_wait(
    models: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limit, "ENDS_S", 0.1)  # the gate cannot be ended
    lazy(models)
    async with running(models) as client:
        asked = asyncio.create_task(client.post("/v1/anomaly-detection", json=BODY | {"model": "late"}))
        await asyncio.to_thread(gate.entered.wait, 10)
        client.app.app.state.registry.stop_loading()  # type: ignore[attr-defined]
        answer = await asked
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/draining")
