"""The Open Inference Protocol, version 2: `/v2`, tensors in and tensors out, for every model of every task.

Any client of the protocol works: the specification is github.com/kserve/open-inference-protocol, and the binary tensor
extension is Triton Inference Server's. What a body means is decided in `tensor_codec`; this module is the routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse

from service import __version__, errors
from service.api import health, reach
from service.api.body import json_text, receive_body
from service.api.context import Answer, Asked, RequestContext
from service.api.deps import GateDep, KeyDep, RegistryDep, WorkersDep
from service.api.in_flight import BytesInFlight
from service.api.problems import PROBLEMS
from service.api.tasks import INFERENCE_FAILURES, attended
from service.api.tensor_codec import Codec, Reply
from service.errors import BadRequest, ModelNotFound, ModelNotReady
from service.keys import Key
from service.registry.handle import ModelHandle
from service.registry.registry import Registry
from service.runtime.batcher import Done
from service.schemas.open_inference import (
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    ModelNames,
    ModelReady,
    ProtocolError,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from service.settings import Settings

EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "onnxruntime_onnx"

SCHEMAS = (InferenceRequest, InferenceResponse)
"""Types that `path_items` refers to."""

PATHS = ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{model_version}/infer")

_JSON_BYTES = b"inference-header-content-length"
_SHAPE = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,9})')
_LOOK_BYTES = 512


@lru_cache(maxsize=1024)
def match(path: str) -> tuple[str, str | None] | None:
    """Model and version of `/v2/models/{m}[/versions/{v}]/infer`; None for any other path."""
    if not path.startswith("/v2/models/"):
        return None
    parts = path.split("/")
    if parts[-1] != "infer" or not parts[3]:
        return None
    if len(parts) == 5:
        return parts[3], None
    return (parts[3], parts[5]) if len(parts) == 7 and parts[4] == "versions" and parts[5] else None


def find(registry: Registry, name: str, version: str | None, key: Key | None) -> ModelHandle:
    """The handle of a model, whatever its task.

    Raises:
        NotAllowed: the caller's key does not reach it.
        ModelNotFound: no such model or version.
        ModelNotReady: known, but not loaded.
    """
    model = reach.get(registry, key, name)
    found = model.versions.get(version or model.default_version or "")
    if version and found is None:
        raise ModelNotFound(version, available=list(model.versions), what=f"version of model {name!r}")
    if found is None:
        raise ModelNotReady(name, "failed", model.problem)
    if found.handle is None:
        raise ModelNotReady(name, found.state, found.reason)
    return found.handle


class InferEndpoint:
    """What answers `POST /v2/models/{m}[/versions/{v}]/infer`; no FastAPI route, for speed.

    Attributes:
        path: its label in the metrics, with and without a version.

    Args:
        settings: the server's limits.
        registry: where the models are.
        in_flight: where large bodies are counted.
    """

    path = PATHS[0]

    def __init__(self, settings: Settings, registry: Registry, in_flight: BytesInFlight) -> None:
        self._settings, self._registry, self._in_flight = settings, registry, in_flight
        self._codecs: dict[str, tuple[ModelHandle, Codec]] = {}

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer:
        """See `Endpoint`."""
        settings = self._settings
        with self._in_flight.body() as counted:  # until the answer is there: it is the model's thread that parses
            body = await receive_body(
                context.headers,
                scope,
                receive,
                counted,
                max_bytes=settings.max_body_bytes,
                timeout_s=settings.body_timeout_s,
            )
            return self.answer(await attended(self.ask(context, scope, body), context, receive))

    def ask(self, context: RequestContext, scope: Any, body: bytes) -> Asked:
        """See `Endpoint`."""
        context.check_deadline()
        json_bytes = _json_bytes(context.headers.get(_JSON_BYTES), len(body))
        size_bytes = len(body)
        handle = find(self._registry, *(match(scope["path"]) or ("", None)), context.key)
        context.model = handle.name
        handle.batcher.check(context.remaining_s)
        if json_bytes is None:
            body = json_text(context.headers.get(b"content-type"), body)
        steps, rows = self._codec(handle).steps(body, json_bytes), _rows(body) if json_bytes != 0 else 1
        return Asked(handle.batcher, steps, rows, size_bytes, size_bytes)

    def answer(self, done: Done[Reply]) -> Answer:
        """See `Endpoint`."""
        reply = done.value
        if reply.json_bytes is None:
            return Answer(reply.body)
        length = (_JSON_BYTES, b"%d" % reply.json_bytes)
        return Answer(reply.body, b"application/octet-stream", headers=(length,))

    def _codec(self, handle: ModelHandle) -> Codec:
        known, codec = self._codecs.get(handle.name, (None, None))
        if codec is None or known is not handle:  # loaded anew
            settings = self._settings
            codec = Codec(
                handle.ref,
                handle.signature,
                max_bytes=settings.max_body_bytes,
                max_length=settings.max_series_points,
                max_rows=settings.max_rows,
                whole=handle.task.runs_whole,
            )
            self._codecs[handle.name] = handle, codec
        return codec


def _json_bytes(header: bytes | None, size: int) -> int | None:
    """Length of the JSON part as the caller says; None when the whole body is JSON."""
    if header is None:
        return None
    if not header.isdigit() or len(header) > 10 or int(header) > size:
        raise BadRequest(
            "Inference-Header-Content-Length must be the number of bytes of the body's JSON part; it is "
            f"{header.decode('latin-1')[:20]!r}, and the body has {size} bytes."
        )
    return int(header)


def _rows(body: bytes) -> int:
    """About how many rows a request has, for the queue's limit: the first axis of the first shape near its beginning.

    It is the model's thread that reads the body. What is said here without being so does no harm but to its author: a
    row has at least a byte.
    """
    found = _SHAPE.search(body, 0, _LOOK_BYTES)
    return max(1, min(int(found[1]), len(body))) if found else 1


# --- metadata and health


def _failures(kinds: Iterable[type[errors.ServiceError]]) -> dict[int | str, dict[str, Any]]:
    """Documentation of a route's errors, in the protocol's form, with an example of each."""
    documented: dict[int | str, dict[str, Any]] = {}
    for kind in (PROBLEMS[error] for error in kinds):
        entry = documented.setdefault(
            kind.status,
            {
                "model": ProtocolError,
                "description": HTTPStatus(kind.status).phrase,
                "content": {"application/json": {"examples": {}}},
            },
        )
        example = {"summary": kind.title, "value": {"error": str(kind.example)}}
        entry["content"]["application/json"]["examples"][kind.slug] = example
    return documented


_NAME, _NAME_EXAMPLE = "Name of the model.", "series-gru"
_VERSION, _VERSION_EXAMPLE = "Name of its version.", "2"
ModelName = Annotated[str, Path(description=_NAME, examples=[_NAME_EXAMPLE])]
ModelVersion = Annotated[str, Path(description=_VERSION, examples=[_VERSION_EXAMPLE])]

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

_OF_MODEL = _failures((errors.NotAuthorised, errors.NotAllowed, errors.ModelNotFound, errors.ModelNotReady))


@router.get("", summary="What is this server?", responses=_failures((errors.NotAuthorised,)))
@router.get("/", include_in_schema=False)
async def server_metadata() -> ServerMetadata:
    """Its name and version, and which extensions of the protocol it has."""
    return ServerMetadata(name="gridloop", version=__version__, extensions=EXTENSIONS)


@router.get("/health/live", summary="Is the server alive?")
async def server_live() -> ServerLive:
    """200 as long as the process can answer, whatever its models do."""
    return ServerLive(live=True)


@router.get(
    "/health/ready",
    summary="Can every model that must be there infer?",
    response_model=ServerReady,
    responses=_failures((errors.NotReady,)),
)
async def server_ready(registry: RegistryDep, gate: GateDep, workers: WorkersDep) -> JSONResponse:
    """As `/readyz`: 503 with the reason while a required model is missing, and while the server drains."""
    problem = health.unready(registry, gate, workers)
    if problem is None:
        return JSONResponse({"ready": True})
    headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else None
    return JSONResponse({"ready": False, "error": str(problem)}, HTTPStatus.SERVICE_UNAVAILABLE, headers)


@router.get("/models", summary="Which models can infer?", responses=_failures((errors.NotAuthorised,)))
async def model_names(registry: RegistryDep, key: KeyDep) -> ModelNames:
    """Names of the models that are ready, of those that the caller's API key reaches."""
    return ModelNames(models=[model.name for model in reach.within(registry, key) if model.is_ready])


