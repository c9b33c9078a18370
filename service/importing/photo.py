"""A picture to try graphs with, where who imports one has none at hand: drawn, the same every time."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from service.graph import Array

WIDTH, HEIGHT = 320, 240


def drawn() -> Array:
    """A house on a hill under a sun: uint8 (240, 320, 3)."""
    rows = np.linspace(0, 1, HEIGHT)[:, None, None]
    sky = np.array([70, 130, 200]) * (1 - rows) + np.array([225, 225, 235]) * rows
    picture = Image.fromarray(np.broadcast_to(sky, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((240, 20, 290, 70), fill=(250, 210, 70))
    pen.ellipse((-60, 150, 380, 420), fill=(70, 130, 60))
    pen.rectangle((90, 110, 190, 190), fill=(200, 120, 90))
    pen.polygon([(80, 112), (140, 60), (200, 112)], fill=(120, 40, 40))
    pen.rectangle((130, 145, 155, 190), fill=(80, 50, 30))
    pen.rectangle((100, 125, 120, 145), fill=(190, 220, 240))
    pen.rectangle((225, 140, 235, 195), fill=(90, 60, 40))
    pen.ellipse((205, 95, 255, 150), fill=(40, 100, 50))
    return np.asarray(picture)


def as_png(pixels: Array) -> bytes:
    """A picture uint8 (height, width, 3) as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
