"""Which task `gridloop predict` means: the one that is named, that of a model that is named, else the one that fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.fields import PREFIX, flag_of, options_of, required_fields
from service.errors import ModelNotFound
from service.tasks.base import MediaInput

if TYPE_CHECKING:
    from service.registry.registry import Registry
    from service.tasks import AnyTask

Tasks = Mapping[str, "type[AnyTask]"]

_NUMERALS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def takes_files(task: type[AnyTask]) -> bool:
    """Whether files are a task's input as they are."""
    return issubclass(task.Input, MediaInput)


def named(tasks: Tasks, name: str) -> type[AnyTask]:
    """The task of that name; another one is wrong usage."""
    if name not in tasks:
        raise click.UsageError(f"there is no task {name!r}; there are: {', '.join(tasks)}.")
    return tasks[name]


def of_model(registry: Registry, model: str) -> type[AnyTask]:
    """The task that a model's manifest names."""
    try:
        found = registry.get(model.partition("@")[0])
    except ModelNotFound as error:
        raise click.ClickException(str(error)) from None
    if found.problem or found.manifest is None:
        raise click.ClickException(found.reason)
    return registry.tasks[found.manifest.task]


def fitting(tasks: Tasks, files: Collection[Path], given: Collection[str]) -> type[AnyTask]:
    """The task that takes these files and knows all of these options.

    Where several do, it is the one that is meant by default. A file that no task recognises is left to the default one
    of those that take files, which says what is wrong with it.

    Args:
        tasks: that there are.
        files: given without an option.
        given: options by their names, such as `top_k`.
    """
    routed = [task for task in tasks.values() if task.has_route]
    knowing = [task for task in routed if set(given) <= _option_names(task)]
    found = [task for task in knowing if _takes(task, files, given)]
    if not found and files:
        found = [task for task in knowing if takes_files(task) and task.by_default]
    if len(found) > 1:
        found = [task for task in found if task.by_default] or found
    if not found or not (files or given):
        raise click.UsageError(f"{_ways(routed)} With --task T or --model M: whatever that task takes.")
    if len(found) > 1:
        raise click.UsageError(f"several tasks would do: add {' or '.join(f'--task {task.name}' for task in found)}.")
    return found[0]


def short_options(tasks: Tasks) -> dict[str, click.Option]:
    """Options by which a task is asked without being named, by the names of what they give."""
    found: dict[str, click.Option] = {}
    for task in sorted((t for t in tasks.values() if t.has_route), key=lambda task: not task.by_default):
        options = {str(option.name).removeprefix(PREFIX): option for option in options_of(task)}
        for name in _asked_by(task):
            options[name].help = (options[name].help or "").removesuffix(" [required]")  # one of these is
            found.setdefault(name, options[name])
    return found


def _option_names(task: type[AnyTask]) -> set[str]:
    return {str(option.name).removeprefix(PREFIX) for option in options_of(task)}


def _takes(task: type[AnyTask], files: Collection[Path], given: Collection[str]) -> bool:
    """Whether a task can be asked with files alone, or with options alone."""
    reader = task.file_reader
    if files:
        first = next(iter(files))
        if takes_files(task):
            return task.recognises(first.read_bytes())
        return reader is not None and first.suffix.lower() in reader.suffixes
    return not takes_files(task) and (
        (reader is not None and reader.option in given) or set(required_fields(task)) <= set(given)
    )


def _asked_by(task: type[AnyTask]) -> list[str]:
    """Options that say what a JSON task is asked: a file's in place of the fields that it fills."""
    if takes_files(task):
        return []
    return [task.file_reader.option] if task.file_reader else required_fields(task)


def _ways(tasks: Collection[type[AnyTask]]) -> str:
    """What can be given to a command that names no task, as a sentence."""
    ways = ["FILEs"] if any(takes_files(task) for task in tasks) else []
    ways += dict.fromkeys(flag_of(name) for task in tasks for name in _asked_by(task))
    if len(ways) < 2:
        return f"give {', '.join(ways) or 'a task with --task'}."
    return f"give {', or '.join(ways)} (one of the {_NUMERALS.get(len(ways), len(ways))})."
