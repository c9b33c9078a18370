"""`gridloop models`: a repository's models, each loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson
from rich.table import Table
from rich.text import Text

from service.cli.console import out
from service.cli.options import AS_JSON, MODELS, TASKS, find_tasks, load, make_settings, open_registry

if TYPE_CHECKING:
    from service.registry.model import Model
    from service.registry.registry import Registry


@click.command(name="models")
@MODELS
@TASKS
@AS_JSON
def models_command(models: Path, task_folder: Path | None, as_json: bool) -> None:
    """List the models of a repository, loading each. Exit code 1 when a version of one cannot be served."""
    registry = load(open_registry(models, find_tasks(task_folder)))
    failures = _failures(registry)
    if as_json:
        from service.api.address import Address
        from service.api.models import describe

        address = Address.configured(make_settings({}))
        click.echo(orjson.dumps([describe(model, registry, address).model_dump() for model in registry]))
    else:
        drawn = Table(box=None)
        for column in ("model", "version", "task", "state", "size", "claims"):
            drawn.add_column(column, overflow="fold")
        for model in registry:
            _add_rows(drawn, model)
        out.print(drawn)
        for name, reason in failures.items():
            out.print(Text.assemble((name, "red"), " ", reason), soft_wrap=True)
    sys.exit(1 if failures else 0)


def _failures(registry: Registry) -> dict[str, str]:
    """What cannot be served, by `name` or `name@version`, and why."""
    found: dict[str, str] = {}
    for model in registry:
        if model.problem:
            found[model.name] = model.problem
            continue
        broken = [version for version in model.versions.values() if version.state != "ready"]
        found |= {f"{model.name}@{version.name}": version.reason or version.state for version in broken}
    return found


def _add_rows(drawn: Table, model: Model) -> None:
    task = model.manifest.task if model.manifest else "?"
    for version in model.versions.values():
        state = Text(version.state, style="green" if version.state == "ready" else "red")
        size = f"{version.handle.size_bytes / 1e6:.1f} MB" if version.handle else "-"
        metrics = version.handle.claims.metrics if version.handle else {}
        claim = next((f"{name} {value:g}" for name, value in metrics.items()), "")
        drawn.add_row(model.name, version.name, task, state, size, claim)
    if not model.versions:
        drawn.add_row(model.name, "-", task, Text("failed", style="red"), "-", "")
