"""Numbers for tables and files of results."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def median(values: Sequence[float | None]) -> float | None:
    """Of those that are numbers; None when none is."""
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(numbers) if numbers else None


def number(value: float | None, digits: int) -> str:
    """A number for the table; a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def environment() -> dict[str, str]:
    """The GRIDLOOP_ variables that reach a server, but for secrets and places."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("GRIDLOOP_") and name not in ("GRIDLOOP_API_KEYS", "GRIDLOOP_MODELS")
    }


def read_results(file: Path) -> dict[str, Any]:
    """What was written before; empty where nothing was."""
    found: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
    return found


def write_results(file: Path, results: Mapping[str, Any]) -> None:
    """Write everything that was measured."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
