"""Pictures: from encoded bytes to upright RGB pixels as large as a graph's input, and from places there back.

    picture = open_picture(data, "Image 1", max_pixels=50_000_000, least=frame.size)
    view = frame.view(picture.width, picture.height)
    pixels = frame.pixels(picture, view)

`View` remembers which part of the picture the graph saw, for whatever the graph says about places.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from kornia_rs.io import decode_image_png_u8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling

from service.errors import InvalidInput, TooLarge
from service.graph import Array

Image.MAX_IMAGE_PIXELS = None  # the server's own limit is checked instead, before anything is decoded
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata in files that can be read all the same

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

Resize = Literal["stretch", "crop"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was opened.

    Attributes:
        pixels: upright and RGB, uint8 (height, width, 3) where it is an array; perhaps decoded at a
            fraction of its size.
        width: pixels, upright, of the whole file.
        height: pixels, upright, of the whole file.
    """

    pixels: Image.Image | Array
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class View:
    """A picture's size, and the part of it that the model sees.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        box: left, top, right, bottom of the part seen, as fractions of width and height.
    """

    width: int
    height: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a graph wants to see of a picture.

    Attributes:
        width: of the graph's input (pixels).
        height: of the graph's input (pixels).
        resize: `stretch` makes the whole picture fit; `crop` keeps the aspect ratio and takes the centre.
        resize_to: with `crop`, the shorter side before the centre is taken (pixels); None: the graph's size.
        filter: Pillow's resampling filter.
    """

    width: int
    height: int
    resize: Resize = "stretch"
    resize_to: int | None = None
    filter: Filter = "bilinear"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height (pixels)."""
        return self.width, self.height

    def view(self, width: int, height: int) -> View:
        """The part of a picture of that size that is shown to the model."""
        if self.resize == "stretch":
            return View(width, height, (0.0, 0.0, 1.0, 1.0))
        scale = (self.resize_to or max(self.width, self.height)) / min(width, height)
        resized_w, resized_h = max(round(width * scale), self.width), max(round(height * scale), self.height)
        left, top = (resized_w - self.width) // 2, (resized_h - self.height) // 2
        box = (
            left / resized_w,
            top / resized_h,
            (left + self.width) / resized_w,
            (top + self.height) / resized_h,
        )
        return View(width, height, box)

    def pixels(self, picture: Picture, view: View) -> Array:
        """Resize and crop in one pass: uint8 (height, width, 3)."""
        image, box = picture.pixels, view.box
        whole = box == (0.0, 0.0, 1.0, 1.0)
        if isinstance(image, np.ndarray):
            if whole and image.shape[:2] == (self.height, self.width):
                return image
            image = Image.fromarray(image)
        if not whole or image.size != self.size:
            w, h = image.size
            corners = (box[0] * w, box[1] * h, box[2] * w, box[3] * h)
            image = image.resize(self.size, Resampling[self.filter.upper()], box=corners)
        return np.asarray(image)


def open_picture(data: bytes, what: str, *, max_pixels: int, least: tuple[int, int]) -> Picture:
    """An upright RGB picture: first frame, EXIF orientation applied, transparency composed on white.

    Args:
        data: of the file.
        what: names the file in messages, such as "Image 1".
        max_pixels: that a picture may have.
        least: width and height that it will be resized to; of a JPEG so small a fraction is decoded as still leaves
            4 pixels for each one.

    Raises:
        InvalidInput: it is no picture that can be read.
        TooLarge: it has more pixels than the limit.
    """
    if not data:
        raise InvalidInput(f"{what} has no bytes. Send the content of the file (curl: --data-binary @photo.jpg).")
    if (pixels := small_png(data, max_pixels)) is not None:
        return Picture(pixels, pixels.shape[1], pixels.shape[0])
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > max_pixels:
            setting = "GRIDLOOP_MAX_IMAGE_PIXELS"
            raise TooLarge(what, limit=max_pixels, unit="pixels", setting=setting, actual=width * height)
        # A JPEG can be decoded at a half, quarter or eighth: as small as still leaves 4 pixels for each one.
        picture.draft("RGB", (4 * least[0], 4 * least[1]))
        picture.load()
        if _may_be_turned(picture):
            upright = ImageOps.exif_transpose(picture)
            if (upright.width > upright.height) != (picture.width > picture.height):
                width, height = height, width
            picture = upright
        return Picture(_on_white(picture), width, height)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise InvalidInput(f"{what} is not an image that can be read here. Send one of: {known}.") from None
    except _DAMAGED as error:
        raise InvalidInput(f"{what} is damaged or cut short ({error}). Send the whole file again.") from None


# What Pillow's decoders raise on damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, struct.error)


SMALL_PIXELS = 128 * 128
"""Up to so many pixels, opening a PNG takes Pillow longer than decoding it (count)."""
_PNG = b"\x89PNG\r\n\x1a\n"
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
    if data[:8] != _PNG or data[12:16] != b"IHDR" or data[24:29] != _RGB:
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


_TURNED_BY = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})


def _may_be_turned(picture: Image.Image) -> bool:
    """Whether the file has metadata that could hold an orientation; reading it takes longer than a small inference."""
    return not _TURNED_BY.isdisjoint(picture.info) or hasattr(picture, "tag_v2")


def _on_white(picture: Image.Image) -> Image.Image:
    """Any mode as RGB; transparent parts become white."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
