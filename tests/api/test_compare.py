"""One input to several models: answers side by side, and one model's failure is its own."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.keys import digest
from tests import graphs
from tests.conftest import running

PICTURES = "/v1/compare/image-classification"
SERIES = "/v1/compare/anomaly-detection"


def other_colours(path: Path) -> Path:
    """Red is taken for green."""
    return graphs.save(
        path,
        [
            helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[2, 3], keepdims=0),
            helper.make_node("Gather", ["means", "order"], ["swapped"], axis=1),
            helper.make_node("Mul", ["swapped", "two"], ["logits"]),
        ],
        [("pixels", T.FLOAT, ["batch", 3, 8, 8])],
        [("logits", T.FLOAT, ["batch", 3])],
        {"order": np.array([1, 0, 2]), "two": np.float32(2)},
    )


@pytest.fixture
async def several(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with three classifiers, one of which cannot be served, and two versions of a detector."""
    folder = graphs.colour_model(models, "others", graph=other_colours)
    (folder / "1" / "golden.json").unlink()
    graphs.colour_model(models, "broken")
    (models / "broken" / "1" / "model.onnx").write_bytes(b"broken")
    shutil.copytree(models / "steps" / "1", models / "steps" / "2")
    async with running(models) as client:
        yield client


async def test_every_ready_model_answers_in_one_document(several: httpx.AsyncClient) -> None:
    answer = await several.post(PICTURES, params={"top_k": 1}, content=graphs.png())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["task"], body["tolerance"]) == ("image-classification", 0.1)
    first, second = body["results"]
    assert first["model"] == {"name": "colours", "version": "1"}
    assert second["model"] == {"name": "others", "version": "1"}
    alone = await several.post("/v1/image-classification?model=others&top_k=1", content=graphs.png())
    assert second["answer"] == alone.json()
    assert (first["agrees"], first["difference"], first["error"]) == (None, None, None)
    assert second["agrees"] is False
    assert "expected label 'red', got 'green'" in second["difference"]
    for entry in body["results"]:
        assert entry["latency_ms"] > 0
        assert set(entry["timings"]) == {"queue", "decode", "infer", "encode"}


async def test_named_versions_come_in_the_order_named(several: httpx.AsyncClient) -> None:
    answer = await several.post(f"{SERIES}?models=steps@2,steps@1", json={"values": [0, 0, 5]})
    first, second = answer.json()["results"]
    assert [first["model"]["version"], second["model"]["version"]] == ["2", "1"]
    assert (second["agrees"], second["difference"]) == (True, None)


async def test_the_tolerance_decides_what_agrees(several: httpx.AsyncClient) -> None:
    steps = several.app.app.state.registry.get("steps").versions["2"].handle  # type: ignore[attr-defined]
    run = steps.graphs.main.run
    steps.graphs.main.run = lambda *args, **kind: {
        name: array + 0.01 if name == "expected" else array for name, array in run(*args, **kind).items()
    }
    told = {}
    for tolerance in (0.5, 1e-6):
        query = {"models": "steps@1,steps@2", "tolerance": tolerance}
        answer = await several.post(SERIES, params=query, json={"values": [0, 0, 5]})
        assert answer.json()["tolerance"] == tolerance
        told[tolerance] = answer.json()["results"][1]["agrees"]
    assert told == {0.5: True, 1e-6: False}


async def test_a_model_that_cannot_answer_has_its_error(several: httpx.AsyncClient) -> None:
    answer = await several.post(f"{PICTURES}?models=broken,colours", content=graphs.png())
    assert answer.status_code == 200
    broken, colours = answer.json()["results"]
    assert broken["model"] == {"name": "broken", "version": "1"}
    assert (broken["answer"], broken["latency_ms"], broken["agrees"]) == (None, None, None)
    assert (broken["error"]["type"], broken["error"]["status"]) == ("/problems/model-not-ready", 503)
    assert colours["answer"]["results"][0]["predictions"][0]["label"] == "red"


async def test_a_state_is_good_for_the_version_that_made_it(several: httpx.AsyncClient) -> None:
    state = (await several.post("/v1/anomaly-detection", json={"values": [1], "model": "steps@1"})).json()["state"]
    answer = await several.post(f"{SERIES}?models=steps@1,steps@2", json={"values": [2], "state": state})
    first, second = answer.json()["results"]
    assert first["answer"]["model"]["version"] == "1"
    assert second["error"]["type"] == "/problems/invalid-state"


async def test_what_no_model_can_read_fails_as_on_the_tasks_own_route(several: httpx.AsyncClient) -> None:
    for path in (PICTURES, "/v1/image-classification"):
        answer = await several.post(path, content=graphs.png()[:40], headers={"content-type": "image/png"})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-input")
        assert answer.json()["instance"] == path


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("models=nope", 404, "There is no model 'nope'"),
        ("models=steps@9", 404, "There is no version 'steps@9'"),
        ("models=colours", 404, "'colours' serves image-classification"),
        ("models=steps,steps", 422, "names a model twice"),
        ("models=steps,", 422, "names no model"),
        ("models=", 422, "names no model"),
        ("models=steps&models=steps", 422, "is given more than once"),
        ("models=" + ",".join(f"m{n}" for n in range(17)), 422, "names 17 models; at most 16"),
        ("tolerance=-1", 422, "must be a number, 0 or above"),
        ("tolerance=much", 422, "must be a number, 0 or above"),
        ("tolerance=nan", 422, "must be a number, 0 or above"),
        ("unknown=1", 422, "this endpoint takes its fields in the JSON body"),
    ],
)
async def test_what_is_wrong_with_the_request_is_told_as_everywhere(
    several: httpx.AsyncClient, query: str, status: int, detail: str
) -> None:
    answer = await several.post(f"{SERIES}?{query}", json={"values": [0, 0, 5]})
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_model_and_other_formats_are_refused(several: httpx.AsyncClient) -> None:
    answer = await several.post(SERIES, json={"values": [1], "model": "steps"})
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["body", "model"])
    assert "?models=a,b@2" in answer.json()["detail"]
    answer = await several.post(f"{PICTURES}?model=colours", content=graphs.png())
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["query", "model"])
    assert (await several.get(SERIES)).status_code == 405
    assert (await several.post("/v1/compare/nothing", json={})).status_code == 404


async def test_a_key_compares_only_what_it_reaches(models: Path, tmp_path: Path) -> None:
    graphs.colour_model(models, "others")
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "shop"\nsha256 = "{digest("secret")}"\nmodels = ["others"]\n')
    async with running(models, api_keys_file=keys) as client:
        headers = {"authorization": "Bearer secret"}
        answer = await client.post(PICTURES, content=graphs.png(), headers=headers)
        assert [entry["model"]["name"] for entry in answer.json()["results"]] == ["others"]
        answer = await client.post(f"{PICTURES}?models=others,colours", content=graphs.png(), headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/not-allowed")
        assert (await client.post(PICTURES, content=graphs.png())).status_code == 401


async def test_a_form_of_several_files_is_compared_file_by_file(several: httpx.AsyncClient) -> None:
    files: Any = [("file", ("a.png", graphs.png(), "image/png")), ("file", ("b.png", graphs.png(), "image/png"))]
    answer = await several.post(PICTURES, params={"models": "colours,others"}, data={"top_k": "1"}, files=files)
    assert answer.status_code == 200, answer.text
    assert [len(entry["answer"]["results"]) for entry in answer.json()["results"]] == [2, 2]
