"""Models that are loading, broken or not there: what is said of them, and whether it is worth asking again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.context import Workers
from service.api.problems import MEDIA_TYPE
from service.app import create_app, make_registry
from service.settings import Settings
from tests import graphs
from tests.conftest import running

SERIES = {"values": [0, 0, 5]}


@pytest.fixture
async def loading(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose models are still to be loaded."""
    settings = Settings(models=models, workers=1, log_level="error")
    app = create_app(settings, registry=make_registry(settings), workers=Workers())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def problem_of(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["status"], problem["type"]) == (status, status, f"/problems/{kind}")
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert ".." not in problem["detail"]
    return problem


async def test_while_loading_readiness_is_a_problem_like_every_other(loading: httpx.AsyncClient) -> None:
    answer = await loading.get("/readyz")
    problem = problem_of(answer, 503, "not-ready")
    assert problem["detail"] == "Not ready. colours: is still loading. Try again in a moment."
    assert problem["reasons"] == {"colours": "is still loading"}
    assert (problem["instance"], problem["errors"]) == ("/readyz", [])
    assert answer.headers["retry-after"] == "1"


async def test_while_loading_requests_are_told_to_come_again(loading: httpx.AsyncClient) -> None:
    answer = await loading.post("/v1/anomaly-detection", json=SERIES)
    problem = problem_of(answer, 503, "model-not-ready")
    assert problem["detail"].startswith("Model 'steps' is loading. Try again later")
    assert int(answer.headers["retry-after"]) >= 1
    protocol = await loading.get("/v2/health/ready")
    assert (protocol.status_code, protocol.json()["ready"]) == (503, False)
    assert "colours: is still loading." in protocol.json()["error"]
    assert protocol.headers["retry-after"] == "1"


async def test_a_worker_that_loads_is_told_of(models: Path) -> None:
    async with running(models) as client:
        client.app.app.state.workers.loaded[0] = 0  # type: ignore[attr-defined]
        problem = problem_of(await client.get("/readyz"), 503, "not-ready")
        assert problem["reasons"] == {"workers": "are still starting"}


async def test_while_draining_readiness_says_so(client: httpx.AsyncClient) -> None:
    client.app.app.state.gate.draining = True  # type: ignore[attr-defined]
    answer = await client.get("/readyz")
    assert problem_of(answer, 503, "not-ready")["reasons"] == {"server": "is shutting down"}
    assert "retry-after" in answer.headers


