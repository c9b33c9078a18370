"""The answers as they come, in a file beside the one that is asked for; resumed after a stop, renamed at the end.

It begins with a line that says of what it is, so that nobody goes on with the answers to something else.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from service.batch.rows import FILE, InputUnusable, pyarrow_module

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
"""Kinds of files that answers are written as."""
_COLUMNS = ("row", FILE, "output", "error_type", "error_detail")
_AT_ONCE = 1024


class Spool:
    """Answers on their way to a file.

    Args:
        target: the file that is asked for.
        of: what it is made of; the answers to something else are not gone on with.
        resume: go on with what is there already.

    Attributes:
        done: rows that are answered (count).
        failed: how many of them have an error (count).

    Raises:
        InputUnusable: what is there already is of something else, or must not be lost.
    """

    def __init__(self, target: Path, of: dict[str, Any], *, resume: bool) -> None:
        if target.suffix.lower() not in SUFFIXES:
            raise InputUnusable(f"{target.name}: answers are written as {', '.join(SUFFIXES)}.")
        if target.suffix.lower() == ".parquet":
            pyarrow_module("parquet")
        self._target, self.path = target, target.with_name(f"{target.name}.part")
        self.done = self.failed = 0
        head = orjson.dumps({"of": of}) + b"\n"
        if self.path.exists():
            if not resume:
                raise InputUnusable(f"{self.path.name} is there from a run that was stopped: --resume, or remove it.")
            self._file = self.path.open("r+b")
            self._find_end(head)
        else:
            self._file = self.path.open("w+b")
            self._file.write(head)

    def _find_end(self, head: bytes) -> None:
        """Count what is answered, and cut off a line that was begun."""
        if self._file.readline() != head:
            self._file.close()
            raise InputUnusable(
                f"{self.path.name} has the answers to another input, model or options: remove it to begin anew."
            )
        end = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            self._count(line)
        self._file.seek(end)
        self._file.truncate()

    def write(self, answers: Sequence[bytes]) -> None:
        """Add answers, so that a stop a moment later loses none of them."""
        for answer in answers:
            self._count(answer)
        self._file.write(b"".join(answer + b"\n" for answer in answers))
        self._file.flush()

    def _count(self, answer: bytes) -> None:
        self.done += 1
        self.failed += "error" in orjson.loads(answer)

    def finish(self) -> None:
        """Put the file that is asked for in its place, whole."""
        new = self._target.with_name(f"{self._target.name}.new")
        {".csv": self._as_csv, ".parquet": self._as_parquet}.get(self._target.suffix.lower(), self._as_lines)(new)
        new.replace(self._target)
        self.close()
        self.path.unlink()

    def close(self) -> None:
        """Leave what is there for the next time."""
        self._file.close()

    def _lines(self) -> Iterator[bytes]:
        self._file.flush()
        self._file.seek(0)
        self._file.readline()
        yield from self._file

    def _as_lines(self, path: Path) -> None:
        with path.open("wb") as file:
            file.writelines(self._lines())

    def _as_csv(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(["" if cell is None else cell for cell in _cells(line)] for line in self._lines())

    def _as_parquet(self, path: Path) -> None:
        pyarrow = pyarrow_module("pyarrow")
        types = (pyarrow.int64(), *(pyarrow.string() for _ in _COLUMNS[1:]))
        schema = pyarrow.schema(list(zip(_COLUMNS, types, strict=True)))
        with pyarrow_module("parquet").ParquetWriter(path, schema) as writer:
            cells: list[tuple[Any, ...]] = []
            for line in self._lines():
                cells.append(_cells(line))
                if len(cells) == _AT_ONCE:
                    writer.write_table(_table(pyarrow, schema, cells))
                    cells = []
            writer.write_table(_table(pyarrow, schema, cells))


def _cells(line: bytes) -> tuple[Any, ...]:
    """An answer as cells, its output as JSON."""
    found = orjson.loads(line)
    error = found.get("error", {})
    output = orjson.dumps(found["output"]).decode() if "output" in found else None
    return found["row"], found.get(FILE), output, error.get("type"), error.get("detail")


def _table(pyarrow: Any, schema: Any, cells: list[tuple[Any, ...]]) -> Any:
    columns = [list(column) for column in zip(*cells, strict=True)] if cells else [[] for _ in _COLUMNS]
    return pyarrow.Table.from_arrays(
        [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
