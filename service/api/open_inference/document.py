"""The protocol's part of the OpenAPI document: the infer routes, which FastAPI does not know, and every failure."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Path

from service import errors
from service.api.open_inference.infer import PATHS
from service.api.problems import PROBLEMS
from service.api.tasks import INFERENCE_FAILURES
from service.schemas.open_inference import (
    IndexRequest,
    InferenceRequest,
    InferenceResponse,
    LoadRequest,
    ProtocolError,
    UnloadRequest,
)

TAG = "open inference protocol"

SCHEMAS = (IndexRequest, InferenceRequest, InferenceResponse, LoadRequest, UnloadRequest)
"""Types of bodies that FastAPI does not know of."""

MODEL_NAME: dict[str, Any] = {
    "description": "Name of the model; `name:graph` for another graph than its main one.",
    "examples": ["series-gru"],
}
"""The path parameter that says which model."""

MODEL_VERSION: dict[str, Any] = {"description": "Name of its version.", "examples": ["2"]}
"""The path parameter that says which version of it."""

ModelName = Annotated[str, Path(**MODEL_NAME)]
ModelVersion = Annotated[str, Path(**MODEL_VERSION)]

_POINTS = [10.1, 10.3, 9.9, 10.2, 10.0, 25.0]
_EXAMPLES = {
    "a series": {
        "value": {"inputs": [{"name": "values", "shape": [1, len(_POINTS)], "datatype": "FP64", "data": _POINTS}]}
    },
    "two rows, one output, nested": {
        "value": {
            "id": "42",
            "inputs": [
                {"name": "values", "shape": [2, 3], "datatype": "FP64", "data": [_POINTS[:3], _POINTS[3:]]},
                {"name": "sequence_lens", "shape": [2], "datatype": "INT32", "data": [3, 2]},
            ],
            "outputs": [{"name": "expected"}],
        }
    },
}
_WITH_TENSORS = {
    "type": "string",
    "format": "binary",
    "description": "A JSON object as above, and after it the little-endian bytes of the tensors that it gives a "
    "`binary_data_size`. `Inference-Header-Content-Length` is the length of the JSON.",
}


def path_items() -> dict[str, dict[str, Any]]:
    """The infer routes as OpenAPI path items; the application adds `SCHEMAS` to its components."""
    model = _path_parameter("model_name", **MODEL_NAME)
    version = _path_parameter("model_version", **MODEL_VERSION)
    operations = (
        _operation("Run a model on tensors", "infer", [model]),
        _operation("Run a version of a model on tensors", "infer_version", [model, version]),
    )
    return {path: {"post": operation} for path, operation in zip(PATHS, operations, strict=True)}


def _path_parameter(name: str, description: str, examples: list[str]) -> dict[str, Any]:
    schema = {"type": "string", "examples": examples}
    parameter = {"name": name, "in": "path", "required": True, "description": description}
    return parameter | {"schema": schema, "example": examples[0]}


def _operation(summary: str, operation_id: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of the JSON part, where tensors follow it. 0: the body is the bytes of the model's one "
        "input.",
        "schema": {"type": "integer", "minimum": 0},
    }
    documented = {str(status): entry for status, entry in failures(INFERENCE_FAILURES).items()}
    for entry in documented.values():
        del entry["model"]
        entry["content"]["application/json"]["schema"] = _reference(ProtocolError)
    return {
        "tags": [TAG],
        "summary": summary,
        "description": "The graph's own tensors, past the task's pre- and post-processing. Rows of several callers "
        "share a run. The answer is compressed as `Accept-Encoding` asks. "
        "Inputs that carry recurrent state may be left out (they begin at zero), and so may "
        "`sequence_lens` (full length).",
        "operationId": operation_id,
        "parameters": [*parameters, length],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference(InferenceRequest), "examples": _EXAMPLES},
                "application/octet-stream": {"schema": _WITH_TENSORS},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs: JSON, unless some were asked for as bytes.",
                "headers": {
                    "Inference-Header-Content-Length": {
                        "description": "Bytes of the JSON part, where tensors follow it.",
                        "schema": {"type": "integer"},
                    }
                },
                "content": {
                    "application/json": {"schema": _reference(InferenceResponse)},
                    "application/octet-stream": {"schema": _WITH_TENSORS},
                },
            },
            **documented,
        },
    }


def _reference(schema: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema.__name__}"}


def failures(kinds: Iterable[type[errors.ServiceError]]) -> dict[int | str, dict[str, Any]]:
    """Documentation of a route's errors, in the protocol's form, with an example of each."""
    documented: dict[int | str, dict[str, Any]] = {}
    for kind in (PROBLEMS[error] for error in kinds):
        entry = documented.setdefault(
            kind.status,
            {
                "model": ProtocolError,
                "description": HTTPStatus(kind.status).phrase,
                "content": {"application/json": {"examples": {}}},
            },
        )
        example = {"summary": kind.title, "value": {"error": str(kind.example)}}
        entry["content"]["application/json"]["examples"][kind.slug] = example
    return documented


OF_MODEL = failures((errors.NotAuthorised, errors.NotAllowed, errors.ModelNotFound, errors.ModelNotReady))
"""Errors of every route that tells of one model."""
