"""`gridloop advise`: which kind of network, task and served model fit some files, with what was measured."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from service.cli.console import err, no_log_lines, out, table
from service.cli.options import AS_JSON, MODELS, TASKS, find_tasks
from service.errors import ManifestInvalid

if TYPE_CHECKING:
    from service.cli.advice import Advice, Seen


@click.command(name="advise")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@MODELS
@TASKS
@AS_JSON
def advise_command(files: tuple[Path, ...], models: Path, task_folder: Path | None, as_json: bool) -> None:
    """Say which kind of network, which tasks and models fit FILES: a folder of pictures, a CSV, a text, a recording.

    With the reason and what was measured; nothing is run on the files. Exit code 1 when no task takes any of them.
    """
    from service.cli import advice
    from service.registry.repository import scan

    no_log_lines()
    tasks = find_tasks(task_folder)
    try:
        found = scan(models, tasks)
    except ManifestInvalid as error:
        raise click.UsageError(str(error)) from None
    every = advice.files_of(files)
    step = max(1, -(-len(every) // advice.MOST_OPENED))
    seen = [advice.look(file, tasks) for file in every[::step]]
    measured = advice.evidence()
    given = list(advice.advise(seen, found, tasks, measured, len(every)))
    unread = [one for one in seen if not one.domain]
    if as_json:
        click.echo(orjson.dumps(_document(given, unread, measured)))
    else:
        for one in given:
            _print(one)
        if given:
            runtime = f"one thread of ONNX Runtime {measured['onnxruntime']}"
            out.print(f"Measured on {measured['processor']}, {runtime}, {measured['date']}.", soft_wrap=True)
    for other in unread:
        err.print(f"{other.file}: {other.why}", style="dim", soft_wrap=True)
    if not given:
        err.print("No task takes these files.", style="red")
    sys.exit(0 if given else 1)


def _document(given: Sequence[Advice], unread: Sequence[Seen], measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "advice": [dataclasses.asdict(one) for one in given],
        "not_taken": [{"file": str(one.file), "why": one.why} for one in unread],
        "measured": {name: measured[name] for name in ("date", "processor", "onnxruntime")},
    }


def _print(one: Advice) -> None:
    facts = ", ".join(f"{name} {value:g}" for name, value in one.facts.items())
    more = " in the median" if one.files > 1 else ""
    out.print(f"{one.domain}: {one.files} file{'s' if one.files != 1 else ''}, {facts}{more}", style="bold")
    out.print(f"kind of network: {one.kind.upper() if one.kind else 'no difference shown'}")
    for sentence in one.reason:
        out.print(f"· {sentence}", soft_wrap=True)
    drawn = table("task", "model", "kind", "ms a request", "claims", "")
    for suggestion in one.suggestions:
        claim = suggestion.claim
        drawn.add_row(
            suggestion.task,
            f"{suggestion.model}@{suggestion.version}",
            suggestion.architecture.upper() if suggestion.architecture in ("cnn", "rnn") else suggestion.architecture,
            "" if suggestion.ms is None else f"{suggestion.ms:.3g}",
            "" if claim is None else f"{claim['name']} {claim['value']:g}",
            "default" if suggestion.default else "",
        )
    out.print(drawn)
    for command in one.commands.values():
        out.print(f"  {command}", soft_wrap=True)
    out.print("")
