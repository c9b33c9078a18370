"""The look of all plots: SVG on a transparent ground, readable on white and on near-black."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INK = "#6e7781"
"""Of text, axes and grids: readable on white and on near-black."""


@contextlib.contextmanager
def drawing(salt: str, ink: str = INK) -> Iterator[Any]:
    """`matplotlib.pyplot` in our style; files differ only where numbers do.

    Args:
        salt: of the identifiers in the file.
        ink: colour of text, axes and grids.
    """
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        "grid.color": ink,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        yield plt


def save(figure: Any, file: Path) -> None:
    """Write a figure as SVG, without blanks at the ends of lines, and close it."""
    import matplotlib.pyplot as plt

    file.parent.mkdir(parents=True, exist_ok=True)
    image = io.StringIO()
    figure.savefig(image, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    file.write_text("\n".join(line.rstrip() for line in image.getvalue().splitlines()) + "\n", encoding="utf-8")
