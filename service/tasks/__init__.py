"""The tasks. A new one is a module in this folder: nothing else has to be told.

`discover()` finds every `Task` subclass in the modules here, and those that other distributions offer under the entry
point group `gridloop.tasks`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel

from service import schemas
from service.schemas.names import refuse_shared_names
from service.tasks.base import MediaInput, Task

AnyTask = Task[Any, Any]


def discover() -> dict[str, type[AnyTask]]:
    """Every task by name: built-in modules first, then installed plug-ins; sorted by name."""
    found: list[type[AnyTask]] = []
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        members = vars(importlib.import_module(module.name)).values()
        found += [m for m in members if inspect.isclass(m) and issubclass(m, Task) and not inspect.isabstract(m)]
    found += [plugin.load() for plugin in entry_points(group="gridloop.tasks")]
    return {task.name: task for task in sorted(found, key=lambda task: task.name)}


def check_type_names(tasks: Mapping[str, type[AnyTask]]) -> None:
    """Check that no two types that callers see share a name, those of the service's other answers included.

    Raises:
        NameTaken: two do; a plug-in's is the one to be renamed.
    """
    owners: dict[str, list[type[BaseModel]]] = {"the service": _service_types()}
    for name, task in sorted(tasks.items(), key=lambda item: not item[1].__module__.startswith(f"{__name__}.")):
        # The fields of a media input are query parameters: it has no schema of its own.
        owners[f"task {name!r}"] = [task.Output] if issubclass(task.Input, MediaInput) else [task.Input, task.Output]
    refuse_shared_names(owners)


def _service_types() -> list[type[BaseModel]]:
    names = [module.name for module in pkgutil.iter_modules(schemas.__path__, prefix=f"{schemas.__name__}.")]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    return [m for m in members if inspect.isclass(m) and issubclass(m, BaseModel) and m is not BaseModel]
