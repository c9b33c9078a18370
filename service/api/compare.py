"""`POST /v1/compare/<task>`: one input to several models of a task; their answers side by side.

They are asked one after another, so that each latency is that of a model which nobody hurries or hinders. What is wrong
with one model is told in its entry; what is wrong with the input, so that no model can answer, fails the request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, urlencode

import orjson
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from service import errors
from service.api import reach
from service.api.attended import Attended
from service.api.body import receive_body
from service.api.call import log_crash
from service.api.context import Answer, Asked, RequestContext
from service.api.in_flight import BytesInFlight
from service.api.inputs import parse_input
from service.api.problems import openapi_responses, problem_of
from service.api.tasks import FAILURES, files_in_words, path_item
from service.errors import ModelNotReady, ServiceError, ValidationFailed, schema_problems
from service.registry.handle import ModelHandle
from service.registry.registry import Registry
from service.runtime.job import Done, Timings
from service.settings import Settings
from service.tasks import AnyTask
from service.tasks.base import MediaAnswer, ModelRef, ModelReference, TaskInput, TaskOutput
from service.tasks.comparison import comparable

MOST_MODELS = 16
"""Models that one request may compare (count)."""
TOLERANCE = 0.1
"""Largest difference of a number between answers that agree, where the request says nothing."""

_REFERENCE: TypeAdapter[str] = TypeAdapter(ModelReference)

OutputT = TypeVar("OutputT", bound=TaskOutput)


class ComparedTimings(BaseModel):
    """Where a model's time went (milliseconds)."""

    queue: float = Field(description="Waiting for others.")
    decode: float = Field(description="From the input to tensors.")
    infer: float = Field(description="Runs of the graph.")
    encode: float = Field(description="From its outputs to the answer.")


class ComparedProblem(BaseModel):
    """Why a model has not answered; as in an error of the whole request."""

    type: str = Field(examples=["/problems/invalid-state"])
    title: str
    status: int = Field(description="The HTTP status that the model's own request would have had.")
    detail: str


class ComparedModel(BaseModel, Generic[OutputT]):
    """What one model makes of the input."""

    model: ModelRef
    latency_ms: float | None = Field(description="Until its answer; null where there is none.", examples=[4.2])
    timings: ComparedTimings | None
    answer: OutputT | None = Field(description="As the task's own endpoint gives it; null where there is none.")
    error: ComparedProblem | None = Field(description="Why there is no answer.")
    agrees: bool | None = Field(
        description="Whether it says the same as the first model that has answered; null for that one, and where there "
        "is no answer."
    )
    difference: str | None = Field(
        description="Where it does not.", examples=["at results[0].predictions: expected label 'cat', got 'dog'"]
    )


class Comparison(BaseModel, Generic[OutputT]):
    """What several models make of one input."""

    task: str = Field(examples=["image-classification"])
    tolerance: float = Field(description="Largest difference of a number between answers that agree.", examples=[0.1])
    results: list[ComparedModel[OutputT]] = Field(
        description="In the order of `models`; left out, the task's default model and then the others by name."
    )


