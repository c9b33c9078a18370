"""Model: a folder of the repository, its versions, and how far each has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.errors import as_sentence
from service.registry.handle import ModelHandle
from service.registry.manifest import Manifest
from service.registry.repository import version_key

VersionState = Literal["loading", "ready", "failed", "unloaded"]


@dataclass(slots=True)
class Version:
    """One version of a model and how far it has come.

    Attributes:
        name: of its folder.
        state: "unloaded" once it was taken out of service.
        reason: why it is not ready.
        handle: what answers; None unless it is ready.
        made_from: what it was last loaded from, or was to be: two that are equal hold the same.
        loaded_from: the same of the handle, which may be older: what came later was refused, and the reason says why.
    """

    name: str
    state: VersionState = "loading"
    reason: str | None = None
    handle: ModelHandle | None = None
    made_from: object = None
    loaded_from: object = None


@dataclass(slots=True)
class Model:
    """A model folder and its versions, oldest first; `versions` is replaced when one comes or goes, never changed.

    Attributes:
        held_default: the version that answered until a manifest named another one: it goes on until that is ready.
        yields: it has come while others were served, and cannot answer: it does not become the default of its task.
    """

    name: str
    path: Path
    manifest: Manifest | None
    required: bool
    versions: dict[str, Version] = field(default_factory=dict)
    problem: str | None = None
    default_version: str | None = None
    bare: bool = False
    held_default: str | None = None
    yields: bool = False

    def folder_of(self, version: str) -> Path:
        """Where the files of a version lie: in a folder of its own, or beside the manifest where it is the only one."""
        return self.path if self.bare else self.path / version

    def choose_default(self) -> None:
        """Settle which version answers when none is named: the manifest's choice, else the highest that is ready."""
        declared = self.manifest.default_version if self.manifest else None
        if declared in self.versions:
            held = self.versions.get(self.held_default or "")
            is_held = held is not None and held.state == "ready" and self.versions[declared].state != "ready"
            self.default_version = self.held_default if is_held else declared
            return
        ready = [v.name for v in self.versions.values() if v.state == "ready"]
        self.default_version = max(ready or self.versions, key=version_key, default=None)

    @property
    def default_folder(self) -> Path:
        """Where the version lies that answers when none is named."""
        return self.folder_of(self.default_version or "")

    @property
    def is_ready(self) -> bool:
        """Whether a request that names no version would be answered."""
        default = self.default_version
        return default is not None and self.versions[default].state == "ready"

    @property
    def reason(self) -> str:
        """Why it is not ready, as a sentence."""
        if self.problem:
            return self.problem
        failed = [as_sentence(version.reason) for version in self.versions.values() if version.reason]
        return "is still loading" if self.is_loading or not failed else " ".join(failed)

    @property
    def is_unloaded(self) -> bool:
        """Whether it was taken out of service on purpose."""
        return bool(self.versions) and all(version.state == "unloaded" for version in self.versions.values())

    @property
    def is_loading(self) -> bool:
        """Whether a version of it may still become ready."""
        return any(version.state == "loading" for version in self.versions.values())
