"""Prints a bill of materials as a Markdown table: every component with its version and licence.

    python deploy/licences.py dist/sbom.cdx.json

Exit code 1 when a component does not say under which licence it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IN_A_FILE_ONLY = {"protobuf": "BSD-3-Clause"}
"""Components whose metadata name no licence, and the one that their licence file is."""


def rows(bill: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, version and licences of every component, by name; its licences are empty where it tells none."""
    for component in sorted(bill.get("components", []), key=lambda found: found["name"].lower()):
        name = component["name"]
        told = ", ".join(dict.fromkeys(licences(component)))
        yield name, component.get("version", ""), told or IN_A_FILE_ONLY.get(name, "")


def licences(component: dict[str, Any]) -> Iterator[str]:
    """SPDX expressions, ids and names; texts are left out."""
    for entry in component.get("licenses", []):
        known = entry.get("license", {})
        found = entry.get("expression") or known.get("id") or known.get("name", "")
        if found and "\n" not in found and not found.startswith("declared license of"):
            yield found.rpartition(" :: ")[2]  # of a classifier the last part


def main(arguments: list[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        print("usage: python deploy/licences.py BILL.json", file=sys.stderr)
        return 2
    found = list(rows(json.loads(Path(arguments[0]).read_text(encoding="utf-8"))))
    print("| component | version | licence |\n| --- | --- | --- |")
    for row in found:
        print("| " + " | ".join(row) + " |")
    unknown = [name for name, _, licence in found if not licence]
    if unknown:
        print(f"licences.py: no licence is told by {', '.join(unknown)}", file=sys.stderr)
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
