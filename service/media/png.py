"""PNG beyond what Pillow does by itself.

Chunks that say nothing about the pixels are left out before Pillow sees the file, so that none of them makes it
unreadable; transparency is compared at the file's own depth; and small pictures are decoded in a third of the time.

References:
    Portable Network Graphics (PNG) Specification, Third Edition (W3C, 2025).
"""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise

import numpy as np
from kornia_rs.io import decode_image_png_u8
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from service.graph import Array

SMALL_PIXELS = 128 * 128
"""Up to so many pixels, opening a PNG takes Pillow longer than decoding it (count)."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""First bytes of every PNG."""
_RGB = b"\x08\x02\x00\x00\x00"  # 8 bits, three colours, and not interlaced
_WITHOUT_EFFECT = frozenset({b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"sBIT", b"bKGD"})


def small_png(data: bytes, most_pixels: int) -> Array | None:
    """Decode a small PNG in plain RGB without metadata that matter, in a third of Pillow's time.

    The checksum of every chunk of pixels is looked at; that of the pixels, which Pillow checks as well, is not.

    Args:
        data: of any file.
        most_pixels: that a picture may have.

    Returns:
        uint8 (height, width, 3), the same as Pillow's; None for every other file and for damaged ones, which are
        Pillow's to read or to refuse.
    """
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or data[24:29] != _RGB:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    if not 0 < width * height <= min(SMALL_PIXELS, most_pixels):
        return None
    at = 33
    while data[at + 4 : at + 8] in _WITHOUT_EFFECT:
        at += 12 + int.from_bytes(data[at : at + 4])
    if data[at + 4 : at + 8] != b"IEND" or at + 12 != len(data):
        return None
    try:
        pixels: Array = decode_image_png_u8(data, (height, width), "rgb")
    except BaseException:  # of a damaged file; a panic in Rust is no Exception
        return None
    return pixels


_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})
_AFTER_HEADER = 2  # the signature and IHDR come before
_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_TURNED_BY = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def open_png(data: bytes) -> PngImageFile:
    """The picture, its header read.

    Raises:
        ValueError, SyntaxError, OSError: it is damaged.
    """
    try:
        return PngImageFile(io.BytesIO(without_extras(data, orientation=True)))
    except (ValueError, SyntaxError, OSError):
        return PngImageFile(io.BytesIO(without_extras(data, orientation=False)))


def without_extras(data: bytes, *, orientation: bool) -> bytes:
    """The file without the chunks that say nothing about its pixels, of an animation without all but the first frame.

    Args:
        data: of a PNG.
        orientation: keep the sound ones that may hold an orientation, too, before the pixels.

    Raises:
        ValueError: the header does not come first, or the checksum of a chunk that matters is wrong.
    """
    if data[12:16] != b"IHDR":
        raise ValueError("the header does not come first")
    view, at = memoryview(data), len(SIGNATURE)
    kept: list[tuple[int, int]] = [(0, at)]
    turning: list[tuple[int, int]] = []
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4])
        matters = kind in _PIXELS
        if end > len(data) or kind == b"IEND":
            if matters or kind == b"IEND":  # pixels that are cut short are for the decoder to notice
                kept.append((at, len(data)))
            break
        if matters or (orientation and _may_turn(kind, data[at + 8 : at + 32])):
            if zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end]):
                (kept if matters else turning).append((at, end))
            elif matters:
                raise ValueError(f"the checksum of chunk {kind.decode()} is wrong")
        at = end
    kept[_AFTER_HEADER:_AFTER_HEADER] = turning
    if kept[-1][1] == len(data) and all(one[1] == other[0] for one, other in pairwise(kept)):
        return data
    return b"".join(view[start:end] for start, end in kept)


def _may_turn(kind: bytes, beginning: bytes) -> bool:
    return kind == b"eXIf" or (kind in _TEXT and beginning.startswith(_TURNED_BY))


def unusual(data: bytes) -> str | None:
    """What sets the kind of a PNG apart from those that every reader knows; None: nothing does."""
    if data[12:16] == b"CgBI":
        return "Apple's variant for the iPhone"
    return None


def eight_bits(picture: PngImageFile, data: bytes) -> Image.Image:
    """The picture with 8 bits a sample, its transparent value, if it has one, told as Pillow needs it.

    Args:
        picture: opened from `data` and loaded.
        data: of the file.
    """
    bits, value = data[24], picture.info.get("transparency")
    if picture.mode == "I;16":
        values = np.asarray(picture)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if value is not None:
            grey.putalpha(Image.fromarray(np.where(values == value, 0, 255).astype(np.uint8)))
        return grey
    if value is None:
        return picture
    if picture.mode == "L" and bits < 8:  # Pillow has stretched the pixels to 0..255, but not the value
        most = 2**bits - 1
        picture.info["transparency"] = (value & most) * 255 // most
    elif picture.mode == "RGB" and bits == 8:
        picture.info["transparency"] = tuple(colour & 0xFF for colour in value)
    elif (
        picture.mode == "RGB"
    ):  # Pillow keeps the upper eight of 16 bits, and pixels that differ in the lower ones are not transparent
        lower = open_png(data)
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        values = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(lower)
        del picture.info["transparency"]
        picture.putalpha(Image.fromarray(np.where((values == value).all(axis=2), 0, 255).astype(np.uint8)))
    return picture
