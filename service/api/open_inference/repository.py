"""`/v2/repository`: every model there is, and what becomes of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Request, Response

from service import errors
from service.api import reach
from service.api.context import context_of
from service.api.deps import ADMIN_API, ControlDep, KeyDep, RegistryDep
from service.api.open_inference.document import ModelName, failures
from service.api.open_inference.object import json_object
from service.errors import BadRequest, NotOffered
from service.registry.model import AT_FIRST_USE, Model, VersionState
from service.schemas.open_inference import IndexRequest, LoadRequest, RepositoryEntry, RepositoryState, UnloadRequest

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


def _change_body(schema: type) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": reference}}}}


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


_CHANGES = failures(
    (
        errors.BadRequest,
        errors.LoadRefused,
        errors.NotAuthorised,
        errors.NotAllowed,
        errors.AdminApiOff,
        errors.ModelNotFound,
        errors.TooLarge,
        errors.NotOffered,
        errors.Draining,
        errors.DeadlineExceeded,
    )
)


@router.post(
    "/models/{model_name}/load",
    summary="Serve a model as its folder is now",
    status_code=200,
    response_class=Response,
    dependencies=[ADMIN_API],
    responses=_CHANGES,
    openapi_extra=_change_body(LoadRequest),
)
async def load(request: Request, model_name: ModelName, control: ControlDep) -> Response:
    """Loads what has changed, and what was unloaded or has failed.

    Answered with an empty body when every worker serves it. Where something cannot be served, what was served before
    still is.
    """
    _check_parameters(await json_object(request))
    await _in_time(request, control.load(_named(model_name, request)))
    return Response()


@router.post(
    "/models/{model_name}/unload",
    summary="Take a model out of service",
    status_code=200,
    response_class=Response,
    dependencies=[ADMIN_API],
    responses=_CHANGES,
    openapi_extra=_change_body(UnloadRequest),
)
async def unload(request: Request, model_name: ModelName, control: ControlDep) -> Response:
    """It stays listed, and is 503 for whoever asks it, until it is loaded again or the server is started anew.

    Answered with an empty body when no worker begins anything more with it.
    """
    await json_object(request)
    await _in_time(request, control.unload(_named(model_name, request)))
    return Response()


def _named(model: str, request: Request) -> str:
    """The model, if it can be one.

    Raises:
        ModelNotFound: no folder that is served has such a name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model):
        raise errors.ModelNotFound(model, available=[each.name for each in request.app.state.registry])
    return model


def _check_parameters(sent: dict[str, Any]) -> None:
    """Refuse what a load request may have in the protocol and changes nothing here."""
    parameters = sent.get("parameters", {})
    if type(parameters) is not dict:
        raise BadRequest("`parameters` must be an object.")
    for name in parameters:
        path = PurePosixPath(name.removeprefix("file:"))
        if name.startswith("file:") and (path.is_absolute() or ".." in path.parts):
            raise BadRequest(f"{errors.quoted(name)} leads out of the model's folder.")
    if any(name == "config" or name.startswith("file:") for name in parameters):
        raise NotOffered(
            "A configuration or file within a load request",
            "Change the files of the model's folder, and send the request without them.",
        )


async def _in_time(request: Request, change: Awaitable[None]) -> None:
    """Wait for a change: as long as the caller says, and else as long as it takes, which nobody can know.

    Raises:
        DeadlineExceeded: it took longer; it may still be made.
    """
    context = context_of(request.scope)
    timeout_s = context.remaining_s if b"x-request-timeout" in context.headers else None
    try:
        async with asyncio.timeout(timeout_s):
            await change
    except TimeoutError:
        raise errors.DeadlineExceeded(context.timeout_s) from None


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
