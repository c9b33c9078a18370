"""The tasks. A new one is a module in this folder: nothing else has to be told.

`discover()` finds every `Task` subclass in the modules here, those that other distributions offer under the entry point
group `gridloop.tasks`, and those in the files of a folder that the setting `GRIDLOOP_TASKS` names.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel

from service import schemas
from service.errors import TaskUnusable
from service.schemas.names import refuse_shared_names
from service.scripts import explain, load_script
from service.tasks.base import LAST_EVENTS, MediaInput, Task
from service.tasks.validation import Validation

AnyTask = Task[Any, Any]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def discover(folder: Path | None = None) -> dict[str, type[AnyTask]]:
    """Every task by name, sorted: built-in ones, those of installed plug-ins, and those of a folder of files.

    Args:
        folder: with task files, `*.py`; those that begin with `_` are for the others to share.

    Raises:
        TaskUnusable: a file cannot be run, a task's declaration makes no sense, or two tasks have one name.
    """
    found: dict[str, type[AnyTask]] = {}
    for task in (*_built_in(), *_installed(), *(_in_files(folder) if folder else ())):
        _check_declaration(task)
        first = found.setdefault(task.name, task)
        if first is not task:
            raise TaskUnusable(
                _place(task),
                f"task {task.name!r} is there already, in {_place(first)}. Give this one another `name`: it is the "
                f"endpoint, POST /v1/{task.name}",
            )
    return dict(sorted(found.items()))


def _built_in() -> Iterator[type[AnyTask]]:
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        yield from _tasks_of(importlib.import_module(module.name))


def _installed() -> Iterator[type[AnyTask]]:
    for plugin in sorted(entry_points(group="gridloop.tasks"), key=lambda plugin: plugin.name):
        yield plugin.load()


def _in_files(folder: Path) -> Iterator[type[AnyTask]]:
    if not folder.is_dir():
        raise TaskUnusable("GRIDLOOP_TASKS", f"{folder} is no folder")
    for file in sorted(folder.glob("*.py")):
        if file.name.startswith("_"):
            continue
        try:
            module = load_script(file)
        except Exception as error:  # it is somebody's own file: anything may go wrong in it
            raise TaskUnusable(file.name, explain(error, file)) from error
        tasks = list(_tasks_of(module))
        if not tasks:
            raise TaskUnusable(file.name, "defines no task, which would be a class derived from Task with a `steps`")
        yield from tasks


def _tasks_of(module: ModuleType) -> Iterator[type[AnyTask]]:
    """The tasks that a module defines: those that it imports are another's, and abstract ones are bases."""
    classes = [m for m in vars(module).values() if inspect.isclass(m) and m.__module__ == module.__name__]
    yield from (kind for kind in classes if issubclass(kind, Task) and not inspect.isabstract(kind))


def _place(task: type[AnyTask]) -> str:
    return f"{task.__module__}.{task.__qualname__}"


def _check_declaration(task: type[AnyTask]) -> None:
    """See that what is made of a task's declaration can be made.

    Raises:
        TaskUnusable: a part of it is missing, or fits no other part.
    """
    missing = [name for name in ("name", "summary", "Input", "Output") if not hasattr(task, name)]
    if missing:
        raise TaskUnusable(_place(task), f"declares no {' and no '.join(missing)}")
    if not _NAME.fullmatch(task.name):
        raise TaskUnusable(_place(task), f"name {task.name!r} must be lower-case letters, digits and single hyphens")
    fields = task.Input.model_fields
    formats = get_args(fields["format"].annotation) if "format" in fields else ()
    if unknown := sorted(set(task.other_answers) - set(formats)):
        raise TaskUnusable(
            _place(task),
            f"other_answers has {unknown[0]!r}, which the input's field `format` does not allow. Declare "
            f"`format: Literal['json', {unknown[0]!r}] = 'json'` there",
        )
    if task.other_answers and fields["format"].default in task.other_answers:
        raise TaskUnusable(
            _place(task), "the default of `format` must mean JSON, which is what other_answers leaves out"
        )

    if wrong := [name for name in task.events if name in LAST_EVENTS or not _NAME.fullmatch(name)]:
        raise TaskUnusable(
            _place(task),
            f"events has {wrong[0]!r}: a name must be lower-case letters, digits and single hyphens, and not "
            f"{' or '.join(LAST_EVENTS)}, which end every stream",
        )


def check_type_names(tasks: Mapping[str, type[AnyTask]]) -> None:
    """Check that no two types that callers see share a name, those of the service's other answers included.

    Raises:
        NameTaken: two do; a plug-in's is the one to be renamed.
    """
    owners: dict[str, list[type[BaseModel]]] = {"the service": [*_service_types(), Validation]}
    for name, task in sorted(tasks.items(), key=lambda item: not item[1].__module__.startswith(f"{__name__}.")):
        # The fields of a media input are query parameters: it has no schema of its own.
        inputs = [] if issubclass(task.Input, MediaInput) else [task.Input]
        owners[f"task {name!r}"] = [*inputs, task.Output, *task.events.values()]
    refuse_shared_names(owners)


def _service_types() -> list[type[BaseModel]]:
    names = [module.name for module in pkgutil.iter_modules(schemas.__path__, prefix=f"{schemas.__name__}.")]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    return [m for m in members if inspect.isclass(m) and issubclass(m, BaseModel) and m is not BaseModel]
