"""Errors → `application/problem+json` (RFC 9457): the only table of error status codes, with their OpenAPI examples.

Below `/v2` the Open Inference Protocol has its own form, `{"error": "…"}`, and below `/anomalydetector` Azure's service
has `{"code": "…", "message": "…"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service import errors
from service.api.context import context_of
from service.schemas.problem import Problem

MEDIA_TYPE = "application/problem+json"
AZURE = "/anomalydetector/"
"""What paths begin with that are answered as Azure Anomaly Detector would."""
MAX_DETAIL_CHARS = 2000
"""Length of a `detail` (characters): it may list every model of the server."""
MAX_INSTANCE_CHARS = 200
"""Length of an `instance`, which is a path of the caller's own (characters)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: its status, its title and an example of the exception."""

    status: int
    title: str
    example: errors.ServiceError

    @property
    def slug(self) -> str:
        """Last part of its `type`."""
        return self.example.slug


PROBLEMS: dict[type[errors.ServiceError], Kind] = {
    errors.BadRequest: Kind(
        400, "Bad request", errors.BadRequest("X-Request-Timeout must be a number of seconds above 0.")
    ),
    errors.LoadRefused: Kind(
        400, "Model not loaded", errors.LoadRefused("cifar10-cnn", "cifar10-cnn/3/model.onnx: is not an ONNX file.")
    ),
    errors.AdminApiOff: Kind(
        403, "Admin API off", errors.AdminApiOff("", "Start the server with GRIDLOOP_ADMIN_API=true.")
    ),
    errors.NotAuthorised: Kind(401, "API key needed", errors.NotAuthorised()),
    errors.NotAllowed: Kind(403, "API key not allowed", errors.NotAllowed("shop", "ask model 'cifar10-cnn'")),
    errors.ModelNotFound: Kind(404, "Model not found", errors.ModelNotFound("cifar", available=["cifar10-cnn"])),
    errors.NotAcceptable: Kind(
        406, "Answer not acceptable", errors.NotAcceptable("text/event-stream", ["application/json"])
    ),
    errors.BodyTimeout: Kind(408, "Request body too slow", errors.BodyTimeout(20)),
    errors.TooLarge: Kind(
        413,
        "Too large",
        errors.TooLarge("The request body", limit=16_777_216, unit="bytes", setting="GRIDLOOP_MAX_BODY_BYTES"),
    ),
    errors.UnsupportedMedia: Kind(
        415,
        "Content type not supported",
        errors.UnsupportedMedia("Content-Type", "text/html", ["application/json"]),
    ),
    errors.InvalidState: Kind(422, "State not usable", errors.InvalidState("is damaged: its checksum does not match")),
    errors.ValidationFailed: Kind(
        422,
        "Request does not fit the schema",
        errors.ValidationFailed([{"loc": ["body", "top_k"], "msg": "Input should be less than or equal to 1000"}]),
    ),
    errors.InvalidInput: Kind(422, "Input not usable", errors.InvalidInput("Image 1 is damaged or cut short.")),
    errors.RateLimited: Kind(429, "Too many requests", errors.RateLimited(10)),
    errors.InferenceFailed: Kind(500, "Inference failed", errors.InferenceFailed("cifar10-cnn")),
    errors.NotOffered: Kind(
        501, "Not offered", errors.NotOffered("Changing how it logs", "Set GRIDLOOP_LOG_LEVEL and restart it.")
    ),
    errors.ModelNotReady: Kind(503, "Model not ready", errors.ModelNotReady("cifar10-cnn", "loading", None)),
    errors.NotReady: Kind(
        503, "Server not ready", errors.NotReady({"cifar10-cnn": "is still loading"}, will_pass=True)
    ),
    errors.Overloaded: Kind(
        503,
        "Too many requests waiting",
        errors.Overloaded("cifar10-cnn", waiting=1024, limit=1024),
    ),
    errors.TooManyConnections: Kind(503, "Too many connections", errors.TooManyConnections()),
    errors.TooManyBytes: Kind(503, "Too many requests waiting", errors.TooManyBytes(134_000_000, 134_217_728)),
    errors.Draining: Kind(503, "Server is shutting down", errors.Draining()),
    errors.DeadlineExceeded: Kind(504, "Deadline passed", errors.DeadlineExceeded(0.5)),
}

_INTERNAL = "Something went wrong in the server. Quote the request_id to its operator: the log has the cause."

_PLAIN = {
    403: "Pages of this origin may not call from a browser. The server's operator lists those that may in "
    "GRIDLOOP_CORS_ORIGINS.",
    404: "There is no such route. GET /docs lists the endpoints, GET /v1/models the models.",
    414: "The URL is longer than 16 KiB. Send parameters in the body, or fewer of them.",
    417: "Only `Expect: 100-continue` is known. Leave the Expect header out.",
    431: "The headers are larger than 64 KiB. Send fewer or shorter ones.",
}