async def test_nobody_is_told_to_wait_for_what_will_never_be_ready(models: Path) -> None:
    (models / "colours" / "1" / "model.onnx").write_bytes(b"broken")
    async with running(models) as client:
        for answer, kind in (
            (await client.get("/readyz"), "not-ready"),
            (await client.post("/v1/image-classification?model=colours", content=graphs.png()), "model-not-ready"),
            (await client.post("/v1/image-classification?model=colours@1", content=graphs.png()), "model-not-ready"),
        ):
            problem = problem_of(answer, 503, kind)
            assert "retry-after" not in answer.headers
            assert "ry again" not in problem["detail"]
            assert "not an ONNX file" in problem["detail"]
            assert "operator has to mend it" in problem["detail"]
        for path in ("/v2/health/ready", "/v2/models/colours/ready", "/v2/models/colours"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "retry-after" not in answer.headers
            assert ".." not in answer.json()["error"]


async def test_reasons_of_several_versions_are_several_sentences(models: Path) -> None:
    (models / "colours" / "1" / "model.onnx").write_bytes(b"broken")
    shutil.copytree(models / "colours" / "1", models / "colours" / "2")
    async with running(models) as client:
        reasons = (await client.get("/readyz")).json()["reasons"]
        assert reasons["colours"].count("is not an ONNX file") == 2
        assert ".;" not in reasons["colours"]


# --- an unknown version of a model is not there, however it is asked for


def broken_graph(models: Path) -> None:
    (models / "colours" / "1" / "model.onnx").write_bytes(b"broken")


def broken_manifest(models: Path) -> None:
    (models / "colours" / "manifest.toml").write_text("task = oops")


def no_version(models: Path) -> None:
    shutil.rmtree(models / "colours" / "1")


@pytest.mark.parametrize("spoil", [None, broken_graph, broken_manifest, no_version])
@pytest.mark.parametrize("version", ["9", "1.0", "01", "latest", " 1"])
async def test_an_unknown_version_is_404_in_every_spelling(models: Path, spoil: Any, version: str) -> None:
    if spoil:
        spoil(models)
    images = "/v1/image-classification"
    async with running(models) as client:
        asked = f"colours@{version}"
        answers = [
            await client.post(images, params={"model": asked}, content=graphs.png()),
            await client.post(images, data={"model": asked}, files={"file": graphs.png()}),
        ]
        for answer in answers:
            detail = problem_of(answer, 404, "model-not-found")["detail"]
            assert f"There is no version '{asked}'" in detail
        assert (await client.get(f"/v1/models/{asked}")).status_code == 404
        for path in ("", "/ready"):
            assert (await client.get(f"/v2/models/colours/versions/{version}{path}")).status_code == 404
        assert (await client.post(f"/v2/models/colours/versions/{version}/infer", json={})).status_code == 404
        assert (await client.get(f"/v2/models/{asked}")).status_code == 404


async def test_an_unknown_version_in_a_json_body_is_404(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/anomaly-detection", json={**SERIES, "model": "steps@9"})
    assert "There are: steps@1." in problem_of(answer, 404, "model-not-found")["detail"]


@pytest.mark.parametrize("asked", ["colours@", "steps@", "nope@", "@", "@1", "colours@1@1", "a@@1", "@@", ""])
async def test_what_cannot_name_a_model_is_422_and_in_a_path_404(client: httpx.AsyncClient, asked: str) -> None:
    images = "/v1/image-classification"
    answers = {
        "body": await client.post("/v1/anomaly-detection", json={**SERIES, "model": asked}),
        "query": await client.post(f"{images}?model={asked}", content=graphs.png()),
    }
    if asked:  # httpx leaves an empty part out
        answers["form"] = await client.post(images, data={"model": asked}, files={"file": graphs.png()})
    for answer in answers.values():
        problem = problem_of(answer, 422, "validation-failed")
        assert [entry["loc"][-1] for entry in problem["errors"]] == ["model"]
        assert f"'{asked}' names no model: it must be `name` or `name@version`" in problem["detail"]
    assert (await client.get(f"/v1/models/{asked}x@")).status_code == 404
    assert (await client.get(f"/v2/models/{asked}x@")).status_code == 404
    assert (await client.post(f"/v2/models/{asked}x@/infer", json={})).status_code == 404


async def test_a_model_left_without_its_version_is_told_how_to_be_asked(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/anomaly-detection", json={**SERIES, "model": "steps@"})
    assert "write 'steps' for its default version" in answer.json()["detail"]


@pytest.mark.parametrize("asked", ["nope", "steps@9", "steps@latest", " steps", "nope@1", "/steps", "\u0000"])
async def test_a_name_that_no_model_has_is_404(client: httpx.AsyncClient, asked: str) -> None:
    answer = await client.post("/v1/anomaly-detection", json={**SERIES, "model": asked})
    problem_of(answer, 404, "model-not-found")


async def test_a_known_version_is_served_while_another_is_broken(models: Path) -> None:
    shutil.copytree(models / "colours" / "1", models / "colours" / "2")
    (models / "colours" / "2" / "model.onnx").write_bytes(b"broken")
    async with running(models) as client:
        images = "/v1/image-classification?model="
        assert (await client.post(f"{images}colours@1", content=graphs.png())).status_code == 200
        problem_of(await client.post(f"{images}colours@2", content=graphs.png()), 503, "model-not-ready")
        problem_of(await client.post(f"{images}colours@3", content=graphs.png()), 404, "model-not-found")


async def test_a_sentence_of_a_validator_comes_without_the_librarys_prefix(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/anomaly-detection", json={"values": [1, 2], "timestamps": [1]})
    problem = problem_of(answer, 422, "validation-failed")
    assert "Value error" not in problem["detail"]
    assert "pydantic" not in answer.text
