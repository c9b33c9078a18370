"""The OpenAPI document is the contract: complete, true, and committed, so that a change shows in the diff."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
import pytest
from pydantic import BaseModel

from service.api.gate import OPEN_PATHS
from service.api.problems import PROBLEMS
from service.app import create_app
from service.settings import Settings
from service.tasks import discover
from service.tasks.base import TaskInput, TaskOutput
from tests.api.test_routes import Shout

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


def test_every_schema_has_one_plain_name() -> None:
    """A generated client makes a class of each: no module paths, no brackets, and the title is the same."""
    for name, schema in document()["components"]["schemas"].items():
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", name)
        assert schema["title"] == name


T = TypeVar("T")


class Measured(BaseModel, Generic[T]):
    value: T
    unit: str = "m"


class MeasuredInput(TaskInput):
    before: Measured[float]


class MeasuredOutput(TaskOutput):
    now: Measured[float]
    counted: Measured[int]


class Generics(Shout):
    name = "generics"
    Input = MeasuredInput
    Output = MeasuredOutput


def test_generic_types_have_plain_names_too(tmp_path: Path) -> None:
    """Pydantic calls them `Measured_float_`, and `Measured[float]` in the title."""
    described = create_app(Settings(models=tmp_path, workers=1), tasks={"generics": Generics}).app.openapi()
    schemas = described["components"]["schemas"]
    found = {name: schema["title"] for name, schema in schemas.items() if name.startswith("Measured")}
    assert found == {name: name for name in ("MeasuredInput", "MeasuredOutput", "MeasuredFloat", "MeasuredInt")}
    assert set(references(described)) <= {f"#/components/schemas/{name}" for name in schemas}


def test_a_document_with_keys_leaves_the_probes_open(tmp_path: Path) -> None:
    described = create_app(Settings(models=tmp_path, workers=1, api_keys="secret")).app.openapi()
    assert described["security"] == [{"key": []}]
    open_to_all = {path for path, verbs in described["paths"].items() for op in verbs.values() if "security" in op}
    assert open_to_all == set(OPEN_PATHS)


def test_every_operation_has_one_plain_name() -> None:
    """A generated client makes a function of each, whose name says nothing of paths and methods."""
    counted = Counter(operation["operationId"] for _, _, operation in operations())
    assert set(counted.values()) == {1}
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in counted)


def test_every_success_is_described_with_its_type() -> None:
    for path, _, operation in operations():
        for kind, content in operation["responses"]["200"].get("content", {}).items():  # some answer with nothing
            assert content["schema"], f"{path}: {kind}"


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
        for status, response in operation["responses"].items()
        if status >= "400"
        for content in response["content"].values()
        for slug in content.get("examples", {})
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
async def test_a_file_endpoint_starts_with_a_form_and_has_a_file_to_send(
    real_client: httpx.AsyncClient, path: str, operation: dict[str, Any]
) -> None:
    """The form comes first: the documentation page selects it by itself, and puts the sample into its file chooser."""
    kind, content = next(iter(operation["requestBody"]["content"].items()))
    assert kind == "multipart/form-data"
    head, _, data = content["schema"]["properties"]["file"]["items"]["x-sample"].partition(";base64,")
    sample = ("sample", base64.b64decode(data), head.removeprefix("data:"))
    answer = await real_client.post(path, files={"file": sample})
    assert answer.status_code == 200, answer.text
    if path == "/v1/image-classification":
        assert answer.json()["results"][0]["predictions"][0]["label"] == "horse"


@pytest.mark.parametrize(("path", "operation"), MEDIA, ids=[path for path, _ in MEDIA])
def test_a_file_endpoint_says_in_words_which_content_types_it_takes(path: str, operation: dict[str, Any]) -> None:
    """Generators know forms and bytes; a content type each for a dozen formats is what they stumble over."""
    assert list(operation["requestBody"]["content"]) == ["multipart/form-data", "application/octet-stream"]
    for kind in discover()[path.rpartition("/")[2].removesuffix(":validate")].media:
        assert f"`{kind}`" in operation["description"]


def path_examples(operation: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["schema"]["examples"][0] for p in operation.get("parameters", []) if p["in"] == "path"}


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
    """But for those that change what is served, which tests/api/test_control.py asks."""
    with_body = {
        path.format(**path_examples(op))
        for path, _, op in operations()
        if "application/json" in op.get("requestBody", {}).get("content", {}) and not path.endswith(("load", "unload"))
    }
    assert {path for path, _, _ in examples()} == with_body


@pytest.mark.parametrize(("path", "name", "value"), examples())
async def test_every_example_can_be_executed(
    real_client: httpx.AsyncClient, path: str, name: str, value: dict[str, Any]
) -> None:
    answer = await real_client.post(path, json=value)
    assert answer.status_code == 200, answer.text
