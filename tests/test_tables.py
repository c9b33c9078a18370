"""Files of columns as people save them: what is read from each, and what is refused with which sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidInput
from service.tables import choose_series, read_table

CASES = Path(__file__).parent / "cases" / "csv-columns"
SPIKE = 10


def series(path: Path, asked: str | None = None) -> list[float | None]:
    table = read_table(path)
    return table.numbers(choose_series(table, asked))


def written(tmp_path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = tmp_path / "file.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("file", "spike"), [("semicolon.csv", 95.5), ("label.csv", 95), ("trailing.csv", 95), ("nan.csv", 95)]
)
def test_the_spike_is_where_it_was_written(file: str, spike: float) -> None:
    assert series(CASES / file)[SPIKE] == spike


def test_nan_is_a_missing_point() -> None:
    assert series(CASES / "nan.csv")[5] is None


def test_a_file_with_only_a_header_says_so() -> None:
    with pytest.raises(InvalidInput, match=r"header.csv has only a header"):
        series(CASES / "header.csv")


READ = {
    "decimal comma, semicolons": ("a;b\nx;1,5\ny;-2,25\n", [1.5, -2.25]),
    "thousands with points": ("a;b\nx;1.234,5\ny;12,0\n", [1234.5, 12]),
    "thousands with commas, quoted": ('t,value\n1,"1,234.5"\n2,"2,000"\n', [1234.5, 2000]),
    "decimal comma, quoted": ('t,value\n1,"1,5"\n2,"2,25"\n', [1.5, 2.25]),
    "decimal comma, one column": ("Wert\n1,5\n2,5\n", [1.5, 2.5]),
    "tabs": ("time\tvalue\n1\t5\n2\t6\n", [5, 6]),
    "bars": ("time|value\n1|5\n2|6\n", [5, 6]),
    "trailing separators in the lines only": ("time,value\n1,5,\n2,6,\n", [5, 6]),
    "an empty last column with a name": ("time,value,note\n1,5,\n2,6,\n", [5, 6]),
    "capitals": ("Time,VALUE\n1,5\n2,6\n", [5, 6]),
    "the only one of numbers": ("day,load\nMon,5\nTue,6\n", [5, 6]),
    "beside stamps and labels": ("timestamp,load,label\n1700000000,5,0\n1700003600,6,1\n", [5, 6]),
    "no header": ("2024-01-01,5\n2024-01-02,6\n", [5, 6]),
    "no header, one column": ("5\n6\n", [5, 6]),
    "missing points": ("value\n1\nNaN\nn/a\nnull\n2\n", [1, None, None, None, 2]),
    "a short line": ("time,value\n1,5\n2\n3,7\n", [5, None, 7]),
    "exponents and signs": ("value\n1e3\n-.5\n+2.\n", [1000, -0.5, 2]),
    "comments and empty lines": ("# made by hand\n\nvalue\n1\n\n2\n\n", [1, 2]),
    "Excel's first line": ("sep=;\r\nt;value\r\n1;5,5\r\n", [5.5]),
    "old line ends": ("value\r1\r2\r", [1, 2]),
    "blanks around": ("time , value\n1 , 5\n2 , 6\n", [5, 6]),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_as_its_program_meant_it(name: str, tmp_path: Path) -> None:
    text, expected = READ[name]
    assert series(written(tmp_path, text)) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_encoding_of_spreadsheets_is_read(encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path, "Zeit;Größe\n1.1.;1,5\n2.1.;2,5\n", encoding)
    assert series(path) == [1.5, 2.5]
    assert read_table(path).header == ("Zeit", "Größe")


def test_two_columns_of_numbers_are_not_guessed_between(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,2\n3,4\n")
    with pytest.raises(InvalidInput, match=r"more than one column of numbers \('a', 'b'\)\. Name one with --column"):
        series(path)
    assert series(path, "B") == [2, 4]
    assert series(path, "1") == [1, 3]


def test_a_decimal_comma_that_could_be_a_separator_is_not_guessed_either(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"more than one column of numbers \(1, 2\)"):
        series(written(tmp_path, "1,5\n2,5\n"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no line at all"),
        ("\n\n", "has no line at all"),
        ("value\n1\nmany\n", "line 3: 'many' is not a number"),
        ("value\n1\n1_000\n", "line 3: '1_000' is not a number"),
        ("value\n1\ninf\n", "line 3: 'inf' is not a number"),
        ("a,b\nx,y\nz,w\n", "has no column of numbers; it has: 'a', 'b'"),
        ("sep=;\nt;value\n1;x\n", "line 3: 'x' is not a number"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        series(written(tmp_path, text))


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), min_size=1),
    separator=st.sampled_from(";\t,|"),
)
def test_what_was_written_is_what_is_read(
    values: list[float | None], separator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [f"{n}{separator}{'' if value is None else repr(value)}" for n, value in enumerate(values)]
    path = written(tmp_path_factory.mktemp("any"), f"time{separator}value\n" + "\n".join(lines))
    assert series(path) == values
