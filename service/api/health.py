"""`/livez`, `/readyz` and `/metrics`: what an orchestrator and a monitor ask."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service import telemetry
from service.api.deps import GateDep, RegistryDep, WorkersDep

router = APIRouter(tags=["operations"])


@router.get("/livez", summary="Is the process alive?")
async def livez() -> dict[str, str]:
    """200 as long as the process can answer, whatever its models do."""
    return {"status": "alive"}


_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "Not ready: `reasons` says why, by model.",
        "content": {
            "application/json": {
                "example": {"status": "not ready", "reasons": {"cifar10-cnn": "is still loading"}},
            }
        },
    }
}


@router.get("/readyz", summary="Can every model that must be there answer?", responses=_NOT_READY)
async def readyz(registry: RegistryDep, gate: GateDep, workers: WorkersDep) -> JSONResponse:
    """503 with the reasons while a required model is missing, and while the server drains."""
    reasons = registry.unready()
    if not reasons and not any(workers.loaded):  # one that is being replaced is missed by nobody: the others answer
        reasons = {"workers": "are still starting"}
    if gate.draining or workers.leaving[0]:
        reasons = {"server": "is shutting down"}
    if reasons:
        return JSONResponse({"status": "not ready", "reasons": reasons}, 503, {"Retry-After": "1"})
    return JSONResponse({"status": "ready"})


@router.get("/metrics", summary="Prometheus metrics of all workers", response_class=Response)
async def metrics(request: Request, workers: WorkersDep) -> Response:
    """Counts and times of requests, queues, batches and runs."""
    request.app.state.flush_metrics()
    telemetry.IN_FLIGHT.set(sum(workers.in_flight))
    return Response(await asyncio.to_thread(telemetry.exposition), media_type=CONTENT_TYPE_LATEST)
