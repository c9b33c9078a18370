"""Registry: the models of a repository. Loads their versions and tells how far they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from service import telemetry
from service.errors import ManifestInvalid
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import Manifest
from service.registry.model import Model, Version, VersionState
from service.registry.repository import FoundModel, scan, version_key
from service.registry.selection import Selection
from service.registry.time_limit import Limited, Stopped
from service.runtime.memory import give_back_memory
from service.tasks import AnyTask, check_type_names, discover

log = structlog.get_logger(__name__)


class Registry:
    """All models of a repository.

    Args:
        models: the model repository.
        options: for every model that is loaded.
        tasks: the tasks that exist; left out, those of `service.tasks` and of installed plug-ins.

    Attributes:
        selection: chooses which version answers a request.

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
        self._models: dict[str, Model] = {found.name: self._model(found) for found in scan(models, self.tasks)}
        self.selection = Selection(self._models, self.tasks)

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
        return Model(found.name, found.path, found.manifest, found.required, versions, problem)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    # --- loading

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
                self._load(model, version)
        give_back_memory()

    def _load(self, model: Model, version: Version) -> None:
        """Load a version of a folder that can be served, and serve it; what is wrong with it is its reason."""
        if model.problem or model.manifest is None:
            return
        if version.state == "failed":
            log.error("model cannot be served", model=model.name, version=version.name, reason=version.reason)
        else:
            try:
                version.handle = self._loaded(model, model.manifest, version.name)
            except Stopped:
                return
            except ManifestInvalid as error:
                version.state, version.reason = "failed", str(error)
            except Exception:  # a task's or a library's bug must not take the other models down
                version.state, version.reason = "failed", "cannot be loaded; the server's log has the cause."
            else:
                version.state, version.reason = "ready", None
            self.selection.update(self._models)
        self._announce(model, version)

    def _loaded(self, model: Model, manifest: Manifest, version: str) -> ModelHandle:
        """A version, loaded within the time for it, by a thread of its own.

        Raises:
            ManifestInvalid: it cannot be served, or was not loaded in time.
            Stopped: loading was given up.
            Exception: a bug of its task's or a library's.
        """
        task, limit_s = self.tasks[manifest.task], self._options.load_timeout_s
        begun = time.perf_counter()
        folder, known = model.path / version, {"model": model.name, "version": version}
        self._loading = Limited(
            f"load-{model.name}@{version}",
            lambda stop: load_version(folder, manifest, task, self._options, stop=stop),
        )
        try:
            if self._stopped:
                raise Stopped
            handle = self._loading.result(limit_s)
        except Stopped:
            raise
        except TimeoutError:
            late = ManifestInvalid(
                f"{model.name}/{version}",
                f"was not loaded within {limit_s:g} s. See that its graph and its task's code come to an end for each "
                "golden sample, or raise GRIDLOOP_LOAD_TIMEOUT_S.",
            )
            log.error("model cannot be served", **known, reason=str(late))
            raise late from None
        except ManifestInvalid as error:
            log.error("model cannot be served", **known, reason=str(error))
            raise
        except Exception:
            log.exception("model cannot be served", **known)
            raise
        finally:
            self._loading = None
        log.info("model ready", **known, task=task.name, seconds=round(time.perf_counter() - begun, 2))
        return handle

    def stop_loading(self) -> None:
        """Load nothing more, and give up what is being loaded. From another thread."""
        self._stopped = True
        if loading := self._loading:
            loading.stop()

    # --- what is served

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
        """The model of that name, as `Selection.model` finds it."""
        return self.selection.model(name)

    def default(self, task: str) -> Model:
        """The model that answers requests of a task which name none, as `Selection.default` finds it."""
        return self.selection.default(task)

    def resolve(self, task: str, asked: str | None) -> ModelHandle:
        """The handle that answers a request of a task, as `Selection.for_task` chooses it."""
        return self.selection.for_task(task, asked)

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
