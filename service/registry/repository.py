"""The model repository: a folder of model folders, read without loading a graph.

A folder that cannot be served stays in the list, with a sentence that says why: it is never skipped in silence and
never keeps the others from being read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import ManifestInvalid
from service.registry.manifest import Manifest, declares_required, read_manifest

_IGNORED = re.compile(r"^[._]|~$")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A folder in the repository.

    Attributes:
        name: the folder's name.
        path: the folder.
        manifest: what it declares; None when it is broken.
        versions: names of its version folders, oldest first.
        required: whether `/readyz` waits for it; read even from a manifest that is broken elsewhere, so that a typo
            in the manifest of a model which must be there is not mistaken for readiness.
        problem: why it cannot be served, when it cannot.
    """

    name: str
    path: Path
    manifest: Manifest | None
    versions: tuple[str, ...]
    required: bool = False
    problem: str | None = None


def scan(models: Path) -> list[FoundModel]:
    """Read every model folder, sorted by name. Hidden folders and plain files are not models.

    Raises:
        ManifestInvalid: the repository itself is not there, or this is the folder of a single model.
    """
    if not models.is_dir():
        raise ManifestInvalid(
            str(models),
            "there is no such folder; set GRIDLOOP_MODELS to your model repository, or install the small models: "
            "pip install gridloop-models.",
        )
    folders = sorted(p for p in models.iterdir() if p.is_dir() and not _IGNORED.search(p.name))
    if (models / "manifest.toml").exists() and not any((folder / "manifest.toml").exists() for folder in folders):
        raise ManifestInvalid(str(models), f"is one model's folder; name the folder that holds it: {models.parent}.")
    return [read_folder(folder) for folder in folders]


def read_folder(folder: Path) -> FoundModel:
    """Read one model folder; a broken one is returned with its problem."""
    versions = tuple(
        p.name
        for p in sorted(folder.iterdir(), key=lambda p: version_key(p.name))
        if p.is_dir() and not _IGNORED.search(p.name) and (p / "model.onnx").exists()
    )
    try:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", folder.name):
            raise ManifestInvalid(folder.name, "model names are letters, digits, '.', '_' and '-'; rename the folder.")
        manifest = read_manifest(folder)
        if not versions:
            raise ManifestInvalid(folder.name, "has no version folder with a model.onnx; add `1/model.onnx`.")
        if manifest.default_version is not None and manifest.default_version not in versions:
            raise ManifestInvalid(
                f"{folder.name}/manifest.toml",
                f"default_version {manifest.default_version!r} is not among its versions: {', '.join(versions)}.",
            )
    except ManifestInvalid as error:
        return FoundModel(folder.name, folder, None, versions, declares_required(folder), str(error))
    return FoundModel(folder.name, folder, manifest, versions, manifest.required)


def version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts versions as people count: 2 before 10, 1.9 before 1.10, numbers before words."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
