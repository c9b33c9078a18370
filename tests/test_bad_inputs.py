"""Every wrong request of `tests/bad_inputs.py` gets its status, and docs/reliability.md shows them all."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import bad_inputs, promises
from tests.conftest import running

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


async def seen(folder: Path) -> list[tuple[bad_inputs.Bad, int, str]]:
    """What becomes of every wrong request: status and text of the answer."""
    bad_inputs.models(folder)
    found = []
    async with running(folder, **bad_inputs.SETTINGS) as client:
        for bad in bad_inputs.every():
            answer = await client.request(bad.method, bad.path, content=bad.body, headers=bad.headers)
            found.append((bad, answer.status_code, answer.text))
        # After all that the good ones are answered.
        assert (await client.post("/v1/anomaly-detection", json={"values": [0, 0, 5]})).json()["anomalies"] == [2]
    return found


async def test_every_bad_input_gets_its_status(tmp_path: Path) -> None:
    found = await seen(tmp_path)
    wrong = [
        (bad.what, bad.path, bad.expected, status, text[:200]) for bad, status, text in found if status != bad.expected
    ]
    assert wrong == []
    for bad, _, text in found:
        assert str(tmp_path) not in text, bad
        assert "Traceback" not in text, bad
        assert len(text) < 8_192, bad


def test_there_are_many_and_no_two_are_the_same() -> None:
    counted = Counter((bad.method, bad.path, bad.body, tuple(bad.headers.items())) for bad in bad_inputs.every())
    assert len(counted) >= 150
    assert max(counted.values()) == 1


@pytest.mark.parametrize("promise", promises.PROMISES)
def test_every_promise_is_held_by_tests_that_are_there(promise: str) -> None:
    assert promises.PROMISES[promise]
    for test in promises.PROMISES[promise]:
        file, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\b", (TESTS / file).read_text(), re.MULTILINE), test


def test_the_page_is_current() -> None:
    """`python docs/reliability.py` writes it."""
    spec = importlib.util.spec_from_file_location("reliability", PAGE.with_suffix(".py"))
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.rendered(PAGE.read_text()) == PAGE.read_text()
