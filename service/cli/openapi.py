"""`gridloop openapi`: the OpenAPI document, which depends on the tasks alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import orjson

from service.cli.options import TASKS, find_tasks


@click.command(name="openapi")
@TASKS
def openapi_command(task_folder: Path | None) -> None:
    """Print the OpenAPI document of the service."""
    find_tasks(task_folder)  # said as wrong usage where one cannot be used
    from service.app import create_app
    from service.settings import Settings

    with tempfile.TemporaryDirectory() as empty:  # the document depends on the tasks, not on the models
        document = create_app(Settings(models=Path(empty), workers=1, tasks=task_folder)).app.openapi()
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))
