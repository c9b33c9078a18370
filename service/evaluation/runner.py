"""`gridloop evaluate`: find the model and its evaluation, hold the conversations, gather the report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.client.http import ClientFailed, Server, split_url
from service.errors import ManifestInvalid, ModelNotFound
from service.evaluation.base import DataMissing, Evaluation, EvaluationFailed, Item, Subject
from service.evaluation.facts import facts
from service.evaluation.loading import FILENAME, EvaluationBroken, generic_evaluation, load_evaluation
from service.evaluation.report import IN_PROCESS, THROUGH_HTTP, Report, Run
from service.evaluation.transport import Http, InProcess, Transport, hold
from service.graph import Signature, TensorSpec
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.repository import FoundModel, read_folder
from service.scripts import explain
from service.tasks import AnyTask, discover

Progress = Callable[[str, int], Callable[[int], None]]
"""Begins a progress bar, given what it shows and how much there is; returns what moves it on."""


@dataclass(frozen=True, slots=True)
class _Local:
    """A model on this machine, loaded."""

    found: FoundModel
    handle: ModelHandle
    subject: Subject

    @property
    def folder(self) -> Path:
        return self.found.folder_of(self.handle.ref.version)


def evaluate(
    model: str,
    data: Path,
    *,
    models: Path,
    progress: Progress,
    url: str | None = None,
    key: str = "",
    limit: int | None = None,
    tasks: Mapping[str, type[AnyTask]] | None = None,
) -> Report:
    """Evaluate a model on the data in a folder, in process, and through a running server where one is named.

    Args:
        model: `name` or `name@version`.
        data: what the evaluation reads.
        models: the model repository; with a server, the model need not be in it.
        progress: shows how far it is.
        url: `http://host:port`, `https://host:port` or `unix:PATH`.
        key: an API key of the server.
        limit: at most so many items of each kind.
        tasks: the tasks that exist; left out, the built-in ones and those of installed plug-ins.

    Raises:
        ValueError: the address is none of these.
        DataMissing: the data are not there.
        EvaluationFailed: no such model, it cannot be loaded, a question got no answer, or its `evaluate.py` is broken.
    """
    name, _, version = model.partition("@")
    server = Server(split_url(url), key) if url else None
    local = _load(models, name, version, discover() if tasks is None else tasks) if (models / name).is_dir() else None
    remote = _ask_server(server, name, version or (local.subject.version if local else "")) if server else None
    if local:
        subject = local.subject
    elif remote:
        subject = remote[0]
    else:
        there = [path.name for path in models.iterdir() if path.is_dir()] if models.is_dir() else []
        raise EvaluationFailed(str(ModelNotFound(name, available=sorted(there))))
    if local and remote and local.handle.digest != remote[1]:
        raise EvaluationFailed(
            f"{name}@{local.subject.version} of the server is another graph than the one in --models. Start the server "
            "with this repository, or leave --url out."
        )
    kind, file = _evaluation(local.found.path if local else None, subject.task)
    with _blamed(file):
        evaluation = kind(data, subject, limit)
        items = evaluation.items()
    if not items:
        raise DataMissing(data, "anything to ask about")
    runs = []
    ways: list[tuple[str, Transport]] = [(IN_PROCESS, InProcess(local.handle))] if local else []
    if server:
        ways.append((THROUGH_HTTP, Http(server, subject)))
    for way, transport in ways:
        begun = time.perf_counter()
        records, questions = _hold(items, transport, progress(way, sum(item.questions for item in items)), file)
        seconds = time.perf_counter() - begun
        with _blamed(file):
            runs.append(Run(way, evaluation.outcome(records), seconds, questions))
    measured = None
    if local:
        with _blamed(file):
            measured = facts(local.handle, local.folder, evaluation.timed(), evaluation.item)
    return Report(
        subject=subject,
        title=evaluation.title,
        command=_command(model, url, limit),
        runs=runs,
        facts=measured,
        claims=local.handle.claims.metrics if file and local else {},
        limit=limit,
    )


def _command(model: str, url: str | None, limit: int | None) -> str:
    """As anybody would type it: where data and server are is theirs to say."""
    return (
        f"gridloop evaluate {model} --data DIR"
        + (" --url URL" if url else "")
        + (f" --limit {limit}" if limit is not None else "")
    )


def _load(models: Path, name: str, version: str, tasks: Mapping[str, type[AnyTask]]) -> _Local:
    """A model of the repository: the version that was asked for, else the one that a server would choose."""
    found = read_folder((models / name).resolve(), tasks)
    if found.manifest is None:
        raise EvaluationFailed(found.problem or f"{name} cannot be loaded.")
    if found.manifest.task not in tasks:
        raise EvaluationFailed(f"{name}/manifest.toml: task {found.manifest.task!r} is not known.")
    if broken := found.broken.get(version) or (not found.versions and next(iter(found.broken.values()), None)):
        raise EvaluationFailed(broken)
    if version and version not in found.versions:
        there = [f"{name}@{each}" for each in found.versions]
        raise EvaluationFailed(str(ModelNotFound(f"{name}@{version}", available=there, what="version")))
    version = version or found.manifest.default_version or found.versions[-1]
    try:
        handle = load_version(found.path / version, found.manifest, tasks[found.manifest.task], LoadOptions())
    except ManifestInvalid as error:
        raise EvaluationFailed(str(error)) from error
    subject = Subject(name, version, found.manifest.task, handle.signature, found.path / version)
    return _Local(found, handle, subject)


def _ask_server(server: Server, name: str, version: str) -> tuple[Subject, str]:
    """A model as a server has it, and the digest of its graph."""
    try:
        told = server.model(name, version)
    except ClientFailed as error:
        raise EvaluationFailed(str(error)) from error
    version = version or told.get("default_version") or ""
    here = next((entry for entry in told.get("versions", []) if entry["version"] == version), None)
    if here is None or here["state"] != "ready":
        reason = (here or told).get("reason") or "the server has no such version"
        raise EvaluationFailed(f"{name}@{version} is not ready on the server: {reason}")

    def specs(side: str) -> dict[str, TensorSpec]:
        return {t["name"]: TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in told[side]}

    signature = Signature(specs("inputs"), specs("outputs"))
    return Subject(name, version, told["task"], signature), here["digest"]


def _evaluation(folder: Path | None, task: str) -> tuple[type[Evaluation], Path | None]:
    """The model's own evaluation with its file, else that of its task."""
    own = load_evaluation(folder) if folder else None
    if own and folder:
        return own, folder / FILENAME
    generic = generic_evaluation(task)
    if generic is None:
        raise EvaluationFailed(
            f"there is no evaluation for {task}: write evaluate.py into the model's folder (docs/evaluation.md)."
        )
    return generic, None


class _blamed:  # noqa: N801  # reads as a statement
    """Anything that goes wrong inside is the fault of a model's `evaluate.py`, if there is one, else of the data."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._file and isinstance(error, Exception) and not isinstance(error, EvaluationFailed):
            raise EvaluationBroken(f"{self._file.parent.name}/{FILENAME}", explain(error, self._file)) from error
        if isinstance(error, OSError):
            raise EvaluationFailed(str(error)) from error


def _hold(
    items: Sequence[Item], transport: Transport, advance: Callable[[int], None], file: Path | None
) -> tuple[list[Any], int]:
    """The records, and how many questions were asked."""
    counting = _Counting(transport)
    with _blamed(file):
        return asyncio.run(hold(items, counting, advance)), counting.asked


class _Counting:
    """A transport that counts the questions."""

    def __init__(self, transport: Transport) -> None:
        self._transport, self.conversations, self.asked = transport, transport.conversations, 0

    async def ask(self, question: Any) -> Any:
        self.asked += 1
        return await self._transport.ask(question)

    async def close(self) -> None:
        await self._transport.close()
