"""A series from a file of columns, as the command line gives it to every task that takes `values`."""

from __future__ import annotations

from collections.abc import Mapping

from service.tables import choose_series, parse_table
from service.tasks.terminal import FileFields, FileReader

__all__ = ["SERIES_FILE"]


def _read(data: bytes, name: str, options: Mapping[str, str]) -> FileFields:
    table = parse_table(data, name)
    chosen = choose_series(table, options.get("column"))
    note = f"column {table.name(chosen)} of {name}" if table.width > 1 else ""
    return FileFields({"values": table.numbers(chosen)}, note)


SERIES_FILE = FileReader(
    option="series",
    help="CSV file: its column `value`, or the only one of numbers, is the series.",
    read=_read,
    options={"column": "For --series: the column that is the series, by its name or its place from 1."},
)
"""`--series FILE [--column C]`. No suffix is claimed: a file of numbers may be meant for any task on series."""
