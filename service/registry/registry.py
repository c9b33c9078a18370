"""Registry: which model answers a request. Maps (task, model, version) to a loaded handle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from service import telemetry
from service.errors import ManifestInvalid, ModelNotFound, ModelNotReady, as_sentence
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import Limited, Stopped
from service.registry.manifest import Manifest
from service.registry.repository import FoundModel, scan, version_key
from service.runtime.memory import give_back_memory
from service.tasks import AnyTask, check_type_names, discover

log = structlog.get_logger(__name__)

VersionState = Literal["loading", "ready", "failed"]


@dataclass(slots=True)
class Version:
    """One version of a model and how far it has come."""

    name: str
    state: VersionState = "loading"
    reason: str | None = None
    handle: ModelHandle | None = None


@dataclass(slots=True)
class Model:
    """A model folder and its versions."""

    name: str
    path: Path
    manifest: Manifest | None
    required: bool
    versions: dict[str, Version] = field(default_factory=dict)
    problem: str | None = None
    default_version: str | None = None

    def choose_default(self) -> None:
        """Settle which version answers when none is named: the manifest's choice, else the highest that is ready."""
        if self.manifest and self.manifest.default_version:
            self.default_version = self.manifest.default_version
            return
        ready = [v.name for v in self.versions.values() if v.state == "ready"]
        self.default_version = max(ready or self.versions, key=version_key, default=None)

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


