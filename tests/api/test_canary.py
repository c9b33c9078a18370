"""A canary answers a share of the callers who name no version, always the same ones."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.registry.registry import Registry
from tests.conftest import running

KEYS = [f"user-{number}" for number in range(400)]
SERIES = {"values": [0, 0, 5]}


def declare(models: Path, text: str) -> None:
    """A second version of the detector, and what its manifest says of it."""
    if not (models / "steps" / "2").exists():
        shutil.copytree(models / "steps" / "1", models / "steps" / "2")
    with (models / "steps" / "manifest.toml").open("a") as file:
        file.write(f"\n{text}\n")


def loaded(models: Path, canary: str) -> Registry:
    declare(models, f"canary = {canary}")
    registry = Registry(models)
    registry.load()
    return registry


class Keyed:
    """A caller, as the selection sees one."""

    def __init__(self, key: str) -> None:
        self.canary_key = key


def version_for(registry: Registry, key: str, asked: str | None = None) -> str:
    return registry.resolve("anomaly-detection", asked, Keyed(key)).ref.version


def test_a_canary_gets_its_share_and_grows_by_newcomers_only(models: Path) -> None:
    registry = loaded(models, '{ version = "2", percent = 25 }')
    model = registry.get("steps")
    tried = {key for key in KEYS if version_for(registry, key) == "2"}
    assert 60 <= len(tried) <= 140  # 100, and five times its standard deviation
    assert tried == {key for key in KEYS if version_for(registry, key) == "2"}
    assert model.manifest is not None
    assert model.manifest.canary is not None
    model.manifest.canary.percent = 60
    registry.selection.update({each.name: each for each in registry})
    assert tried < {key for key in KEYS if version_for(registry, key) == "2"}


def test_the_highest_version_is_not_the_default_while_it_is_a_canary(models: Path) -> None:
    registry = loaded(models, '{ version = "2", percent = 0 }')
    assert registry.get("steps").default_version == "1"
    assert {version_for(registry, key) for key in KEYS} == {"1"}
    assert version_for(registry, "user-1", "steps@2") == "2"


def test_a_canary_of_all_leaves_named_versions_alone(models: Path) -> None:
    registry = loaded(models, '{ version = "2", percent = 100 }')
    assert {version_for(registry, key) for key in KEYS} == {"2"}
    assert version_for(registry, "user-1", "steps@1") == "1"
    assert registry.resolve("anomaly-detection", None).ref.version == "1"  # nobody's request


def test_a_canary_that_cannot_be_served_answers_nobody(models: Path) -> None:
    shutil.copytree(models / "steps" / "1", models / "steps" / "2")
    (models / "steps" / "2" / "model.onnx").write_bytes(b"broken")
    registry = loaded(models, '{ version = "2", percent = 100 }')
    assert {version_for(registry, key) for key in KEYS} == {"1"}


def test_a_canary_that_is_not_there_is_told_with_its_line(models: Path) -> None:
    registry = loaded(models, '{ version = "3", percent = 10 }')
    problem = registry.get("steps").problem or ""
    assert "canary.version '3' is not among its versions: 1, 2 (line " in problem


@pytest.mark.parametrize("percent", ["-1", "101", '"ten"'])
def test_a_share_that_is_none_is_refused(models: Path, percent: str) -> None:
    registry = loaded(models, f'{{ version = "2", percent = {percent} }}')
    assert "percent" in (registry.get("steps").problem or "")


@pytest.fixture
async def half(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that tries a second version of `steps` on half of its callers."""
    declare(models, '[canary]\nversion = "2"\npercent = 50')
    async with running(models) as client:
        yield client


async def version_of(client: httpx.AsyncClient, headers: dict[str, str], **fields: Any) -> str:
    answer = await client.post("/v1/anomaly-detection", json=SERIES | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    version: str = answer.json()["model"]["version"]
    return version


async def infer_version(client: httpx.AsyncClient, headers: dict[str, str], path: str = "steps") -> str:
    metadata = (await client.get(f"/v2/models/{path}")).json()
    inputs = [
        {"name": each["name"], "datatype": each["datatype"], "shape": [1, 3], "data": [0, 0, 5]}
        for each in metadata["inputs"]
        if not each.get("parameters", {}).get("optional")
    ]
    answer = await client.post(f"/v2/models/{path}/infer", json={"inputs": inputs}, headers=headers)
    assert answer.status_code == 200, answer.text
    version: str = answer.json()["model_version"]
    return version


async def test_a_key_keeps_to_its_version_on_every_route(half: httpx.AsyncClient) -> None:
    versions = {key: await version_of(half, {"X-Canary-Key": key}) for key in KEYS[:12]}
    assert set(versions.values()) == {"1", "2"}
    for key, version in versions.items():
        headers = {"X-Canary-Key": key}
        assert await version_of(half, headers) == version
        assert await version_of(half, headers, model="steps") == version
        assert await version_of(half, headers, model="steps@1") == "1"
        assert await infer_version(half, headers) == version
        assert await infer_version(half, headers, "steps/versions/1") == "1"


async def test_without_a_key_the_request_id_decides(half: httpx.AsyncClient) -> None:
    for key in KEYS[:6]:
        by_key = await version_of(half, {"X-Canary-Key": key, "X-Request-ID": "other"})
        assert await version_of(half, {"X-Request-ID": key}) == by_key


async def test_a_stream_goes_on_with_the_version_that_began_it(half: httpx.AsyncClient) -> None:
    begun = {}
    for key in KEYS[:12]:
        answer = await half.post("/v1/anomaly-detection", json=SERIES, headers={"X-Canary-Key": key})
        begun[answer.json()["model"]["version"]] = answer.json()["state"]
    assert set(begun) == {"1", "2"}
    for version, state in begun.items():
        for key in KEYS[:6]:
            assert await version_of(half, {"X-Canary-Key": key}, state=state) == version


async def test_a_stream_of_a_version_that_is_gone_is_refused_as_ever(half: httpx.AsyncClient) -> None:
    answer = await half.post("/v1/anomaly-detection", json=SERIES | {"model": "steps@2"})
    registry = half.app.app.state.registry  # type: ignore[attr-defined]
    assert registry.drain("steps", "2", timeout_s=10)
    again = await half.post("/v1/anomaly-detection", json=SERIES | {"state": answer.json()["state"]})
    assert (again.status_code, again.json()["type"]) == (422, "/problems/invalid-state")
    assert "steps@2" in again.json()["detail"]


async def test_damaged_states_are_refused_whatever_version_they_name(half: httpx.AsyncClient) -> None:
    state = (await half.post("/v1/anomaly-detection", json=SERIES | {"model": "steps@2"})).json()["state"]
    for broken in (state[:-4] + "AAAA", state[:40], "A", "", "é" * 40, "+/=="):
        answer = await half.post("/v1/anomaly-detection", json=SERIES | {"state": broken})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-state"), broken
