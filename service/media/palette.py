"""Colours of labels: distinct for colour-blind readers as well, and for an index always the same."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np

from service.graph import Array

Colour = tuple[int, int, int]
"""Red, green, blue, 0..255."""

COLOURS = 256
"""Labels that have a colour of their own (count): as many as a pixel of 8 bits can name."""

# Okabe and Ito, "Color Universal Design" (2008), without black, then Paul Tol's "muted" (2021) without its likes.
_FIRST = (
    "#e69f00 #56b4e9 #009e73 #f0e442 #0072b2 #d55e00 #cc79a7 #332288 #ddcc77 #882255 #44aa99 #aa4499 #999933 #661100"
)
_TURN = (5**0.5 - 1) / 2
"""Part of the circle of hues from one further colour to the next: the golden ratio, so that no two come close soon."""
_LIGHTNESS = (0.45, 0.7, 0.3)
"""Of further colours in turn: where hues look alike to a reader, they are told apart by how light they are."""


@cache
def palette() -> Array:
    """The colours of all labels: uint8 (256, 3), not to be written to."""
    first = [tuple(bytes.fromhex(colour[1:])) for colour in _FIRST.split()]
    further = [
        colorsys.hls_to_rgb(number * _TURN % 1, _LIGHTNESS[number % len(_LIGHTNESS)], 0.75)
        for number in range(COLOURS - len(first))
    ]
    colours = np.concatenate([np.array(first), np.array(further) * 255]).round().astype(np.uint8)
    colours.flags.writeable = False
    return colours


def colour(index: int) -> Colour:
    """The colour of a label; of those beyond the 256th, that of an earlier one."""
    red, green, blue = palette()[index % COLOURS].tolist()
    return red, green, blue


def on(background: Colour) -> Colour:
    """Black or white, whichever is read more easily on a colour (contrast as in WCAG 2)."""
    light = ((value / 255 / 12.92) if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in background)
    luminance = sum(part * weight for part, weight in zip(light, (0.2126, 0.7152, 0.0722), strict=True))
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)
