"""`gridloop check`: everything that should be right about a model folder, one finding each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import ManifestInvalid
from service.files import read_text
from service.registry.golden import FILENAME
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import Manifest
from service.registry.repository import GRAPH, FoundModel, read_folder
from service.tasks import AnyTask, discover
from service.tasks.base import ModelRef


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing.
        ok: whether it is right; if not, it keeps a version from being served.
        detail: what was found, or what to do about it.
        hint: it is served as it is, but something would better be done.
    """

    what: str
    ok: bool
    detail: str = ""
    hint: bool = False


def check_folder(folder: Path, tasks: Mapping[str, type[AnyTask]] | None = None) -> list[Finding]:
    """Check a model folder as if it were to be served; a card or samples, which serving can do without, are hints.

    Args:
        folder: of the model.
        tasks: the tasks that exist; left out, the built-in ones and those of installed plug-ins.
    """
    known = discover() if tasks is None else tasks
    found = read_folder(folder.resolve(), known, name="" if (folder / GRAPH).exists() else None)
    if found.manifest is None:
        return [Finding("manifest and layout", ok=False, detail=found.problem or "")]
    findings = [Finding("manifest and layout", ok=True, detail=f"{len(found.versions)} version(s)")]
    findings += [_check_version(found, version, found.manifest, known) for version in found.versions]
    findings += [Finding(f"version {name}", ok=False, detail=reason) for name, reason in found.broken.items()]
    return [*findings, _check_card(found.path)]


def _check_version(found: FoundModel, version: str, manifest: Manifest, tasks: Mapping[str, type[AnyTask]]) -> Finding:
    what = f"version {version}: graph and golden samples"
    if manifest.task not in tasks:
        return Finding(what, ok=False, detail=f"task {manifest.task!r} is not known; there are: {', '.join(tasks)}.")
    try:
        ref = ModelRef(name=found.name, version=version)
        handle = load_version(found.folder_of(version), manifest, tasks[manifest.task], LoadOptions(), ref=ref)
    except ManifestInvalid as error:
        return Finding(what, ok=False, detail=str(error))
    tensors = _tensors(handle)
    if not handle.golden_samples:
        advice = f"{FILENAME} is missing, so it is served unchecked and cold; add a real input and its expected output."
        return Finding(what, ok=True, detail=f"{advice} {tensors}", hint=True)
    return Finding(what, ok=True, detail=f"{handle.golden_samples} sample(s) reproduced. {tensors}")


def _tensors(handle: ModelHandle) -> str:
    """What every graph takes and gives; their names where there are several."""
    of_graphs = [
        (name, "; ".join(map(str, [*graph.signature.inputs.values(), *graph.signature.outputs.values()])))
        for name, graph in handle.graphs.items()
    ]
    return of_graphs[0][1] if len(of_graphs) == 1 else ". ".join(f"{name}: {tensors}" for name, tensors in of_graphs)


def _check_card(folder: Path) -> Finding:
    try:
        read_text(
            folder / "card.md",
            "card.md",
            missing="is missing; write what the model is for and where it fails.",
            inside=(folder,),
        )
    except ManifestInvalid as error:
        return Finding("card.md", ok=True, detail=error.problem, hint=True)
    return Finding("card.md", ok=True)
