"""`/v2/models/{m}/config`: how a model is served, in the words of Triton's model configuration.

Clients that measure or list models read a few of its fields: the largest batch, the tensors, whether requests of
several callers share a run.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service.api import reach
from service.api.context import context_of
from service.api.deps import KeyDep, RegistryDep, SettingsDep
from service.api.open_inference.document import OF_MODEL, ModelName, ModelVersion
from service.api.open_inference.interface import GraphTensor, Interface
from service.keys import Key
from service.registry.registry import Registry
from service.schemas.open_inference import DynamicBatching, InstanceGroup, ModelConfiguration, TensorConfiguration
from service.settings import Settings

PLATFORM = "onnxruntime_onnx"

router = APIRouter()


@router.get("/models/{model_name}/config", summary="How is a model served?", responses=OF_MODEL)
async def model_config(
    request: Request, model_name: ModelName, registry: RegistryDep, settings: SettingsDep, key: KeyDep
) -> ModelConfiguration:
    """Largest batch, tensors and batching of the version that answers when none is named."""
    return await _configuration(request, registry, settings, key, model_name, None)


@router.get(
    "/models/{model_name}/versions/{model_version}/config",
    summary="How is a version of a model served?",
    responses=OF_MODEL,
)
async def version_config(
    request: Request,
    model_name: ModelName,
    model_version: ModelVersion,
    registry: RegistryDep,
    settings: SettingsDep,
    key: KeyDep,
) -> ModelConfiguration:
    """Largest batch, tensors and batching."""
    return await _configuration(request, registry, settings, key, model_name, model_version)


async def _configuration(
    request: Request, registry: Registry, settings: Settings, key: Key | None, name: str, version: str | None
) -> ModelConfiguration:
    context = context_of(request.scope)
    handle, graph = await reach.when_loaded(lambda: reach.for_tensors(registry, key, name, version), context)
    interface = Interface(handle.graphs[graph].signature, whole=handle.task.runs_whole)
    batched, tuning = not interface.whole, handle.tunings[graph]
    preferred = [handle.graphs[graph].signature.fixed_batch or tuning.max_batch_size] if batched else []
    return ModelConfiguration(
        name=name,
        platform=PLATFORM,
        backend="onnxruntime",
        default_model_filename=f"{graph}.onnx",
        max_batch_size=settings.max_rows if batched else 0,
        input=[
            TensorConfiguration(**_tensor(tensor, batched=batched), optional=each in interface.optional)
            for each, tensor in interface.inputs.items()
        ],
        output=[TensorConfiguration(**_tensor(tensor, batched=batched)) for tensor in interface.outputs.values()],
        dynamic_batching=DynamicBatching(preferred_batch_size=preferred, max_queue_delay_microseconds=0),
        instance_group=[InstanceGroup(kind="KIND_CPU", count=settings.plan().workers)],
    )


def _tensor(tensor: GraphTensor, *, batched: bool) -> dict[str, Any]:
    """A tensor as the configuration has it: without its batch, which `max_batch_size` tells of."""
    datatype = "STRING" if tensor.datatype.name == "BYTES" else tensor.datatype.name
    dims = tensor.wire_shape[1:] if batched else tensor.wire_shape
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": dims}
