"""`gridloop check`: one model folder, looked at as if it were to be served."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import orjson
from rich.text import Text

from service.cli.console import no_log_lines, out
from service.cli.options import AS_JSON, TASKS, find_tasks


@click.command(name="check")
@click.argument("folder", type=click.Path(path_type=Path))
@TASKS
@AS_JSON
def check_command(folder: Path, task_folder: Path | None, as_json: bool) -> None:
    """Check a model FOLDER: manifest, graph, golden samples, card.

    Exit code 1 when it, or a version of it, could not be served. What would be better done is a hint.
    """
    from service.registry.check import check_folder

    if not folder.is_dir():
        raise click.UsageError(f"{folder} is not a folder.")
    no_log_lines()
    findings = check_folder(folder, find_tasks(task_folder))
    good = all(finding.ok for finding in findings)
    if as_json:
        click.echo(orjson.dumps({"folder": folder.name, "ok": good, "findings": findings}))
    else:
        for finding in findings:
            verdict, style = (
                ("wrong", "red") if not finding.ok else ("hint", "yellow") if finding.hint else ("ok", "green")
            )
            out.print(Text.assemble((f"{verdict:<5}", style), " ", finding.what))
            if finding.detail:
                out.print(f"      {finding.detail}", style="dim" if verdict == "ok" else "", soft_wrap=True)
    sys.exit(0 if good else 1)
