"""Registry: the models of a repository. Loads their versions, adds, replaces, drains and removes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

import structlog

from service import telemetry
from service.errors import Draining, ManifestInvalid, ModelNotFound
from service.registry.first_use import FirstUse
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import MOST_ROWS, Manifest
from service.registry.model import Model, Version, VersionState
from service.registry.repository import FoundModel, read_folder, scan, version_key
from service.registry.selection import Caller, Selection
from service.registry.time_limit import Limited, Stopped
from service.runtime.memory import give_back_freed_memory, give_back_memory
from service.runtime.statistics import Statistics
from service.tasks import AnyTask, check_type_names, discover

log = structlog.get_logger(__name__)


def _nearest(name: str, known: Iterable[str]) -> str:
    """A question that corrects a name, where one is near."""
    close = get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _is_lazy(model: Model, version: Version) -> bool:
    """Whether the manifest of a version, or else its model's, has it loaded when it is first asked for."""
    try:
        return model.manifest is not None and model.manifest.of_version(model.path / version.name).load == "lazy"
    except ManifestInvalid:  # told when it is loaded
        return False


class Registry:
    """All models of a repository.

    Requests are answered, on an event loop, while versions come and go in another thread: one of them at a time.

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
        self._late = threading.Lock()  # held while a version is loaded that was first asked for
        self._models: dict[str, Model] = {found.name: self._model(found) for found in scan(models, self.tasks)}
        self.selection = Selection(self._models, self.tasks)

    def _model(self, found: FoundModel) -> Model:
        problem = found.problem
        if found.manifest is not None and found.manifest.task not in self.tasks:
            problem = (
                f"{found.name}/manifest.toml: task {found.manifest.task!r} is not known; this server has: "
                f"{', '.join(self.tasks)}{found.manifest.line('task')}.{_nearest(found.manifest.task, self.tasks)}"
            )
        state: VersionState = "failed" if problem else "loading"
        versions = {
            name: Version(name, "failed" if name in found.broken else state, found.broken.get(name, problem))
            for name in sorted((*found.versions, *found.broken), key=version_key)
        }
        model = Model(found.name, found.path, found.manifest, found.required, versions, problem)
        for version in versions.values():
            if self._options.lazy and version.state == "loading" and _is_lazy(model, version):
                self._load_at_first_use(model, version)
        return model

    def _load_at_first_use(self, model: Model, version: Version) -> None:
        """Have a version loaded when somebody first asks for it."""

        def load() -> None:
            version.state = "loading"
            with self._late:
                self._load(model, version)
                give_back_freed_memory()
            if version.state == "loading":  # it was given up, as the server stops
                raise Draining

        version.state = "lazy"
        version.first_use = FirstUse(f"{model.name}@{version.name}", load)
        version.statistics = Statistics(self._options.workers, MOST_ROWS)

    def _must_not_wait(self, model: Model, version: Version) -> bool:
        """Whether a version answers requests that name no model, or no version while the model must be ready."""
        manifest = model.manifest
        if manifest is None or version.name in manifest.on_trial:
            return True
        is_default = self.default(manifest.task) is model or model.required
        return is_default and version.name == model.default_version

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
        if version.state == "lazy":
            if not self._must_not_wait(model, version):
                return
            version.state, version.first_use, version.statistics = "loading", None, None
        if version.state == "failed":
            log.error("model cannot be served", model=model.name, version=version.name, reason=version.reason)
        else:
            try:
                handle = self._loaded(model, model.manifest, version.name)
                handle.statistics = version.statistics or handle.statistics
                version.handle = handle
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

    # --- versions come and go

    def add(self, name: str, version: str) -> Version:
        """Load a version whose folder has come since the repository was read, and serve it beside the others. Blocking.

        Args:
            name: of the model, which may be new as well.
            version: the folder's name.

        Returns:
            The version, with its reason where it cannot be served.

        Raises:
            ModelNotFound: there is no such folder.
            ManifestInvalid: the model's folder cannot be served as it is; what was served goes on.
            ValueError: the version is served already.
        """
        found, manifest = self._read(name)
        if version not in found.versions:
            there = [f"{name}@{each}" for each in found.versions]
            raise ModelNotFound(f"{name}@{version}", available=there, what="version")
        model = self._models.get(name)
        before = model.versions if model else {}
        if version in before and before[version].handle:
            raise ValueError(f"{name}@{version} is served already; replace it")
        added = found.versions[version]
        model = model or found
        model.manifest, model.problem = manifest, None
        versions = before | {version: added}
        model.versions = {each: versions[each] for each in sorted(versions, key=version_key)}
        self._update(self._models | {name: model})
        self._load(model, added)
        give_back_memory()
        return added

    def replace(self, name: str, version: str, *, timeout_s: float) -> bool:
        """Load a version's folder anew; from then on requests go to what is new. Blocking.

        What was served before finishes what it has accepted.

        Args:
            name: of the model.
            version: of it.
            timeout_s: for what was accepted.

        Returns:
            Whether that was finished in time.

        Raises:
            ModelNotFound: there is no such version.
            ManifestInvalid: what is new cannot be served; what was served goes on.
            Stopped: loading was given up; what was served goes on.
        """
        model, present = self._version(name, version)
        handle = self._loaded(model, self._read(name)[1], version)
        before, present.handle = present.handle, handle
        present.state, present.reason = "ready", None
        self._update(self._models)
        self._announce(model, present)
        finished = before is None or before.close(timeout_s)
        give_back_memory()
        return finished

    def drain(self, name: str, version: str, *, timeout_s: float) -> bool:
        """Take a version out of service: it stays listed, answers nothing new, and finishes what it has accepted.

        Blocking; the arguments and what is returned are those of `replace`.

        Raises:
            ModelNotFound: there is no such version.
        """
        model, present = self._version(name, version)
        before, present.handle = present.handle, None
        present.state, present.reason = "unloaded", f"{name}/{version}: was taken out of service."
        self._update(self._models)
        self._announce(model, present)
        finished = before is None or before.close(timeout_s)
        del before
        give_back_memory()
        return finished

    def remove(self, name: str, version: str, *, timeout_s: float) -> bool:
        """Drain a version, and list it no more; with its last version goes the model. See `drain`."""
        finished = self.drain(name, version, timeout_s=timeout_s)
        model = self.get(name)
        model.versions = {each: kept for each, kept in model.versions.items() if each != version}
        self._update({each: kept for each, kept in self._models.items() if kept.versions or kept is not model})
        return finished

    def _read(self, name: str) -> tuple[Model, Manifest]:
        """A model's folder as it is now.

        Raises:
            ManifestInvalid: it cannot be served.
        """
        found = self._model(read_folder(self.path / name, self.tasks))
        if found.manifest is None or found.problem:
            raise ManifestInvalid(*(found.problem or name).split(": ", 1))
        return found, found.manifest

    def _version(self, name: str, version: str) -> tuple[Model, Version]:
        model = self.get(name)
        if version not in model.versions:
            there = [f"{name}@{each}" for each in model.versions]
            raise ModelNotFound(f"{name}@{version}", available=there, what="version")
        return model, model.versions[version]

    def _update(self, models: dict[str, Model]) -> None:
        """Serve these models: a new dictionary, as another thread may be going through the old one."""
        self._models = dict(sorted(models.items()))
        self.selection.update(self._models)

    # --- what is served

    def announce(self) -> None:
        """Tell the metrics of this process which models there are: of a process forked after loading, nobody has."""
        for model in self:
            for version in model.versions.values():
                self._announce(model, version)

    @staticmethod
    def _announce(model: Model, version: Version) -> None:
        telemetry.announce_model(model.name)
        if version.state == "lazy":  # neither ready nor in want of mending
            return
        telemetry.MODEL_READY.labels(model.name, version.name).set(version.state == "ready")

    def publish_statistics(self, worker: int) -> None:
        """Let the other workers know what the models have done in this one."""
        for model in self:
            for version in model.versions.values():
                if version.handle:
                    version.handle.statistics.publish(worker)

    def get(self, name: str) -> Model:
        """The model of that name, as `Selection.model` finds it."""
        return self.selection.model(name)

    def default(self, task: str) -> Model:
        """The model that answers requests of a task which name none, as `Selection.default` finds it."""
        return self.selection.default(task)

    def resolve(
        self, task: str, asked: str | None, caller: Caller | None = None, state: str | None = None
    ) -> ModelHandle:
        """The handle that answers a request of a task, as `Selection.for_task` chooses it."""
        return self.selection.for_task(task, asked, caller, state)

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
