"""The tasks. A new one is a module in this folder: nothing else has to be told.

`discover()` finds every `Task` subclass in the modules here, and those that other distributions offer under the entry
point group `gridloop.tasks`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from service.tasks.base import Task

AnyTask = Task[Any, Any]


def discover() -> dict[str, type[AnyTask]]:
    """Every task by name: built-in modules first, then installed plug-ins; sorted by name."""
    found: list[type[AnyTask]] = []
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        members = vars(importlib.import_module(module.name)).values()
        found += [m for m in members if inspect.isclass(m) and issubclass(m, Task) and not inspect.isabstract(m)]
    found += [plugin.load() for plugin in entry_points(group="gridloop.tasks")]
    return {task.name: task for task in sorted(found, key=lambda task: task.name)}
