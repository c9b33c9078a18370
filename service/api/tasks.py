"""`POST /v1/<task>`: one route for every task there is, typed by the task itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service import errors
from service.api.body import parse_input, receive_body
from service.api.context import context_of
from service.api.deps import get_registry, get_settings
from service.api.problems import openapi_responses
from service.runtime.batcher import Done
from service.tasks import AnyTask
from service.tasks.base import MediaInput

WATCH_AFTER_S = 0.05
"""A request that takes longer is watched for its client hanging up (seconds); shorter ones are not worth a task."""

_FAILURES = (
    errors.BadRequest,
    errors.NotAuthorised,
    errors.ModelNotFound,
    errors.BodyTimeout,
    errors.TooLarge,
    errors.UnsupportedMedia,
    errors.ValidationFailed,
    errors.InvalidInput,
    errors.RateLimited,
    errors.InferenceFailed,
    errors.ModelNotReady,
    errors.Overloaded,
    errors.Draining,
    errors.DeadlineExceeded,
)


def task_router(tasks: Mapping[str, type[AnyTask]]) -> APIRouter:
    """Routes for all tasks."""
    router = APIRouter(prefix="/v1", tags=["tasks"])
    for task in tasks.values():
        has_state = "state" in task.Input.model_fields
        failures = (*_FAILURES, errors.InvalidState) if has_state else _FAILURES
        router.add_api_route(
            f"/{task.name}",
            _endpoint(task),
            methods=["POST"],
            name=task.name,
            summary=task.summary,
            description=(task.__doc__ or "").strip(),
            response_model=None,
            responses={200: {"model": task.Output}, **openapi_responses(failures, f"/v1/{task.name}")},
            openapi_extra=_media_request(task) if issubclass(task.Input, MediaInput) else _json_request(task),
        )
    return router


def _endpoint(task: type[AnyTask]) -> Callable[[Request], Awaitable[Response]]:
    async def predict(request: Request) -> Response:
        context = context_of(request.scope)
        settings = get_settings(request)
        body = await receive_body(
            request,
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.body_timeout_s,
        )
        asked = await parse_input(task, request, body)
        handle = get_registry(request).resolve(task.name, asked.model)
        context.model = f"{handle.ref.name}@{handle.ref.version}"
        async with _Attended(request):
            done: Done[bytes] = await handle.predict(asked, timeout_s=context.remaining_s)
        context.timings = done.timings
        return Response(done.value, media_type="application/json")

    return predict


class _Attended:
    """Cancels the block when the client hangs up, so that nobody works for a caller who has left."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> None:
        self._caller = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._watch)

    def _watch(self) -> None:
        self._watcher = asyncio.ensure_future(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        if self._caller:
            self._caller.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._timer.cancel()
        if self._watcher and not self._watcher.done():
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        if kind is asyncio.CancelledError and self._has_left and self._caller:
            self._caller.uncancel()
            raise errors.BadRequest("The client closed the connection before the answer was ready.")
        return False


def _json_request(task: type[AnyTask]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{task.Input.__name__}"}
    examples = {f"example {n}": {"value": value} for n, value in enumerate(task.examples(), start=1)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


def _media_request(task: type[AnyTask]) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    parts = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": binary, "description": "One or more files."}},
        "required": ["file"],
    }
    fields = task.Input.model_json_schema()["properties"]
    return {
        "requestBody": {
            "required": True,
            "content": {
                # First, so that the documentation page starts with something it can send at a press of a button.
                "text/plain": {
                    "schema": {"type": "string", "description": "A file as a data URL, base64."},
                    "example": task.sample_data_url,
                },
                "multipart/form-data": {"schema": parts},
                **{kind: {"schema": binary} for kind in task.media},
            },
        },
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": schema.get("description", ""),
                "schema": {key: value for key, value in schema.items() if key != "description"},
            }
            for name, schema in fields.items()
            if name != "files"
        ],
    }
