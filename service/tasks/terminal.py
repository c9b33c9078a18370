"""How a task meets a terminal: the files that `gridloop predict` may be given, and what it shows of an answer.

Tasks say *what* is shown, as tables and lines of text; the command line alone knows how a terminal draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Failure", "FileFields", "FileReader", "Shown", "Table", "fields_shown", "number"]

MOST_CHARS = 400
"""Length of a field's value that is shown; what is longer, such as a state token, is cut (characters)."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A sentence about a part of the request that has no answer; it goes to stderr."""

    text: str


Shown = Table | Failure | str
"""A table, a line of text, or what went wrong."""


@dataclass(frozen=True, slots=True)
class FileFields:
    """What a file says of a request.

    Attributes:
        fields: of the task's input.
        note: what was chosen of the file where there was a choice, said on stderr.
    """

    fields: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True, slots=True)
class FileReader:
    """How a task that takes JSON reads a file that the command line is given in place of typed fields.

    Attributes:
        option: name of the option that takes such a file: `series` makes `--series FILE`.
        help: which files these are.
        read: makes fields of a file's bytes, its name, and the values of `options` that were given. It raises
            `InvalidInput` where it cannot.
        options: more options of the command line that `read` looks at, each with its help.
        suffixes: of files that are plainly of this kind, so that they mean this task without being told.
    """

    option: str
    help: str
    read: Callable[[bytes, str, Mapping[str, str]], FileFields]
    options: Mapping[str, str] = field(default_factory=dict)
    suffixes: tuple[str, ...] = ()


def number(value: float | None, form: str = ".6g") -> str:
    """A number as a table shows it; empty for null."""
    return "" if value is None else format(value, form)


def fields_shown(fields: Mapping[str, Any], title: str = "") -> Iterator[Shown]:
    """The fields of any answer: one line each, or a table for a list of objects; null is left out."""
    lines = {name: value for name, value in fields.items() if value is not None and not _is_objects(value)}
    if lines:
        yield Table(("", ""), [(name, _text(value)) for name, value in lines.items()], title)
    for name, value in fields.items():
        if _is_objects(value):
            columns = list(dict.fromkeys(column for entry in value for column in entry))
            yield Table(columns, [[_text(entry.get(column)) for column in columns] for entry in value], name)


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(map(_text, value))
    elif isinstance(value, Mapping):
        text = ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    else:
        text = number(value) if isinstance(value, float) or value is None else str(value)
    return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 1]}…"
