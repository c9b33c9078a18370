"""Model: a folder of the repository, its versions, and how far each has come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.errors import as_sentence
from service.registry.first_use import FirstUse
from service.registry.handle import ModelHandle
from service.registry.manifest import Manifest
from service.registry.repository import version_key
from service.registry.shadow import Shadow
from service.runtime.statistics import Statistics

VersionState = Literal["lazy", "loading", "ready", "failed", "unloaded"]


AT_FIRST_USE = "is loaded when it is first asked for"
"""Why a lazy version is not ready."""


@dataclass(slots=True)
class Version:
    """One version of a model and how far it has come.

    Attributes:
        name: of its folder.
        state: "lazy" until it is first asked for, where it is loaded only then; "unloaded" once it was taken out of
            service.
        reason: why it is not ready.
        handle: what answers; None unless it is ready.
        made_from: what it was last loaded from, or was to be: two that are equal hold the same.
        loaded_from: the same of the handle, which may be older: what came later was refused, and the reason says why.
        first_use: loads it when it is first asked for; None where the server's start does.
        statistics: of one that is loaded later: memory that all workers share is made before they are forked.
    """

    name: str
    state: VersionState = "loading"
    reason: str | None = None
    handle: ModelHandle | None = None
    made_from: object = None
    loaded_from: object = None
    first_use: FirstUse | None = None
    statistics: Statistics | None = None

    @property
    def rank(self) -> int:
        """How well it would do as a default: ready, still loading, loaded when it is asked for, or none of these."""
        if self.state in ("failed", "unloaded"):
            return 3
        return 2 if self.first_use else int(self.state == "loading")


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
    canary: CanaryShare | None = None
    shadow: Shadow | None = None

    def folder_of(self, version: str) -> Path:
        """Where the files of a version lie: in a folder of its own, or beside the manifest where it is the only one."""
        return self.path if self.bare else self.path / version

    def choose_default(self) -> None:
        """Settle which version answers when none is named: the manifest's choice, else the highest that is ready.

        One that is only on trial is chosen where there is no other; and one that is not ready, tried by nobody.
        """
        self.default_version = self._default_version()
        canary = self.manifest.canary if self.manifest else None
        version = self._tried(canary.version) if canary else None
        self.canary = CanaryShare(self.name, version, canary.percent) if canary and version else None

    def choose_shadow(self, is_busy: Callable[[], bool]) -> None:
        """Settle which version is compared with the default one; `is_busy` says when the machine has no time for it."""
        declared = self.manifest.shadow if self.manifest else None
        version = self._tried(declared.version) if declared else None
        served = self.versions[self.default_version].handle if version and self.default_version else None
        tried, before = version.handle if version else None, self.shadow
        if before and before.served is served and before.tried is tried and before.declared == declared:
            return
        if before:
            before.served.shadow = None
            before.close()
        self.shadow = None
        if served and tried and declared:
            self.shadow = served.shadow = Shadow(served, tried, declared, is_busy)

    def _tried(self, name: str) -> Version | None:
        """A version on trial, where it can answer and is not the default."""
        version = self.versions.get(name)
        return version if version and version.handle and name != self.default_version else None

    def _default_version(self) -> str | None:
        declared = self.manifest.default_version if self.manifest else None
        if declared in self.versions:
            held = self.versions.get(self.held_default or "")
            is_held = held is not None and held.state == "ready" and self.versions[declared].rank not in (0, 2)
            return self.held_default if is_held else declared
        on_trial = self.manifest.on_trial if self.manifest else set()
        names = sorted(self.versions, key=version_key, reverse=True)
        return min(names, key=lambda name: self.versions[name].rank + 2.5 * (name in on_trial), default=None)

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
    def rank(self) -> int:
        """How well it would do as its task's default: as `Version.rank` of its own default."""
        return self.versions[self.default_version].rank if self.default_version else 3

    @property
    def reason(self) -> str:
        """Why it is not ready, as a sentence."""
        if self.problem:
            return self.problem
        if self.default_version and self.versions[self.default_version].state == "lazy":
            return AT_FIRST_USE
        failed = [as_sentence(version.reason) for version in self.versions.values() if version.reason]
        return "is still loading" if self.is_loading or not failed else " ".join(failed)

    @property
    def is_unloaded(self) -> bool:
        """Whether it was taken out of service on purpose."""
        return bool(self.versions) and all(version.state == "unloaded" for version in self.versions.values())

    @property
    def is_loading(self) -> bool:
        """Whether a version of it may still become ready by itself."""
        return any(version.state == "loading" and not version.first_use for version in self.versions.values())
