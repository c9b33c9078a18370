"""`POST /v1/<task>`: one endpoint for every task there is, typed by the task itself."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from service import errors
from service.api import reach
from service.api.body import INLINE_BYTES, receive_body
from service.api.context import Answer, Asked, ClientDisconnected, RequestContext
from service.api.in_flight import BytesInFlight
from service.api.inputs import parse_input, parse_small_input
from service.api.problems import openapi_responses
from service.registry.registry import Registry
from service.runtime.job import Done
from service.settings import Settings
from service.tasks import AnyTask
from service.tasks.base import MediaAnswer, TaskInput

WATCH_AFTER_S = 0.05
"""A request that takes longer is watched for its client hanging up (seconds); shorter ones are not worth a task."""

EARLY_BYTES = 2048
"""From this size of a body on, it is worth a look at the queue before it is read (bytes)."""

MODEL_HEADER = "X-Model"
"""Header of an answer that is no JSON: the model that really answered, as `name@version`."""

RAW_FILE = "application/octet-stream"
"""The content type of a file that does not say what it is."""

INFERENCE_FAILURES = (
    errors.BadRequest,
    errors.NotAuthorised,
    errors.NotAllowed,
    errors.ModelNotFound,
    errors.BodyTimeout,
    errors.TooLarge,
    errors.UnsupportedMedia,
    errors.RateLimited,
    errors.InferenceFailed,
    errors.ModelNotReady,
    errors.Overloaded,
    errors.TooManyConnections,
    errors.Draining,
    errors.DeadlineExceeded,
)
"""How any request that reaches a model may fail."""
FAILURES = (*INFERENCE_FAILURES, errors.ValidationFailed, errors.InvalidInput)
"""How a request to a task may fail."""


class TaskEndpoint:
    """What answers one `POST /v1/<task>`.

    Not a FastAPI route: resolving its dependencies for every request would cost more than many a small inference. What
    such a route would add to the OpenAPI document is added by `path_item`.

    Args:
        task: what it answers with.
        settings: the server's limits.
        registry: where its models are.
        in_flight: where large bodies are counted.
    """

    is_short = True

    def __init__(self, task: type[AnyTask], settings: Settings, registry: Registry, in_flight: BytesInFlight) -> None:
        self.path = f"/v1/{task.name}"
        self._task, self._settings, self._registry, self._in_flight = task, settings, registry, in_flight

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer:
        """See `Endpoint`."""
        with self._in_flight.body() as counted:
            body = await receive_body(self._settings, context.headers, scope, receive, counted)
            self._refuse_early(context, scope, body)
            request = await parse_input(self._task, self._settings, context, scope["query_string"], body)
        asked = await reach.when_loaded(lambda: self._asked(context, request, len(body)), context)
        return self.answer(await attended(asked, context, receive))

    def ask(self, context: RequestContext, scope: Any, body: bytes) -> Asked:
        """See `Endpoint`."""
        self._refuse_early(context, scope, body)
        kind = context.headers.get(b"content-type")
        request = parse_small_input(self._task, self._settings, kind, scope["query_string"], body)
        return self._asked(context, request, len(body))

    def answer(self, done: Done[bytes | MediaAnswer]) -> Answer:
        """See `Endpoint`."""
        value = done.value
        return _media_answer(value) if isinstance(value, MediaAnswer) else Answer(value)

    def _asked(self, context: RequestContext, request: TaskInput, size_bytes: int) -> Asked:
        context.check_deadline()
        state = getattr(request, "state", None)
        handle = reach.resolve(self._registry, context.key, self._task.name, request.model, context, state)
        context.model = handle.name
        return Asked(handle.batcher, handle.answer(request), request.rows, request.work or size_bytes, size_bytes)

    def _refuse_early(self, context: RequestContext, scope: Any, body: bytes) -> None:
        """Refuse a request for the default model before its body is read, where no answer could be in time.

        A body that spells its model with escapes is taken for one that names none: it is told to try again.

        Raises:
            Overloaded: too much is to be done before.
        """
        if len(body) < EARLY_BYTES or b"model" in scope["query_string"] or b'"model"' in body:
            return
        with suppress(errors.ModelNotFound, errors.ModelNotReady):  # told once the body was found to be right
            self._registry.resolve(self._task.name, None, context).batcher.check(context.remaining_s)


def answer_headers(tasks: Iterable[type[AnyTask]]) -> list[str]:
    """Headers that answers of these tasks may have because they are no JSON."""
    headers = [name for task in tasks if task.other_answers for name in (MODEL_HEADER, *task.other_headers)]
    return list(dict.fromkeys(headers))


def _media_answer(answer: MediaAnswer) -> Answer:
    """An answer that is no JSON: which model gave it, a header says."""
    headers = {MODEL_HEADER: f"{answer.model.name}@{answer.model.version}", **answer.headers}
    fields = tuple((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items())
    return Answer(answer.data, answer.content_type.encode(), headers=fields)


async def attended(asked: Asked, context: RequestContext, receive: Any) -> Done[Any]:
    """Have a request worked on for as long as its client is there."""
    async with Attended(receive):
        done: Done[Any] = await asked.batcher.submit(
            asked.steps,
            rows=asked.rows,
            timeout_s=context.remaining_s,
            alone=context.alone,
            small=asked.size_bytes <= INLINE_BYTES,
            work=asked.work,
            size_bytes=asked.size_bytes,
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


def path_item(
    task: type[AnyTask], *, takes: Mapping[str, str] | None, gives: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """A task's endpoint as an OpenAPI path item.

    Args:
        task: what it answers with.
        takes: reference to the schema of the body; None where that is files.
        gives: reference to the schema of the answer.
    """
    failures = (*FAILURES, errors.InvalidState) if "state" in task.Input.model_fields else FAILURES
    responses = {
        "200": _success(task, gives),
        **{str(status): entry for status, entry in openapi_responses(failures, f"/v1/{task.name}").items()},
    }
    description = inspect.cleandoc(task.__doc__ or "")
    return {
        "post": {
            "tags": ["tasks"],
            "summary": task.summary,
            "description": f"{description}\n\n{files_in_words(task)}" if takes is None else description,
            "operationId": task.name.replace("-", "_"),
            **(_media_request(task) if takes is None else _json_request(task, takes)),
            "responses": responses,
        }
    }


def _success(task: type[AnyTask], gives: Mapping[str, str]) -> dict[str, Any]:
    """The answer in every content type that it may have."""
    others = task.other_answers
    success = {
        "description": "The answer.",
        "content": {
            "application/json": {"schema": gives},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in others.values()},
        },
    }
    if not others:
        return success
    asked = ", ".join(f"`{kind}` with `format` = `{name}`" for name, kind in others.items())
    headers = {MODEL_HEADER: "The model that answered, as `name@version`.", **task.other_headers}
    return {
        **success,
        "description": f"The answer: JSON, or {asked}.",
        "headers": {
            name: {"description": f"{meaning} Not with JSON.", "schema": {"type": "string"}}
            for name, meaning in headers.items()
        },
    }


def _json_request(task: type[AnyTask], takes: Mapping[str, str]) -> dict[str, Any]:
    examples = {f"example {n}": {"value": value} for n, value in enumerate(task.examples(), start=1)}
    content = {"schema": takes, **({"examples": examples} if examples else {})}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


_FILES = (
    "One or more files. Of several, one that cannot be used does not lose the answers of the others: its entry of "
    "`results` has an `error` in place of an answer. When none can be used, the whole request is refused with 422."
)


def _media_request(task: type[AnyTask]) -> dict[str, Any]:
    """Files as parts of a form, or one as the body: the two that generators of clients know how to send."""
    binary = {"type": "string", "format": "binary"}
    sample = {"x-sample": task.sample_data_url} if task.sample_data_url else {}
    files = {"type": "array", "items": binary | sample, "description": _FILES, "minItems": 1}
    parts = {"type": "object", "properties": {"file": files}, "required": ["file"]}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": parts},
                RAW_FILE: {"schema": {**binary, "description": "One file."}},
            },
        },
        "parameters": [
            _query_parameter(name, schema)
            for name, schema in task.Input.model_json_schema()["properties"].items()
            if name != "files"
        ],
    }


def files_in_words(task: type[AnyTask]) -> str:
    """How files are sent to a task."""
    kinds = ", ".join(f"`{kind}`" for kind in task.media if kind != RAW_FILE)
    return (
        "Files are parts named `file` of a form; the fields below may be parts of it, too. Or one file is the body "
        f"itself: as `{RAW_FILE}`, under its own content type ({kinds}), or as a data URL under `text/plain`."
    )


def _query_parameter(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A field as a query parameter: one that may be null is one that may be left out."""
    described = {key: value for key, value in schema.items() if key not in ("description", "title", "anyOf")}
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        described = {**kinds[0], **{key: value for key, value in described.items() if value is not None}}
    elif kinds:
        described["anyOf"] = kinds
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": schema.get("description", ""),
        "schema": described,
    }
