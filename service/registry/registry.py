"""Registry: the models of a repository. Loads their versions, adds, replaces, drains and removes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
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
from service.registry.repository import FoundModel, is_one_model, read_folder, scan, version_key
from service.registry.selection import Caller, Selection
from service.registry.time_limit import Limited, Stopped
from service.registry.watcher import Look, ModelLook, stamp
from service.runtime.memory import give_back_freed_memory, give_back_memory
from service.runtime.statistics import Statistics
from service.tasks import AnyTask, check_type_names, discover
from service.tasks.base import ModelRef

log = structlog.get_logger(__name__)


def _nearest(name: str, known: Iterable[str]) -> str:
    """A question that corrects a name, where one is near."""
    close = get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to change in a registry beside what its folders say.

    Attributes:
        load: models to be loaded, those that were unloaded and those that have failed included.
        unload: models to be taken out of service.
        again: whether everything that has failed is tried again.
        known_bad: versions that are not to be tried, as `name@version`, with the reason.
    """

    load: Sequence[str] = ()
    unload: Sequence[str] = ()
    again: bool = False
    known_bad: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changes:
    """What has become of a registry, each version as `name@version`.

    Attributes:
        came: versions that answer, and did not, or not from these files.
        went: versions that answer no more.
        refused: versions whose files cannot be served, with the reason; what was served of them before still is.
        closing: handles that answer nothing new.
    """

    came: list[str]
    went: list[str]
    refused: dict[str, str]
    closing: list[ModelHandle]


def _is_lazy(model: Model, version: Version) -> bool:
    """Whether the manifest of a version, or else its model's, has it loaded when it is first asked for."""
    try:
        return model.manifest is not None and model.manifest.of_version(model.folder_of(version.name)).load == "lazy"
    except ManifestInvalid:  # told when it is loaded
        return False


