"""Validation: how a request would be read, found by answering it as far as its first run.

What is refused on the way is refused as the request itself would be, by the same code. Beside the tensors of that run,
which every task has, a task tells what it understood (`Task.understood`, `MediaTask.understood_file`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from service.errors import InvalidInput, TooLarge, UnsupportedMedia
from service.graph import Run, Steps, next_run
from service.tasks.base import Fact, FileProblem, MediaInput, MediaTask, Task, TaskInput, TaskOutput, Understood
from service.tasks.picture import MOST_SEEN_PIXELS

MOST_SHOWN = 256
"""Longer lists and texts of a request are not told back, only how long they are (entries, characters)."""


class ValidatedFile(BaseModel):
    """A file of a request, as it is understood."""

    filename: str | None = Field(description="As sent with the part.", examples=["cat.jpg"])
    size_bytes: int = Field(description="Of the file.", examples=[2480])
    facts: dict[str, Fact] = Field(
        description="What it is; empty where it cannot be used.",
        examples=[{"format": "JPEG", "width": 640, "height": 480, "orientation": 1}],
    )
    error: FileProblem | None = Field(description="Why it cannot be used; null where it can.", examples=[None])
    seen: str | None = Field(
        description="Of a picture, what the model is shown: the pixels of the first run as PNG, in base64; upright, "
        "resized, cut out or framed, grey where the model takes grey, not yet normalised. Null for other files, and "
        f"from the file on with which they would be more than {MOST_SEEN_PIXELS:,} pixels in all.",
        examples=["iVBORw0KGgo…"],
    )


class ValidatedLimit(BaseModel):
    """A limit of the server, and how much of it is used."""

    setting: str = Field(description="That sets it.", examples=["GRIDLOOP_MAX_SERIES_POINTS"])
    limit: float = Field(description="The most that is taken.", examples=[100000])
    used: float = Field(description="By this request; of several files, by the largest.", examples=[14])
    left: float = Field(description="How much more it might have.", examples=[99986])


class ValidatedTensor(BaseModel):
    """An input of the graph."""

    name: str = Field(description="In the graph.", examples=["values"])
    dtype: str = Field(description="As NumPy calls it.", examples=["float64"])
    shape: list[int] = Field(description="The batch first.", examples=[[1, 14]])


class ValidatedRun(BaseModel):
    """What would be run first."""

    graph: str = Field(description="Name of the graph, of those of the version.", examples=["model"])
    inputs: list[ValidatedTensor] = Field(description="As the graph takes them.")


class Validation(TaskOutput):
    """How a request would be read; `model` is who would answer it."""

    fields: dict[str, Any] = Field(
        description=f"The fields with their defaults filled in, but for lists and texts longer than {MOST_SHOWN}.",
        examples=[{"sensitivity": 0.5, "timestamps": None, "state": None}],
    )
    lengths: dict[str, int] = Field(
        description="Entries of each list and characters of each text.", examples=[{"values": 14}]
    )
    facts: dict[str, Fact] = Field(
        description="What the task understood; which facts there are, its page says.",
        examples=[{"points": 14, "missing": 1, "step_s": 3600.0}],
    )
    files: list[ValidatedFile] | None = Field(description="In the order sent; null for tasks that take none.")
    rows: int = Field(description="Rows that it would need at once, of those that may wait.", examples=[1])
    limits: list[ValidatedLimit] = Field(description="The limits that it is measured by.")
    first_run: ValidatedRun | None = Field(description="Null where nothing needs to be run.")


def validation(task: Task[Any, Any], request: TaskInput) -> Steps[Validation]:
    """The steps that validate a request: they run nothing.

    Raises:
        ServiceError: what `task.steps` raises before its first run.
    """
    steps = task.steps(request)
    try:
        run = next_run(steps, None)
    except StopIteration:
        run = None
    finally:
        steps.close()
    understood = task.understood(request)
    used, files = dict(understood.used), None
    if isinstance(task, MediaTask) and isinstance(request, MediaInput):
        files = []
        for place in range(len(request.files)):
            file, more = _file(task, request, place)
            files.append(file)
            used.update({name: max(amount, used.get(name, 0.0)) for name, amount in more.items()})
        usable = (file for file in files if file.error is None)
        for file, png in zip(usable, task.seen(run) if run else (), strict=False):
            file.seen = base64.b64encode(png).decode()
    fields = request.model_dump(mode="json", exclude={"files", "model"})
    lengths = {name: len(value) for name, value in fields.items() if isinstance(value, str | list)}
    yield from ()  # which makes these the steps of a request
    return Validation(
        model=task.folder.ref,
        fields={name: value for name, value in fields.items() if lengths.get(name, 0) <= MOST_SHOWN},
        lengths=lengths,
        facts=dict(understood.facts),
        files=files,
        rows=request.rows,
        limits=_limits(task, used),
        first_run=None if run is None else _run(task, run),
    )


def _file(task: MediaTask[Any, Any, Any], request: MediaInput, place: int) -> tuple[ValidatedFile, Mapping[str, float]]:
    file, error, understood = request.files[place], None, Understood()
    try:
        if len(request.files) > 1:  # the steps have read the only one
            task.decode_file(file, task.name_of(file, place))
        understood = task.understood_file(file)
    except (InvalidInput, TooLarge, UnsupportedMedia) as problem:
        error = FileProblem(type=problem.type, detail=str(problem))
    told = ValidatedFile(
        filename=file.filename, size_bytes=len(file.data), facts=dict(understood.facts), error=error, seen=None
    )
    return told, understood.used


def _limits(task: Task[Any, Any], used: Mapping[str, float]) -> list[ValidatedLimit]:
    limits = [(name, float(getattr(task.folder.limits, name)), amount) for name, amount in used.items()]
    return [
        ValidatedLimit(setting=f"GRIDLOOP_{name.upper()}", limit=most, used=amount, left=most - amount)
        for name, most, amount in limits
    ]


def _run(task: Task[Any, Any], run: Run) -> ValidatedRun:
    tensors = task.prepare(run.tensors)
    return ValidatedRun(
        graph=run.graph or next(iter(task.folder.signatures)),
        inputs=[
            ValidatedTensor(name=name, dtype=str(array.dtype), shape=list(array.shape))
            for name, array in tensors.items()
        ],
    )
