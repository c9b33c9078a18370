"""Who may do what: keys that reach some models, keys that change the server, and what the others hear."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from service.api import deps
from service.keys import Key, as_toml, new_key
from service.renewal import LOOK_S
from tests import graphs
from tests.conftest import running
from tests.test_server import serving

SERIES = {"values": [0, 0, 5]}


def key_file(folder: Path, **scopes: Any) -> tuple[Path, dict[str, dict[str, str]]]:
    """A file with a key for each name, and the headers that send them."""
    keys: list[Key] = []
    headers = {}
    for name, globs in scopes.items():
        secret, key = new_key(name, models=globs, admin=name == "ops")
        keys.append(key)
        headers[name] = {"Authorization": f"Bearer {secret}"}
    file = folder / "keys.toml"
    file.write_text("".join(map(as_toml, keys)))
    return file, headers


def problem_of(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"/problems/{kind}"), problem
    assert answer.headers["content-type"] == "application/problem+json"
    return problem


async def test_a_key_for_some_models_is_403_on_the_others_by_every_way(models: Path, tmp_path: Path) -> None:
    file, keys = key_file(tmp_path, some=["step*"], every=None)
    async with running(models, api_keys_file=file) as client:
        some, every = keys["some"], keys["every"]
        images = "/v1/image-classification"
        asked: list[dict[str, Any]] = [
            {"method": "POST", "url": images, "content": graphs.png()},
            {"method": "POST", "url": images, "params": {"model": "colours@1"}, "content": graphs.png()},
            {"method": "POST", "url": images, "data": {"model": "colours"}, "files": {"file": graphs.png()}},
            {"method": "GET", "url": "/v1/models/colours"},
        ]
        for request in asked:
            problem = problem_of(await client.request(**request, headers=some), 403, "not-allowed")
            assert "The API key 'some' may not ask" in problem["detail"]
            assert (await client.request(**request, headers=every)).status_code == 200
        for path in ("", "/ready", "/versions/1", "/versions/1/ready"):
            answer = await client.get(f"/v2/models/colours{path}", headers=some)
            assert (answer.status_code, list(answer.json())) == (403, ["error"])
            assert (await client.get(f"/v2/models/colours{path}", headers=every)).status_code == 200
            assert (await client.get(f"/v2/models/steps{path}", headers=some)).status_code == 200
        answer = await client.post("/v2/models/colours/infer", json={"inputs": []}, headers=some)
        assert (answer.status_code, list(answer.json())) == (403, ["error"])
        for model in ({}, {"model": "steps"}, {"model": "steps@1"}):
            answer = await client.post("/v1/anomaly-detection", json={**SERIES, **model}, headers=some)
            assert answer.status_code == 200


async def test_a_key_hears_of_the_models_that_it_reaches_alone(models: Path, tmp_path: Path) -> None:
    file, keys = key_file(tmp_path, some=["step*"], every=None)
    async with running(models, api_keys_file=file) as client:
        for name, expected in (("some", ["steps"]), ("every", ["colours", "steps"])):
            listed = (await client.get("/v1/models", headers=keys[name])).json()["models"]
            assert [model["name"] for model in listed] == expected
            assert sorted((await client.get("/v2/models", headers=keys[name])).json()["models"]) == expected
        heard = [
            await client.post("/v1/anomaly-detection", json={**SERIES, "model": "steps-9"}, headers=keys["some"]),
            await client.post("/v1/image-classification?model=steps", content=graphs.png(), headers=keys["some"]),
            await client.get("/v1/models/stepz", headers=keys["some"]),
        ]
        for answer in heard:
            assert "colours" not in problem_of(answer, 404, "model-not-found")["detail"]
        unknown = await client.post("/v1/anomaly-detection", json={**SERIES, "model": "nope"}, headers=keys["some"])
        problem_of(unknown, 403, "not-allowed")  # as for one that there is
        default = await client.post("/v1/image-classification", content=graphs.png(), headers=keys["some"])
        assert "colours" not in default.text
        assert "default model of image-classification" in default.json()["detail"]


async def test_a_route_that_changes_the_server_needs_a_key_made_for_that(models: Path, tmp_path: Path) -> None:
    file, keys = key_file(tmp_path, every=None, ops=[])

    async def change() -> dict[str, bool]:
        return {"changed": True}

    async with running(models, api_keys_file=file, api_keys="plain") as client:
        for path in ("/v2/change", "/change"):  # behind the gate, and where it does not look
            client.app.app.add_api_route(path, change, methods=["POST"], dependencies=[deps.ADMIN])  # type: ignore[attr-defined]
        for path in ("/v2/change", "/change"):
            assert (await client.post(path)).status_code == 401
        for headers in (keys["every"], {"Authorization": "Bearer plain"}):
            answer = await client.post("/v2/change", headers=headers)
            assert answer.status_code == 403
            assert "may not change the server" in answer.json()["error"]
        assert (await client.post("/v2/change", headers=keys["ops"])).json() == {"changed": True}
        answer = await client.post("/v1/anomaly-detection", json=SERIES, headers=keys["ops"])
        problem_of(answer, 403, "not-allowed")
    async with running(models) as client:  # no keys at all: as every other route
        client.app.app.add_api_route("/v2/change", change, methods=["POST"], dependencies=[deps.ADMIN])  # type: ignore[attr-defined]
        assert (await client.post("/v2/change")).status_code == 200


async def test_with_a_file_of_keys_a_request_without_one_is_401_and_probes_need_none(
    models: Path, tmp_path: Path
) -> None:
    file, _ = key_file(tmp_path, some=["step*"])
    async with running(models, api_keys_file=file) as client:
        for path in ("/v1/models", "/v2/models", "/metrics"):
            assert (await client.get(path)).status_code == 401
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/openapi.json")).json()["security"] == [{"key": []}]


async def test_keys_of_one_name_share_one_rate(models: Path, tmp_path: Path) -> None:
    file, keys = key_file(tmp_path, shop=None)
    first = file.read_text()
    _, more = key_file(tmp_path, shop=None)
    file.write_text(first + file.read_text())
    async with running(models, api_keys_file=file, rate_limit=2) as client:
        statuses = [
            (await client.get("/v1/models", headers=headers)).status_code
            for headers in (keys["shop"], more["shop"], keys["shop"], more["shop"])
        ]
    assert statuses[:2] == [200, 200]
    assert statuses[3] == 429


def test_every_worker_reads_the_keys_again_while_it_serves(models: Path, tmp_path: Path) -> None:
    file, old = key_file(tmp_path, shop=None)
    with serving(models, workers=2, api_keys_file=file, log_level="warning") as server:
        ask = lambda headers: {  # noqa: E731  a new connection for each, so that every worker is asked
            httpx.get(f"{server.url}/v1/models", headers=headers["shop"]).status_code for _ in range(6)
        }
        assert ask(old) == {200}
        _, new = key_file(tmp_path, shop=None)
        until = time.monotonic() + 20 * LOOK_S
        while (seen := (ask(old), ask(new))) != ({401}, {200}) and time.monotonic() < until:
            time.sleep(0.1)
        assert seen == ({401}, {200})
