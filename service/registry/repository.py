"""The model repository: a folder of model folders, read without loading a graph.

A folder that cannot be served stays in the list, with a sentence that says why: it is never skipped in silence and
never keeps the others from being read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import ManifestInvalid
from service.files import folder_problem, kind_of, printable, reason_of
from service.graph import MAIN_GRAPH
from service.registry.manifest import Manifest, declares_required, read_manifest
from service.tasks import AnyTask, discover

GRAPH = f"{MAIN_GRAPH}.onnx"
ONLY_VERSION = "1"
"""Name of the version of a folder that has its graph beside its manifest."""
_IGNORED = re.compile(r"^[._]|~$")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A folder in the repository.

    Attributes:
        name: the folder's name, as it can be shown.
        path: the folder.
        manifest: what it declares; None when it is broken.
        versions: names of its version folders, oldest first.
        broken: what is or may be a version and cannot be read, by name, with the reason.
        required: whether `/readyz` waits for it; read even from a manifest that is broken elsewhere, so that a typo
            in the manifest of a model which must be there is not mistaken for readiness.
        problem: why it cannot be served, when it cannot.
        bare: whether its graph lies beside its manifest, as the only version.
    """

    name: str
    path: Path
    manifest: Manifest | None
    versions: tuple[str, ...]
    required: bool = False
    problem: str | None = None
    broken: Mapping[str, str] = field(default_factory=dict)
    bare: bool = False

    def folder_of(self, version: str) -> Path:
        """Where the files of a version lie."""
        return self.path if self.bare else self.path / version


def is_ignored(name: str) -> bool:
    """Whether a file or folder is none of ours: hidden, half-copied, or an editor's copy."""
    return _IGNORED.search(name) is not None


def scan(models: Path, tasks: Mapping[str, type[AnyTask]] | None = None, name: str = "") -> list[FoundModel]:
    """Read every model folder, sorted by name. Hidden folders and plain files are not models.

    What cannot be looked at (a link to nothing, a folder of another user) could be one, and is listed with the reason.

    Args:
        models: the repository; or the folder of one model, as KServe mounts it.
        tasks: as for `read_folder`.
        name: of that one model; left out: its folder's.

    Raises:
        ManifestInvalid: the repository itself is not there or cannot be read.
    """
    check_repository(models)
    if is_one_model(models):
        return [read_folder(models.resolve(), tasks, name=name or name_of(models))]
    return [read_folder(folder, tasks) for folder in _folders(models)]


def name_of(models: Path) -> str:
    """What the one model is called whose folder is served: as the folder is, not where a link leads."""
    return printable(models.name if models.name not in ("", "..") else models.resolve().name)


def is_one_model(folder: Path) -> bool:
    """Whether a folder is no repository, but one model's: its manifest, its graph or its versions lie in it."""
    folders = _folders(folder)
    # os.path.exists, unlike Path.exists, takes a folder that may not be entered for one without the file.
    if any(os.path.exists(p / "manifest.toml") and not has_graph(p) for p in folders):  # noqa: PTH110
        return False
    has_versions = bool(folders) and all(p.name.isdecimal() and has_graph(p) for p in folders)
    return (folder / "manifest.toml").exists() or (folder / GRAPH).exists() or has_versions


def has_graph(folder: Path) -> bool:
    """Whether a graph lies in a folder."""
    try:
        return any(path.suffix == ".onnx" for path in folder.iterdir())
    except OSError:
        return False


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not _IGNORED.search(p.name) and _may_be_folder(p))


def check_repository(models: Path) -> None:
    """See that there is a model repository to be read.

    Raises:
        ManifestInvalid: there is none, or it cannot be read.
    """
    if not models.is_dir():
        raise ManifestInvalid(
            str(models),
            "there is no such folder; set GRIDLOOP_MODELS to your model repository, or install the small models: "
            "pip install gridloop-models.",
        )
    if problem := folder_problem(models):
        raise ManifestInvalid(str(models), problem)


def _may_be_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return True


