"""Model: a folder of the repository, its versions, and how far each has come."""

from __future__ import annotations

import hashlib
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


@dataclass(frozen=True, slots=True)
class CanaryShare:
    """A version that answers a share of the callers who name none, always the same ones.

    Attributes:
        model: name of the model, so that another model's canary has other callers.
        version: that is tried.
        percent: share of the callers (0 to 100).
    """

    model: str
    version: Version
    percent: float

    def takes(self, key: str) -> bool:
        """Whether it answers a caller, whose key is hashed: whom a small share takes, a larger one takes, too."""
        digest = hashlib.blake2b(f"{self.model}/{key}".encode(errors="replace"), digest_size=4).digest()
        return int.from_bytes(digest) * 100 < self.percent * 2**32


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
    canary: CanaryShare | None = None

    def choose_default(self) -> None:
        """Settle which version answers when none is named: the manifest's choice, else the highest that is ready.

        One that is only on trial is chosen where there is no other; and one that is not ready, tried by nobody.
        """
        self.default_version = self._default_version()
        tried = self.manifest.canary if self.manifest else None
        version = self.versions.get(tried.version) if tried else None
        usable = version is not None and version.handle is not None and version.name != self.default_version
        self.canary = CanaryShare(self.name, version, tried.percent) if tried and version and usable else None

    def _default_version(self) -> str | None:
        if self.manifest and self.manifest.default_version in self.versions:
            return self.manifest.default_version
        on_trial = self.manifest.on_trial if self.manifest else set()
        ready = [v.name for v in self.versions.values() if v.state == "ready"]
        for names in (set(ready) - on_trial, ready, self.versions.keys() - on_trial, self.versions):
            if names:
                return max(names, key=version_key)
        return None

    @property
    def default_folder(self) -> Path:
        """Where the version lies that answers when none is named."""
        return self.path / (self.default_version or "")

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
