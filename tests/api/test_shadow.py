"""A version in the shadow is compared with the one that answers, and never in anybody's way."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.registry import shadow as shadows
from service.registry.handle import ModelHandle
from service.registry.shadow import Shadow
from service.telemetry import SHADOW_OUTCOMES, SHADOW_REQUESTS
from tests import graphs
from tests.api.test_canary import declare, infer_version
from tests.conftest import running

SERIES = {"values": [0, 0, 5]}


class Seen:
    """What has become of the copies since this was made."""

    def __init__(self) -> None:
        self._before = self._all()

    @staticmethod
    def _all() -> dict[str, float]:
        return {each: SHADOW_REQUESTS.labels("steps", "2", each)._value.get() for each in SHADOW_OUTCOMES}

    def outcomes(self) -> dict[str, float]:
        return {each: value - self._before[each] for each, value in self._all().items() if value > self._before[each]}


def shadow_of(client: httpx.AsyncClient) -> Shadow:
    shadow = client.app.app.state.registry.get("steps").shadow  # type: ignore[attr-defined]
    assert isinstance(shadow, Shadow)
    return shadow


def tried(client: httpx.AsyncClient) -> ModelHandle:
    return shadow_of(client).tried


async def detect(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    answer = await client.post("/v1/anomaly-detection", json=SERIES | fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"]["version"] == "1"
    await asyncio.to_thread(shadow_of(client).idle.wait, 10)
    return answer


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest after a comparison, so that the next one need not be waited for."""
    monkeypatch.setattr(shadows, "REST", 0)


async def test_it_rests_after_each_so_that_close_callers_do_not_meet_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(models, 'shadow = { version = "2" }')
    monkeypatch.setattr(shadows, "REST", 1e9)
    async with running(models) as client:
        seen = Seen()
        for _ in range(3):
            await detect(client)
        assert seen.outcomes() == {"agreed": 1, "dropped": 2}


async def test_equal_versions_agree_on_every_route(models: Path) -> None:
    declare(models, 'shadow = { version = "2" }')
    async with running(models) as client:
        seen = Seen()
        assert client.app.app.state.registry.get("steps").default_version == "1"  # type: ignore[attr-defined]
        await detect(client)
        assert await infer_version(client, {}) == "1"
        await asyncio.to_thread(shadow_of(client).idle.wait, 10)
        assert seen.outcomes() == {"agreed": 2}
        text = (await client.get("/metrics")).text
        assert 'gridloop_shadow_seconds_count{answer="served",model="steps",version="2"} ' in text
        assert 'gridloop_shadow_seconds_count{answer="shadow",model="steps",version="2"} ' in text


async def test_a_shadow_that_answers_otherwise_differs_beyond_its_tolerance(models: Path) -> None:
    declare(models, 'shadow = { version = "2", tolerance = 0.5 }')
    async with running(models) as client:
        seen = Seen()
        run = tried(client).graphs.main.run

        def other(by: float) -> Any:
            def changed(*args: Any, **conditions: Any) -> Any:
                return {name: a + by if a.dtype.kind == "f" else a for name, a in run(*args, **conditions).items()}

            return changed

        for by in (0.01, 9.0):
            tried(client).graphs.main.run = other(by)  # type: ignore[method-assign]
            assert await infer_version(client, {}) == "1"
            await asyncio.to_thread(shadow_of(client).idle.wait, 10)
        assert seen.outcomes() == {"agreed": 1, "differed": 1}


async def test_a_shadow_that_fails_is_counted_and_nobody_hears_of_it(models: Path) -> None:
    declare(models, 'shadow = { version = "2" }')
    async with running(models) as client:
        seen = Seen()

        def fails(*args: Any, **conditions: Any) -> Any:
            raise RuntimeError("no memory")

        tried(client).graphs.main.run = fails  # type: ignore[method-assign]
        await detect(client)
        await detect(client)
        assert seen.outcomes() == {"failed": 2}


@pytest.mark.parametrize("why", ["others are answered", "somebody waits", "it is at another"])
async def test_what_comes_at_the_wrong_time_is_dropped(models: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(models, 'shadow = { version = "2" }')
    async with running(models) as client:
        seen = Seen()
        if why == "others are answered":
            client.app.app.state.registry.selection.is_busy = lambda: True  # type: ignore[attr-defined]
        elif why == "somebody waits":
            monkeypatch.setattr(ModelHandle, "is_waited_for", True)
        else:
            monkeypatch.setattr(shadow_of(client).idle, "is_set", lambda: False)
        await client.post("/v1/anomaly-detection", json=SERIES)
        assert seen.outcomes() == {"dropped": 1}


async def test_a_shadow_gives_way_before_its_next_run(models: Path) -> None:
    declare(models, 'shadow = { version = "2" }')
    async with running(models) as client:
        seen, asked = Seen(), iter([False, True])
        client.app.app.state.registry.selection.is_busy = lambda: next(asked)  # type: ignore[attr-defined]
        await detect(client)
        assert seen.outcomes() == {"dropped": 1}


async def test_streams_that_go_on_are_not_compared(models: Path) -> None:
    declare(models, 'shadow = { version = "2" }')
    async with running(models) as client:
        state = (await detect(client)).json()["state"]
        seen = Seen()
        await detect(client, state=state)
        assert seen.outcomes() == {}


async def test_a_share_of_none_compares_nothing(models: Path) -> None:
    declare(models, 'shadow = { version = "2", percent = 0 }')
    async with running(models) as client:
        seen = Seen()
        await detect(client)
        assert seen.outcomes() == {}


async def test_a_shadow_ends_with_its_version_and_comes_back_with_it(models: Path) -> None:
    declare(models, 'shadow = { version = "2" }')
    async with running(models) as client:
        registry, seen = client.app.app.state.registry, Seen()  # type: ignore[attr-defined]
        await detect(client)
        thread = shadow_of(client)._thread
        assert thread is not None
        assert registry.drain("steps", "2", timeout_s=10)
        assert registry.get("steps").shadow is None
        thread.join(10)
        assert not thread.is_alive()
        await client.post("/v1/anomaly-detection", json=SERIES)
        registry.add("steps", "2")
        assert registry.get("steps").default_version == "1"
        await detect(client)
        assert seen.outcomes() == {"agreed": 2}


async def test_a_request_of_many_rows_is_cut_as_the_version_cuts_it(models: Path) -> None:
    folder = graphs.write_model(models / "lines", task="tensor", graph=graphs.affine)
    shutil.copytree(folder / "1", folder / "2")
    with (folder / "manifest.toml").open("a") as file:
        file.write('\nshadow = { version = "2" }\n[batching]\nmax_batch_size = 4\n')
    async with running(models) as client:
        shadow = client.app.app.state.registry.get("lines").shadow  # type: ignore[attr-defined]
        rows, graph = [], shadow.tried.graphs.main
        run = graph.run

        def counted(tensors: Any, *args: Any, **conditions: Any) -> Any:
            rows.append(len(tensors["x"]))
            return run(tensors, *args, **conditions)

        graph.run = counted
        x = {"name": "x", "datatype": "FP32", "shape": [10, 2], "data": np.arange(20.0).tolist()}
        assert (await client.post("/v2/models/lines/infer", json={"inputs": [x]})).status_code == 200
        await asyncio.to_thread(shadow.idle.wait, 10)
        assert rows == [4, 4, 2]
        assert shadow._outcomes["agreed"]._value.get() == 1
