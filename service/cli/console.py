"""The terminal: results on stdout, everything about them on stderr, and log lines nowhere."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.table import Table as Drawn

# What is printed is the models' and the callers' text, in which brackets and colons are just that.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def table(*columns: str, title: str = "") -> Drawn:
    """An empty table as all commands draw theirs; names of columns that are all empty are left out."""
    return Drawn(*columns, box=None, show_header=any(columns), title=title or None, title_justify="left")


def no_log_lines() -> None:
    """Log nothing: what is wrong is printed or raised, and stdout is for what was asked."""
    from service.telemetry import configure_logging

    configure_logging("console", "error")
    logging.disable(logging.CRITICAL)
