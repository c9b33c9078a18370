"""Read by mypy only: what an author of tasks and an embedder of the service may rely on, with its types."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from fastapi import FastAPI

from gridloop import (
    ModelFolder,
    Registry,
    Run,
    Settings,
    Steps,
    Task,
    TaskInput,
    TaskOptions,
    TaskOutput,
    __version__,
    create_app,
)
from service.registry.handle import ModelHandle
from service.tasks import AnyTask, discover


class EchoInput(TaskInput):
    """A request type of somebody else's."""

    number: float


class EchoOutput(TaskOutput):
    """An answer type of somebody else's."""

    number: float


class EchoOptions(TaskOptions):
    """Keys of somebody else's manifest."""

    gain: float = 1.0


class Echo(Task[EchoInput, EchoOutput]):
    """A task of somebody else's."""

    name = "echo"
    summary = "What was that?"
    Input = EchoInput
    Output = EchoOutput
    Options = EchoOptions
    options: EchoOptions

    def steps(self, request: EchoInput) -> Steps[EchoOutput]:
        outputs = yield Run({})
        assert_type(self.folder, ModelFolder)
        assert_type(self.options.gain, float)
        return EchoOutput(model=self.folder.ref, number=float(outputs["y"][0]))


def embed(models: Path) -> None:
    """The application inside another program."""
    app = create_app(Settings(models=models), tasks={"echo": Echo})
    assert_type(app.app, FastAPI)
    registry = Registry(models)
    registry.load()
    assert_type(registry.resolve("echo", None), ModelHandle)
    assert_type(discover(), dict[str, type[AnyTask]])
    assert_type(__version__, str)
