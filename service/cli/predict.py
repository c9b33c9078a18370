"""`gridloop predict`: ask a model in this process, with options made from the input of the task that is asked."""

from __future__ import annotations

import mimetypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from pydantic import ValidationError

from service.cli.console import err, out, table
from service.cli.fields import PREFIX, flag_of, options_of, required_fields
from service.cli.options import AS_JSON, MODELS, TASKS, find_tasks, load, open_registry
from service.errors import InvalidInput, ServiceError, TooLarge, as_sentence

if TYPE_CHECKING:
    from service.registry.handle import ModelHandle
    from service.registry.registry import Registry
    from service.tasks import AnyTask
    from service.tasks.base import MediaAnswer, TaskInput, TaskOutput
    from service.tasks.terminal import Shown

_TASK, _REGISTRY, _SHORT = "gridloop.task", "gridloop.registry", "gridloop.short"
"""Where a context keeps what the first look at the arguments has found."""
MANY_FILES = 10
"""From so many files on a progress bar is shown (count)."""


class PredictCommand(click.Command):
    """A command whose options depend on the task, which depends on what is given.

    So the arguments are looked at twice: once for the task, with the options of all tasks, and then with its own.
    """

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        task: type[AnyTask] | None = context.meta.get(_TASK)
        own = options_of(task) if task else context.meta.get(_SHORT, {}).values()
        fixed = super().get_params(context)
        taken = {flag for parameter in fixed for flag in parameter.opts}
        return [*(option for option in own if not taken & set(option.opts)), *fixed]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not context.resilient_parsing:
            self._look(context, args)
        return super().parse_args(context, args)

    def format_help_text(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(context, formatter)
        task: type[AnyTask] | None = context.meta.get(_TASK)
        if task is not None:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(f"Task {task.name}: {task.summary}")

    def _look(self, context: click.Context, args: Sequence[str]) -> None:
        """Find the task that is asked."""
        from service.cli import choice

        first = self._skimmed(context, args, [])
        tasks = find_tasks(first.params.get("task_folder"))
        context.meta[_SHORT] = choice.short_options(tasks)
        options = {flag: option for task in tasks.values() for option in options_of(task) for flag in option.opts}
        every = list(dict.fromkeys(options.values()))
        seen = self._skimmed(context, args, every)
        model, name = seen.params.get("model"), seen.params.get("task")
        given = {
            str(parameter.name).removeprefix(PREFIX)
            for parameter in options.values()
            if seen.params.get(str(parameter.name)) is not None
        }
        wants_help = any(arg in context.help_option_names for arg in args)
        if name is not None:
            context.meta[_TASK] = choice.named(tasks, name)
        elif model is not None:
            context.meta[_REGISTRY] = registry = open_registry(seen.params["models"], tasks)
            context.meta[_TASK] = choice.of_model(registry, model)
        elif not wants_help:
            try:
                context.meta[_TASK] = choice.fitting(tasks, seen.params.get("files") or (), given)
            except click.UsageError:
                self._skimmed(context, args, every, resilient=False)  # a file that is not there says more
                raise
        if _REGISTRY not in context.meta and not wants_help:
            context.meta[_REGISTRY] = open_registry(seen.params["models"], tasks)

    def _skimmed(
        self, context: click.Context, args: Sequence[str], options: Sequence[click.Option], *, resilient: bool = True
    ) -> click.Context:
        """The arguments as far as they can be read; with `resilient`, without a word about those that cannot."""
        fixed = super().get_params(context)
        taken = {flag for parameter in fixed for flag in parameter.opts}
        more = [option for option in options if not taken & set(option.opts)]
        settings = {"ignore_unknown_options": resilient}
        skimming = click.Command(self.name, params=[*fixed, *more], context_settings=settings)
        return skimming.make_context(self.name, list(args), parent=context.parent, resilient_parsing=resilient)


@click.command(name="predict", cls=PredictCommand)
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--task", help="What is asked; left out: what --model serves, else what FILES and options fit.")
@click.option("--model", help="`name` or `name@version`; left out: the task's default model.")
@click.option(
    "--out",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the answer to; `.png` and the like choose its format.",
)
@MODELS
@TASKS
@AS_JSON
@click.pass_context
def predict_command(
    context: click.Context,
    /,
    files: tuple[Path, ...],
    model: str | None,
    target: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Ask a model in this process, without a server: FILES, or the fields of its task as options.

    `gridloop predict --task T --help` shows the options of a task. Exit code 1 when an answer is missing; of several
    FILES, those that can be used are answered all the same.
    """
    task: type[AnyTask] = context.meta[_TASK]
    registry: Registry = context.meta[_REGISTRY]
    try:
        requests = make_requests(task, files, {name: value for name, value in given.items() if value is not None})
        handle = load(registry, task.name).resolve(task.name, model)
        wanted = [_as_file(task, request, target) for request in requests]
        _check_target(handle, wanted, target)
        answers = ask(handle, requests)
        written = answers if wanted == requests else ask(handle, wanted)
    except (ServiceError, ValidationError) as error:
        raise click.ClickException(as_sentence(error)) from None
    documents = [answer.to_json() for answer in answers]
    whole = documents[0] if len(documents) == 1 else b"[" + b",".join(documents) + b"]"
    if target is not None:
        _write(target, written, whole)
    if as_json:
        click.echo(whole)
    parsed = [orjson.loads(document) for document in documents]
    for request, answer in zip(requests, parsed, strict=True):
        if not as_json and (target is None or written is not answers):
            err.print(f"{answer['model']['name']}@{answer['model']['version']}", style="dim")
            for shown in handle.task.shown(request, answer):
                _print(shown)
    sys.exit(1 if any("error" in result for answer in parsed for result in _results(answer)) else 0)


def make_requests(task: type[AnyTask], files: Sequence[Path], given: dict[str, Any]) -> list[TaskInput]:
    """One request for each file of a task that takes files; else one of the fields that are given or that a file holds.

    Raises:
        ServiceError: a file cannot be read as the task's.
        ValidationError: the fields of a file are not what the task takes.
    """
    from service.cli.choice import takes_files
    from service.tasks.base import Upload

    fields = {name.removeprefix(PREFIX): value for name, value in given.items() if name.startswith(PREFIX)}
    if takes_files(task):
        if not files:
            raise click.UsageError(f"{task.name} needs FILES.")
        return [_made(task, {**fields, "files": (Upload(file.read_bytes(), filename=file.name),)}) for file in files]
    read: dict[str, Any] = {}
    reader = task.file_reader
    options = {name: given[name] for name in reader.options if name in given} if reader else {}
    if reader and reader.option in given:
        files = [*files, Path(given[reader.option])]
    if len(files) > 1 or (files and reader is None):
        raise click.UsageError(f"{task.name} takes {'one file' if reader else 'no files'}.")
    if options and not files:
        raise click.UsageError(f"{flag_of(next(iter(options)))} is about a file, and none is given.")
    if reader and files:
        found = reader.read(files[0].read_bytes(), files[0].name, options)
        read = dict(found.fields)
        if found.note:
            err.print(found.note, style="dim")
        if twice := sorted(read.keys() & fields.keys()):
            raise click.UsageError(f"{flag_of(twice[0])} is what {files[0].name} says already.")
        return [task.Input.model_validate({**fields, **read})]
    if missing := [flag_of(name) for name in required_fields(task) if name not in fields]:
        more = f" or --{reader.option}" if reader else ""
        raise click.UsageError(f"{task.name} needs {' and '.join(missing)}{more}.")
    return [_made(task, fields)]


def _made(task: type[AnyTask], fields: dict[str, Any]) -> TaskInput:
    """A request of what was typed: what the task does not take is wrong usage."""
    try:
        return task.Input.model_validate(fields)
    except ValidationError as error:
        raise click.UsageError(as_sentence(error)) from None


def _as_file(task: type[AnyTask], request: TaskInput, target: Path | None) -> TaskInput:
    """A request in the format that the file's name asks for, as `.png` does, where the caller has named none."""
    kind = mimetypes.guess_type(target.name)[0] if target is not None else None
    formats = [name for name, other in task.other_answers.items() if other == kind]
    if not formats or "format" in request.model_fields_set:
        return request
    return request.model_copy(update={"format": formats[0]})


def _check_target(handle: ModelHandle, requests: Sequence[TaskInput], target: Path | None) -> None:
    """See that an answer which is no JSON has one file to go to."""
    kind = handle.task.other_answer(requests[0])
    if kind is not None and (target is None or len(requests) > 1):
        raise click.UsageError(
            f"the answer is {kind}: name a file for it with --out."
            if target is None
            else f"--out takes one answer that is {kind}, and {len(requests)} files are given."
        )


def ask(handle: ModelHandle, requests: Sequence[TaskInput]) -> list[TaskOutput | MediaAnswer]:
    """The answer to each request; a progress bar for many.

    Raises:
        ServiceError: nothing can be answered; of several files, one that cannot be used has an `error` in its result.
    """
    from rich.progress import track

    from service.tasks.base import FailedFile, FileProblem, MediaInput

    answers: list[TaskOutput | MediaAnswer] = []
    for request in track(requests, "predicting", console=err, disable=len(requests) < MANY_FILES, transient=True):
        try:
            answers.append(handle.predict_now(request))
        except (InvalidInput, TooLarge) as error:
            if len(requests) == 1 or not isinstance(request, MediaInput):
                raise
            problem = FileProblem(type=error.type, detail=str(error))
            failed = FailedFile(filename=request.files[0].filename, error=problem)
            answers.append(handle.task.Output.model_construct(model=handle.ref, results=[failed]))
    return answers


def _results(answer: dict[str, Any]) -> Sequence[Any]:
    """Results of an answer to files; none of another."""
    results = answer.get("results")
    return results if isinstance(results, list) else ()


def _write(target: Path, answers: Sequence[TaskOutput | MediaAnswer], whole: bytes) -> None:
    from service.tasks.base import MediaAnswer

    first = answers[0]
    try:
        target.write_bytes(first.data if isinstance(first, MediaAnswer) else whole)
    except OSError as error:
        raise click.ClickException(f"{target}: {error.strerror or error}.") from None
    err.print(f"written: {target}", style="dim")


def _print(shown: Shown) -> None:
    """Draw what a task shows."""
    from service.tasks.terminal import Failure

    if isinstance(shown, str):
        out.print(shown)
    elif isinstance(shown, Failure):
        err.print(f"Error: {shown.text}", style="red")
    else:
        drawn = table(*shown.columns, title=shown.title)
        for row in shown.rows:
            drawn.add_row(*row)
        out.print(drawn)
