"""`gridloop evaluate`: a model's official evaluation, in process and through a server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson
from rich.text import Text

from service.cli.console import err, no_log_lines, out, table
from service.cli.options import AS_JSON, MODELS, TASKS, find_tasks, first_api_key
from service.errors import ManifestInvalid

if TYPE_CHECKING:
    from service.evaluation.report import Report
    from service.evaluation.runner import Progress


@click.command(name="evaluate")
@click.argument("name")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the labelled data that the evaluation reads.",
)
@click.option(
    "--url",
    help="A running server, `http://host:port`, `https://…` or `unix:PATH`: asked as well, and the figures must agree.",
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many items of each kind, for a quick look.")
@click.option("--write", is_flag=True, help="Put the table and plots into the model's card.")
@MODELS
@TASKS
@AS_JSON
def evaluate_command(
    name: str,
    data: Path,
    url: str | None,
    limit: int | None,
    write: bool,
    models: Path,
    task_folder: Path | None,
    as_json: bool,
) -> None:
    """Run the official evaluation of a model NAME (`name` or `name@version`): figures with 95 % intervals.

    In this process, and with --url through a running server as well. Exit code 1 when the model or its evaluate.py
    cannot be used, the two ways do not agree, or the manifest claims what was not measured; 2 when the data are not
    there. A server with API keys is asked with the first one in GRIDLOOP_API_KEYS.
    """
    from service.client.http import DEFAULT_URL, split_url
    from service.evaluation import DataMissing, EvaluationFailed
    from service.evaluation.runner import evaluate
    from service.registry.repository import check_repository

    folder = models / name.partition("@")[0]
    try:
        split_url(url or DEFAULT_URL)
        if url is None:
            check_repository(models)
    except (ValueError, ManifestInvalid) as error:
        raise click.UsageError(str(error)) from None
    if write and limit is not None:
        raise click.UsageError("--limit is for a quick look: what is written to the card is measured on all data.")
    if write and not folder.is_dir():
        raise click.UsageError(f"--write needs the model's folder, and {models} has no {folder.name}.")
    if write:
        try:
            import service.evaluation.plots  # noqa: F401  # before anything is measured
        except ImportError:
            raise click.UsageError("--write draws plots: pip install 'gridloop[evaluate]'.") from None
    no_log_lines()
    tasks = find_tasks(task_folder)
    try:
        with _progress_bars() as progress:
            report = evaluate(
                name,
                data,
                models=models,
                progress=progress,
                url=url,
                key=first_api_key(),
                limit=limit,
                tasks=tasks,
            )
        if write:
            from service.evaluation import card

            for path in card.write(report, folder):
                err.print(f"written: {path}", style="dim")
    except DataMissing as error:
        raise click.UsageError(str(error)) from None
    except EvaluationFailed as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(orjson.dumps(report.as_json()))
    else:
        _print_report(report)
    for sentence in report.wrong:
        err.print(Text.assemble(("wrong", "red"), " ", sentence), soft_wrap=True)
    sys.exit(1 if report.wrong else 0)


@contextmanager
def _progress_bars() -> Iterator[Progress]:
    """One progress bar after another on stderr, gone when they are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    shape = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*shape, console=err, transient=True) as bars:

        def begin(what: str, total: int) -> Callable[[int], None]:
            bar = bars.add_task(what, total=total)
            return lambda count: bars.advance(bar, count)

        yield begin


def _print_report(report: Report) -> None:
    out.print(report.title, style="bold")
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = [("", report.columns, report.rows())]
    tables += [(breakdown.title, breakdown.columns, breakdown.rows) for breakdown in report.outcome.breakdowns]
    for title, columns, rows in tables:
        drawn = table(*columns, title=title)
        for row in rows:
            drawn.add_row(*row)
        out.print(drawn)
    for line in [*report.facts_lines(), *report.outcome.notes]:
        out.print(f"· {line}")
