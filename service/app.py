"""The composition root: `create_app(settings)` puts registry, routes and edge together. Read it top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import __version__, telemetry
from service.api import health, home, problems
from service.api import models as model_routes
from service.api.edge import Edge, Gate
from service.api.health import Workers
from service.api.tasks import task_router
from service.registry.handle import LoadOptions
from service.registry.registry import Registry
from service.schemas.problem import Problem
from service.settings import Settings
from service.tasks import AnyTask
from service.tasks.base import Limits, MediaInput

log = structlog.get_logger(__name__)

DESCRIPTION = """
Images in, labels out; text in, words out; series in, anomalies out.

* Pick a model with `model` (`name` or `name@version`), or leave it out for the task's default.
* A `state` in an answer is the model's memory: send it with what comes next, to any replica.
* `X-Request-ID` is echoed, `X-Request-Timeout: <seconds>` is your deadline, `Server-Timing` says where the time went.
* Every error is `application/problem+json` and says what to do.
"""


def create_app(
    settings: Settings,
    *,
    workers: Workers | None = None,
    tasks: Mapping[str, type[AnyTask]] | None = None,
    load_first: bool = False,
) -> FastAPI:
    """The application, with its models still to be loaded by the lifespan.

    Args:
        settings: how it behaves.
        workers: flags of all worker processes; left out, this is the only one.
        tasks: the tasks that exist; left out, the built-in ones and those of installed plug-ins.
        load_first: load the models before the first request is taken, instead of beside it.
    """
    plan = settings.plan()
    limits = Limits(settings.max_image_pixels, settings.max_series_points, settings.max_text_chars)
    options = LoadOptions(threads=plan.threads, max_queue=settings.max_queue, limits=limits)
    registry = Registry(settings.models, options, dict(tasks) if tasks is not None else None)
    gate = Gate(settings.api_keys, settings.rate_limit / plan.workers)
    workers = workers or Workers([0])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def load() -> None:
            await asyncio.to_thread(registry.load)
            workers.loaded[workers.own] = 1

        loading = asyncio.create_task(load())
        if load_first:
            await loading
        yield
        gate.draining = True
        await loading
        if not await asyncio.to_thread(registry.close, settings.drain_timeout_s):
            log.warning("some requests were not finished within the drain time", seconds=settings.drain_timeout_s)

    app = FastAPIOffline(
        title="Gridloop",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True},
    )
    app.state.settings, app.state.registry, app.state.gate, app.state.workers = settings, registry, gate, workers
    app.include_router(task_router(registry.tasks))
    for module in (model_routes, health, home):
        app.include_router(module.router)
    problems.install(app)
    app.add_middleware(
        Edge,
        gate=gate,
        default_timeout_s=settings.request_timeout_s,
        access_log=telemetry.access_log(settings.log_format) if settings.log_level in ("debug", "info") else None,
    )
    app.openapi = lambda: _openapi(app, registry.tasks, secured=bool(settings.api_keys))  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI, tasks: Mapping[str, type[AnyTask]], *, secured: bool) -> dict[str, Any]:
    """FastAPI's document, with the requests that the task routes parse themselves."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models: list[type[BaseModel]] = [Problem]
    models += [task.Input for task in tasks.values() if not issubclass(task.Input, MediaInput)]
    _, defined = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= defined.get("$defs", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own error body, which is never sent
        schemas.pop(unused, None)
    for path in document["paths"].values():
        for operation in path.values():
            documented = operation.get("responses", {}).get("422", {}).get("content", {})
            if "application/json" in documented:
                del operation["responses"]["422"]
    if secured:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    app.openapi_schema = document
    return document
