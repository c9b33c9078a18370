"""The server keeps to the Open Inference Protocol: the table of `make conformance`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import CHECKS, Caller, ready


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    with ready() as found:
        yield found


@pytest.mark.parametrize("holds", [pytest.param(function, id=title) for _, title, function in CHECKS])
def test_the_protocol_is_kept(caller: Caller, holds: Callable[[Caller], Any]) -> None:
    holds(caller)


def test_every_check_of_the_list_is_there_and_on_the_page() -> None:
    assert [number for number, _, _ in CHECKS] == list(range(1, 26))
    page = (Path(__file__).parent.parent / "docs" / "open-inference.md").read_text()
    for number, title, _ in CHECKS:
        assert f"| {number} | {title} |" in page
