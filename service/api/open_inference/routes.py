"""`/v2`: what the server and its models are, and whether they can infer."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from service import __version__, errors
from service.api import health, reach
from service.api.context import context_of
from service.api.deps import GateDep, KeyDep, RegistryDep, WorkersDep
from service.api.open_inference import configuration, observing, repository, statistics
from service.api.open_inference.document import OF_MODEL, TAG, ModelName, ModelVersion, failures
from service.api.open_inference.interface import Interface
from service.keys import Key
from service.registry.first_use import NotLoadedYet
from service.registry.handle import ModelHandle
from service.registry.model import Model
from service.registry.registry import Registry
from service.schemas.open_inference import (
    ModelMetadata,
    ModelNames,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
"""Those that are there as a whole: of logs and traces there is only a look."""

router = APIRouter(prefix="/v2", tags=[TAG])


@router.get("", summary="What is this server?", responses=failures((errors.NotAuthorised,)))
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
    responses=failures((errors.NotReady,)),
)
async def server_ready(registry: RegistryDep, gate: GateDep, workers: WorkersDep) -> JSONResponse:
    """As `/readyz`: 503 with the reason while a required model is missing, and while the server drains."""
    problem = health.unready(registry, gate, workers)
    if problem is None:
        return JSONResponse({"ready": True})
    headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else None
    return JSONResponse({"ready": False, "error": str(problem)}, HTTPStatus.SERVICE_UNAVAILABLE, headers)


@router.get("/models", summary="Which models can infer?", responses=failures((errors.NotAuthorised,)))
async def model_names(registry: RegistryDep, key: KeyDep) -> ModelNames:
    """Names of the models that are ready, that the caller's API key reaches; `name:graph` for further graphs."""
    return ModelNames(models=[name for model in reach.within(registry, key) for name in _names(model)])


router.include_router(statistics.router)  # before the models: `stats` is none


@router.get(
    "/models/{model_name}",
    summary="What does a model take and give?",
    response_model_exclude_none=True,
    responses=OF_MODEL,
)
async def model_metadata(request: Request, model_name: ModelName, registry: RegistryDep, key: KeyDep) -> ModelMetadata:
    """Names, datatypes and shapes of a graph's tensors; of the version that answers when none is named."""
    return await _metadata(request, registry, model_name, None, key)


@router.get(
    "/models/{model_name}/versions/{model_version}",
    summary="What does a version of a model take and give?",
    response_model_exclude_none=True,
    responses=OF_MODEL,
)
async def version_metadata(
    request: Request, model_name: ModelName, model_version: ModelVersion, registry: RegistryDep, key: KeyDep
) -> ModelMetadata:
    """Names, datatypes and shapes of the graph's tensors."""
    return await _metadata(request, registry, model_name, model_version, key)


@router.get("/models/{model_name}/ready", summary="Can a model infer?", responses=OF_MODEL)
async def model_ready(model_name: ModelName, registry: RegistryDep, key: KeyDep) -> ModelReady:
    """200 when it can; 404 when there is no such model, 503 when it is not loaded."""
    with suppress(NotLoadedYet):  # the first request waits, and is answered
        reach.for_tensors(registry, key, model_name, None)
    return ModelReady(name=model_name, ready=True)


@router.get(
    "/models/{model_name}/versions/{model_version}/ready",
    summary="Can a version of a model infer?",
    responses=OF_MODEL,
)
async def version_ready(
    model_name: ModelName, model_version: ModelVersion, registry: RegistryDep, key: KeyDep
) -> ModelReady:
    """200 when it can; 404 when there is no such version, 503 when it is not loaded."""
    with suppress(NotLoadedYet):
        reach.for_tensors(registry, key, model_name, model_version)
    return ModelReady(name=model_name, ready=True)


for part in (configuration, repository, observing):
    router.include_router(part.router)


async def _metadata(
    request: Request, registry: Registry, name: str, version: str | None, key: Key | None
) -> ModelMetadata:
    context = context_of(request.scope)
    handle, graph = await reach.when_loaded(lambda: reach.for_tensors(registry, key, name, version), context)
    ready = [v.name for v in registry.get(handle.ref.name).versions.values() if v.handle is not None]
    inputs, outputs = metadata(handle, graph)
    return ModelMetadata.model_validate(
        {"name": name, "versions": ready, "platform": configuration.PLATFORM, "inputs": inputs, "outputs": outputs}
    )


def _names(model: Model) -> list[str]:
    """What a model that can infer is asked by: its name, and that with each further graph's of its default version."""
    default = model.versions.get(model.default_version or "")
    if default is not None and default.state == "lazy":  # its graphs are not known yet
        return [model.name]
    handle = default.handle if default else None
    return [model.name, *(f"{model.name}:{graph}" for graph in list(handle.graphs)[1:])] if handle else []


def metadata(handle: ModelHandle, graph: str = "") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of a graph as the protocol shows them; where none is named, of the main one."""
    return Interface(handle.graphs[graph].signature, whole=handle.task.runs_whole).metadata()
