"""`POST /v1/<task>`: one endpoint for every task there is, typed by the task itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from service import errors
from service.api.body import INLINE_BYTES, parse_input, parse_small_input, receive_body
from service.api.context import Answer, Asked, ClientDisconnected, RequestContext
from service.api.problems import openapi_responses
from service.registry.registry import Registry
from service.runtime.batcher import Done
from service.settings import Settings
from service.tasks import AnyTask
from service.tasks.base import MediaInput, TaskInput

WATCH_AFTER_S = 0.05
"""A request that takes longer is watched for its client hanging up (seconds); shorter ones are not worth a task."""

INFERENCE_FAILURES = (
    errors.BadRequest,
    errors.NotAuthorised,
    errors.ModelNotFound,
    errors.BodyTimeout,
    errors.TooLarge,
    errors.UnsupportedMedia,
    errors.RateLimited,
    errors.InferenceFailed,
    errors.ModelNotReady,
    errors.Overloaded,
    errors.Draining,
    errors.DeadlineExceeded,
)
"""How any request that reaches a model may fail."""
_FAILURES = (*INFERENCE_FAILURES, errors.ValidationFailed, errors.InvalidInput)


class TaskEndpoint:
    """What answers one `POST /v1/<task>`.

    Not a FastAPI route: resolving its dependencies for every request would cost more than many a small inference. What
    such a route would add to the OpenAPI document is added by `path_item`.

    Args:
        task: what it answers with.
        settings: the server's limits.
        registry: where its models are.
    """

    def __init__(self, task: type[AnyTask], settings: Settings, registry: Registry) -> None:
        self.path = f"/v1/{task.name}"
        self._task, self._settings, self._registry = task, settings, registry

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer:
        """See `Endpoint`."""
        settings = self._settings
        body = await receive_body(
            context.headers, scope, receive, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
        )
        request = await parse_input(self._task, context.headers.get(b"content-type"), scope["query_string"], body)
        return self.answer(await attended(self._asked(context, request), context, receive, body))

    def ask(self, context: RequestContext, scope: Any, body: bytes) -> Asked:
        """See `Endpoint`."""
        kind = context.headers.get(b"content-type")
        return self._asked(context, parse_small_input(self._task, kind, scope["query_string"], body))

    def answer(self, done: Done[bytes]) -> Answer:
        """See `Endpoint`."""
        return Answer(done.value)

    def _asked(self, context: RequestContext, request: TaskInput) -> Asked:
        handle = self._registry.resolve(self._task.name, request.model)
        context.model = handle.name
        return Asked(handle.batcher, handle.answer(request), request.rows)


async def attended(asked: Asked, context: RequestContext, receive: Any, body: bytes) -> Done[Any]:
    """Have a request worked on for as long as its client is there."""
    async with Attended(receive):
        done: Done[Any] = await asked.batcher.submit(
            asked.steps,
            rows=asked.rows,
            timeout_s=context.remaining_s,
            alone=context.alone,
            small=len(body) <= INLINE_BYTES,
        )
    context.timings = done.timings
    return done


class Attended:
    """Cancels the block when the client hangs up, so that nobody works for a caller who has left."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> None:
        self._caller = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._watch)

    def _watch(self) -> None:
        self._watcher = asyncio.ensure_future(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
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
            raise ClientDisconnected
        return False


def path_item(task: type[AnyTask]) -> dict[str, Any]:
    """A task's endpoint as an OpenAPI path item; the schemas it refers to are added by the application."""
    failures = (*_FAILURES, errors.InvalidState) if "state" in task.Input.model_fields else _FAILURES
    answer = {"$ref": f"#/components/schemas/{task.Output.__name__}"}
    responses = {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": answer}}},
        **{str(status): entry for status, entry in openapi_responses(failures, f"/v1/{task.name}").items()},
    }
    return {
        "post": {
            "tags": ["tasks"],
            "summary": task.summary,
            "description": (task.__doc__ or "").strip(),
            "operationId": task.name.replace("-", "_"),
            **(_media_request(task) if issubclass(task.Input, MediaInput) else _json_request(task)),
            "responses": responses,
        }
    }


def _json_request(task: type[AnyTask]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{task.Input.__name__}"}
    examples = {f"example {n}": {"value": value} for n, value in enumerate(task.examples(), start=1)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


_FILES = (
    "One or more files. Of several, one that cannot be used does not lose the answers of the others: its entry of "
    "`results` has an `error` in place of an answer. When none can be used, the whole request is refused with 422."
)


def _media_request(task: type[AnyTask]) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    parts = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": binary, "description": _FILES}},
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
