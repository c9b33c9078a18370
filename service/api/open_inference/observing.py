"""`/v2/logging` and `/v2/trace/setting`: how the server logs and traces. To be read; its settings say it, for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from service import errors
from service.api import reach
from service.api.deps import ADMIN, KeyDep, RegistryDep, SettingsDep
from service.api.open_inference.document import OF_MODEL, ModelName, failures
from service.api.open_inference.object import json_object
from service.errors import BadRequest, NotOffered, quoted
from service.schemas.open_inference import LogSettings, TraceSettings
from service.settings import Settings

_CHANGES = failures((errors.BadRequest, errors.NotAuthorised, errors.NotAllowed, errors.TooLarge, errors.NotOffered))

router = APIRouter()


@router.get("/logging", summary="How does the server log?", responses=failures((errors.NotAuthorised,)))
async def log_settings(settings: SettingsDep) -> LogSettings:
    """To stderr, from the level on that `GRIDLOOP_LOG_LEVEL` names."""
    return _log_settings(settings)


@router.post("/logging", summary="Change how the server logs", dependencies=[ADMIN], responses=_CHANGES)
async def change_log_settings(request: Request, settings: SettingsDep) -> LogSettings:
    """Answers with the settings where that would change none of them; anything else is 501."""
    present = _log_settings(settings)
    _refuse_changes(
        await json_object(request),
        present.model_dump(),
        NotOffered("Changing how it logs", "Set GRIDLOOP_LOG_LEVEL or GRIDLOOP_LOG_FORMAT, and restart the server."),
    )
    return present


@router.get("/trace/setting", summary="How does the server trace?", responses=failures((errors.NotAuthorised,)))
async def trace_settings() -> TraceSettings:
    """Not into files: `Server-Timing` says of every answer where its time went, and `traceparent` is handed on."""
    return TraceSettings()


@router.post("/trace/setting", summary="Change how the server traces", dependencies=[ADMIN], responses=_CHANGES)
async def change_trace_settings(request: Request) -> TraceSettings:
    """Answers with the settings where that would change none of them; anything else is 501."""
    return await _unchanged_trace(request)


@router.get("/models/{model_name}/trace/setting", summary="How are a model's requests traced?", responses=OF_MODEL)
async def model_trace_settings(model_name: ModelName, registry: RegistryDep, key: KeyDep) -> TraceSettings:
    """As those of all models."""
    reach.for_tensors(registry, key, model_name, None)
    return TraceSettings()


@router.post(
    "/models/{model_name}/trace/setting",
    summary="Change how a model's requests are traced",
    dependencies=[ADMIN],
    responses=_CHANGES | {404: OF_MODEL[404], 503: OF_MODEL[503]},
)
async def change_model_trace_settings(
    model_name: ModelName, request: Request, registry: RegistryDep, key: KeyDep
) -> TraceSettings:
    """Answers with the settings where that would change none of them; anything else is 501."""
    reach.for_tensors(registry, key, model_name, None)
    return await _unchanged_trace(request)


def _log_settings(settings: Settings) -> LogSettings:
    level = settings.log_level
    return LogSettings(
        log_file="",
        log_info=level in ("debug", "info"),
        log_warning=level in ("debug", "info", "warning"),
        log_error=True,
        log_verbose_level=1 if level == "debug" else 0,
        log_format="ISO8601",
    )


async def _unchanged_trace(request: Request) -> TraceSettings:
    present = TraceSettings()
    instead = "Read `Server-Timing`, or send `traceparent` and read the log."
    _refuse_changes(await json_object(request), present.model_dump(), NotOffered("Tracing into files", instead))
    return present


def _refuse_changes(sent: Mapping[str, Any], present: Mapping[str, Any], refusal: NotOffered) -> None:
    """See that a request changes nothing: null, which takes a change back, never does."""
    for name, value in sent.items():
        if name not in present:
            raise BadRequest(f"There is no setting {quoted(name)}; there are: {', '.join(present)}.")
        if value is not None and value != present[name]:
            raise refusal