@router.get(
    "/models/{model_name}",
    summary="What does a model take and give?",
    response_model_exclude_none=True,
    responses=_OF_MODEL,
)
async def model_metadata(model_name: ModelName, registry: RegistryDep, key: KeyDep) -> ModelMetadata:
    """Names, datatypes and shapes of the graph's tensors; of the version that answers when none is named."""
    return _metadata(registry, model_name, None, key)


@router.get(
    "/models/{model_name}/versions/{model_version}",
    summary="What does a version of a model take and give?",
    response_model_exclude_none=True,
    responses=_OF_MODEL,
)
async def version_metadata(
    model_name: ModelName, model_version: ModelVersion, registry: RegistryDep, key: KeyDep
) -> ModelMetadata:
    """Names, datatypes and shapes of the graph's tensors."""
    return _metadata(registry, model_name, model_version, key)


@router.get("/models/{model_name}/ready", summary="Can a model infer?", responses=_OF_MODEL)
async def model_ready(model_name: ModelName, registry: RegistryDep, key: KeyDep) -> ModelReady:
    """200 when it can; 404 when there is no such model, 503 when it is not loaded."""
    return ModelReady(name=find(registry, model_name, None, key).ref.name, ready=True)


@router.get(
    "/models/{model_name}/versions/{model_version}/ready",
    summary="Can a version of a model infer?",
    responses=_OF_MODEL,
)
async def version_ready(
    model_name: ModelName, model_version: ModelVersion, registry: RegistryDep, key: KeyDep
) -> ModelReady:
    """200 when it can; 404 when there is no such version, 503 when it is not loaded."""
    return ModelReady(name=find(registry, model_name, model_version, key).ref.name, ready=True)


