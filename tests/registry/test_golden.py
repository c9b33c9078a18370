"""Comparing an answer with a golden sample: exact where it must be, tolerant where it may."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service.errors import ManifestInvalid
from service.registry.check import check_folder
from service.registry.golden import _difference, read_golden


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),  # fields that are not expected do not count
        ({"a": 1.0}, {"a": 1.0005}),
        ({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "x", "c": None}]}),
        ({"a": None}, {"a": None}),
        ({"a": True}, {"a": True}),
    ],
)
def test_alike(expected: Any, got: Any) -> None:
    assert _difference(expected, got, 1e-3, "") is None


@pytest.mark.parametrize(
    ("expected", "got", "place"),
    [
        ({"a": 1.0}, {"a": 1.01}, "at a:"),
        ({"a": 1}, {}, "at a:"),
        ({"a": 1}, {"a": "1"}, "at a:"),
        ({"a": [1, 2]}, {"a": [1]}, "at a: expected 2 entries"),
        ({"a": {"b": ["x"]}}, {"a": {"b": ["y"]}}, r"at a.b\[0\]"),
        ({"a": 1}, {"a": True}, "at a:"),
        ({"a": {"b": 1}}, {"a": 3}, "expected an object"),
    ],
)
def test_different_and_where(expected: Any, got: Any, place: str) -> None:
    assert re.search(place, _difference(expected, got, 1e-3, "") or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '[{"input": {}}]',
        '[{"input": {}, "output": {}, "more": 1}]',
        "[1]",
        '[{"input": {}, "output": {}, "tolerance": -1}]',
        '[{"input": {}, "output": {}, "tolerance": NaN}]',
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(ManifestInvalid):
        read_golden(tmp_path, "m/1/golden.json")


def test_an_unusable_sample_is_named_without_the_librarys_report(models: Path) -> None:
    folder = models / "steps"
    for sample, reason in (
        ({"input": {"values": "x"}, "output": {}}, "sample 1 is refused: values: Input should be a valid list."),
        ({"inputs": {}}, "cannot be read: input: Field required; output: Field required; inputs: Extra inputs"),
    ):
        (folder / "1" / "golden.json").write_text(json.dumps([sample]))
        detail = next(finding.detail for finding in check_folder(folder) if "golden" in finding.what)
        assert detail.startswith(f"steps/1/golden.json: {reason}")
        assert "pydantic" not in detail
