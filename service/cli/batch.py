"""`gridloop batch`: answer a whole file or folder of inputs in this machine's processes, without a server."""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from service.cli.console import err, no_log_lines
from service.cli.options import AS_JSON, MODELS, TASKS, find_tasks, make_settings
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.batch.rows import Row
    from service.registry.handle import ModelHandle
    from service.tasks import AnyTask

BLOCKS_AHEAD = 2
"""Blocks that wait for each process (count)."""


@click.command(name="batch")
@click.argument("source", metavar="IN", type=click.Path(exists=True, path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--task", help="What is asked; left out: what --model serves.")
@click.option("--model", help="`name` or `name@version`; left out: the task's default model.")
@click.option("--set", "given", metavar="FIELD=VALUE", multiple=True, help="A field for every row; may be repeated.")
@click.option("--workers", type=click.IntRange(0, 128), default=0, help="Processes; 0: one for each core.")
@click.option("--resume", is_flag=True, help="Go on after a stop: keep the answers in OUT.part.")
@click.option("--ray", metavar="ADDRESS", help="Answer on this Ray cluster, into a folder of Parquet; local: here.")
@MODELS
@TASKS
@AS_JSON
def batch_command(
    source: Path,
    target: Path,
    task: str | None,
    model: str | None,
    given: tuple[str, ...],
    workers: int,
    resume: bool,
    ray: str | None,
    models: Path,
    task_folder: Path | None,
    as_json: bool,
) -> None:
    """Answer every row of IN, a .jsonl, .csv or .parquet file or a folder of files, into OUT.

    A row has the fields of the task's input; for tasks that take files, `file` names one, beside IN. OUT (.jsonl,
    .csv or .parquet) has a row for each, with its output or its error. Exit code 1 when a row has an error: OUT is
    whole all the same.
    """
    from service.batch.answering import check_fields, open_model
    from service.batch.rows import count_rows, read_rows
    from service.batch.spool import Spool
    from service.cli import choice
    from service.registry.registry import Registry

    no_log_lines()
    tasks = find_tasks(task_folder)
    fields = dict(_field(text) for text in given)
    try:
        if task is None and model is None:
            raise click.UsageError("name what is asked with --task, or a model with --model.")
        asked = choice.named(tasks, task) if task else choice.of_model(Registry(models, tasks=tasks), model or "")
        check_fields(asked, fields)
        if ray is not None:
            _on_ray(source, target, asked, model, fields, workers, ray, models, task_folder)
            return
        with err.status("loading the model"):
            handle = open_model(models, asked.name, model, tasks)
        facts = source.stat()
        spool = Spool(
            target,
            {
                "input": [str(source), facts.st_size, facts.st_mtime_ns],
                "model": f"{handle.name} {handle.digest}",
                "fields": fields,
            },
            resume=resume,
        )
        rows = itertools.islice(read_rows(source, asked), spool.done, None)
        total = count_rows(source)
    except ServiceError as error:
        raise click.UsageError(str(error)) from None
    kept = spool.done
    try:
        for answers in _with_progress(_answered(handle, rows, fields, workers), kept, total):
            spool.write(answers)
        spool.finish()
    except (ServiceError, BrokenProcessPool, OSError) as error:
        raise click.ClickException(f"{error} The answers so far are in {spool.path}: --resume goes on.") from None
    finally:
        spool.close()
    if as_json:
        click.echo(orjson.dumps({"rows": spool.done, "failed": spool.failed, "kept": kept, "model": handle.name}))
    else:
        more = f", {kept} of them from before" if kept else ""
        err.print(f"{spool.done} rows by {handle.name}{more}, {spool.failed} with an error: {target}", style="dim")
    sys.exit(1 if spool.failed else 0)


def _on_ray(
    source: Path,
    target: Path,
    task: type[AnyTask],
    model: str | None,
    fields: dict[str, Any],
    workers: int,
    address: str,
    models: Path,
    task_folder: Path | None,
) -> None:
    """Answer on a cluster, and say how that went."""
    from service.batch.on_ray import answer_on_ray

    answering = {
        "models": models.resolve(), "tasks": task_folder, "task": task.name, "model": model, "fields": fields,
    }  # fmt: skip
    rows, failed = answer_on_ray(
        source.resolve(), target.resolve(), task, answering, address=address, processes=workers
    )
    err.print(f"{rows} rows, {failed} with an error: {target}", style="dim")
    sys.exit(1 if failed else 0)


def _field(text: str) -> tuple[str, Any]:
    """A field that is given for all: `top_k=2`, or text that is no JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--set {text}: write FIELD=VALUE.")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _answered(
    handle: ModelHandle, rows: Iterator[Row], fields: dict[str, Any], workers: int
) -> Iterator[Sequence[bytes]]:
    """The answers in the order of the rows, block by block; made by processes that share the model's memory."""
    from service.batch.answering import answer_block
    from service.batch.rows import BLOCK_ROWS, blocks

    workers = workers or make_settings({}).plan().workers
    if workers == 1:
        yield from (answer_block(handle, block, fields) for block in blocks(rows, BLOCK_ROWS))
        return
    global _handle, _fields
    _handle, _fields = handle, fields  # the processes are forked, and have it
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        waiting: deque[Future[list[bytes]]] = deque()
        for block in blocks(rows, BLOCK_ROWS):
            waiting.append(pool.submit(_work, block))
            if len(waiting) > workers * BLOCKS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_handle: ModelHandle | None = None
_fields: dict[str, Any] = {}


def _work(block: Sequence[Row]) -> list[bytes]:
    from service.batch.answering import answer_block

    if _handle is None:
        raise RuntimeError("the process was not forked from one that has the model")
    return answer_block(_handle, block, _fields)


def _with_progress(answers: Iterator[Sequence[bytes]], kept: int, total: int | None) -> Iterator[Sequence[bytes]]:
    """Show how many rows are answered, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        shown = progress.add_task("", completed=kept, total=total)
        for some in answers:
            yield some
            progress.advance(shown, len(some))
