"""What a training writes into card and manifest."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from training.card import data_table, table, with_block, write_block, write_metrics, write_tables
from training.data import DataSet

CARD = (
    "# Cells\n<!-- metrics -->\nold\n<!-- /metrics -->\nText\n<!-- metrics-2 by hand -->\nkept\n<!-- /metrics-2 -->\n"
)


def test_a_block_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(CARD)
    write_block(card, "metrics", ["new", r"a \1 line"])
    assert card.read_text() == CARD.replace("old\n", "new\na \\1 line\n")


def test_the_first_marker_may_say_more() -> None:
    assert with_block(CARD, "metrics-2", ["x"]) == CARD.replace("kept", "x")


def test_a_card_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- speed -->"):
        with_block(CARD, "speed", ["x"])


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [(1, 2.5)]) == ["| a | b |", "|---|---|", "| 1 | 2.5 |"]


def test_data_are_named_with_checksum_origin_and_licence(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"abc")
    one = DataSet("cells", "https://example.org/cells", "MIT", ("labels.csv",))
    assert data_table(tmp_path, one)[-1].startswith("| `labels.csv` | `ba7816bf")
    assert data_table(tmp_path, one)[-1].endswith("| https://example.org/cells | MIT |")


def test_the_manifests_other_tables_stay(tmp_path: Path) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text('task = "x"\n\n[metrics]\n"old figure" = 1.0\n\n# why\n[calibration]\nthreshold = 0.5\n')
    write_metrics(path, {"mAP@0.5": 0.91})
    write_tables(path, speed={"per_picture_ms": 12.5})
    assert "# why" in path.read_text()
    assert tomllib.loads(path.read_text()) == {
        "task": "x",
        "metrics": {"mAP@0.5": 0.91},
        "calibration": {"threshold": 0.5},
        "speed": {"per_picture_ms": 12.5},
    }