class CompareEndpoint:
    """What answers one `POST /v1/compare/<task>`; the arguments are those of `TaskEndpoint`."""

    is_short = False

    def __init__(self, task: type[AnyTask], settings: Settings, registry: Registry, in_flight: BytesInFlight) -> None:
        self.path = f"/v1/compare/{task.name}"
        self._task, self._settings, self._registry, self._in_flight = task, settings, registry, in_flight

    def ask(self, context: RequestContext, scope: Any, body: bytes) -> Asked:
        """Never called: several models are asked, so there is no short way."""
        raise NotImplementedError

    def answer(self, done: Done[Any]) -> Answer:
        """Never called, either."""
        raise NotImplementedError

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer:
        """See `Endpoint`."""
        with self._in_flight.body() as counted:
            body = await receive_body(self._settings, context.headers, scope, receive, counted)
            own, others = _divided(scope["query_string"])
            tolerance, names = _tolerance(own), _names(own)
            request = await parse_input(self._task, self._settings, context, others, body)
            self._refuse(request)
        context.check_deadline()
        asked = self._chosen(context, names)
        context.timings = Timings()
        async with Attended(receive):
            entries = [await self._entry(context, scope["path"], request, len(body), name) for name in asked]
        failures = [entry.failure for entry in entries if entry.failure]
        if len(failures) == len(entries):
            raise failures[0]
        self._compare(request, entries, tolerance)
        results = [entry.told(scope["path"], context) for entry in entries]
        return Answer(orjson.dumps({"task": self._task.name, "tolerance": tolerance, "results": results}))

    def _refuse(self, request: TaskInput) -> None:
        """Refuse what a request to several models cannot ask."""
        place = "query" if hasattr(request, "files") else "body"
        if request.model is not None:
            message = f"several models are asked here: name them as in {self.path}?models=a,b@2"
            raise ValidationFailed([{"loc": [place, "model"], "msg": message}])
        if getattr(request, "format", "json") in self._task.other_answers:
            raise ValidationFailed([{"loc": [place, "format"], "msg": "only answers in JSON stand side by side"}])

    def _chosen(self, context: RequestContext, names: list[str]) -> list[str]:
        """References of the models to ask: those named, else every model of the task that is ready, its default first.

        Raises:
            ModelNotFound: there is no such model or version, or it serves another task.
            NotAllowed: the API key does not reach it.
            ModelNotReady: none is ready.
        """
        name = self._task.name
        if not names:
            models = [m for m in reach.within(self._registry, context.key) if m.manifest and m.manifest.task == name]
            default = self._registry.default(name).name
            ready = sorted((m for m in models if m.is_ready), key=lambda m: (m.name != default, m.name))
            if not ready:
                reach.resolve(self._registry, context.key, name, None)
            return [model.name for model in ready[:MOST_MODELS]]
        for asked in names:
            with suppress(ModelNotReady):  # its entry says so
                reach.resolve(self._registry, context.key, name, asked)
        return names

    async def _entry(
        self, context: RequestContext, path: str, request: TaskInput, size_bytes: int, name: str
    ) -> _Entry:
        """Ask one model."""
        handle: ModelHandle | None = None
        try:
            handle = await reach.when_loaded(
                lambda: reach.resolve(self._registry, context.key, self._task.name, name), context
            )
            context.model = context.model or handle.name
            begun = time.perf_counter()  # what is loaded now is not counted
            done = await handle.batcher.submit(
                handle.answer(request),
                rows=request.rows,
                timeout_s=context.remaining_s,
                work=request.work or size_bytes,
                size_bytes=size_bytes,
            )
        except Exception as error:  # it is this model's alone
            log_crash(error, path, context)
            return _Entry(handle.ref if handle else self._ref(name), failure=error)
        for stage in ("queue", "decode", "infer", "encode"):
            setattr(context.timings, stage, getattr(context.timings, stage) + getattr(done.timings, stage))
        return _Entry(handle.ref, done=done, latency_s=time.perf_counter() - begun, task=handle.task)

    def _ref(self, name: str) -> ModelRef:
        """Which model and version a reference means that cannot be asked."""
        name, _, version = name.partition("@")
        return ModelRef(name=name, version=version or self._registry.get(name).default_version or "")

    def _compare(self, request: TaskInput, entries: list[_Entry], tolerance: float) -> None:
        """Note of every answer whether it says what the first one says."""
        answered = [entry for entry in entries if entry.done]
        first = comparable(answered[0].fields())
        for entry in answered[1:]:
            assert entry.task is not None  # noqa: S101  it has answered
            entry.difference = entry.task.difference(request, first, entry.fields(), tolerance)
            entry.agrees = entry.difference is None


