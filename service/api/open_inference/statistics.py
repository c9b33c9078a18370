"""`/v2/models/stats`: what the models have done since they were loaded, summed over the workers."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter

from service import errors
from service.api import reach
from service.api.deps import KeyDep, RegistryDep, WorkersDep
from service.api.open_inference.document import OF_MODEL, ModelName, ModelVersion, failures
from service.registry.first_use import NotLoadedYet
from service.registry.handle import ModelHandle
from service.runtime.statistics import Totals
from service.schemas.open_inference import (
    BatchStatistics,
    InferenceStatistics,
    ModelsStatistics,
    ModelStatistics,
    Spent,
)

router = APIRouter()


@router.get(
    "/models/stats", summary="What have all models done?", responses=failures((errors.NotAuthorised, errors.NotAllowed))
)
async def all_statistics(registry: RegistryDep, workers: WorkersDep, key: KeyDep) -> ModelsStatistics:
    """Every version that is ready, of every model that the caller's API key reaches."""
    return ModelsStatistics(
        model_stats=[
            _of(version.handle, workers.row)
            for model in reach.within(registry, key)
            for version in model.versions.values()
            if version.handle is not None
        ]
    )


@router.get("/models/{model_name}/stats", summary="What has a model done?", responses=OF_MODEL)
async def model_statistics(
    model_name: ModelName, registry: RegistryDep, workers: WorkersDep, key: KeyDep
) -> ModelsStatistics:
    """Every version of it that is ready; all graphs of a version are counted together."""
    with suppress(NotLoadedYet):  # it has done nothing
        reach.for_tensors(registry, key, model_name, None)
    versions = registry.get(model_name.partition(":")[0]).versions.values()
    handles = [version.handle for version in versions if version.handle is not None]
    return ModelsStatistics(model_stats=[_of(handle, workers.row) for handle in handles])


@router.get(
    "/models/{model_name}/versions/{model_version}/stats",
    summary="What has a version of a model done?",
    responses=OF_MODEL,
)
async def version_statistics(
    model_name: ModelName, model_version: ModelVersion, registry: RegistryDep, workers: WorkersDep, key: KeyDep
) -> ModelsStatistics:
    """That version alone; all of its graphs are counted together."""
    handle, _ = reach.for_tensors(registry, key, model_name, model_version)
    return ModelsStatistics(model_stats=[_of(handle, workers.row)])


def _of(handle: ModelHandle, worker: int) -> ModelStatistics:
    totals = handle.statistics.totals(worker)
    return ModelStatistics(
        name=handle.ref.name,
        version=handle.ref.version,
        last_inference=round(totals.last_unix_s * 1e3),
        inference_count=totals.rows,
        execution_count=totals.runs,
        inference_stats=_requests(totals),
        batch_stats=[
            BatchStatistics(
                batch_size=rows,
                compute_input=_spent(of_size.runs, of_size.stack_s),
                compute_infer=_spent(of_size.runs, of_size.run_s),
                compute_output=_spent(of_size.runs, 0.0),
            )
            for rows, of_size in totals.by_rows.items()
        ],
        memory_usage=[],
    )


def _requests(totals: Totals) -> InferenceStatistics:
    count, times = totals.requests, totals.timings
    return InferenceStatistics(
        success=_spent(count, times.sum()),
        fail=_spent(totals.failures, totals.failed_s),
        queue=_spent(count, times.queue),
        compute_input=_spent(count, times.decode),
        compute_infer=_spent(count, times.infer),
        compute_output=_spent(count, times.encode),
        cache_hit=_spent(0, 0.0),
        cache_miss=_spent(0, 0.0),
    )


def _spent(count: int, seconds: float) -> Spent:
    return Spent(count=count, ns=round(seconds * 1e9))
