"""`/livez`, `/readyz` and `/metrics`: what an orchestrator and a monitor ask."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from service import telemetry
from service.api.context import Workers
from service.api.deps import GateDep, RegistryDep, WorkersDep
from service.api.gate import Gate
from service.api.problems import openapi_responses
from service.errors import NotReady
from service.registry.registry import Registry
from service.schemas.health import Alive, Ready

router = APIRouter(tags=["operations"])


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    """200 as long as the process can answer, whatever its models do."""
    return Alive(status="alive")


@router.get(
    "/readyz",
    summary="Can every model that must be there answer?",
    responses=openapi_responses((NotReady,), "/readyz"),
)
async def readyz(registry: RegistryDep, gate: GateDep, workers: WorkersDep) -> Ready:
    """503 with the reasons while a required model is missing, and while the server drains."""
    if problem := unready(registry, gate, workers):
        raise problem
    return Ready(status="ready")


def unready(registry: Registry, gate: Gate, workers: Workers) -> NotReady | None:
    """Why this server is not ready; None when it is."""
    # Not of the process that answers while others load: it ends when these are there.
    if (gate.draining or workers.leaving[0]) and not registry.is_loading:
        return NotReady({"server": "is shutting down"}, will_pass=True)
    if reasons := registry.unready():
        return NotReady(reasons, will_pass=registry.is_loading)
    if not any(workers.loaded):  # one that is being replaced is missed by nobody: the others answer
        return NotReady({"workers": "are still starting"}, will_pass=True)
    return None


@router.get("/metrics", summary="Prometheus metrics of all workers", response_class=PlainTextResponse)
async def metrics(request: Request, workers: WorkersDep, registry: RegistryDep) -> Response:
    """Counts and times of requests, queues, batches and runs."""
    request.app.state.flush_metrics()
    registry.tell_drift()
    telemetry.IN_FLIGHT.set(workers.all_in_flight)
    body, kind = await asyncio.to_thread(telemetry.exposition, request.headers.get("accept", ""))
    return Response(body, media_type=kind)
