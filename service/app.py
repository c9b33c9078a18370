"""The composition root: `create_app(settings)` puts registry, routes and edge together. Read it top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import __version__, telemetry
from service.api import document, health, pages, playground, problems
from service.api import models as model_routes
from service.api.address import Address, Addresses
from service.api.azure_anomaly_detector import VERSIONS, DetectEndpoint
from service.api.call import Endpoint
from service.api.compare import CompareEndpoint
from service.api.context import Workers
from service.api.control import OwnControl
from service.api.cors import Cors
from service.api.edge import Edge
from service.api.gate import Gate
from service.api.in_flight import BytesInFlight
from service.api.open_inference import routes as open_inference_routes
from service.api.open_inference.infer import PATHS, InferEndpoint, match
from service.api.tasks import TaskEndpoint, ValidationEndpoint, answer_headers
from service.api.traces import make_traces
from service.cpu import CpuBudget
from service.keys import Keyring
from service.registry.handle import LoadOptions
from service.registry.registry import Registry
from service.settings import UNIX, Settings
from service.tasks import AnyTask, discover
from service.tasks.anomaly_detection import AnomalyDetection

log = structlog.get_logger(__name__)

GENERATIONS = 8
"""Generations of workers that may be alive at a time: one that is asked, and others that finish what they began."""

DESCRIPTION = """
{tasks}

