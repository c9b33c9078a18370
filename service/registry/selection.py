"""Selection: which version of which model answers a request. Nothing else chooses one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from service.errors import ModelNotFound, ModelNotReady
from service.registry.first_use import NotLoadedYet
from service.registry.handle import ModelHandle
from service.registry.model import Model, Version
from service.state import begun_by
from service.tasks import AnyTask


class Caller(Protocol):
    """Who asks; only models with a canary look."""

    @property
    def canary_key(self) -> str:
        """What tells this caller from others: who sends it again is answered by the same version."""


class Selection:
    """Maps what requests name to what answers them.

    Args:
        models: by name.
        tasks: the tasks that the server has, by name.

    Attributes:
        is_busy: whether so many requests are being answered that nothing else should be done; the server says so.
    """

    def __init__(self, models: Mapping[str, Model], tasks: Mapping[str, type[AnyTask]]) -> None:
        self._models, self._tasks = models, tasks
        self._defaults: dict[str, Model] = {}
        self.is_busy: Callable[[], bool] = lambda: False
        self.update(models)

    def update(self, models: Mapping[str, Model]) -> None:
        """Choose among these from now on, and settle anew which versions and models answer where none is named.

        Of a task's models it is the one that is declared default, else the first by name that is ready.
        """
        for model in models.values():
            model.choose_default()
            model.choose_shadow(lambda: self.is_busy())
        defaults: dict[str, Model] = {}
        for model in sorted(
            models.values(), key=lambda m: (not (m.manifest and m.manifest.default and not m.yields), m.rank, m.name)
        ):
            if model.manifest:
                defaults.setdefault(model.manifest.task, model)
        self._models, self._defaults = models, defaults

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            ModelNotFound: there is none; the message lists those there are.
        """
        if name not in self._models:
            raise ModelNotFound(name, available=list(self._models))
        return self._models[name]

    def default(self, task: str) -> Model:
        """The model that answers requests of a task which name none.

        Raises:
            ModelNotFound: no model serves the task.
        """
        if task not in self._defaults:
            raise ModelNotFound(task, available=sorted(self._defaults), what="model for task")
        return self._defaults[task]

    def for_task(
        self, task: str, asked: str | None, caller: Caller | None = None, state: str | None = None
    ) -> ModelHandle:
        """What answers a request at a task's endpoint.

        Args:
            task: the endpoint's name.
            asked: `name`, `name@version`, or None for the task's default.
            caller: who may be answered by a canary; None where nobody is to be.
            state: the token that came with the request: a stream goes on with the version that began it.

        Raises:
            ModelNotFound: no such model or version, or it serves another task.
            ModelNotReady: known, but not loaded.
            NotLoadedYet: it is loaded when it is first asked for, which is now.
        """
        name, at, wanted = (asked or "").partition("@")
        model = self.model(name) if asked else self.default(task)
        if model.manifest is not None and model.manifest.task != task:
            raise self._of_another_task(model, model.manifest.task, task)
        if at and wanted not in model.versions:
            note = "" if wanted else " Leave out the '@' for the default version."
            there = [f"{name}@{version}" for version in model.versions]
            raise ModelNotFound(f"{name}@{wanted}", available=there, what="version", note=note)
        version = model.versions.get(wanted) if wanted else _unnamed(model, caller, state)
        if version is None or version.handle is None:
            self._refuse_to_wait(version, asked or model.name)
            state = version.state if version else "failed"
            raise ModelNotReady(asked or model.name, state, model.problem or (version.reason if version else None))
        return version.handle

    @staticmethod
    def _refuse_to_wait(version: Version | None, asked: str) -> None:
        """Say what to wait for where a version is loaded when it is first asked for."""
        if version is not None and version.first_use is not None and version.state in ("lazy", "loading"):
            raise NotLoadedYet(asked, version.first_use)

    def _of_another_task(self, model: Model, its_task: str, task: str) -> ModelNotFound:
        other = self._tasks.get(its_task)
        place = f"/v1/{its_task}" if other is None or other.has_route else f"/v2/models/{model.name}/infer"
        return ModelNotFound(
            model.name,
            available=[m.name for m in self._models.values() if m.manifest and m.manifest.task == task],
            what=f"{task} model",
            note=f" {model.name!r} serves {its_task}: POST {place}.",
        )

    def for_tensors(self, asked: str, version: str | None, caller: Caller | None = None) -> tuple[ModelHandle, str]:
        """What answers a request for the tensors of a graph, whatever the model's task.

        Args:
            asked: `name` for the model's main graph, `name:graph` for another one.
            version: None for the default.
            caller: who may be answered by a canary; None where nobody is to be.

        Returns:
            The handle, and the graph's name among its graphs.

        Raises:
            ModelNotFound: no such model, version or graph.
            ModelNotReady: known, but not loaded.
        """
        name, colon, graph = asked.partition(":")
        model = self.model(name)
        found = model.versions.get(version) if version else _unnamed(model, caller)
        if version and found is None:
            raise ModelNotFound(version, available=list(model.versions), what=f"version of model {name!r}")
        if found is None:
            raise ModelNotReady(name, "failed", model.problem)
        handle = found.handle
        if handle is None:
            self._refuse_to_wait(found, name)
            raise ModelNotReady(name, found.state, found.reason)
        if colon and graph not in handle.graphs:
            raise ModelNotFound(graph, available=list(handle.graphs), what=f"graph of model {name!r}")
        return handle, graph or next(iter(handle.graphs))


def _unnamed(model: Model, caller: Caller | None, state: str | None = None) -> Version | None:
    """The version of a model that answers a request which names none."""
    if state is not None and len(model.versions) > 1:
        name, begun = begun_by(state) or ("", "")
        version = model.versions.get(begun) if name == model.name else None
        if version is not None and version.handle is not None:
            return version
    canary = model.canary
    if canary is not None and caller is not None and canary.takes(caller.canary_key):
        return canary.version
    return model.versions.get(model.default_version or "")
