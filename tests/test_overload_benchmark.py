"""The benchmark of overload: what it counts, and when it says that something is not as it should be."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def overload() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("overload", BENCHMARKS / "overload.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "overload", module)
        spec.loader.exec_module(module)
        return module


def report(*good: tuple[float, float], outcome: str = "503") -> dict[str, Any]:
    """A peak of 100 answers per second, and goodput at some factors."""
    kinds = {kind: {"outcomes": {"good": 1, outcome: 1}} for kind in ("short", "long")}
    return {"peak_per_s": 100.0, "points": [{"factor": f, "good_per_s": rate, **kinds} for f, rate in good]}


def test_goodput_below_nine_tenths_of_the_peak_is_told(overload: ModuleType) -> None:
    assert overload.shortcomings(report((0.5, 50), (1, 90), (5, 120))) == []
    assert overload.shortcomings(report((1, 95), (5, 40))) == ["at 5× goodput is 40% of the peak"]


def test_a_status_that_overload_does_not_explain_is_told(overload: ModuleType) -> None:
    (sentence,) = overload.shortcomings(report((5, 100), outcome="500"))
    assert "500" in sentence


def test_a_failed_probe_takes_for_ever(overload: ModuleType) -> None:
    assert overload.rank([0.001] * 98 + [0.005, math.inf], 0.99) == 5.0
    assert overload.rank([0.001, math.inf], 0.99) is None
    assert overload.rank([], 0.99) is None


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--factors", "0"], ["--factors", "x"], ["--connections", "0"]])
def test_what_is_not_bounded_is_refused(overload: ModuleType, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        overload.parse_arguments(wrong)
    assert exit_.value.code == 2
