"""Columns of numbers from the text files that people save: CSV of any dialect, as spreadsheets and databases write it.

Encoding, separator, decimal mark and header are found by looking, not asked for. Where that would be a guess between
two readings, the file is refused with a sentence that says how to settle it: a wrong column is worse than none.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from service.errors import InvalidInput

SEPARATORS = (",", ";", "\t", "|")
SAMPLE_ROWS = 200
"""Rows that are looked at to find the separator (count)."""

NOT_VALUES = frozenset({"time", "timestamp", "date", "datetime", "ds", "index", "id", "label", "anomaly", "is_anomaly"})
"""Names of columns that hold numbers but are not the series."""

_MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "null", "none", "-"})
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)?,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """A file's cells.

    Attributes:
        file: its name, for messages.
        separator: the character between two cells; empty where there is one column.
        header: names of the columns, None where the first line holds data already.
        rows: cells of each line that has any, without the header.
        lines: the number of each of these lines in the file, from 1.
    """

    file: str
    separator: str
    header: tuple[str, ...] | None
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    @property
    def width(self) -> int:
        """Columns that hold anything at all."""
        return max((len(row) for row in (self.header or (), *self.rows)), default=0)

    def name(self, column: int) -> str:
        """A column as a person would call it."""
        return repr(self.header[column]) if self.header and column < len(self.header) else f"{column + 1}"

    def column(self, *names: str) -> int | None:
        """Place of the first column with one of these names, capitals aside; None when there is none."""
        found = [name.lower() for name in self.header or ()]
        return next((found.index(name.lower()) for name in names if name.lower() in found), None)

    def numbers(self, column: int) -> list[float | None]:
        """A column's numbers; an empty cell, `nan` and the like are None.

        Raises:
            InvalidInput: a cell is something else; the message names its line.
        """
        cells = [row[column] if column < len(row) else "" for row in self.rows]
        comma = self._has_decimal_comma(cells)
        numbers: list[float | None] = []
        for line, cell in zip(self.lines, cells, strict=True):
            if cell.lower() in _MISSING:
                numbers.append(None)
            elif _NUMBER.fullmatch(cell):
                numbers.append(float(cell.replace(".", "") if comma and cell.count(".") > 1 else cell))
            elif comma and _DECIMAL_COMMA.fullmatch(cell):
                numbers.append(float(cell.replace(".", "").replace(",", ".")))
            elif not comma and _THOUSANDS.fullmatch(cell):
                numbers.append(float(cell.replace(",", "")))
            else:
                raise InvalidInput(f"{self.file}, line {line}: {cell!r} is not a number.")
        return numbers

    def _has_decimal_comma(self, cells: list[str]) -> bool:
        """Whether the comma in a column's numbers is the decimal mark; in a file separated by commas 1,234 is not."""
        with_comma = [cell for cell in cells if "," in cell]
        if not with_comma:
            return False
        return self.separator != "," or not all(_THOUSANDS.fullmatch(cell) for cell in with_comma)

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers and nothing else."""
        try:
            return any(number is not None for number in self.numbers(column))
        except InvalidInput:
            return False


def read_table(path: Path) -> Table:
    """Read a text file of columns; see `parse_table`."""
    return parse_table(path.read_bytes(), path.name)


def parse_table(data: bytes, name: str) -> Table:
    """Read the bytes of a text file of columns, whatever program saved it.

    Byte-order marks, UTF-16, UTF-8 and Windows' Latin-1 are read; the separator is a comma, semicolon, tab or bar, the
    one that gives most lines the same number of cells; lines that begin with `#` are comments.

    Args:
        data: the file's content.
        name: of the file, for messages.

    Raises:
        InvalidInput: there is no line of data in it.
    """
    text = _decode(data)
    declared = re.match(r"sep=(.)\r?\n", text)  # Excel's own first line
    text = text[declared.end() :] if declared else text
    separator = declared[1] if declared else _find_separator(text)
    lines, rows = _cells(text, separator)
    header = None
    if rows and not any(_looks_numeric(cell) for cell in rows[0]) and any(c.lower() not in _MISSING for c in rows[0]):
        header, rows, lines = rows[0], rows[1:], lines[1:]
    if not rows:
        has = "only a header" if header else "no line at all"
        raise InvalidInput(f"{name} has {has}: nothing to read. Give it a line for each point.")
    skipped = 1 if declared else 0
    return Table(name, separator, header, tuple(rows), tuple(line + skipped for line in lines))


def choose_series(table: Table, asked: str | None = None) -> int:
    """Which column of a table is the series.

    Args:
        table: the file.
        asked: a name, or a place counted from 1; left out: the column `value`, else the only one of numbers.

    Raises:
        InvalidInput: there is no such column, or more than one could be meant.
    """
    there = ", ".join(table.name(column) for column in range(table.width))
    if asked is not None:
        found = table.column(asked.strip())
        if found is None and asked.strip().isdigit() and 1 <= int(asked) <= table.width:
            found = int(asked) - 1
        if found is None:
            raise InvalidInput(f"{table.file} has no column {asked!r}; it has: {there}.")
        return found
    named = table.column("value")
    if named is not None:
        return named
    names = [name.lower() for name in table.header or ()]
    numeric = [
        column
        for column in range(table.width)
        if not (column < len(names) and names[column] in NOT_VALUES) and table.is_numeric(column)
    ]
    if len(numeric) == 1:
        return numeric[0]
    if table.width == 1:
        table.numbers(0)  # says which line is no number
    if not numeric:
        raise InvalidInput(f"{table.file} has no column of numbers; it has: {there}.")
    several = ", ".join(table.name(column) for column in numeric)
    raise InvalidInput(
        f"{table.file} has more than one column of numbers ({several}). Name one with --column, or call it 'value'."
    )


def _decode(data: bytes) -> str:
    """A file's text; what is no UTF-8 is Windows' Latin-1, in which every byte is a character."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    if data[1:2] == b"\0" or data[:1] == b"\0":  # UTF-16 without its mark: half of a digit is zero
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _cells(text: str, separator: str) -> tuple[list[int], list[tuple[str, ...]]]:
    """The lines that hold anything, with their numbers; empty cells that every line ends in are no column."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator or "\0", skipinitialspace=True)
    lines, rows = [], []
    for row in reader:
        cells = tuple(cell.strip() for cell in row)
        if any(cells) and not cells[0].startswith("#"):
            lines.append(reader.line_num)
            rows.append(cells)
    width = max((len(row) for row in rows), default=0)
    while width > 1 and not any(len(row) >= width and row[width - 1] for row in rows):
        width -= 1
    return lines, [row[:width] for row in rows]


def _find_separator(text: str) -> str:
    """The separator that gives most lines, the first among them, the same number of cells; empty for one column."""
    best, best_share = "", 0.0
    for separator in SEPARATORS:
        _, rows = _cells(text, separator)
        rows = rows[:SAMPLE_ROWS]
        if not rows:
            continue
        width, count = Counter(len(row) for row in rows).most_common(1)[0]
        surplus = any(any(row[len(rows[0]) :]) for row in rows)
        if width > 1 and not surplus and count / len(rows) > best_share:
            best, best_share = separator, count / len(rows)
    return best


def _looks_numeric(cell: str) -> bool:
    return any(form.fullmatch(cell) for form in (_NUMBER, _DECIMAL_COMMA, _THOUSANDS))
