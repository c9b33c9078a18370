"""Where in the displayed picture a place is that a model speaks of: boxes, and maps that cover what the model saw.

view = frame.view(picture.width, picture.height)
boxes = view.to_picture(boxes)                       # of a detector, in pixels of the picture as displayed
for tile, part in view.tiles(scores):                # of a segmenter, as large as the picture
classes[tile] = part.argmax(axis=0)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.graph import Array

Tile = tuple[slice, slice]
"""Some rows and columns of a picture."""

TILE_COLUMNS = 4096
"""Widest tile of a resized map (pixels); most pictures are no wider."""
TILE_NUMBERS = 2**20
"""Most numbers in a tile of a resized map, but for one row, which is the least (count): 4 MB, so that it stays in the
processor's cache while it is looked at."""


@dataclass(frozen=True, slots=True)
class View:
    """A picture's size, and the part of it that the model sees.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        box: left, top, right, bottom of the part seen, as fractions of width and height; below 0 and above 1 where the
            model sees more than the picture, which is a border.
    """

    width: int
    height: int
    box: tuple[float, float, float, float]

    def to_picture(self, boxes: Array, size: tuple[int, int] = (1, 1)) -> Array:
        """Turn boxes in what the model sees into boxes in the picture, cut at its edges.

        A box that lies beside the picture, in the border, is cut to nothing: `has_area` tells which are left.

        Args:
            boxes: float (..., 4): left, top, right, bottom.
            size: width and height, in the unit of the boxes, of what the model sees: `(416, 320)` where they are in
                pixels of a graph of that size; left out: they are fractions of it, 0 to 1.

        Returns:
            float64 (..., 4), in pixels of the upright picture.
        """
        left, top, right, bottom = self.box
        corners = np.asarray(boxes, np.float64).reshape(*boxes.shape[:-1], 2, 2)
        corners = np.array([left, top]) + corners * (np.array([right - left, bottom - top]) / size)
        picture = np.array([self.width, self.height])
        return np.asarray(np.clip(corners * picture, 0, picture).reshape(boxes.shape))

    @property
    def seen(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the pixels whose centre the model saw; with `crop` they are not the whole."""
        left, top, right, bottom = self.box
        columns, rows = _inside(left, right, self.width), _inside(top, bottom, self.height)
        return columns[0], rows[0], columns[1], rows[1]

    def tiles(self, scores: Array, *, average: bool = True) -> Iterator[tuple[Tile, Array]]:
        """Resize a stack of maps to the picture's own size, tile by tile: whole, large ones would take gigabytes.

        Bilinear, as Pillow does it: between the middles of the map's cells where it is enlarged, averages where it is
        made smaller. Parts that the model did not see (`seen`) repeat the map's edge.

        Args:
            scores: float (classes, rows, columns) over what the model saw, such as logits: enlarging those, and not
                the labels, keeps the outlines smooth.
            average: False: a map that is made smaller is looked up between its nearest cells, and others are skipped.

        Yields:
            The rows and columns of the picture, and float32 (classes, these rows, these columns), which is written over
            when the next tile is asked for.
        """
        classes, rows, columns = scores.shape
        left, top, right, bottom = self.box
        broad = min(self.width, TILE_COLUMNS)
        high = min(self.height, max(1, TILE_NUMBERS // (classes * broad)))
        memory = np.empty((classes, high, broad), np.float32)
        scores = np.asarray(scores, np.float32)
        for some_columns in _parts(self.width, broad):
            wide = Taps.of(some_columns, self.width, columns, left, right, average).along_columns(scores)
            for some_rows in _parts(self.height, high):
                tile = memory[:, : some_rows.stop - some_rows.start, : some_columns.stop - some_columns.start]
                Taps.of(some_rows, self.height, rows, top, bottom, average).along_rows(wide, tile)
                yield (some_rows, some_columns), tile

    def resized(self, values: Array, *, average: bool = True) -> Array:
        """Resize one map, float (rows, columns) over what the model saw: float32 (height, width) over the picture.

        What `tiles` says holds. For a coarser result than the picture, ask a view of the same `box` and another size.
        """
        whole = np.empty((self.height, self.width), np.float32)
        for tile, part in self.tiles(values[None], average=average):
            whole[tile] = part[0]
        return whole


@dataclass(frozen=True, slots=True)
class Taps:
    """Which cells of a map's side count for each pixel of the picture's side, and how much.

    Attributes:
        cells: int64 (pixels, taps), of the map.
        weights: float32 (pixels, taps); each row sums to 1.
    """

    cells: Array
    weights: Array

    @classmethod
    def of(cls, pixels: slice, length: int, cells: int, start: float, stop: float, average: bool) -> Taps:
        """The taps of Pillow's "bilinear", whose triangle is as wide as a cell or a pixel, whichever is wider.

        Args:
            pixels: which ones of the picture's side.
            length: of that side (pixels).
            cells: of the map's side (count).
            start: fraction of the picture's side where the map begins.
            stop: fraction of it where the map ends.
            average: whether all cells count where there are more of them than pixels.
        """
        centres = ((np.arange(pixels.start, pixels.stop) + 0.5) / length - start) / (stop - start) * cells - 0.5
        centres = np.clip(centres, 0, cells - 1)[:, None]
        reach = max(1.0, cells / ((stop - start) * length)) if average else 1.0
        taps = np.maximum(np.floor(centres - reach).astype(np.int64) + 1, 0) + np.arange(
            min(math.ceil(2 * reach), cells)
        )
        weights = np.maximum(0, 1 - np.abs(centres - taps) / reach) * (taps < cells)
        weights /= weights.sum(axis=1, keepdims=True)
        return cls(np.minimum(taps, cells - 1), weights.astype(np.float32))

    def along_columns(self, values: Array) -> Array:
        """Resize the last axis of float32 (classes, rows, cells) to these pixels."""
        return np.asarray(
            sum(values[:, :, cell] * weight for cell, weight in zip(self.cells.T, self.weights.T, strict=True))
        )

    def along_rows(self, values: Array, out: Array) -> None:
        """Resize the middle axis of float32 (classes, cells, columns) to these pixels, into `out`.

        Row by row: what is read for a row stays in the processor's cache, and no other memory is needed.
        """
        for row, (cells, weights) in enumerate(zip(self.cells, self.weights, strict=True)):
            np.multiply(values[:, cells[0]], weights[0], out=out[:, row])
            for cell, weight in zip(cells[1:], weights[1:], strict=True):
                out[:, row] += values[:, cell] * weight


def _parts(length: int, most: int) -> Iterator[slice]:
    """A side in parts of at most so many pixels."""
    return (slice(start, min(start + most, length)) for start in range(0, length, most))


def has_area(boxes: Array) -> Array:
    """Tell which boxes have an area: those that were cut to nothing at the edges of a picture have none.

    Args:
        boxes: float (..., 4): left, top, right, bottom, rounded as they will be shown.

    Returns:
        bool (...).
    """
    return np.asarray((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]))


def _inside(start: float, stop: float, length: int) -> tuple[int, int]:
    """First and last but one pixel of a side whose centre is in a part, given as fractions of the side."""
    first = min(max(math.ceil(start * length - 0.5), 0), length)
    return first, max(first, min(math.floor(stop * length - 0.5) + 1, length))