def read_folder(
    folder: Path, tasks: Mapping[str, type[AnyTask]] | None = None, *, name: str | None = None
) -> FoundModel:
    """Read one model folder; a broken one is returned with its problem.

    Args:
        folder: the model's.
        tasks: the tasks that exist, by name, which say how graphs are called; left out, those that are installed.
        name: given where the folder is all that is served: the model's name, or empty for the folder's. Then the graph
            may lie beside the manifest, and where there is no manifest, tensors are served.
    """
    alone, name = name is not None, name or printable(folder.name)
    if problem := folder_problem(folder):
        return FoundModel(name, folder, None, (), problem=f"{name}: {problem}")
    manifest, problem = _manifest(folder)
    if alone and not os.path.lexists(folder / "manifest.toml"):
        manifest, problem = Manifest(task="tensor"), None
    tasks = discover() if tasks is None else tasks
    task = tasks.get(manifest.task) if manifest else None
    graph = f"{task.graphs[0] if task else MAIN_GRAPH}.onnx"
    why = f", which {task.name} needs" if task and len(task.graphs) > 1 else ""
    bare = alone and os.path.lexists(folder / graph)
    found = {
        printable(p.name): _version_problem(p, graph, why)
        for p in folder.iterdir()
        if not bare and not _IGNORED.search(p.name)
    }
    if bare:
        found[ONLY_VERSION] = _link_out_of(folder)
    names = sorted(found, key=version_key)
    versions = tuple(version for version in names if found[version] is None)
    broken = {version: f"{name}/{version}: {found[version]}" for version in names if found[version]}
    required = manifest.required if manifest else declares_required(folder)
    if wrong := name_problem(name):
        problem = f"{name}: {wrong}; rename the folder."
    elif manifest and not versions and not broken:
        problem = f"{name}: has no version folder with a {graph}; add `1/{graph}`."
    elif manifest and (missing := _missing_version(manifest, {*versions, *broken})):
        key, version = missing
        problem = (
            f"{name}/manifest.toml: {key} {version!r} is not among its versions: "
            f"{', '.join(versions)}{manifest.line(key)}."
        )
    elif manifest and not manifest.serves(manifest.default_version):
        problem = (
            f"{name}/manifest.toml: default_version {manifest.default_version!r} is not among those that `versions` "
            f"chooses{manifest.line('versions')}; leave out one of the two keys, or write it there, too."
        )
    return FoundModel(name, folder, None if problem else manifest, versions, required, problem, broken, bare)


def _link_out_of(folder: Path) -> str | None:
    """What is wrong with a folder of one version whose files lie elsewhere; None where they do not."""
    inside = folder.resolve()
    out = [printable(p.name) for p in sorted(folder.iterdir()) if not p.resolve().is_relative_to(inside)]
    return f"{out[0]} leads out of the model's folder; copy the file itself to this place." if out else None


def name_problem(name: str) -> str | None:
    """Why a model cannot be called so, as a sentence without its end; None when it can."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return "model names are letters, digits, '.', '_' and '-'"
    return "/v2/models/stats is the address of all models' statistics" if name == "stats" else None


def _manifest(folder: Path) -> tuple[Manifest | None, str | None]:
    """A folder's manifest, or else what is wrong with it."""
    try:
        return read_manifest(folder), None
    except ManifestInvalid as error:
        return None, str(error)


def _missing_version(manifest: Manifest, there: set[str]) -> tuple[str, str] | None:
    """A key of the manifest that names a version which is not there, and that version."""
    return next((named for named in manifest.named_versions.items() if named[1] not in there), None)


def _version_problem(path: Path, graph: str, why: str) -> str | None:
    """Why an entry of a model's folder cannot be served as a version.

    Args:
        path: the entry.
        graph: file name of the main graph.
        why: what needs it under this name, as part of a sentence; empty for the usual one.

    Returns:
        None for a version; a sentence for what should be one, by its name, or cannot be looked at; and nothing, an
        empty string, for everything else, such as scripts and plots.
    """
    is_number = path.name.isdecimal()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return folder_problem(path)
    except OSError as error:
        return f"{reason_of(error)}."
    if not stat.S_ISDIR(mode):
        return f"is {kind_of(mode)}; a version is a folder with a {graph}." if is_number else ""
    if problem := folder_problem(path):
        return problem
    if not os.path.lexists(path / graph):
        return f"has no {graph}{why}; export the graph to this place." if is_number else ""
    return None if printable(path.name) == path.name else "its name is not UTF-8 text; rename the folder."


def version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts versions as people count: 2 before 10, 1.9 before 1.10, numbers before words."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