def kind_of(error: errors.ServiceError) -> Kind | None:
    """The table's row for an error: its own class, or the nearest base class that has one."""
    return next((PROBLEMS[c] for c in type(error).__mro__ if c in PROBLEMS), None)


def problem_of(error: Exception, *, instance: str, request_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Any exception as status, problem and extra headers."""
    headers: dict[str, str] = {}
    fields: list[dict[str, Any]] = []
    count = 0
    if isinstance(error, errors.ServiceError) and (kind := kind_of(error)):
        status, slug, title, detail = kind.status, kind.slug, kind.title, str(error)
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
        fields, count = list(error.problems), error.problem_count
        if isinstance(error, errors.UnsupportedMedia):
            headers["Accept-Encoding"] = "gzip, deflate"
        if isinstance(error, errors.NotAuthorised):
            headers["WWW-Authenticate"] = "Bearer"
        if isinstance(error, errors.TooLarge | errors.BodyTimeout | errors.TooManyBytes | errors.Draining):
            headers["Connection"] = "close"  # the rest of the body, or another request, is not worth waiting for
    elif isinstance(error, HTTPException):
        status, title = error.status_code, HTTPStatus(error.status_code).phrase
        slug, headers = title.lower().replace(" ", "-"), dict(error.headers or {})
        detail = _PLAIN.get(status) or (str(error.detail) if error.detail != title else f"{title}.")
        if status == 405:
            allowed = {method for part in headers.get("Allow", "").split(",") if (method := part.strip())}
            allowed = allowed or {"GET"}  # the static files do not say
            headers["Allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
            detail = f"This route does not take that method; it takes: {headers['Allow']}."
    else:
        status, slug, title, detail = 500, "internal-error", "Internal error", _INTERNAL
    body = {
        "type": f"/problems/{slug}",
        "title": title,
        "status": status,
        "detail": errors.shortened(detail, MAX_DETAIL_CHARS),
        "instance": errors.shortened(instance, MAX_INSTANCE_CHARS),
        "request_id": request_id,
        "errors": fields,
        "error_count": count,
    }
    if isinstance(error, errors.NotReady):
        body["reasons"] = error.reasons
    return status, body, headers


def answer_of(error: Exception, *, path: str, request_id: str) -> tuple[int, str, bytes, dict[str, str]]:
    """Any exception as status, content type, body and extra headers, in the form that the path's clients read."""
    status, problem, headers = problem_of(error, instance=path, request_id=request_id)
    if path == "/v2" or path.startswith("/v2/"):
        return status, "application/json", orjson.dumps({"error": problem["detail"]}), headers
    if path.startswith(AZURE):
        code = getattr(error, "code", None) or "".join(word.capitalize() for word in _slug(problem).split("-"))
        body = orjson.dumps({"code": code, "message": problem["detail"]})
        return status, "application/json", body, headers | {"x-ms-error-code": code}
    return status, MEDIA_TYPE, orjson.dumps(problem), headers


def _slug(problem: Mapping[str, Any]) -> str:
    return str(problem["type"]).rpartition("/")[2]


def respond(request: Request, error: Exception) -> Response:
    """The answer to a request that failed."""
    context = context_of(request.scope)
    path = request.url.path.removeprefix(context.prefix)
    status, kind, body, headers = answer_of(error, path=path, request_id=context.request_id)
    return Response(body, status, headers, kind)


def install(app: FastAPI) -> None:
    """Send every error of the application through the same door."""

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  registered for nothing else
        found = [{"loc": list(e["loc"]), "msg": e["msg"]} for e in error.errors()]
        return respond(request, errors.ValidationFailed(found))

    async def other_error(request: Request, error: Exception) -> Response:
        return respond(request, error)

    app.add_exception_handler(errors.ServiceError, other_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, other_error)
    app.add_exception_handler(Exception, other_error)


def openapi_responses(kinds: Iterable[type[errors.ServiceError]], instance: str) -> dict[int | str, dict[str, Any]]:
    """What FastAPI should document for a route that can fail in these ways: one body with an example per kind."""
    documented: dict[int | str, dict[str, Any]] = {}
    for error in kinds:
        kind = PROBLEMS[error]
        _, body, _ = problem_of(kind.example, instance=instance, request_id="4f1c3c9be7a84a6d")
        entry = documented.setdefault(
            kind.status,
            {"description": kind.title, "content": {MEDIA_TYPE: {"schema": problem_schema(), "examples": {}}}},
        )
        if kind.title not in entry["description"]:
            entry["description"] += f" · {kind.title}"
        entry["content"][MEDIA_TYPE]["examples"][kind.slug] = {"summary": kind.title, "value": body}
    return documented


def problem_schema() -> Mapping[str, str]:
    """The reference to a problem's schema."""
    return {"$ref": f"#/components/schemas/{Problem.__name__}"}