class Registry:
    """All models of a repository.

    Args:
        models: the model repository.
        options: for every model that is loaded.
        tasks: the tasks that exist; left out, those of `service.tasks` and of installed plug-ins.

    Raises:
        NameTaken: two tasks have different types of one name.
    """

    def __init__(
        self, models: Path, options: LoadOptions | None = None, tasks: dict[str, type[AnyTask]] | None = None
    ) -> None:
        self.path = models
        self.tasks = discover() if tasks is None else tasks
        check_type_names(self.tasks)
        self._options = options or LoadOptions()
        self._loading: Limited[ModelHandle] | None = None
        self._stopped = False
        self._models: dict[str, Model] = {found.name: self._model(found) for found in scan(models)}
        self._choose_defaults()

    def _model(self, found: FoundModel) -> Model:
        problem = found.problem
        if found.manifest is not None and found.manifest.task not in self.tasks:
            problem = (
                f"{found.name}/manifest.toml: task {found.manifest.task!r} is not known; "
                f"this server has: {', '.join(self.tasks)}."
            )
        state: VersionState = "failed" if problem else "loading"
        versions = {
            name: Version(name, "failed" if name in found.broken else state, found.broken.get(name, problem))
            for name in sorted((*found.versions, *found.broken), key=version_key)
        }
        model = Model(found.name, found.path, found.manifest, found.required, versions, problem)
        model.choose_default()
        return model

    def _choose_defaults(self) -> None:
        """Settle which model of a task answers when none is named: the one declared default, else the first ready."""
        self._defaults: dict[str, Model] = {}
        for model in sorted(self, key=lambda m: (not (m.manifest and m.manifest.default), not m.is_ready, m.name)):
            if model.manifest:
                self._defaults.setdefault(model.manifest.task, model)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def load(self, task: str | None = None) -> None:
        """Load every version of every model, one after another. A broken one is reported and passed over. Blocking.

        Args:
            task: load only the models of this task.
        """
        for model in self:
            if task and not (model.manifest and model.manifest.task == task):
                continue
            if model.problem:
                log.error("model folder cannot be served", model=model.name, reason=model.problem)
            for version in model.versions.values():
                self._load_version(model, version)
        give_back_memory()

    def _load_version(self, model: Model, version: Version) -> None:
        if model.problem or model.manifest is None:
            return
        if version.state == "failed":
            log.error("model cannot be served", model=model.name, version=version.name, reason=version.reason)
            self._announce(model, version)
            return
        begun = time.perf_counter()
        manifest, task, limit_s = model.manifest, self.tasks[model.manifest.task], self._options.load_timeout_s
        self._loading = Limited(
            f"load-{model.name}@{version.name}",
            lambda cancellation: ModelHandle(
                model.path / version.name, manifest, task, self._options, cancellation=cancellation
            ),
        )
        if self._stopped:
            return
        try:
            version.handle = self._loading.result(limit_s)
        except Stopped:
            return
        except TimeoutError:
            version.state = "failed"
            version.reason = (
                f"{model.name}/{version.name}: was not loaded within {limit_s:g} s. See that its graph and its task's "
                "code come to an end for each golden sample, or raise GRIDLOOP_LOAD_TIMEOUT_S."
            )
            log.error("model cannot be served", model=model.name, version=version.name, reason=version.reason)
        except ManifestInvalid as error:
            version.state, version.reason = "failed", str(error)
            log.error("model cannot be served", model=model.name, version=version.name, reason=version.reason)
        except Exception:  # a task's or a library's bug must not take the other models down
            version.state, version.reason = "failed", "cannot be loaded; the server's log has the cause."
            log.exception("model cannot be served", model=model.name, version=version.name)
        else:
            version.state = "ready"
            log.info(
                "model ready",
                model=model.name,
                version=version.name,
                task=task.name,
                seconds=round(time.perf_counter() - begun, 2),
            )
        finally:
            self._loading = None
        model.choose_default()
        self._choose_defaults()
        self._announce(model, version)

    def stop_loading(self) -> None:
        """Load nothing more, and give up what is being loaded. From another thread."""
        self._stopped = True
        if loading := self._loading:
            loading.stop()

    def announce(self) -> None:
        """Tell the metrics of this process which models there are: of a process forked after loading, nobody has."""
        for model in self:
            for version in model.versions.values():
                self._announce(model, version)

    @staticmethod
    def _announce(model: Model, version: Version) -> None:
        telemetry.announce_model(model.name)
        telemetry.MODEL_READY.labels(model.name, version.name).set(version.state == "ready")

    def get(self, name: str) -> Model:
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

    def resolve(self, task: str, asked: str | None) -> ModelHandle:
        """The handle that answers a request.

        Args:
            task: the endpoint's name.
            asked: `name`, `name@version`, or None for the task's default.

        Raises:
            ModelNotFound: no such model or version, or it serves another task.
            ModelNotReady: known, but not loaded.
        """
        name, at, wanted = (asked or "").partition("@")
        model = self.get(name) if asked else self.default(task)
        if model.manifest is not None and model.manifest.task != task:
            other = self.tasks.get(model.manifest.task)
            place = f"/v1/{model.manifest.task}" if other is None or other.has_route else f"/v2/models/{name}/infer"
            raise ModelNotFound(
                name,
                available=[m.name for m in self if m.manifest and m.manifest.task == task],
                what=f"{task} model",
                note=f" {name!r} serves {model.manifest.task}: POST {place}.",
            )
        if at and wanted not in model.versions:
            note = "" if wanted else " Leave out the '@' for the default version."
            there = [f"{name}@{version}" for version in model.versions]
            raise ModelNotFound(f"{name}@{wanted}", available=there, what="version", note=note)
        version = model.versions.get(wanted or model.default_version or "")
        if version is None or version.handle is None:
            state = version.state if version else "failed"
            raise ModelNotReady(asked or model.name, state, model.problem or (version.reason if version else None))
        return version.handle

    @property
    def is_loading(self) -> bool:
        """Whether a model may still become ready."""
        return any(model.is_loading for model in self)

    def unready(self) -> dict[str, str]:
        """Models that must be ready and are not, with the reason; also when nothing at all is ready."""
        missing = {m.name: m.reason for m in self if m.required and not m.is_ready}
        if not missing and not any(m.is_ready for m in self):
            return {m.name: m.reason for m in self} or {"models": f"the repository {self.path.name!r} is empty"}
        return missing

    def close(self, timeout_s: float) -> bool:
        """Finish every model's accepted requests; says whether all ended in time. Blocking."""
        until = time.monotonic() + timeout_s
        handles = [v.handle for m in self for v in m.versions.values() if v.handle]
        closed = [handle.close(max(0.0, until - time.monotonic())) for handle in handles]
        return all(closed)
