"""Watching a model repository: which folders have changed, and whether they have come to rest.

Nothing is opened. A model counts as changed once two looks at it agree with each other and not with what was loaded:
files that are still being copied differ from one look to the next.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from service.files import printable
from service.registry.manifest import FILENAME
from service.registry.repository import ONLY_VERSION, has_graph, is_ignored, is_one_model, name_of

Stamp = tuple[tuple[str, int, int, int], ...]
"""Of files: name below the folder, time of the last change (nanoseconds), size (bytes), inode."""

DEEPEST = 8
"""Folders inside folders that are looked into (count): a link may lead back."""


@dataclass(frozen=True, slots=True)
class ModelLook:
    """What a model's folder looks like: two that are equal hold the same files.

    Attributes:
        manifest: of `manifest.toml`; empty where there is none.
        versions: stamp of each folder that is or may be a version, by name.
    """

    manifest: Stamp = ()
    versions: Mapping[str, Stamp] = field(default_factory=dict)


Look = Mapping[str, ModelLook]
"""What a repository looks like, by the model's name."""


def look(models: Path, name: str = "") -> dict[str, ModelLook] | None:
    """Look at every model's folder; None where the repository cannot be read, as one that is not mounted.

    Args:
        models: the repository, or the folder of one model.
        name: of that one model; empty: its folder's.
    """
    try:
        if is_one_model(models):
            return {name or name_of(models): look_at(models, bare=has_graph(models))}
        folders = [entry for entry in _entries(models) if _is_folder(entry)]
    except OSError:
        return None
    return {printable(folder.name): look_at(folder) for folder in folders}


def look_at(folder: Path, *, bare: bool = False) -> ModelLook:
    """Look at one model's folder.

    Args:
        folder: the model's.
        bare: its only version lies in it, beside its manifest.
    """
    manifest = _stamp_of_file(folder / FILENAME, FILENAME)
    try:
        entries = [] if bare else _entries(folder)
    except OSError:
        entries = []
    versions = {printable(entry.name): stamp(entry) for entry in entries if _may_be_version(entry)}
    if bare:
        versions = {ONLY_VERSION: stamp(folder)}
    return ModelLook((manifest,) if manifest else (), versions)


def stamp(folder: Path) -> Stamp:
    """What changes when a file in a folder, or in one inside it, is written, replaced, added or removed."""
    return tuple(sorted(_stamps(folder, "", DEEPEST)))


def changed(before: Look, now: Look) -> set[str]:
    """Models that look otherwise than before, those that have come or gone included."""
    return {name for name in {*before, *now} if before.get(name) != now.get(name)}


class Watcher:
    """Tells when models have changed and come to rest.

    Args:
        models: the repository, or the folder of one model.
        name: of that one model; empty: its folder's.

    Attributes:
        taken: what each model looked like when it was loaded.
        last: the look before.
    """

    def __init__(self, models: Path, name: str = "") -> None:
        self._models, self._name = models, name
        self.taken: dict[str, ModelLook] = {}
        self.last: dict[str, ModelLook] = {}

    def changes(self) -> Set[str]:
        """Look, and name the models that have changed since they were loaded and not since the last look."""
        now = look(self._models, self._name)
        if now is None:
            return frozenset()
        found = changed(self.taken, now) - changed(self.last, now)
        self.last = now
        return found

    def take(self, now: Look, names: Set[str]) -> None:
        """Note that models are loaded as they look now; those that are gone are forgotten."""
        self.last = dict(now)
        kept = {name: found for name, found in self.taken.items() if name not in names}
        self.taken = kept | {name: found for name, found in now.items() if name in names}


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in os.listdir(folder) if not is_ignored(name)]  # noqa: PTH208  names alone


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return True  # it may be one, and is listed with the reason


def _may_be_version(path: Path) -> bool:
    if path.name.isdecimal():
        return True
    try:
        return path.is_dir() and any(name.endswith(".onnx") for name in os.listdir(path))  # noqa: PTH208
    except OSError:
        return False


def _stamps(folder: Path, prefix: str, deeper: int) -> Iterator[tuple[str, int, int, int]]:
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        own = _stamp_of_file(folder, prefix or ".")
        yield from [own] if own else []
        return
    for name in names:
        path, shown = folder / name, f"{prefix}{name}"
        try:
            found = path.stat()
        except OSError:
            yield shown, 0, -1, 0
            continue
        if stat.S_ISDIR(found.st_mode):
            if deeper:
                yield from _stamps(path, f"{shown}/", deeper - 1)
        else:
            yield shown, found.st_mtime_ns, found.st_size, found.st_ino


def _stamp_of_file(path: Path, shown: str) -> tuple[str, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return shown, found.st_mtime_ns, found.st_size, found.st_ino
