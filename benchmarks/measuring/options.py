"""Parts of a benchmark's command line."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser(manual: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring."""
    return argparse.ArgumentParser(
        description=manual, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_models(to: argparse.ArgumentParser) -> None:
    """`--models`, which most benchmarks have."""
    to.add_argument("--models", type=Path, default=Path("models"), help="the model repository (default: models)")


def bounded(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """A type for an option: a number within bounds."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low:g} to {high:g}")
        return value

    return parse


def has_matplotlib() -> bool:
    """Whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def leave_on_sigterm() -> None:
    """Take SIGTERM as an end in order, so that servers are stopped too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