class Registry:
    """All models of a repository.

    Requests are answered, on an event loop, while versions come and go in another thread: one of them at a time.

    Args:
        models: the model repository.
        options: for every model that is loaded.
        tasks: the tasks that exist; left out, those of `service.tasks` and of installed plug-ins.
        name: of the model, where `models` is the folder of one; left out: the folder's.

    Attributes:
        selection: chooses which version answers a request.

    Raises:
        NameTaken: two tasks have different types of one name.
    """

    def __init__(
        self,
        models: Path,
        options: LoadOptions | None = None,
        tasks: dict[str, type[AnyTask]] | None = None,
        name: str = "",
    ) -> None:
        self.path = models
        self.tasks = discover() if tasks is None else tasks
        check_type_names(self.tasks)
        self._options = options or LoadOptions()
        self._loading: Limited[ModelHandle] | None = None
        self._stopped = False
        self._late = threading.Lock()  # held while a version is loaded that was first asked for
        self._unloaded: set[str] = set()
        self.name = name
        self._models: dict[str, Model] = {found.name: self._model(found) for found in scan(models, self.tasks, name)}
        self._is_one_model = is_one_model(models)
        self.selection = Selection(self._models, self.tasks)

    def _model(self, found: FoundModel) -> Model:
        problem = found.problem
        if found.manifest is not None and found.manifest.task not in self.tasks:
            problem = (
                f"{found.name}/manifest.toml: task {found.manifest.task!r} is not known; this server has: "
                f"{', '.join(self.tasks)}{found.manifest.line('task')}.{_nearest(found.manifest.task, self.tasks)}"
            )
        state: VersionState = "failed" if problem else "loading"
        chosen = found.manifest.versions if found.manifest else "all"
        named = chosen if isinstance(chosen, list) else [*found.versions, *found.broken]
        reasons: dict[str, str | None] = {**dict.fromkeys(found.versions, problem), **found.broken}
        versions = {}
        for name in sorted(set(named), key=version_key):
            reason = reasons.get(name, f"{found.name}/manifest.toml: `versions` names it, and there is no such folder.")
            versions[name] = Version(name, "failed" if reason else state, reason)
        model = Model(found.name, found.path, found.manifest, found.required, versions, problem, bare=found.bare)
        for version in versions.values():
            if self._options.lazy and version.state == "loading" and _is_lazy(model, version):
                self._load_at_first_use(model.name, version)
        return model

    def _load_at_first_use(self, name: str, version: Version) -> None:
        """Have a version of a model loaded when somebody first asks for it."""

        def load() -> None:
            model = self._models[name]  # as it is by then: it may have been renewed since
            asked = model.versions[version.name]
            asked.state = "loading"
            with self._late:
                self._load(model, asked)
                self._announce(model, asked)
                give_back_freed_memory()
            if asked.state == "loading":  # it was given up, as the server stops
                raise Draining

        version.state = "lazy"
        version.first_use = FirstUse(f"{name}@{version.name}", load)
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
            self._load_versions(model)
        self._load_what_must_not_wait(task)
        give_back_memory()

    def _load_what_must_not_wait(
        self, task: str | None = None, on_load: Callable[[str], None] = lambda _: None
    ) -> None:
        """Load the lazy versions that answer who names none; where one fails, the next may have to."""
        while found := [
            (model, version)
            for model in self
            if model.manifest and not model.problem and task in (None, model.manifest.task)
            for version in model.versions.values()
            if version.state == "lazy" and self._must_not_wait(model, version)
        ]:
            for model, version in found:
                on_load(f"{model.name}@{version.name}")
                self._load(model, version)

    def _load_versions(
        self,
        model: Model,
        before: Mapping[str, Version] | None = None,
        now: ModelLook | None = None,
        asked: Asked | None = None,
        on_load: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load the versions that a model's manifest chooses, but for those that are loaded as they are now.

        Args:
            model: of which nothing is loaded yet.
            before: versions that were there before, by name.
            now: what its folder looks like.
            asked: what is asked for beside.
            on_load: called with `name@version` before one is loaded.
        """
        before, asked = before or {}, asked or Asked()
        chosen = model.manifest.versions if model.manifest else "all"
        wanted = model.name in asked.load
        again = asked.again or wanted
        served = [version.handle for version in before.values() if version.handle]
        like = served[-1] if served and not self._options.remember else None
        done: dict[str, Version] = {}
        for name in reversed(model.versions) if chosen == "latest" else model.versions:
            version, was, known = model.versions[name], before.get(name), f"{model.name}@{name}"
            if now is not None and name in now.versions and model.manifest:
                version.made_from = now.versions[name], model.manifest.how_run
            if was and was.handle and version.made_from and version.made_from == was.loaded_from:
                done[name] = replace(was, state="ready", reason=None, made_from=was.loaded_from)
            elif known not in asked.known_bad and was and _is_as_it_was(version, was, again=again, wanted=wanted):
                done[name] = was
            elif known not in asked.known_bad and version.state == "lazy" and not wanted:
                done[name] = version
            else:
                on_load(known)
                if known in asked.known_bad:
                    version.state, version.reason, version.first_use = "failed", asked.known_bad[known], None
                self._load(model, version, like=like)
                if version.handle and now is not None and stamp(model.folder_of(name)) != now.versions.get(name, ()):
                    changed = f"{model.name}/{name}: has changed while it was loaded; it is tried again."
                    version.state, version.reason, version.handle = "failed", changed, None
                version.loaded_from = version.made_from
                if was and was.handle and version.handle is None:
                    version.state, version.handle, version.loaded_from = "ready", was.handle, was.loaded_from
                    version.reason = f"{version.reason} What was loaded before is served."
                done[name] = version
            if chosen == "latest" and done[name].state in ("ready", "lazy"):
                break
        if done.keys() != model.versions.keys() or any(done[name] is not model.versions[name] for name in done):
            model.versions = {name: done[name] for name in model.versions if name in done}

    def _load(self, model: Model, version: Version, like: ModelHandle | None = None) -> None:
        """Load a version of a folder that can be served, and serve it; what is wrong with it is its reason.

        `like` is a version of it that is served.
        """
        if model.problem or model.manifest is None:
            return
        if version.state == "lazy":
            version.state, version.first_use, version.statistics = "loading", None, None
        if version.state == "failed":
            log.error("model cannot be served", model=model.name, version=version.name, reason=version.reason)
        else:
            try:
                handle = self._loaded(model, model.manifest, version.name, like)
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

    def _loaded(self, model: Model, manifest: Manifest, version: str, like: ModelHandle | None = None) -> ModelHandle:
        """A version, loaded within the time for it, by a thread of its own.

        Raises:
            ManifestInvalid: it cannot be served, or was not loaded in time.
            Stopped: loading was given up.
            Exception: a bug of its task's or a library's.
        """
        task, limit_s = self.tasks[manifest.task], self._options.load_timeout_s
        begun = time.perf_counter()
        folder, known = model.folder_of(version), {"model": model.name, "version": version}
        options = replace(self._options, like=like)
        self._loading = Limited(
            f"load-{model.name}@{version}",
            lambda stop: load_version(
                folder, manifest, task, options, stop=stop, ref=ModelRef(name=model.name, version=version)
            ),
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

    def expect_traffic(self) -> None:
        """What is measured from now on is measured beside traffic, and is not to be remembered for good."""
        self._options = replace(self._options, remember=False)

    def stop_loading(self) -> None:
        """Load nothing more, and give up what is being loaded. From another thread."""
        self._stopped = True
        if loading := self._loading:
            loading.stop()

    # --- the folders change

    def renew(
        self,
        now: Look,
        names: AbstractSet[str],
        asked: Asked | None = None,
        on_load: Callable[[str], None] = lambda _: None,
    ) -> Changes:
        """Serve what the folders hold now. Blocking; only what has changed is loaded.

        What cannot be served changes nothing for what was served before: that goes on, and its reason says why.

        Args:
            now: what the repository looks like.
            names: models to look at; the others stay as they are.
            asked: what is to change beside.
            on_load: called with `name@version` before one is loaded.

        Raises:
            ManifestInvalid: the repository cannot be read.
        """
        asked = asked or Asked()
        found = {each.name: each for each in scan(self.path, self.tasks, self.name)}
        before = self._models
        self._unloaded = (self._unloaded | set(asked.unload)) - set(asked.load)
        models = {name: model for name, model in before.items() if name not in names}
        for name in sorted(names & found.keys()):
            models[name] = self._renewed(found[name], before.get(name), now.get(name, ModelLook()), asked, on_load)
        self._unloaded &= models.keys()
        self._update(models)
        self._load_what_must_not_wait(on_load=on_load)
        return _changes(before, self._models)

    def _renewed(
        self, found: FoundModel, before: Model | None, now: ModelLook, asked: Asked, on_load: Callable[[str], None]
    ) -> Model:
        model = self._model(found)
        had = before.versions if before else {}
        is_unloaded = model.name in self._unloaded
        if before and model.problem and not is_unloaded and any(version.handle for version in had.values()):
            log.error("model folder cannot be served", model=model.name, reason=model.problem)
            reason = f"{model.problem} What was loaded before is served."
            versions = {name: replace(version, reason=reason) for name, version in had.items()}
            return replace(before, versions=versions)
        if is_unloaded:
            for version in model.versions.values():
                version.state, version.reason = "unloaded", f"{model.name}: was unloaded."
                version.first_use = None
        else:
            if model.problem:
                log.error("model folder cannot be served", model=model.name, reason=model.problem)
            self._load_versions(model, had, now, asked, on_load)
        model.held_default = before.default_version if before else None
        can_answer = any(version.handle or version.state == "lazy" for version in model.versions.values())
        model.yields = before is None and not can_answer
        return model

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
        self._announce(model, added)
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
        if self._is_one_model:
            found = self._model(read_folder(self.path.resolve(), self.tasks, name=name))
        else:
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
                if version.state != "unloaded":  # on purpose: no alarm
                    self._announce(model, version)

    @staticmethod
    def _announce(model: Model, version: Version) -> None:
        telemetry.announce_model(model.name)
        if version.state == "lazy":  # neither ready nor in want of mending
            return
        is_refused = version.state == "failed" or (version.state == "ready" and version.reason is not None)
        telemetry.MODEL_READY.labels(model.name, version.name).set(version.state == "ready")
        telemetry.MODEL_REFUSED.labels(model.name, version.name).set(is_refused)

    def publish_statistics(self, worker: int) -> None:
        """Let the other workers know what the models have done in this one."""
        for model in self:
            for version in model.versions.values():
                if version.handle:
                    version.handle.statistics.publish(worker)
                    if version.handle.drift:
                        version.handle.drift.publish(worker)

    def tell_drift(self) -> None:
        """Set the metric of how far answers have drifted, from what all workers have counted."""
        for model in self:
            for version in model.versions.values():
                if version.handle and version.handle.drift:
                    for trait, index in version.handle.drift.indices().items():
                        telemetry.DRIFT.labels(model.name, version.name, trait).set(index)

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
        missing = {m.name: m.reason for m in self if m.required and not m.is_ready and not m.is_unloaded}
        if not missing and not any(m.is_ready for m in self):
            return {m.name: m.reason for m in self} or {"models": f"the repository {self.path.name!r} is empty"}
        return missing

    def close(self, timeout_s: float) -> bool:
        """Finish every model's accepted requests; says whether all ended in time. Blocking."""
        until = time.monotonic() + timeout_s
        handles = [v.handle for m in self for v in m.versions.values() if v.handle]
        closed = [handle.close(max(0.0, until - time.monotonic())) for handle in handles]
        return all(closed)


def _is_as_it_was(version: Version, was: Version, *, again: bool, wanted: bool) -> bool:
    """Whether a version without a handle need not be loaded: it is made from the same, and not to be tried again."""
    if version.made_from is None or version.made_from != was.made_from:
        return False
    return not (again and was.reason) and not (wanted and was.state == "lazy")


def _changes(before: Mapping[str, Model], after: Mapping[str, Model]) -> Changes:
    """What two states of a registry differ in."""

    def versions(models: Mapping[str, Model]) -> dict[str, Version]:
        return {f"{m.name}@{v.name}": v for m in models.values() for v in m.versions.values()}

    old, new = versions(before), versions(after)
    handles = {id(version.handle): version.handle for version in old.values() if version.handle}
    came = [name for name, version in new.items() if version.handle and id(version.handle) not in handles]
    went = [name for name, version in old.items() if version.handle and not (name in new and new[name].handle)]
    refused = {
        name: version.reason
        for name, version in new.items()
        if version.reason and version.state != "unloaded" and (name not in old or old[name].reason != version.reason)
    }
    kept = {id(version.handle) for version in new.values()}
    return Changes(came, went, refused, [handle for key, handle in handles.items() if key not in kept])
