"""What the tests of pictures share: small pictures, encoded, and what the service makes of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from service.graph import Array
from service.media.images import Frame, open_picture
from service.media.views import View


def opened(data: bytes, **options: Any) -> Array:
    """All pixels of a picture: float64 (height, width, 3)."""
    picture = open_picture(data, "Image 1", **{"max_pixels": 50_000_000, "least": None, **options})
    pixels = np.asarray(picture.pixels, np.float64)
    assert pixels.shape == (picture.height, picture.width, 3)
    return pixels


def shown(
    data: bytes, size: tuple[int, int] = (2, 2), max_pixels: int = 50_000_000, **options: Any
) -> tuple[Array, View]:
    """What a graph of that width and height sees of a picture: uint8 (height, width, 3), and which part of it that is."""
    frame = Frame(*size, **options)
    picture = open_picture(data, "Image 1", max_pixels=max_pixels, least=frame.least)
    view = frame.view(picture.width, picture.height)
    return frame.pixels(picture, view), view


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
