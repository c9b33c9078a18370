"""What a training writes for people: the blocks of `card.md` between markers, and the tables of `manifest.toml`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from training.data import DataSet


def write_block(path: Path, name: str, lines: Iterable[str]) -> None:
    """Put lines between `<!-- name -->` and `<!-- /name -->`; the first marker may say more after the name.

    Raises:
        ValueError: the file has no such markers.
    """
    text = path.read_text(encoding="utf-8")
    path.write_text(with_block(text, name, lines), encoding="utf-8")


def with_block(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with other lines between the markers of a block.

    Raises:
        ValueError: there are no such markers.
    """
    block = "".join(f"{line}\n" for line in lines)
    pattern = rf"(<!-- {re.escape(name)}(?:[^\w>-][^>]*)?-->\n).*?(<!-- /{re.escape(name)} -->)"
    made, count = re.subn(pattern, lambda found: found[1] + block + found[2], text, count=1, flags=re.DOTALL)
    if not count:
        raise ValueError(f"there is no block <!-- {name} --> … <!-- /{name} -->")
    return made


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    return [
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]


def data_table(data: Path, *sets: DataSet) -> list[str]:
    """The lines of a table with the checksum of each data file, where it comes from, and its licence."""
    rows = [
        (f"`{file}`", f"`{digest}`", one.origin, one.licence)
        for one in sets
        for file, digest in one.checksums(data).items()
    ]
    return table(["data file", "sha256", "origin", "licence"], rows)


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Replace the manifest's `[metrics]`: the figures that the card claims."""
    write_tables(path, metrics=metrics)


def write_tables(path: Path, **tables: Mapping[str, float | str]) -> None:
    """Replace tables of a manifest, or add them at its end; all others stay as they are."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for name, values in tables.items():
        new = toml(name, values).splitlines()
        if f"[{name}]" not in lines:
            lines += ["", *new] if lines else new
            continue
        start = lines.index(f"[{name}]")
        end = next((at for at in range(start + 1, len(lines)) if lines[at].startswith("[")), len(lines))
        while not lines[end - 1].strip() or lines[end - 1].startswith("#"):  # what is said above the next table
            end -= 1
        lines[start:end] = new
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def toml(name: str, values: Mapping[str, float | str]) -> str:
    """A TOML table."""
    lines = [
        f"{key if re.fullmatch(r'[A-Za-z0-9_-]+', key) else json.dumps(key)} = {_value(value)}"
        for key, value in values.items()
    ]
    return "\n".join([f"[{name}]", *lines, ""])


def _value(value: float | str) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
