"""The OpenAPI document: FastAPI's, and the endpoints that the edge answers past FastAPI.

It is written for people and for generators of clients: every operation and every type has one plain name, and what
generators cannot express (a file as the body under a dozen content types) is said in words instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service.api import azure_anomaly_detector
from service.api.compare import Comparison, comparison_path_item
from service.api.gate import OPEN_PATHS
from service.api.open_inference.document import SCHEMAS, path_items
from service.api.tasks import VALIDATE, path_item, validation_item
from service.schemas.names import schema_name
from service.schemas.problem import Problem
from service.tasks import AnyTask
from service.tasks.anomaly_detection import AnomalyDetection
from service.tasks.base import MediaInput
from service.tasks.validation import Validation

_REFERENCE = "#/components/schemas/"
_UNUSED = ("HTTPValidationError", "ValidationError")  # FastAPI's own form of 422, which is never sent


def operation_id(route: APIRoute) -> str:
    """The name of an operation, which generators make a function of: `list_models`, not `list_models_v1_models_get`."""
    return route.name


def openapi(app: FastAPI, tasks: Mapping[str, type[AnyTask]], *, secured: bool) -> dict[str, Any]:
    """The document of an application, task endpoints first.

    Args:
        app: the application, whose routes are all there.
        tasks: those that it serves.
        secured: whether API keys are asked for.
    """
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        operation["responses"].pop("422", None)
    references, schemas = _task_schemas(tasks)
    task_paths = {
        f"/v1/{name}": path_item(
            task,
            takes=references.get(task.Input),
            gives=references[task.Output],
            tells={event: references[kind] for event, kind in task.events.items()},
        )
        for name, task in tasks.items()
    }
    task_paths |= {
        f"/v1/compare/{name}": comparison_path_item(
            task, takes=references.get(task.Input), gives=references[_comparison(task)]
        )
        for name, task in tasks.items()
    }
    task_paths |= {
        f"/v1/{name}{VALIDATE}": validation_item(task, takes=references.get(task.Input), gives=references[Validation])
        for name, task in tasks.items()
    }
    document["paths"] = task_paths | document["paths"] | path_items()
    if AnomalyDetection.name in tasks:
        document["paths"] |= azure_anomaly_detector.path_items(references)
    schemas = document["components"]["schemas"] | schemas
    document["components"]["schemas"] = {name: schemas[name] for name in sorted(schemas) if name not in _UNUSED}
    if secured:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for path in OPEN_PATHS:
            document["paths"][path]["get"]["security"] = []
    return _with_plain_names(document)


@cache
def _comparison(task: type[AnyTask]) -> type[BaseModel]:
    """The type of what `POST /v1/compare/<task>` answers."""
    return Comparison[task.Output]  # type: ignore[name-defined]


def _task_schemas(
    tasks: Mapping[str, type[AnyTask]],
) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """References to the schemas of all tasks' bodies, by type, and the schemas by name."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(schema, "validation") for schema in (Problem, *SCHEMAS)]
    if AnomalyDetection.name in tasks:
        models += [(schema, "validation") for schema in azure_anomaly_detector.SCHEMAS]
    models.append((Validation, "serialization"))
    for task in tasks.values():
        kinds = (task.Output, *task.events.values(), _comparison(task))
        models += [(schema, "serialization") for schema in kinds]
        if not issubclass(task.Input, MediaInput):  # the fields of these are query parameters
            models.append((task.Input, "validation"))
    found, defined = models_json_schema(models, ref_template=f"{_REFERENCE}{{model}}")
    return {model: reference for (model, _), reference in found.items()}, defined["$defs"]


def _with_plain_names(document: dict[str, Any]) -> dict[str, Any]:
    """Give every schema the name that `schema_name` gives it, as its title too: some generators go by that."""
    schemas = document["components"]["schemas"]
    names = {f"{_REFERENCE}{name}": f"{_REFERENCE}{schema_name(name)}" for name in schemas}

    def renamed(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: names.get(value, value) if key == "$ref" and isinstance(value, str) else renamed(value)
                for key, value in node.items()
            }
        return [renamed(value) for value in node] if isinstance(node, list) else node

    document["components"]["schemas"] = {
        schema_name(name): {**schema, "title": schema_name(name)} for name, schema in schemas.items()
    }
    for schema in document["components"]["schemas"].values():
        for field in schema.get("properties", {}).values():
            field.pop("title", None)  # "Top K" says no more than `top_k`
    result: dict[str, Any] = renamed(document)
    return result
