"""Rows to be answered: lines of JSON, rows of CSV or Parquet, or the files of a folder."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from service.errors import ServiceError
from service.tasks import AnyTask
from service.tasks.base import MediaInput

BLOCK_ROWS = 256
"""Rows that a process is given at a time, and that a stop may lose of each (count)."""
FILE = "file"
"""The field of a row that names its file, for tasks that take files."""
_MAX_CELL_CHARS = 64 * 1024 * 1024


class InputUnusable(ServiceError):
    """What is to be read cannot be.

    Args:
        problem: what is wrong, and what to do.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class Row:
    """One input.

    Attributes:
        number: its place, from 0.
        fields: of the task's input.
        file: that it is about, for tasks that take files.
        problem: why there is nothing to ask; None where there is.
    """

    number: int
    fields: Mapping[str, Any]
    file: Path | None = None
    problem: str | None = None


def read_rows(source: Path, task: type[AnyTask]) -> Iterator[Row]:
    """The rows of a source, one after another, so that it may be larger than the memory.

    Raises:
        InputUnusable: it is of no kind that is read, or is damaged.
    """
    if source.is_dir():
        if not issubclass(task.Input, MediaInput):
            raise InputUnusable(f"{task.name} takes no files: give a file of rows (.jsonl, .csv, .parquet).")
        yield from (Row(number, {}, path) for number, path in enumerate(files_below(source)))
        return
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise InputUnusable(f"{source.name}: rows are read from {', '.join(readers)}, or files from a folder.")
    for number, found in enumerate(reader(source, task)):
        yield row_of(number, found, source.parent, task)


def row_of(number: int, found: dict[str, Any] | str, beside: Path, task: type[AnyTask]) -> Row:
    """A row, of what was read.

    Args:
        number: its place.
        found: its fields, or what is wrong with it.
        beside: the folder in which its file lies.
        task: what is asked.
    """
    if isinstance(found, str):
        return Row(number, {}, problem=found)
    if not issubclass(task.Input, MediaInput):
        return Row(number, found)
    if isinstance(name := found.pop(FILE, None), str):
        return Row(number, found, beside / name)
    return Row(number, {}, problem=f"`{FILE}`: the row names no file.")


def line_of(text: bytes | str) -> dict[str, Any] | str:
    """Fields of a line of JSON, or what is wrong with it."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"The line is no JSON ({error})."
    return found if isinstance(found, dict) else "The line is no JSON object."


def count_rows(source: Path) -> int | None:
    """How many rows there are, where that can be told without reading them; None elsewhere."""
    if source.is_dir():
        return sum(1 for _ in files_below(source))
    if source.suffix.lower() == ".parquet":
        return int(pyarrow_module("parquet").ParquetFile(source).metadata.num_rows)
    return None


def blocks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in blocks of a size; the last may be smaller."""
    rows = iter(rows)
    while block := list(itertools.islice(rows, size)):
        yield block


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in an order that stays; hidden ones are left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _json_lines(source: Path, _: type[AnyTask]) -> Iterator[dict[str, Any] | str]:
    """Fields of each line that is not empty, or what is wrong with it."""
    with source.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            yield line_of(line)


def _csv(source: Path, task: type[AnyTask]) -> Iterator[dict[str, Any] | str]:
    """Fields of each line, by the names in the first; an empty cell is a field that is not given."""
    texts = {name for name, field in task.Input.model_fields.items() if field.annotation in (str, str | None)} | {FILE}
    csv.field_size_limit(_MAX_CELL_CHARS)
    with source.open(encoding="utf-8-sig", newline="") as file:
        try:
            for found in csv.DictReader(file):
                if None in found:
                    yield "The line has more cells than the first."
                else:
                    yield {name: _cell(value, name in texts) for name, value in found.items() if value}
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputUnusable(f"{source.name} is no CSV of UTF-8 text ({error}).") from None


def _cell(value: str, is_text: bool) -> Any:
    """What a cell means: text as it is; numbers, lists and the like as JSON."""
    if is_text:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _parquet(source: Path, _: type[AnyTask]) -> Iterator[dict[str, Any] | str]:
    """Fields of each row; a null is a field that is not given."""
    for batch in pyarrow_module("parquet").ParquetFile(source).iter_batches(batch_size=1024):
        for found in batch.to_pylist():
            yield {name: value for name, value in found.items() if value is not None}


def pyarrow_module(module: str) -> Any:
    """A module of pyarrow.

    Raises:
        InputUnusable: it is not installed.
    """
    try:
        if module == "parquet":
            import pyarrow.parquet

            return pyarrow.parquet
        import pyarrow
    except ImportError:
        raise InputUnusable("Parquet needs pyarrow, which is not installed: pip install 'gridloop[batch]'.") from None
    return pyarrow
