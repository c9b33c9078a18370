"""Heatmaps: where in a picture something is that a model speaks of, as a coarse grid over the picture as displayed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import BaseModel, Field

from service.graph import Array
from service.media.views import View

HEATMAP_CELLS = 16
"""Cells along the longer side of a heatmap (count)."""
LEAST_CELLS = 2
"""Cells along the shorter side at least (count), however long the picture is."""


class Heatmap(BaseModel):
    """How much each part of the image that was sent counts."""

    values: list[list[float]] = Field(
        description="Rows from top to bottom, each from left to right, over the whole image; 1 is the part that counts "
        "most.",
        examples=[[[0.0, 0.4], [1.0, 0.2]]],
    )


def heatmap(activations: Array, view: View, *, average: bool = True) -> Array:
    """Spread what a model says of places over the whole image that was sent.

    Args:
        activations: float (rows, columns) over the part of the image that the model saw, larger where more counts.
        view: the image's size and that part.
        average: False: of a map that is finer than the heatmap the nearest cells are taken, and others are skipped.

    Returns:
        float32 grid in the image's aspect ratio, `HEATMAP_CELLS` along the longer side, scaled to 0..1 and rounded to
        3 digits; parts that the model did not see are 0.
    """
    longer = max(view.width, view.height)
    width, height = (max(LEAST_CELLS, round(HEATMAP_CELLS * side / longer)) for side in (view.width, view.height))
    grid = replace(view, width=width, height=height)
    spread = grid.resized(activations, average=average)
    low, high = spread.min(), spread.max()
    values = np.zeros((height, width), np.float32)
    if high > low:
        left, top, right, bottom = grid.seen
        seen = (slice(top, bottom), slice(left, right))
        values[seen] = np.round((spread[seen] - low) / (high - low), 3)
    return values
