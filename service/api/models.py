"""`GET /v1/models`: what is served, what is not, and why."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from fastapi import APIRouter, Path

from service import errors
from service.api import reach
from service.api.address import Address
from service.api.deps import AddressDep, KeyDep, RegistryDep
from service.api.open_inference.datatypes import DATATYPES
from service.api.open_inference.routes import metadata
from service.api.problems import openapi_responses
from service.files import read_text
from service.registry.handle import ModelHandle
from service.registry.manifest import Claims
from service.registry.model import Model, Version
from service.registry.registry import Registry
from service.schemas.model_info import (
    GraphInfo,
    ModelCard,
    ModelInfo,
    ModelList,
    TensorInfo,
    ValueInfo,
    VersionInfo,
)
from service.tasks.base import MediaInput

FEW_VALUES = 16
"""Values of a tensor that a curl line writes out (count)."""

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="All models, those that cannot be served included")
def list_models(registry: RegistryDep, address: AddressDep, key: KeyDep) -> ModelList:
    """Every folder of the model repository that the caller's API key reaches, with the state of each version."""
    return ModelList(models=[describe(model, registry, address) for model in reach.within(registry, key)])


@router.get(
    "/{name}",
    summary="One model, with its card",
    responses=openapi_responses((errors.NotAuthorised, errors.NotAllowed, errors.ModelNotFound), "/v1/models/cifar"),
)
def get_model(
    name: Annotated[str, Path(description="Name of its folder.", examples=["cifar10-cnn"])],
    registry: RegistryDep,
    address: AddressDep,
    key: KeyDep,
) -> ModelCard:
    """The model card tells what a model is for, what it was trained on, how good it is and where it fails."""
    model = reach.get(registry, key, name)
    try:
        card = read_text(model.path / "card.md", f"{name}/card.md", missing="is missing.", inside=(model.path,))
    except errors.ManifestInvalid as error:
        card = f"# {name}\n\nThis model has no card: card.md {error.problem}"
    return ModelCard(**describe(model, registry, address).model_dump(), card=card)


def describe(model: Model, registry: Registry, address: Address) -> ModelInfo:
    """A model as the API shows it to clients that find the server at this address."""
    manifest = model.manifest
    versions = {name: _version(version) for name, version in model.versions.items()}
    default = versions.get(model.default_version or "")
    handle = model.versions[default.version].handle if default else None
    claims = handle.claims if handle else manifest or Claims()
    task = manifest.task if manifest else None
    has_route = task is not None and not model.problem and registry.tasks[task].has_route
    is_default = has_route and task is not None and registry.default(task).name == model.name
    return ModelInfo(
        name=model.name,
        task=task,
        architecture=manifest.architecture if manifest else None,
        description=manifest.description if manifest else "",
        licence=claims.licence,
        is_default=is_default,
        default_version=model.default_version,
        versions=list(versions.values()),
        inputs=default.inputs if default else [],
        outputs=default.outputs if default else [],
        size_bytes=default.size_bytes if default else None,
        labels=(list(handle.task.labels) or None) if handle else None,
        values=([ValueInfo(name=n.name, unit=n.unit) for n in handle.task.estimates] or None) if handle else None,
        metrics=claims.metrics,
        reason=None if model.is_ready else model.reason,
        curl=curl_line(model, registry, address),
    )


def _version(version: Version) -> VersionInfo:
    handle = version.handle
    info = VersionInfo(version=version.name, state=version.state, reason=version.reason)
    if handle is None:
        return info
    graphs = [_graph(handle, name) for name in handle.graphs]
    return info.model_copy(
        update={
            "size_bytes": handle.size_bytes,
            "digest": handle.digest,
            "licence": handle.claims.licence,
            "metrics": handle.claims.metrics,
            "tuning": handle.tuning,
            "inputs": graphs[0].inputs,
            "outputs": graphs[0].outputs,
            "graphs": graphs if len(graphs) > 1 else [],
        }
    )


def _graph(handle: ModelHandle, name: str) -> GraphInfo:
    session = handle.graphs[name].session
    inputs, outputs = (
        [TensorInfo(name=spec.name, dtype=spec.dtype, shape=list(spec.shape)) for spec in specs.values()]
        for specs in (session.signature.inputs, session.signature.outputs)
    )
    return GraphInfo(
        name=name,
        size_bytes=session.size_bytes,
        digest=session.digest,
        tuning=handle.tunings[name],
        inputs=inputs,
        outputs=outputs,
    )


def curl_line(model: Model, registry: Registry, address: Address) -> str:
    """A line to paste into a terminal."""
    curl, url = address.curl, f"{address.url}/v1"
    task = registry.tasks.get(model.manifest.task) if model.manifest else None
    if task is not None and not task.has_route:
        handle = model.versions[model.default_version].handle if model.default_version else None
        return infer_line(address, handle) if handle else f"{curl} {url}/models/{model.name}"
    if task is None:
        return f"{curl} {url}/models"
    if issubclass(task.Input, MediaInput):
        return f"{curl} '{url}/{task.name}?model={model.name}' -F file=@{task.sample_file}"
    body = json.dumps({"model": model.name, **next(iter(task.examples()), {})}, ensure_ascii=False).replace(
        "'", "'\\''"
    )
    return f"{curl} {url}/{task.name} --json '{body}'"


_BYTES = {datatype.name: datatype.dtype.itemsize if datatype.code else 0 for datatype in DATATYPES.values()}
"""Of a value of each datatype; 0 for text."""


def infer_line(address: Address, handle: ModelHandle) -> str:
    """A line that asks a model for its tensors over `/v2`, all of them zero."""
    curl, url = address.curl, f"{address.url}/v2/models/{handle.ref.name}/infer"
    inputs, zeros = [], 0
    for tensor in metadata(handle)[0]:
        if tensor.get("parameters", {}).get("optional"):
            continue
        shape = [1 if size < 0 else size for size in tensor["shape"]]
        entry: dict[str, Any] = {"name": tensor["name"], "shape": shape, "datatype": tensor["datatype"]}
        count, width = math.prod(shape), _BYTES[tensor["datatype"]]
        if count <= FEW_VALUES or not width:
            entry["data"] = [{"BYTES": "", "BOOL": False}.get(tensor["datatype"], 0)] * count
        else:  # too many to be typed: they follow the JSON
            entry["parameters"] = {"binary_data_size": count * width}
            zeros += count * width
        inputs.append(entry)
    body = json.dumps({"inputs": inputs}, ensure_ascii=False).replace("'", "'\\''")
    if not zeros:
        return f"{curl} {url} --json '{body}'"
    length = f"Inference-Header-Content-Length: {len(json.dumps({'inputs': inputs}, ensure_ascii=False).encode())}"
    return f"(printf %s '{body}'; head -c {zeros} /dev/zero) | {curl} {url} -H '{length}' --data-binary @-"
