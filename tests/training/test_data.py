"""Data sets: checksums, parts that never change, and a sentence where a file is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data import DataMissing, DataSet, part_of, sha256, shuffled, split

CELLS = DataSet("cells", "https://example.org/cells", "MIT", ("cells/pictures.zip", "cells/labels.csv"))
SHARES = {"training": 0.7, "validation": 0.2, "test": 0.1}


def test_a_missing_file_ends_the_script_with_where_the_data_come_from(tmp_path: Path) -> None:
    with pytest.raises(
        DataMissing, match=r"pictures\.zip is not there\. The data come from https://example\.org/cells"
    ):
        CELLS.folder(tmp_path)


def test_each_file_has_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    for file in CELLS.files:
        (tmp_path / file).write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # the example of FIPS 180-4
    assert sha256(tmp_path / "cells" / "labels.csv") == abc
    assert CELLS.checksums(tmp_path) == {"cells/pictures.zip": abc, "cells/labels.csv": abc}
    assert CELLS.folder(tmp_path) == tmp_path / "cells"


def test_a_name_stays_in_its_part_whatever_else_there_is() -> None:
    names = [f"picture {number}" for number in range(4000)]
    parts = split(names, SHARES)
    assert {name: part_of(name, SHARES) for name in names} == {name: part for part in parts for name in parts[part]}
    assert split(names[::-1][:10], SHARES)["test"] == [name for name in names[::-1][:10] if name in parts["test"]]


def test_the_parts_are_as_large_as_was_asked_for() -> None:
    parts = split([f"picture {number}" for number in range(4000)], SHARES)
    assert {part: len(names) / 4000 for part, names in parts.items()} == pytest.approx(SHARES, abs=0.03)


def test_another_seed_is_another_division_and_another_order() -> None:
    names = [str(number) for number in range(100)]
    assert split(names, SHARES, seed=1) != split(names, SHARES, seed=2)
    assert shuffled(100, 1).tolist() != shuffled(100, 2).tolist()
    assert sorted(shuffled(100, 1).tolist()) == list(range(100))
