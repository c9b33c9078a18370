"""TIFF: the kinds that Pillow reads, as 8 bits a sample; and a description of each other kind.

A TIFF may hold numbers of any sort. What Pillow opens is not always what it scales right, so the kinds that it takes
for another are refused here; `tests/media/test_tiff.py` holds every kind that is answered.

References:
    TIFF Revision 6.0 (Adobe, 1992); TIFF Technical Note 1 (1995) and Adobe's DNG specification for previews.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from service.media.formats import UnsupportedKind

# libtiff reads planes of 16 bits and subsampled YCbCr right, Pillow's own reader of uncompressed files does not.
TiffImagePlugin.READ_LIBTIFF = True

_REDUCED = 1
"""Bit of `NewSubfileType` of a preview of another picture in the file."""
_PLANES_APART = 2
_SIGNED = 2
_JPEG = 7
_WHITE_IS_ZERO = 0

_UNKNOWN_KIND = frozenset({"unknown pixel mode", "unknown data organization", "Invalid value for samples per pixel"})
"""What Pillow says of tags that it has no mode for."""

_COLOURS = {
    0: "grey (0 is white)",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "camera's RAW",
    32844: "LogL",
    32845: "LogLuv",
    34892: "camera's RAW",
}
_SAMPLE_FORMATS = {2: "signed ", 3: "float ", 4: "untyped ", 5: "complex ", 6: "complex "}
_EXTRAS = {1: " with premultiplied alpha", 2: " with alpha"}
_READ_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000})
_OTHER_COMPRESSIONS = {
    6: "old-style JPEG",
    32809: "ThunderScan",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGILog",
    34677: "SGILog",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34934: "JPEG XR",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_NATIVE_FLOAT = "F;32F" if sys.byteorder == "little" else "F;32BF"


class Tiff(TiffImageFile):
    """A picture as it is stored: Pillow's own step that turns it upright fails on broken EXIF data."""

    def _open(self) -> None:
        super()._open()
        self._size = self.tag_v2[Tag.ImageWidth], self.tag_v2[Tag.ImageLength]
        if self.mode == "F":  # libtiff gives numbers in the machine's order, which Pillow would turn round once more
            self.tile = [tile._replace(args=(_NATIVE_FLOAT, False, self.tag_v2.offset)) for tile in self.tile]

    def load_end(self) -> None:
        pass

    @property
    def orientation(self) -> Any:
        """As in EXIF, 1 to 8; or whatever else the file says."""
        return self.tag_v2.get(Tag.Orientation)


def open_tiff(data: bytes) -> Tiff:
    """The first picture of a file, its tags read.

    Raises:
        UnsupportedKind: Pillow does not open such pictures, or takes them for others.
        SyntaxError, ValueError, OSError: the file is damaged.
    """
    if data.startswith(b"MM\0+"):
        raise UnsupportedKind("BigTIFF in big-endian order")
    try:
        picture = Tiff(io.BytesIO(data))
    except (SyntaxError, ValueError, OSError) as error:
        tags = _tags(data)
        is_whole = Tag.BitsPerSample in tags and (Tag.StripOffsets in tags or Tag.TileOffsets in tags)
        if is_whole and (str(error) in _UNKNOWN_KIND or tags.get(Tag.Compression, 1) not in _READ_COMPRESSIONS):
            raise UnsupportedKind(described(tags)) from None
        raise
    tags = picture.tag_v2
    if (
        _is_raw(tags)
        or tags.get(Tag.Compression, 1) not in _READ_COMPRESSIONS
        or _first(tags, Tag.SampleFormat, 1) == _SIGNED  # readers do not agree on which number is black
        or (tags.get(Tag.Compression) == _JPEG and _first(tags, Tag.BitsPerSample, 1) > 8)
        or picture.mode == "LAB"  # Pillow is up to 46 levels from other readers
        or (picture.mode == "F" and tags.get(Tag.PhotometricInterpretation) == _WHITE_IS_ZERO)
        or (tags.get(Tag.PlanarConfiguration) == _PLANES_APART and picture.mode in ("LA", "La", "PA"))
    ):
        raise UnsupportedKind(described(tags))
    return picture


def _tags(data: bytes) -> Mapping[int, Any]:
    """The first directory of a file; empty where it cannot be read."""
    try:
        tags, file = ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8]), io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, struct.error):
        return {}


def _is_raw(tags: Mapping[int, Any]) -> bool:
    """Whether the picture is a camera's, or a small one that stands before a camera's."""
    is_preview = bool(_first(tags, Tag.NewSubfileType, 0) & _REDUCED) and Tag.SubIFDs in tags
    return Tag.DNGVersion in tags or is_preview


def described(tags: Mapping[int, Any]) -> str:
    """The kind in words, such as "32-bit float RGB"."""
    if _is_raw(tags):
        return "camera's RAW"
    photometric, compression = tags.get(Tag.PhotometricInterpretation, 0), tags.get(Tag.Compression, 1)
    numbers = _SAMPLE_FORMATS.get(_first(tags, Tag.SampleFormat, 1), "")
    colours = _COLOURS.get(photometric, f"colours of kind {photometric}")
    kind = f"{_first(tags, Tag.BitsPerSample, 1)}-bit {numbers}{colours}"
    kind += _EXTRAS.get(_first(tags, Tag.ExtraSamples, 0), "")
    if tags.get(Tag.PlanarConfiguration) == _PLANES_APART:
        kind += ", one plane after another"
    if compression not in _READ_COMPRESSIONS:
        kind += f", {_OTHER_COMPRESSIONS.get(compression, f'number {compression}')} compression"
    return kind


def _first(tags: Mapping[int, Any], tag: int, default: int) -> Any:
    """A tag's value, of several the first."""
    value = tags.get(tag, default)
    return (value or (default,))[0] if isinstance(value, tuple) else value


def eight_bits(picture: Tiff) -> Image.Image:
    """The picture with 8 bits a sample.

    Raises:
        UnsupportedKind: numbers of floating point are outside 0..1, so that their range is not known.
    """
    if picture.mode == "La":  # on white already, as far as it goes: the rest is what white adds
        grey, alpha = np.asarray(picture).astype(np.int16).transpose(2, 0, 1)
        return Image.fromarray(np.minimum(grey + 255 - alpha, 255).astype(np.uint8))
    if picture.mode == "F":
        values = np.asarray(picture)
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:
            raise UnsupportedKind(f"float numbers from {low:g} to {high:g} instead of 0 to 1")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if picture.mode == "I":
        return Image.fromarray((np.asarray(picture).view(np.uint32) >> 24).astype(np.uint8))
    if picture.mode.startswith("I;16"):
        spare = _first(picture.tag_v2, Tag.BitsPerSample, 16) - 8
        grey = (np.asarray(picture) >> spare).astype(np.uint8)
        is_turned = picture.tag_v2.get(Tag.PhotometricInterpretation) == _WHITE_IS_ZERO
        return Image.fromarray(255 - grey if is_turned else grey)
    return picture
