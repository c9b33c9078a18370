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
    """

    name: str
    state: VersionState = "loading"
    reason: str | None = None
    handle: ModelHandle | None = None


@dataclass(slots=True)
class Model:
    """A model folder and its versions, oldest first; `versions` is replaced when one comes or goes, never changed."""

    name: str
    path: Path
    manifest: Manifest | None
    required: bool
    versions: dict[str, Version] = field(default_factory=dict)
    problem: str | None = None
    default_version: str | None = None
    bare: bool = False

    def folder_of(self, version: str) -> Path:
        """Where the files of a version lie: in a folder of its own, or beside the manifest where it is the only one."""
        return self.path if self.bare else self.path / version

    def choose_default(self) -> None:
        """Settle which version answers when none is named: the manifest's choice, else the highest that is ready."""
        if self.manifest and self.manifest.default_version in self.versions:
            self.default_version = self.manifest.default_version
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
    def is_loading(self) -> bool:
        """Whether a version of it may still become ready."""
        return any(version.state == "loading" for version in self.versions.values())
