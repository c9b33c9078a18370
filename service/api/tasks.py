"""`POST /v1/<task>`: one endpoint for every task there is, typed by the task itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from service import errors
from service.api import accept, reach
from service.api.accept import EVENT_STREAM, Wish
from service.api.attended import attended
from service.api.body import receive_body
from service.api.context import Answer, Asked, RequestContext, StreamedAnswer
from service.api.events import EventStream
from service.api.in_flight import BytesInFlight
from service.api.inputs import parse_input, parse_small_input
from service.api.problems import openapi_responses, problem_schema
from service.graph import Steps
from service.registry.handle import ModelHandle
from service.registry.registry import Registry
from service.runtime.job import Done
from service.settings import Settings
from service.tasks import AnyTask
from service.tasks.base import DONE, ERROR, MediaAnswer, TaskInput

EARLY_BYTES = 2048
"""From this size of a body on, it is worth a look at the queue before it is read (bytes)."""

MODEL_HEADER = "X-Model"
"""Header of an answer that is no JSON: the model that really answered, as `name@version`."""

VALIDATE = ":validate"
"""After the path of a task: how would a request to it be read?"""

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

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer | StreamedAnswer:
        """See `Endpoint`."""
        wish = accept.wish(context.headers.get(b"accept", b""))
        with self._in_flight.body() as counted:
            body = await receive_body(self._settings, context.headers, scope, receive, counted)
            self._refuse_early(context, scope, body)
            request = await parse_input(self._task, self._settings, context, scope["query_string"], body)
            in_parts = self._in_parts(wish, request)
        asked = await reach.when_loaded(lambda: self._asked(context, request, len(body)), context)
        if in_parts:
            return await EventStream.begun(asked, context, receive, self.path)
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

    def _in_parts(self, wish: Wish, request: TaskInput) -> bool:
        """Whether a request is answered as a stream of events.

        Raises:
            NotAcceptable: nothing else is taken, and it does not come in parts.
        """
        if wish is Wish.WHOLE:
            return False
        other = self._task.other_answer(request)
        if self._task.events and other is None:
            return True
        if wish is Wish.EVENTS_ONLY:
            raise errors.NotAcceptable(EVENT_STREAM.decode(), [other or "application/json"])
        return False

    def _asked(self, context: RequestContext, request: TaskInput, size_bytes: int) -> Asked:
        context.check_deadline()
        state = getattr(request, "state", None)
        handle = reach.resolve(self._registry, context.key, self._task.name, request.model, context, state)
        context.model = handle.name
        return Asked(handle.batcher, self._steps(handle, request), request.rows, request.work or size_bytes, size_bytes)

    def _steps(self, handle: ModelHandle, request: TaskInput) -> Steps[bytes | MediaAnswer]:
        return handle.answer(request)

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


class ValidationEndpoint(TaskEndpoint):
    """What answers one `POST /v1/<task>:validate`: takes and refuses what the task's endpoint does, and runs nothing.

    It waits for the model's thread as a request does, and its deadline and the queue's limits are those of one.
    """

    def __init__(self, task: type[AnyTask], settings: Settings, registry: Registry, in_flight: BytesInFlight) -> None:
        super().__init__(task, settings, registry, in_flight)
        self.path += VALIDATE

    def _in_parts(self, wish: Wish, request: TaskInput) -> bool:
        super()._in_parts(wish, request)  # refuses what the request itself would be refused for
        return False

    def _steps(self, handle: ModelHandle, request: TaskInput) -> Steps[bytes | MediaAnswer]:
        return handle.validate(request)


def answer_headers(tasks: Iterable[type[AnyTask]]) -> list[str]:
    """Headers that answers of these tasks may have because they are no JSON."""
    headers = [name for task in tasks if task.other_answers for name in (MODEL_HEADER, *task.other_headers)]
    return list(dict.fromkeys(headers))


def _media_answer(answer: MediaAnswer) -> Answer:
    """An answer that is no JSON: which model gave it, a header says."""
    headers = {MODEL_HEADER: f"{answer.model.name}@{answer.model.version}", **answer.headers}
    fields = tuple((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items())
    return Answer(answer.data, answer.content_type.encode(), headers=fields)


def path_item(
    task: type[AnyTask], *, takes: Mapping[str, str] | None, gives: Mapping[str, str], tells: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """A task's endpoint as an OpenAPI path item.

    Args:
        task: what it answers with.
        takes: reference to the schema of the body; None where that is files.
        gives: reference to the schema of the answer.
        tells: references to the schemas of its events, by name.
    """
    responses = {"200": _success(task, gives, tells), **_failures(task)}
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


def validation_item(
    task: type[AnyTask], *, takes: Mapping[str, str] | None, gives: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """A task's validation as an OpenAPI path item; `gives` is the reference to its schema, `takes` as above."""
    success = {"description": "The request would be answered.", "content": {"application/json": {"schema": gives}}}
    description = (
        "Says what was understood of a request, without running the model: who would answer, the fields with their "
        "defaults, what is in the files, what is left of the limits, the tensors of the first run. What the request "
        "would be refused for, before that run, this is refused for."
    )
    return {
        "post": {
            "tags": ["validation"],
            "summary": f"How would a request to {task.name} be read?",
            "description": f"{description}\n\n{files_in_words(task)}" if takes is None else description,
            "operationId": f"validate_{task.name.replace('-', '_')}",
            **(_media_request(task) if takes is None else _json_request(task, takes)),
            "responses": {"200": success, **_failures(task)},
        }
    }


def _failures(task: type[AnyTask]) -> dict[str, Any]:
    kinds = (*FAILURES, errors.NotAcceptable, *([errors.InvalidState] if "state" in task.Input.model_fields else []))
    return {str(status): entry for status, entry in openapi_responses(kinds, f"/v1/{task.name}").items()}


def _success(task: type[AnyTask], gives: Mapping[str, str], tells: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in every content type that it may have."""
    others = task.other_answers
    content: dict[str, Any] = {
        "application/json": {"schema": gives},
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in others.values()},
    }
    asked = [f"`{kind}` with `format` = `{name}`" for name, kind in others.items()]
    if tells:
        content[EVENT_STREAM.decode()] = {"schema": _event_schema({**tells, DONE: gives, ERROR: problem_schema()})}
        asked.append(f"`{EVENT_STREAM.decode()}` with that in `Accept`, part by part")
    success = {
        "description": f"The answer: JSON, or {', '.join(asked)}." if asked else "The answer.",
        "content": content,
    }
    if not others:
        return success
    headers = {MODEL_HEADER: "The model that answered, as `name@version`.", **task.other_headers}
    return {
        **success,
        "headers": {
            name: {"description": f"{meaning} Not with JSON.", "schema": {"type": "string"}}
            for name, meaning in headers.items()
        },
    }


def _event_schema(data: Mapping[str, Any]) -> dict[str, Any]:
    """One event of a stream, as most documents describe such streams: OpenAPI 3.1 has no word for them."""
    kinds = [
        {
            "type": "object",
            "properties": {"event": {"type": "string", "const": name}, "data": schema},
            "required": ["event", "data"],
        }
        for name, schema in data.items()
    ]
    told = (
        f"One of many events: the lines `event: …` and `data: …`, the data as JSON. The last is `{DONE}` or `{ERROR}`."
    )
    return {"description": told, "oneOf": kinds}


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
