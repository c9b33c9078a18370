"""Writes the tables of docs/reliability.md: promises with the tests that hold them, and what becomes of wrong requests.

    python docs/reliability.py

sends every request of tests/bad_inputs.py to the application (needs what `make test` installs) and replaces what stands
between `<!-- TABLE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import promises  # noqa: E402
from tests.test_bad_inputs import seen  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
LONGEST = 60
"""Of a path that is shown (characters)."""


def rendered(page: str) -> str:
    """The page with its tables as they should be."""
    tables = {"promises": promised(), "bad inputs": bad_inputs()}

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}"

    return re.sub(r"(<!-- (promises|bad inputs) -->\n).*?(<!-- end -->)", part, page, flags=re.DOTALL)


def promised() -> str:
    """Promises and their tests."""
    rows = ((promise, " · ".join(map(linked, tests))) for promise, tests in promises.PROMISES.items())
    return table(("promise", "held by"), rows)


def linked(test: str) -> str:
    """A test, with a link to its file."""
    file, _, name = test.partition("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../tests/{file})"


def bad_inputs() -> str:
    """Wrong requests, the status expected and the one seen."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(seen(Path(folder)))
    rows = [
        (f"`{bad.method} {shortened(bad.path)}`", bad.what, str(bad.expected), str(status)) for bad, status, _ in found
    ]
    right = sum(bad.expected == status for bad, status, _ in found)
    return f"{right} of {len(rows)} as expected.\n\n" + table(("request", "what is wrong", "expected", "seen"), rows)


def shortened(path: str) -> str:
    """A path, cut if it is long."""
    return path if len(path) <= LONGEST else f"{path[:LONGEST]}…"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
