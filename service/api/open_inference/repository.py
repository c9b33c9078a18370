"""`/v2/repository`: every model there is, and what becomes of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service import errors
from service.api import reach
from service.api.deps import ADMIN, KeyDep, RegistryDep
from service.api.open_inference.document import ModelName, failures
from service.api.open_inference.object import json_object
from service.errors import BadRequest, NotOffered
from service.registry.model import AT_FIRST_USE, Model, VersionState
from service.schemas.open_inference import IndexRequest, RepositoryEntry, RepositoryState

_STATES: dict[VersionState, RepositoryState] = {
    "lazy": "READY",  # the first request waits, and is answered
    "loading": "LOADING",
    "ready": "READY",
    "failed": "UNAVAILABLE",
    "unloaded": "UNAVAILABLE",
}
_INDEX_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": {"$ref": f"#/components/schemas/{IndexRequest.__name__}"},
                "examples": {"models that can infer": {"value": {"ready": True}}},
            }
        },
    }
}

router = APIRouter(prefix="/repository")


@router.post(
    "/index",
    summary="Which models are there, and can they infer?",
    response_model=list[RepositoryEntry],
    response_model_exclude_none=True,
    responses=failures((errors.BadRequest, errors.NotAuthorised, errors.TooLarge)),
    openapi_extra=_INDEX_BODY,
)
async def index(request: Request, registry: RegistryDep, key: KeyDep) -> list[RepositoryEntry]:
    """Every version of every model that the caller's API key reaches, with the reason where it cannot infer."""
    only_ready = (await json_object(request)).get("ready", False)
    if type(only_ready) is not bool:
        raise BadRequest("`ready` must be true or false.")
    entries = [entry for model in reach.within(registry, key) for entry in _entries(model)]
    return [entry for entry in entries if entry.state == "READY" or not only_ready]


# Not in the OpenAPI document: nobody should make a client of what is not offered.
@router.post("/models/{model_name}/load", dependencies=[ADMIN], include_in_schema=False)
async def load(model_name: ModelName) -> None:
    """Not there yet: 501."""
    raise _restart("Loading", model_name)


@router.post("/models/{model_name}/unload", dependencies=[ADMIN], include_in_schema=False)
async def unload(model_name: ModelName) -> None:
    """Not there yet: 501."""
    raise _restart("Unloading", model_name)


def _restart(what: str, model: str) -> NotOffered:
    return NotOffered(
        f"{what} a model while others are served",
        f"Put the folder {errors.quoted(model)} into the model repository or take it out, and restart the server.",
    )


def _entries(model: Model) -> list[RepositoryEntry]:
    """A model's versions; the model itself where its folder has none that can be named."""
    if not model.versions:
        return [RepositoryEntry(name=model.name, state="UNAVAILABLE", reason=model.problem)]
    return [
        RepositoryEntry(
            name=model.name,
            version=name,
            state=_STATES[version.state],
            reason=f"lazy: {AT_FIRST_USE}" if version.state == "lazy" else version.reason,
        )
        for name, version in model.versions.items()
    ]
