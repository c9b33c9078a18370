"""A model card's section between `<!-- evaluation -->` and `<!-- /evaluation -->`, and the plots that it shows."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from service.evaluation.base import EvaluationFailed, Plot
from service.evaluation.report import Report

BEGIN, END = "<!-- evaluation -->", "<!-- /evaluation -->"
PLOTS = "plots"


def write(report: Report, folder: Path) -> list[Path]:
    """Put a report into `folder/card.md` and its plots into `folder/plots`; nothing else of the card is touched.

    Returns:
        The files written; of earlier plots, those that this report does not have are gone.

    Raises:
        EvaluationFailed: the card has one of the two markers, or one of them twice.
    """
    card = folder / "card.md"
    text = card.read_text("utf-8") if card.is_file() else f"# {folder.name}\n"
    text = insert(text, markdown(report))  # before any plot is drawn: a card that cannot be written changes nothing
    plots = draw(report.outcome.plots, folder / PLOTS)
    _replace(card, text)
    return [card, *plots]


def draw(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Draw plots into a folder and remove PNGs that an earlier evaluation left there."""
    from service.evaluation.plots import save

    drawn = [save(plot, folder) for plot in plots]
    for path in folder.glob("*.png"):
        if path not in drawn:
            path.unlink()
    return drawn


def insert(card: str, section: str) -> str:
    """A card with this between its markers. A card without markers gets them before its limits, else at its end.

    Raises:
        EvaluationFailed: the markers are not one pair.
    """
    block = f"{BEGIN}\n{section}\n{END}"
    if BEGIN not in card and END not in card:
        titled = f"## Evaluation\n\n{block}\n"
        limits = re.search(r"^## (Limits|Limitations)\b", card, re.MULTILINE)
        if limits is None:
            return f"{card.rstrip()}\n\n{titled}"
        return f"{card[: limits.start()]}{titled}\n{card[limits.start() :]}"
    if (card.count(BEGIN), card.count(END)) != (1, 1) or card.index(BEGIN) > card.index(END):
        raise EvaluationFailed(f"card.md should have {BEGIN} and {END} once each, in this order.")
    before, rest = card.split(BEGIN)
    return before + block + rest.split(END)[1]


def markdown(report: Report) -> str:
    """The section: command, table, what it was measured with, breakdowns, plots, notes."""
    parts = [f"{report.title}:", "    " + report.command, _table(report.columns, report.rows())]
    parts.append("\n".join(f"- {line}" for line in [*report.facts_lines(), *report.outcome.notes]))
    parts += [f"**{one.title}**\n\n{_table(one.columns, one.rows)}" for one in report.outcome.breakdowns]
    for plot in report.outcome.plots:
        parts.append(f"![{Path(plot.file).stem.replace('_', ' ')}]({PLOTS}/{plot.file})\n\n{plot.caption}")
    return "\n\n".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".card-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(path.stat().st_mode if path.exists() else 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
