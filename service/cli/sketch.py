"""`gridloop sketch`: what a version's answers are like on data that it was meant for, kept beside its graph."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import click
import orjson

from service.cli.console import err, no_log_lines
from service.cli.options import AS_JSON, MODELS, TASKS, find_tasks
from service.errors import ServiceError

BLOCK_ROWS = 256


@click.command(name="sketch")
@click.argument("source", metavar="IN", type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True, help="`name` or `name@version`.")
@click.option("--most", type=click.IntRange(1), default=20_000, show_default=True, help="Rows that are read.")
@MODELS
@TASKS
@AS_JSON
def sketch_command(source: Path, model: str, most: int, models: Path, task_folder: Path | None, as_json: bool) -> None:
    """Answer IN, as `gridloop batch` reads it, and keep what the answers are like in the version's sketch.json.

    The server compares its answers with it (`gridloop_drift_index`). IN should be like what will be asked: the model's
    test data, or a week of requests that were fine.
    """
    from service.batch.answering import answer_traits, open_model
    from service.batch.rows import blocks, read_rows
    from service.cli import choice
    from service.registry.drift import sketched, write_sketch
    from service.registry.registry import Registry

    no_log_lines()
    tasks = find_tasks(task_folder)
    try:
        task = choice.of_model(Registry(models, tasks=tasks), model)
        with err.status("loading the model"):
            handle = open_model(models, task.name, model, tasks)
        rows = itertools.islice(read_rows(source, task), most)
        with err.status("answering"):
            answers = [
                traits for block in blocks(rows, BLOCK_ROWS) for traits in asyncio.run(answer_traits(handle, block))
            ]
    except ServiceError as error:
        raise click.UsageError(str(error)) from None
    if not any(answers):
        raise click.ClickException(f"{task.name} tells no traits of its answers, or no row could be answered.")
    sketch = sketched(traits for traits in answers if traits)
    try:
        path = write_sketch(handle.task.folder.path, sketch)
    except OSError as error:
        raise click.ClickException(f"the sketch cannot be written: {error.strerror or error}.") from None
    if as_json:
        click.echo(orjson.dumps({"model": handle.name, **sketch.model_dump()}))
    else:
        err.print(f"{sketch.observations} answers of {handle.name}, {', '.join(sketch.traits)}: {path}", style="dim")
