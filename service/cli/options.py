"""Options that several commands have, and what is made of them before anything else: settings, tasks, models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from service.cli.console import err, no_log_lines
from service.errors import ServiceError, TaskUnusable

if TYPE_CHECKING:  # these take a second to import: `--help` should not wait for them
    from service.registry.registry import Registry
    from service.settings import Settings
    from service.tasks import AnyTask


def _located(context: click.Context, parameter: click.Parameter, models: Path) -> Path:
    from service.registry.installed import located

    try:
        return located(models)
    except ServiceError as error:
        raise click.UsageError(str(error)) from None


MODELS = click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("models"),
    callback=_located,
    envvar="GRIDLOOP_MODELS",
    show_default=True,
    help="The model repository: one folder per model, or the URL of one. Where there is none, an installed one.",
)
TASKS = click.option(
    "--tasks",
    "task_folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="GRIDLOOP_TASKS",
    help="Folder of more tasks, one Python file each, which are run.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else there.")


def make_settings(given: dict[str, Any]) -> Settings:
    """The settings, from what is given and the environment; one that makes no sense is wrong usage."""
    from service.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(f"GRIDLOOP_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise click.UsageError(problems) from None


def first_api_key() -> str:
    """The key with which a server is asked; empty where there is none."""
    return os.environ.get("GRIDLOOP_API_KEYS", "").partition(",")[0].strip()


def find_tasks(folder: Path | None) -> dict[str, type[AnyTask]]:
    """All tasks there are; one that cannot be used is wrong usage."""
    from service.tasks import discover

    try:
        return discover(folder)
    except TaskUnusable as error:
        raise click.UsageError(str(error)) from None


def open_registry(models: Path, tasks: dict[str, type[AnyTask]]) -> Registry:
    """A repository with nothing loaded yet; one that is not there is wrong usage."""
    from service.registry.registry import Registry

    no_log_lines()
    try:
        return Registry(models, tasks=tasks)
    except ServiceError as error:
        raise click.UsageError(str(error)) from None


def load(registry: Registry, task: str | None = None) -> Registry:
    """All models, or only those of one task, loaded."""
    with err.status("loading models"):
        registry.load(task)
    return registry