class _Entry:
    """One model and what has become of its request."""

    def __init__(
        self,
        ref: ModelRef,
        *,
        done: Done[bytes | MediaAnswer] | None = None,
        latency_s: float = 0.0,
        task: AnyTask | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.ref, self.done, self.latency_s, self.task, self.failure = ref, done, latency_s, task, failure
        self.agrees: bool | None = None
        self.difference: str | None = None

    def fields(self) -> dict[str, Any]:
        """The answer as JSON."""
        found: dict[str, Any] = orjson.loads(self._json())
        return found

    def _json(self) -> bytes:
        assert self.done is not None  # noqa: S101  asked only of answers
        value = self.done.value
        return value.to_json() if isinstance(value, MediaAnswer) else value

    def told(self, path: str, context: RequestContext) -> dict[str, Any]:
        """Its entry of `results`."""
        timings = self.done.timings if self.done else None
        stages = ("queue", "decode", "infer", "encode")
        error = None
        if self.failure:
            _, problem, _ = problem_of(self.failure, instance=path, request_id=context.request_id)
            error = {name: problem[name] for name in ComparedProblem.model_fields}
        return {
            "model": self.ref.model_dump(),
            "latency_ms": round(self.latency_s * 1e3, 3) if self.done else None,
            "timings": {stage: round(getattr(timings, stage) * 1e3, 3) for stage in stages} if timings else None,
            "answer": orjson.Fragment(self._json()) if self.done else None,
            "error": error,
            "agrees": self.agrees,
            "difference": self.difference,
        }


def _divided(query_string: bytes) -> tuple[dict[str, str], bytes]:
    """This endpoint's own parameters, and the rest of the query, which is the task's."""
    own: dict[str, str] = {}
    others = []
    for name, value in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
        if name not in ("models", "tolerance"):
            others.append((name, value))
        elif name in own:
            raise _wrong(name, "is given more than once")
        else:
            own[name] = value
    return own, urlencode(others).encode("latin-1")


def _tolerance(own: Mapping[str, str]) -> float:
    try:
        tolerance = float(own.get("tolerance", TOLERANCE))
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < float("inf"):
        raise _wrong("tolerance", "must be a number, 0 or above")
    return tolerance


def _names(own: Mapping[str, str]) -> list[str]:
    """The models to be asked; none where the request leaves the choice to the server."""
    if "models" not in own:
        return []
    names = [name.strip() for name in own["models"].split(",")]
    if len(names) > MOST_MODELS:
        raise _wrong("models", f"names {len(names)} models; at most {MOST_MODELS} are compared")
    if len(set(names)) < len(names):
        raise _wrong("models", "names a model twice")
    for name in names:
        try:
            _REFERENCE.validate_python(name)
        except ValidationError as error:
            raise _wrong("models", schema_problems(error)[0]["msg"]) from None
    return names


def _wrong(parameter: str, message: str) -> ServiceError:
    return ValidationFailed([{"loc": ["query", parameter], "msg": message}])


_DESCRIPTION = (
    "Takes what `POST /v1/{task}` takes, but for `model`, and asks several models one after another. Their answers "
    "stand side by side with their latencies, and with whether each agrees with the first one that has answered. A "
    "model that cannot answer has an `error` in its entry; when none can, the request fails with the first one's."
)


def comparison_path_item(
    task: type[AnyTask], *, takes: Mapping[str, str] | None, gives: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """A comparison's endpoint as an OpenAPI path item; the arguments are those of `path_item`."""
    path = f"/v1/compare/{task.name}"
    operation = path_item(task, takes=takes, gives=gives, tells={})["post"]
    parameters = [p for p in operation.get("parameters", []) if p["name"] not in ("model", "format")]
    failures = (*FAILURES, errors.InvalidState) if "state" in task.Input.model_fields else FAILURES
    success = {"description": "The answers.", "content": {"application/json": {"schema": gives}}}
    return {
        "post": {
            **operation,
            "tags": ["comparison"],
            "summary": f"{task.summary} Several models side by side",
            "description": _DESCRIPTION.format(task=task.name)
            + (f"\n\n{files_in_words(task)}" if takes is None else ""),
            "operationId": f"compare_{task.name.replace('-', '_')}",
            "parameters": [
                {
                    "name": "models",
                    "in": "query",
                    "required": False,
                    "description": f"`name` or `name@version`, comma-separated, at most {MOST_MODELS}; left out: every "
                    "model of the task that is ready, at its default version.",
                    "schema": {"type": "string"},
                },
                {
                    "name": "tolerance",
                    "in": "query",
                    "required": False,
                    "description": "Largest difference of a number between answers that agree.",
                    "schema": {"type": "number", "minimum": 0, "default": TOLERANCE},
                },
                *parameters,
            ],
            "responses": {"200": success, **{str(s): e for s, e in openapi_responses(failures, path).items()}},
        }
    }
