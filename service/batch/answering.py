"""Blocks of rows answered by one model: batched with each other, each with its own answer or error.

`answer_block` is a function of a handle and rows and of nothing else, so that whatever distributes blocks can map it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from service.batch.rows import FILE, InputUnusable, Row
from service.errors import InvalidInput, ServiceError, ValidationFailed, as_sentence
from service.graph import Steps
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.registry import Registry
from service.tasks import AnyTask
from service.tasks.base import MediaAnswer, TaskInput, Upload

PATIENCE_S = 3600.0
"""Time for one answer (seconds)."""
BATCHES_AT_ONCE = 4
"""Full batches that are asked for at a time: one runs, the others are decoded or encoded meanwhile (count)."""


def open_model(models: Path, task: str, model: str | None, tasks: dict[str, type[AnyTask]]) -> ModelHandle:
    """Load the model that is to answer, and no other task's.

    Args:
        models: the repository.
        task: what is asked.
        model: `name` or `name@version`; None: the task's default.
        tasks: that there are.

    Raises:
        ServiceError: it is not there, or cannot be loaded.
    """
    registry = Registry(models, LoadOptions(tune=True), tasks)
    registry.load(task)
    return registry.resolve(task, model)


def answer_block(handle: ModelHandle, rows: Sequence[Row], fields: Mapping[str, Any] | None = None) -> list[bytes]:
    """Answer rows, batched with each other.

    Args:
        handle: the model.
        rows: to be answered.
        fields: of the task's input, for every row that does not give them itself.

    Returns:
        A JSON object for each row, in their order: `{"row": 3, "output": {…}}`, or `{"row": 3, "error": {"type": …,
        "detail": …}}`; with `file` where the row is about one.
    """
    return asyncio.run(_answer(handle, rows, fields or {}))


async def _answer(handle: ModelHandle, rows: Sequence[Row], fields: Mapping[str, Any]) -> list[bytes]:
    room = asyncio.Semaphore(handle.tuning.max_batch_size * BATCHES_AT_ONCE)

    async def one(row: Row) -> bytes:
        async with room:
            about = {"row": row.number} | ({FILE: row.file.name} if row.file is not None else {})
            try:
                request = _request(handle.task, row, fields)
                done = await handle.predict(request, timeout_s=PATIENCE_S)
                value = done.value if isinstance(done.value, bytes) else done.value.to_json()
                return orjson.dumps({**about, "output": orjson.Fragment(value)})
            except ServiceError as error:
                problem = {"type": error.type, "detail": as_sentence(error)}
            except ValidationError as error:
                problem = {"type": f"/problems/{ValidationFailed.slug}", "detail": as_sentence(error)}
            except Exception as error:  # a bug in a task: the other rows go on
                problem = {"type": f"/problems/{ServiceError.slug}", "detail": as_sentence(f"{error!r:.300}")}
            return orjson.dumps({**about, "error": problem})

    return await asyncio.gather(*(one(row) for row in rows))


async def answer_traits(handle: ModelHandle, rows: Sequence[Row]) -> list[list[tuple[str, str | float]]]:
    """What the answers to rows are like, for a sketch; nothing of one that cannot be answered."""
    room = asyncio.Semaphore(handle.tuning.max_batch_size * BATCHES_AT_ONCE)

    def steps(request: TaskInput) -> Steps[list[tuple[str, str | float]]]:
        output = yield from handle.task.steps(request)
        return [] if isinstance(output, MediaAnswer) else list(handle.task.traits(request, output))

    async def one(row: Row) -> list[tuple[str, str | float]]:
        async with room:
            try:
                request = _request(handle.task, row, {})
                done = await handle.batcher.submit(steps(request), rows=request.rows, timeout_s=PATIENCE_S)
            except (ServiceError, ValidationError):
                return []
            return done.value

    return await asyncio.gather(*(one(row) for row in rows))


def _request(task: AnyTask, row: Row, fields: Mapping[str, Any]) -> TaskInput:
    """What a row asks.

    Raises:
        ServiceError: its file cannot be read.
        ValidationError: its fields are not the task's.
    """
    if row.problem is not None:
        raise InvalidInput(row.problem)
    if "model" in row.fields:
        raise InvalidInput("`model`: one model answers all rows; leave it out, and name the model with --model.")
    given = {**fields, **row.fields}
    if row.file is not None:
        try:
            given["files"] = (Upload(row.file.read_bytes(), filename=row.file.name),)
        except OSError as error:
            raise InvalidInput(f"{row.file.name} cannot be read: {error.strerror or error}.") from None
    request: TaskInput = task.Input.model_validate(given)
    return request


def check_fields(task: type[AnyTask], fields: Mapping[str, Any]) -> None:
    """See that fields for every row are the task's.

    Raises:
        InputUnusable: one is not.
    """
    known = task.Input.model_fields.keys() - {"files", "model"}
    if unknown := sorted(fields.keys() - known):
        raise InputUnusable(f"{task.name} has no field {unknown[0]!r}: {', '.join(sorted(known))}.")