* Pick a model with `model` (`name` or `name@version`), or leave it out for the task's default.
* A `state` in an answer is the model's memory: send it with what comes next, to any replica.
* Where a new version of a model is tried on some callers, `X-Canary-Key: <yourself>` keeps to one of the versions.
* `X-Request-ID` is echoed, `X-Request-Timeout: <seconds>` is your deadline, `Server-Timing` says where the time went.
* Every error is `application/problem+json` and says what to do.
"""


def make_registry(
    settings: Settings, tasks: Mapping[str, type[AnyTask]] | None = None, *, budget: CpuBudget | None = None
) -> Registry:
    """The registry of a server, with nothing loaded yet.

    Args:
        settings: of the server.
        tasks: the tasks that exist; left out, the built-in ones, those of installed plug-ins, and those of the folder
            that the settings name.
        budget: cores to plan with; left out, those that the process may use.

    Raises:
        TaskUnusable: one of them cannot be served.
    """
    plan = settings.plan(budget)
    options = LoadOptions(
        plan.budget.cores,
        settings.max_queue,
        settings.max_queue_bytes,
        limits=settings.limits,
        tune=True,
        load_timeout_s=settings.load_timeout_s,
        workers=plan.workers * GENERATIONS,
        lazy=True,
    )
    known = dict(discover(settings.tasks) if tasks is None else tasks)
    return Registry(settings.models, options, known, settings.model_name)


def summary(registry: Registry, most: int | None = None, most_chars: int | None = None) -> dict[str, Any]:
    """Which models are served, and what is not and why.

    Args:
        registry: of them.
        most: names of each kind that are told; left out, all.
        most_chars: of each reason; left out, all.
    """
    failed = {
        f"{model.name}@{version.name}": version.reason
        for model in registry
        for version in model.versions.values()
        if version.state not in ("ready", "lazy")
    }
    lazy = [
        f"{model.name}@{version.name}"
        for model in registry
        for version in model.versions.values()
        if version.state == "lazy"
    ]
    failed |= {model.name: model.problem for model in registry if not model.versions}
    told = {name: (reason or "")[:most_chars] for name, reason in list(failed.items())[:most]}
    return {
        "models": [model.name for model in registry if model.is_ready][:most],
        **({"lazy": lazy[:most]} if lazy else {}),
        **({"failed": told} if told else {}),
    }


def say_ready(settings: Settings, what: Mapping[str, Any]) -> None:
    """Log the last line of a start: where to ask, where to read, and what `summary` tells."""
    url = Address.configured(settings).url
    log.info(
        "ready",
        url=settings.host if settings.host.startswith(UNIX) else url,
        docs=f"{url}/docs",
        **what,
    )


def create_app(
    settings: Settings,
    *,
    registry: Registry | None = None,
    workers: Workers | None = None,
    tasks: Mapping[str, type[AnyTask]] | None = None,
) -> Edge:
    """The application; `.app` is FastAPI's part of it.

    Args:
        settings: how it behaves.
        registry: the models, in the state in which they are to be served; left out, the application loads them itself
            while it answers already.
        workers: what the workers know of each other; left out, this is the only one.
        tasks: the tasks that exist; left out, as `make_registry` says.
    """
    models = registry or make_registry(settings, tasks)
    keys = Keyring(settings.api_keys, settings.api_keys_file)
    gate = Gate(keys, settings.rate_limit / settings.plan().workers)
    workers = workers or Workers()
    traces = make_traces(settings.traces)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def load() -> None:
            if registry is None:
                await asyncio.to_thread(models.load)
                models.announce()
                workers.loaded[workers.own] = 1
                say_ready(settings, summary(models))

        if traces:
            traces.start()
        loading = asyncio.create_task(load())
        renewing = asyncio.create_task(keys.renewal.keep_fresh()) if keys.renewal else None
        yield
        if renewing:
            renewing.cancel()
        gate.draining = True
        models.stop_loading()
        await loading
        if not await asyncio.to_thread(models.close, settings.drain_timeout_s):
            log.warning("some requests were not finished within the drain time", seconds=settings.drain_timeout_s)
        if traces:
            await asyncio.to_thread(traces.stop)

    routed = {name: task for name, task in models.tasks.items() if task.has_route}
    app = FastAPIOffline(  # offline: the libraries of the documentation pages are served from here
        docs_url=None,
        redoc_url=None,
        title="Gridloop",
        version=__version__,
        description=DESCRIPTION.format(tasks=_in_words(routed)),
        lifespan=lifespan,
        generate_unique_id_function=document.operation_id,
    )
    spare_cores = max(1, settings.plan().budget.cores - 1)
    models.selection.is_busy = lambda: sum(workers.in_flight) > spare_cores
    addresses = Addresses(settings)
    app.state.registry, app.state.gate, app.state.workers, app.state.addresses = models, gate, workers, addresses
    in_flight = BytesInFlight(settings.max_bytes_in_flight)
    app.state.settings, app.state.in_flight = settings, in_flight
    app.state.control = OwnControl(models, settings.drain_timeout_s)
    made = (
        kind(task, settings, models, in_flight)
        for kind in (TaskEndpoint, ValidationEndpoint, CompareEndpoint)
        for task in routed.values()
    )
    endpoints: dict[str, Endpoint] = {endpoint.path: endpoint for endpoint in made}
    if AnomalyDetection.name in routed:
        azure = [
            DetectEndpoint(version, last=last, settings=settings, registry=models, in_flight=in_flight)
            for version in VERSIONS
            for last in (False, True)
        ]
        endpoints |= {endpoint.path: endpoint for endpoint in azure}
    infer = InferEndpoint(settings, models, in_flight)

    def endpoint_of(path: str) -> Endpoint | None:
        return endpoints.get(path) or (infer if match(path) else None)

    # The edge answers POST before these: they are there for 405.
    paths = (*endpoints, *PATHS)
    app.router.routes += [Route(path, _answered_by_the_edge, methods=["POST"]) for path in paths]
    for module in (model_routes, open_inference_routes, health, playground):
        app.include_router(module.router)
    pages.mount(app)
    problems.install(app)
    app.openapi = lambda: _openapi(app, routed, settings)  # type: ignore[method-assign]
    edge = Edge(
        app,
        endpoint_of=endpoint_of,
        gate=gate,
        cors=Cors(settings.cors_origins, answer_headers(routed.values())),
        addresses=addresses,
        workers=workers,
        default_timeout_s=settings.request_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        access_log=telemetry.access_log(settings.log_format) if settings.log_level in ("debug", "info") else None,
        log_probes=settings.log_level == "debug",
        on_flush=lambda: models.publish_statistics(workers.row),
        traces=traces,
    )
    app.state.flush_metrics = edge.flush_metrics
    return edge


def _in_words(tasks: Mapping[str, type[AnyTask]]) -> str:
    """What can be asked, and where."""
    return "\n".join(f"* `POST /v1/{name}`: {task.summary}" for name, task in tasks.items())


async def _answered_by_the_edge(_: Request) -> Response:
    """Stands for a task's endpoint in the framework's routes, so that another method gets 405 there."""
    raise NotImplementedError


def _openapi(app: FastAPI, tasks: Mapping[str, type[AnyTask]], settings: Settings) -> dict[str, Any]:
    """The document, made when it is first asked for."""
    if app.openapi_schema is None:
        app.openapi_schema = document.openapi(app, tasks, secured=not app.state.gate.keys.is_open)
    return app.openapi_schema
