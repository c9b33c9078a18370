"""`GET /v1/models`: what is served, what is not, and why."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Path

from service import errors
from service.api.deps import RegistryDep
from service.api.problems import openapi_responses
from service.registry.manifest import Claims
from service.registry.registry import Model, Registry, Version
from service.schemas.model_info import ModelCard, ModelInfo, ModelList, TensorInfo, VersionInfo
from service.tasks.base import MediaInput

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="All models, those that cannot be served included")
def list_models(registry: RegistryDep) -> ModelList:
    """Every folder of the model repository, with the state of each version."""
    return ModelList(models=[describe(model, registry) for model in registry])


@router.get(
    "/{name}",
    summary="One model, with its card",
    responses=openapi_responses((errors.NotAuthorised, errors.ModelNotFound), "/v1/models/cifar"),
)
def get_model(
    name: Annotated[str, Path(description="Name of its folder.", examples=["cifar10-cnn"])],
    registry: RegistryDep,
) -> ModelCard:
    """The model card tells what a model is for, what it was trained on, how good it is and where it fails."""
    model = registry.get(name)
    try:
        card = (model.path / "card.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        card = f"# {name}\n\nThis model has no card."
    return ModelCard(**describe(model, registry).model_dump(), card=card)


def describe(model: Model, registry: Registry) -> ModelInfo:
    """A model as the API shows it."""
    manifest = model.manifest
    versions = {name: _version(version) for name, version in model.versions.items()}
    default = versions.get(model.default_version or "")
    handle = model.versions[default.version].handle if default else None
    claims = handle.claims if handle else manifest or Claims()
    task = manifest.task if manifest else None
    is_default = task is not None and not model.problem and registry.default(task).name == model.name
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
        metrics=claims.metrics,
        reason=None if model.is_ready else model.reason,
        curl=curl_line(model, registry),
    )


def _version(version: Version) -> VersionInfo:
    handle = version.handle
    info = VersionInfo(version=version.name, state=version.state, reason=version.reason)
    if handle is None:
        return info
    inputs, outputs = (
        [TensorInfo(name=spec.name, dtype=spec.dtype, shape=list(spec.shape)) for spec in specs.values()]
        for specs in (handle.signature.inputs, handle.signature.outputs)
    )
    return info.model_copy(
        update={
            "size_bytes": handle.size_bytes,
            "digest": handle.digest,
            "licence": handle.claims.licence,
            "metrics": handle.claims.metrics,
            "tuning": handle.tuning,
            "inputs": inputs,
            "outputs": outputs,
        }
    )


def curl_line(model: Model, registry: Registry) -> str:
    """A line to paste into a terminal; the address is that of the default settings."""
    url = "http://127.0.0.1:8000/v1"
    task = registry.tasks.get(model.manifest.task) if model.manifest else None
    if task is None:
        return f"curl {url}/models"
    if issubclass(task.Input, MediaInput):
        return f"curl '{url}/{task.name}?model={model.name}' -F file=@{task.sample_file}"
    body = json.dumps({"model": model.name, **next(iter(task.examples()), {})}, ensure_ascii=False).replace(
        "'", "'\\''"
    )
    return f"curl {url}/{task.name} --json '{body}'"
