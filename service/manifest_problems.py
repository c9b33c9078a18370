"""What is wrong in a manifest, in words: which key, in which line, what was expected, what it may have meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

_TABLE = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


class ManifestText(NamedTuple):
    """A manifest as it is written.

    Attributes:
        where: its place below the model repository.
        text: its content.
    """

    where: str
    text: str


def line_of(text: str, place: Sequence[int | str]) -> int | None:
    """The line in which a key or table is written, or else the nearest one around it; None where there is none.

    Args:
        text: TOML.
        place: names of the tables around it, and its own; what follows within the value is passed over.
    """
    wanted = [str(part) for part in place]
    table: list[str] = []
    best, line = 0, None
    quotes = ""
    for number, written in enumerate(text.splitlines(), start=1):
        if quotes:  # within a text of several lines
            quotes = "" if quotes in written else quotes
            continue
        found = table
        if match := _TABLE.match(written):
            found = table = _names(match[1])
        elif match := _KEY.match(written):
            found = [*table, *_names(match[1])]
            quotes = next((q for q in ('"""', "'''") if written.count(q) == 1), "")
        if match and found == wanted[: len(found)] and len(found) > best:
            best, line = len(found), number
    return line


def _names(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]


def in_words(
    error: ValidationError,
    schema: type[BaseModel],
    texts: Sequence[ManifestText],
    *,
    unknown: str = "remove it or correct its name",
    others: Iterable[str] = (),
) -> str:
    """Everything that breaks a manifest's schema, as one sentence.

    Args:
        error: what pydantic found.
        schema: that was broken.
        texts: the manifests it was read from, the one that counts most first.
        unknown: what to do about a key that nobody knows, beside all tables.
        others: keys beside those of the schema.
    """
    told = [_problem(each, schema, texts, unknown, others) for each in error.errors(include_url=False)[:20]]
    return f"{'; '.join(told)}."


def _problem(
    error: Mapping[str, Any],
    schema: type[BaseModel],
    texts: Sequence[ManifestText],
    unknown: str,
    others: Iterable[str],
) -> str:
    """What is wrong with one key or table, such as `[preprocessing] resize = 3: …`."""
    place, kind, value = error["loc"], error["type"], error["input"]
    top, *inner = map(str, place)
    key = f"[{top}]" if inner or isinstance(value, Mapping) else top
    where = f"{key} {'.'.join(inner)}".strip()
    message, near = error["msg"].removeprefix("Value error, "), []
    if kind == "extra_forbidden":
        sentence = f"{where} is not known; {'remove it or correct its name' if inner else unknown}"
        known = [*_keys(schema, inner and place[:-1]), *([] if inner else others)]
        near = get_close_matches(str(place[-1]), known, n=1)
    elif kind == "model_type":
        sentence = f"{where} must be a table: write [{'.'.join([top, *inner])}] and its keys below"
    elif kind == "missing":
        sentence = f"{where}: {message}"
    else:
        shown = "" if isinstance(value, Mapping) else f" = {value!r}"
        sentence = f"{where}{shown}: {message}"
        if kind == "literal_error":
            near = get_close_matches(str(value), re.findall(r"'([^']*)'", message), n=1)
    notes = [*_line(texts, place), *(f"the nearest is {name}" for name in near)]
    return f"{sentence} ({'; '.join(notes)})" if notes else sentence


def _line(texts: Sequence[ManifestText], place: Sequence[int | str]) -> list[str]:
    """In which line it is; of several manifests, the first that has it."""
    for where, text in texts:
        if line := line_of(text, place):
            return [f"line {line} of {where}" if len(texts) > 1 else f"line {line}"]
    return []


def _keys(schema: Any, tables: Sequence[int | str]) -> list[str]:
    """The keys of a schema, or of a table of it."""
    for table in tables:
        field = schema.model_fields.get(table)
        schema = field.annotation if field else None
        if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            return []
    return list(schema.model_fields)