def _metadata(registry: Registry, name: str, version: str | None, key: Key | None) -> ModelMetadata:
    handle = find(registry, name, version, key)
    ready = [v.name for v in registry.get(name).versions.values() if v.handle is not None]
    inputs, outputs = metadata(handle)
    return ModelMetadata.model_validate(
        {"name": name, "versions": ready, "platform": PLATFORM, "inputs": inputs, "outputs": outputs}
    )


def metadata(handle: ModelHandle) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of a model as the protocol shows them."""
    return Codec(
        handle.ref, handle.signature, max_bytes=0, max_length=0, max_rows=0, whole=handle.task.runs_whole
    ).metadata()


# --- the OpenAPI document

_POINTS = [10.1, 10.3, 9.9, 10.2, 10.0, 25.0]
_EXAMPLES = {
    "a series": {
        "value": {"inputs": [{"name": "values", "shape": [1, len(_POINTS)], "datatype": "FP64", "data": _POINTS}]}
    },
    "two rows, one output, nested": {
        "value": {
            "id": "42",
            "inputs": [
                {"name": "values", "shape": [2, 3], "datatype": "FP64", "data": [_POINTS[:3], _POINTS[3:]]},
                {"name": "sequence_lens", "shape": [2], "datatype": "INT32", "data": [3, 2]},
            ],
            "outputs": [{"name": "expected"}],
        }
    },
}
_WITH_TENSORS = {
    "type": "string",
    "format": "binary",
    "description": "A JSON object as above, and after it the little-endian bytes of the tensors that it gives a "
    "`binary_data_size`. `Inference-Header-Content-Length` is the length of the JSON.",
}


def path_items() -> dict[str, dict[str, Any]]:
    """The infer routes as OpenAPI path items; the application adds `SCHEMAS` to its components."""
    model = _path_parameter("model_name", _NAME, _NAME_EXAMPLE)
    version = _path_parameter("model_version", _VERSION, _VERSION_EXAMPLE)
    operations = (
        _operation("Run a model on tensors", "infer", [model]),
        _operation("Run a version of a model on tensors", "infer_version", [model, version]),
    )
    return {path: {"post": operation} for path, operation in zip(PATHS, operations, strict=True)}


def _path_parameter(name: str, description: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "examples": [example]}
    parameter = {"name": name, "in": "path", "required": True, "description": description}
    return parameter | {"schema": schema, "example": example}


def _operation(summary: str, operation_id: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of the JSON part, where tensors follow it. 0: the body is the bytes of the model's one "
        "input.",
        "schema": {"type": "integer", "minimum": 0},
    }
    failures = {str(status): entry for status, entry in _failures(INFERENCE_FAILURES).items()}
    for entry in failures.values():
        del entry["model"]
        entry["content"]["application/json"]["schema"] = _reference(ProtocolError)
    return {
        "tags": router.tags,
        "summary": summary,
        "description": "The graph's own tensors, past the task's pre- and post-processing. Rows of several callers "
        "share a run. Inputs that carry recurrent state may be left out (they begin at zero), and so may "
        "`sequence_lens` (full length).",
        "operationId": operation_id,
        "parameters": [*parameters, length],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference(InferenceRequest), "examples": _EXAMPLES},
                "application/octet-stream": {"schema": _WITH_TENSORS},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs: JSON, unless some were asked for as bytes.",
                "headers": {
                    "Inference-Header-Content-Length": {
                        "description": "Bytes of the JSON part, where tensors follow it.",
                        "schema": {"type": "integer"},
                    }
                },
                "content": {
                    "application/json": {"schema": _reference(InferenceResponse)},
                    "application/octet-stream": {"schema": _WITH_TENSORS},
                },
            },
            **failures,
        },
    }


def _reference(schema: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema.__name__}"}
