"""The OpenAPI document is the contract: complete, true, and committed, so that a change shows in the diff."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.problems import PROBLEMS
from service.app import create_app
from service.settings import Settings

COMMITTED = Path(__file__).parent.parent.parent / "docs" / "openapi.json"
MODELS = Path(__file__).parent.parent.parent / "models"


def document() -> dict[str, Any]:
    return create_app(Settings(models=MODELS, workers=1)).app.openapi()


def test_the_committed_document_is_the_current_one() -> None:
    """`gridloop openapi > docs/openapi.json` writes it."""
    assert json.loads(COMMITTED.read_text()) == json.loads(json.dumps(document()))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere() -> None:
    described = document()
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert set(references(described)) <= known


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, verb, op) for path, verbs in document()["paths"].items() for verb, op in verbs.items()]


@pytest.mark.parametrize(("path", "verb", "operation"), operations(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_operation_is_described(path: str, verb: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]


def test_every_kind_of_problem_is_documented_with_an_example() -> None:
    shown = {
        slug
        for _, _, operation in operations()
        for response in operation["responses"].values()
        for slug in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }
    assert shown == {kind.slug for kind in PROBLEMS.values()}


def test_every_field_of_a_request_says_what_it_is() -> None:
    schemas = document()["components"]["schemas"]
    inputs = [name for name in schemas if name.endswith("Input")]
    assert inputs
    for name in inputs:
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description"), f"{name}.{field}"


MEDIA = [
    (path, op) for path, _, op in operations() if "multipart/form-data" in op.get("requestBody", {}).get("content", {})
]


@pytest.mark.parametrize(("path", "operation"), MEDIA, ids=[path for path, _ in MEDIA])
async def test_a_file_endpoint_has_an_example_that_can_be_executed_too(
    real_client: httpx.AsyncClient, path: str, operation: dict[str, Any]
) -> None:
    """The first of the content types, which the documentation page selects by itself."""
    kind, content = next(iter(operation["requestBody"]["content"].items()))
    answer = await real_client.post(path, content=content["example"], headers={"Content-Type": kind})
    assert answer.json()["results"][0]["predictions"][0]["label"] == "horse"


def path_examples(operation: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["example"] for p in operation.get("parameters", []) if p["in"] == "path" and "example" in p}


def examples() -> list[tuple[str, str, Any]]:
    return [
        (path.format(**path_examples(operation)), name, example["value"])
        for path, _, operation in operations()
        for name, example in operation.get("requestBody", {})
        .get("content", {})
        .get("application/json", {})
        .get("examples", {})
        .items()
    ]


def test_every_json_endpoint_has_an_example() -> None:
    with_body = {
        path.format(**path_examples(op))
        for path, _, op in operations()
        if "application/json" in op.get("requestBody", {}).get("content", {})
    }
    assert {path for path, _, _ in examples()} == with_body


@pytest.mark.parametrize(("path", "name", "value"), examples())
async def test_every_example_can_be_executed(
    real_client: httpx.AsyncClient, path: str, name: str, value: dict[str, Any]
) -> None:
    answer = await real_client.post(path, json=value)
    assert answer.status_code == 200, answer.text
