"""`gridloop check`: everything that should be right about a model folder, one finding each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.errors import ManifestInvalid
from service.registry.golden import FILENAME, read_golden
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.manifest import Manifest
from service.registry.repository import read_folder
from service.tasks import discover


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing.
        ok: whether it is right.
        detail: what was found, or what to do about it.
    """

    what: str
    ok: bool
    detail: str = ""


def check_folder(folder: Path) -> list[Finding]:
    """Check a model folder as if it were to be served, and what serving does not insist on: samples and a card."""
    found = read_folder(folder.resolve())
    if found.manifest is None:
        return [Finding("manifest and layout", ok=False, detail=found.problem or "")]
    findings = [Finding("manifest and layout", ok=True, detail=f"{len(found.versions)} version(s)")]
    findings += [_check_version(found.path / version, found.manifest) for version in found.versions]
    findings += [Finding(f"version {name}", ok=False, detail=reason) for name, reason in found.broken.items()]
    has_card = (found.path / "card.md").is_file()
    advice = "" if has_card else "is missing; write what the model is for and where it fails."
    return [*findings, Finding("card.md", ok=has_card, detail=advice)]


def _check_version(folder: Path, manifest: Manifest) -> Finding:
    what = f"version {folder.name}: graph and golden samples"
    tasks = discover()
    if manifest.task not in tasks:
        return Finding(what, ok=False, detail=f"task {manifest.task!r} is not known; there are: {', '.join(tasks)}.")
    try:
        samples = read_golden(folder, f"{folder.parent.name}/{folder.name}/{FILENAME}")
        handle = ModelHandle(folder, manifest, tasks[manifest.task], LoadOptions())
    except ManifestInvalid as error:
        return Finding(what, ok=False, detail=str(error))
    tensors = "; ".join(map(str, [*handle.signature.inputs.values(), *handle.signature.outputs.values()]))
    return Finding(what, ok=True, detail=f"{len(samples)} sample(s) reproduced. {tensors}")
