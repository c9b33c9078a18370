"""Control: how a request has models loaded and unloaded, in every process that answers."""

from __future__ import annotations

import asyncio
from typing import Protocol

from service.errors import LoadRefused, ModelNotFound, as_sentence
from service.registry.registry import Asked, Registry
from service.registry.watcher import look


class Control(Protocol):
    """Changes what is served; each method returns when every worker has done it."""

    async def load(self, model: str) -> None:
        """Serve a model as its folder is now.

        Raises:
            ModelNotFound: there is no such folder.
            LoadRefused: it cannot be served so; what was served before still is.
            Draining: the server stops.
        """

    async def unload(self, model: str) -> None:
        """Take a model out of service; it stays listed.

        Raises:
            ModelNotFound: there is no such model.
            Draining: the server stops.
        """


class OwnControl:
    """Control over the registry of this process, where there is no other.

    Args:
        registry: that is changed.
        timeout_s: for what was accepted by versions that go.
    """

    def __init__(self, registry: Registry, timeout_s: float) -> None:
        self._registry, self._timeout_s, self._busy = registry, timeout_s, asyncio.Lock()

    async def load(self, model: str) -> None:
        """As `Control` says."""
        async with self._busy:
            await asyncio.to_thread(self._renew, model, Asked(load=[model]))
        if model not in {each.name for each in self._registry}:
            raise ModelNotFound(model, available=[each.name for each in self._registry])
        if reasons := why_not(self._registry, model):
            raise LoadRefused(model, reasons)

    async def unload(self, model: str) -> None:
        """As `Control` says."""
        self._registry.get(model)
        async with self._busy:
            await asyncio.to_thread(self._renew, model, Asked(unload=[model]))

    def _renew(self, model: str, asked: Asked) -> None:
        changes = self._registry.renew(look(self._registry.path, self._registry.name) or {}, {model}, asked)
        self._registry.announce()
        for handle in changes.closing:
            handle.close(self._timeout_s)


def why_not(registry: Registry, name: str) -> str:
    """What of a model is not served as its folder says, in sentences; empty where all is."""
    found = next((model for model in registry if model.name == name), None)
    if found is None:
        return ""
    reasons = [found.problem, *(version.reason for version in found.versions.values())]
    return " ".join(as_sentence(reason) for reason in dict.fromkeys(reasons) if reason)
