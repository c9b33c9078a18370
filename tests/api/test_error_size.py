"""An error's answer has a few kilobytes, whatever was sent: the first problems and how many there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import graphs
from tests.conftest import running

IMAGES, SERIES, TENSORS = "/v1/image-classification", "/v1/anomaly-detection", "/v2/models/steps/infer"
A_FEW_KB = 8_000
LONG = "k" * 1_000_000


def problem_of(answer: httpx.Response, status: int = 422) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    assert len(answer.content) <= A_FEW_KB
    problem: dict[str, Any] = answer.json()
    return problem


async def test_of_many_wrong_values_twenty_are_listed_and_a_thousand_counted(client: httpx.AsyncClient) -> None:
    problem = problem_of(await client.post(SERIES, json={"values": ["1"] * 50_000}))
    assert [entry["loc"] for entry in problem["errors"]] == [["body", "values", n] for n in range(20)]
    assert {entry["msg"] for entry in problem["errors"]} == {"Input should be a valid number"}
    assert problem["error_count"] == 1000
    assert problem["detail"].startswith("body.values.0: Input should be a valid number (and at least 999 more).")


async def test_of_up_to_a_thousand_values_all_wrong_ones_are_counted(client: httpx.AsyncClient) -> None:
    problem = problem_of(await client.post(SERIES, json={"values": [1] * 20_000 + ["1", 1] * 500}))
    assert [entry["loc"] for entry in problem["errors"]] == [["body", "values", 20_000 + 2 * n] for n in range(20)]
    assert problem["error_count"] == 500
    assert problem["detail"].startswith("body.values.20000: Input should be a valid number (and 499 more).")


async def test_wrong_values_far_behind_are_told_with_all_else_that_is_wrong(client: httpx.AsyncClient) -> None:
    body = {"values": [1] * 3000 + ["a", 1, {}], "sensitivity": 2, "more": 1}
    problem = problem_of(await client.post(SERIES, json=body))
    assert [entry["loc"][1:] for entry in problem["errors"]] == [
        ["values", 3000],
        ["values", 3002],
        ["sensitivity"],
        ["more"],
    ]
    assert problem["error_count"] == 4


async def test_a_few_wrong_values_are_all_listed(client: httpx.AsyncClient) -> None:
    problem = problem_of(await client.post(SERIES, json={"values": [1, "2", 3, True, None], "sensitivity": 2}))
    places = [entry["loc"][1:] for entry in problem["errors"]]
    assert places == [["values", 1], ["values", 3], ["sensitivity"]]
    assert problem["error_count"] == 3


async def test_of_wrong_timestamps_the_first_is_told(client: httpx.AsyncClient) -> None:
    body = {"values": [1] * 1000, "timestamps": ["01/02/2024 03:00"] * 1000}
    problem = problem_of(await client.post(SERIES, json=body))
    assert [entry["loc"] for entry in problem["errors"]] == [["body", "timestamps", 0]]
    assert problem["error_count"] == 1


async def test_unknown_fields_are_listed_in_part(client: httpx.AsyncClient) -> None:
    problem = problem_of(await client.post(SERIES, json={"values": [1], **{f"k{n}": 1 for n in range(10_000)}}))
    assert (len(problem["errors"]), problem["error_count"]) == (20, 10_000)


async def test_unknown_query_parameters_are_listed_in_part(client: httpx.AsyncClient) -> None:
    query = "&".join(f"k{n}=1" for n in range(1500))
    for path, body in ((SERIES, b'{"values": [1]}'), (IMAGES, graphs.png())):
        problem = problem_of(await client.post(f"{path}?{query}", content=body))
        assert (len(problem["errors"]), problem["error_count"]) == (20, 1500)
        assert problem["errors"][0]["loc"] == ["query", "k0"]


async def test_unknown_form_fields_are_listed_in_part(client: httpx.AsyncClient) -> None:
    fields = {f"k{n}": "1" for n in range(5000)}
    problem = problem_of(await client.post(IMAGES, data=fields, files={"file": graphs.png()}))
    assert (len(problem["errors"]), problem["error_count"]) == (20, 5000)


@pytest.mark.parametrize(
    "body",
    [{LONG: 1, "values": [1]}, {"values": [1], **{f"{n}{LONG[:50_000]}": 1 for n in range(30)}}],
    ids=["one", "thirty"],
)
async def test_a_long_name_is_shortened(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    problem = problem_of(await client.post(SERIES, json=body))
    name = problem["errors"][0]["loc"][1]
    assert len(name) <= 64
    assert name.endswith("k…")


@pytest.mark.parametrize("value", ["x" * 100_000, "\x01" * 100_000, "é" * 100_000])
async def test_a_long_model_name_is_not_sent_back(client: httpx.AsyncClient, value: str) -> None:
    problem_of(await client.post(SERIES, json={"values": [1], "model": value}))
    problem_of(await client.post(SERIES, json={"values": [1], "model": value[:250]}), 404)
    problem_of(await client.post(IMAGES, data={"model": value}, files={"file": graphs.png()}))


async def test_a_long_path_is_not_sent_back(client: httpx.AsyncClient) -> None:
    for path in (f"/v1/models/{LONG[:16_000]}", f"/{LONG[:16_000]}"):
        problem_of(await client.get(path), 404)
    for path in (f"/v2/models/{LONG[:16_000]}", f"/v2/models/steps/versions/{LONG[:16_000]}"):
        problem_of(await client.get(path), 404)


async def test_long_headers_and_file_names_are_not_sent_back(client: httpx.AsyncClient) -> None:
    for header in ("Content-Type", "Content-Encoding"):
        problem_of(await client.post(SERIES, content=b"{}", headers={header: LONG[:60_000]}), 415)
    problem_of(await client.post(IMAGES, files={"file": (LONG[:3000] + ".png", b"no picture")}))
    problem_of(await client.post(IMAGES, files={LONG[:3000]: ("a.png", graphs.png())}))
    text = {"Content-Type": "text/plain"}
    problem_of(await client.post(IMAGES, content=b"data:" + LONG.encode(), headers=text), 415)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": LONG},
        {"name": [LONG] * 3},
        {"name": "values", "datatype": LONG},
        {"name": "values", "datatype": {LONG: [LONG]}},
        {"name": "values", "datatype": "FP32", "shape": [1] * 500_000, "data": [1]},
        {"name": "values", "datatype": "FP32", "shape": [1, 1], "data": [LONG]},
        {"name": "values", "datatype": "FP32", "shape": [1, 1], "data": [1], "parameters": {LONG: []}},
        {"name": "values", "datatype": "FP32", "shape": [1, 9000], "data": ["a"] * 9000},
    ],
    ids=["name", "names", "datatype", "nested", "shape", "value", "parameter", "many values"],
)
async def test_wrong_tensors_are_told_shortly(client: httpx.AsyncClient, entry: dict[str, Any]) -> None:
    problem = problem_of(await client.post(TENSORS, json={"inputs": [entry]}), 400)
    assert list(problem) == ["error"]


async def test_wrong_outputs_and_parameters_are_told_shortly(client: httpx.AsyncClient) -> None:
    given = {"name": "values", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    for more in ({"outputs": [{"name": LONG}]}, {"parameters": {f"triton_{LONG}": 1}}, {"parameters": {LONG: []}}):
        problem_of(await client.post(TENSORS, json={"inputs": [given], **more}), 400)


async def test_a_state_of_a_model_with_a_long_name_is_told_shortly(client: httpx.AsyncClient) -> None:
    from service.state import State, pack

    token = pack(LONG[:40_000], "1", State({}))
    problem = problem_of(await client.post(SERIES, json={"values": [1], "state": token}))
    assert "was made by model kkk" in problem["detail"]


async def test_a_repository_of_very_many_models_is_not_listed_whole(tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / f"model-{number:03}").mkdir()
    async with running(tmp_path) as client:
        problem = problem_of(await client.get("/v1/models/nobody"), 404)
        assert "There are: model-000, model-001" in problem["detail"]


def test_the_first_problems_are_those_that_pydantic_lists() -> None:
    from pydantic import ValidationError

    from service.errors import schema_problems
    from service.tasks.anomaly_detection import AnomalyDetectionInput

    text = json.dumps({"values": ["a", None, {}], "sensitivity": -1, "timestamps": ["x"], 'k"\\\n,]': 1})
    with pytest.raises(ValidationError) as caught:
        AnomalyDetectionInput.model_validate_json(text)
    listed = caught.value.errors(include_url=False, include_context=False, include_input=False)
    assert len(listed) < 20
    assert schema_problems(caught.value) == [{**problem, "loc": list(problem["loc"])} for problem in listed]
