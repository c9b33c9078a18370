"""From a regressor to a served version: pictures as the service shows them, and the intervals in the manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from service.media.images import Frame, open_picture
from service.uncertainty.fitting import fit_interval_table

COVERAGES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
"""Of the intervals in the manifest: what is asked for between two gets the larger."""


def shown(file: bytes, width: int, height: int) -> np.ndarray:
    """A picture as the service shows it to a graph of that size, uint8 (H, W, 3)."""
    frame = Frame(width, height, "stretch", None, "bilinear")
    picture = open_picture(file, "picture", max_pixels=2**24, least=frame.least)
    return np.array(frame.pixels(picture, frame.view(picture.width, picture.height)))


def interval_lines(away: np.ndarray) -> str:
    """Lines of TOML: how far from the truth estimates are for each coverage, of those (N,) of pictures left out."""
    fitted = fit_interval_table(away, COVERAGES)
    widths = ", ".join(f"{width:.4g}" for width in fitted.half_widths)
    return f"coverages = [{', '.join(map(str, COVERAGES))}]\nhalf_widths = [{widths}]\n"


def write_values(manifest: Path, intervals: list[str]) -> None:
    """Put intervals below each `[[values]]` of a manifest, in their order, in place of those that are there."""
    head, *values = manifest.read_text(encoding="utf-8").split("[[values]]\n")
    said = [one.partition("[values.intervals]")[0].strip() for one in values]
    blocks = [f"[[values]]\n{one}\n\n[values.intervals]\n{lines}" for one, lines in zip(said, intervals, strict=True)]
    manifest.write_text(head + "\n".join(blocks), encoding="utf-8")
