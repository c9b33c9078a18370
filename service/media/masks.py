"""Which pixels of a picture belong to what, in the forms that callers read: PNG and COCO's run lengths."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from service.graph import Array
from service.media.palette import palette


def class_map_png(class_map: Array) -> bytes:
    """Encode a class for each pixel as PNG of mode P: a pixel's value is its label's index, and its colour the label's.

    Args:
        class_map: uint8 (height, width).
    """
    image = Image.fromarray(np.ascontiguousarray(class_map))
    image.putpalette(palette().tobytes())  # which makes it one of mode P
    return _png(image)


def mask_png(mask: Array) -> bytes:
    """Encode a mask, bool (height, width), as PNG of 1 bit: white where it is true."""
    return _png(Image.fromarray(mask))


def grey_png(values: Array) -> bytes:
    """Encode numbers, uint8 (height, width), as a grey PNG of 8 bits."""
    return _png(Image.fromarray(np.ascontiguousarray(values)))


def mask_rle(mask: Array) -> dict[str, Any]:
    """Encode a mask, bool (height, width), as COCO's compressed run lengths, which `pycocotools.mask.decode` reads."""
    found = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode("ascii")}


def _png(image: Image.Image) -> bytes:
    """Masks have long runs, which zlib's quickest level packs nearly as well."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
