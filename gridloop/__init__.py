"""Gridloop's public names: what authors of tasks and embedders of the service may rely on.

    from gridloop import Run, Steps, Task, TaskInput, TaskOutput     # a task of your own
    from gridloop import Registry, Settings, create_app              # the service inside another program

Everything else below `service` may change from one version to the next. The names of the second line are imported when
they are first used, because a task should not have to load a web framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from service import __version__
from service.errors import InvalidInput, InvalidState, ManifestInvalid, ServiceError, TooLarge
from service.tasks.base import (
    Array,
    Limits,
    MediaAnswer,
    MediaInput,
    MediaTask,
    ModelFolder,
    ModelRef,
    Run,
    Signature,
    Steps,
    Task,
    TaskInput,
    TaskOptions,
    TaskOutput,
    TensorSpec,
    Upload,
)

if TYPE_CHECKING:
    from service.app import create_app
    from service.registry.registry import Registry
    from service.server import serve
    from service.settings import Settings

__all__ = [
    "Array",
    "InvalidInput",
    "InvalidState",
    "Limits",
    "ManifestInvalid",
    "MediaAnswer",
    "MediaInput",
    "MediaTask",
    "ModelFolder",
    "ModelRef",
    "Registry",
    "Run",
    "ServiceError",
    "Settings",
    "Signature",
    "Steps",
    "Task",
    "TaskInput",
    "TaskOptions",
    "TaskOutput",
    "TensorSpec",
    "TooLarge",
    "Upload",
    "__version__",
    "create_app",
    "serve",
]

_LATER = {
    "Registry": "service.registry.registry",
    "Settings": "service.settings",
    "create_app": "service.app",
    "serve": "service.server",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
