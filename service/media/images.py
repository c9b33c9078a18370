"""Pictures: from encoded bytes to upright RGB pixels as large as a graph's input.

    picture = open_picture(data, "Image 1", max_pixels=50_000_000, least=frame.least)
    view = frame.view(picture.width, picture.height)
    pixels = frame.pixels(picture, view)

The view remembers which part of the picture the graph saw, for whatever the graph says about places
(`service.media.views`).
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import AvifImagePlugin, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Resampling, Transpose
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import InvalidInput, TooLarge, UnsupportedPicture
from service.graph import Array
from service.media import jpeg, png, tiff
from service.media.extras import without_extras
from service.media.formats import FORMATS, UnsupportedKind, format_of, other_format
from service.media.png import small_png
from service.media.views import View

Image.MAX_IMAGE_PIXELS = None  # the server's own limit is checked instead, before anything is decoded
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the workers have all cores already
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata in files that can be read all the same

Resize = Literal["stretch", "crop", "letterbox"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

MOST_RESIZED_PIXELS = 2**24
"""Up to so large a picture is made whole before its centre is cut out (count); of a larger one, only the centre is."""
LETTERBOX_GREY = 114
"""Around a letterboxed picture, 0..255; the value that YOLO's detectors are trained with."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was opened.

    Attributes:
        pixels: upright and RGB, uint8 (height, width, 3) where it is an array; perhaps decoded at a fraction of its
            size.
        width: pixels, upright, of the whole file.
        height: pixels, upright, of the whole file.
    """

    pixels: Image.Image | Array
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What a graph wants to see of a picture.

    Attributes:
        width: of the graph's input (pixels).
        height: of the graph's input (pixels).
        resize: `stretch` makes the whole picture fit; `crop` keeps the aspect ratio and takes the centre, as
            torchvision's `Resize` and `CenterCrop` do; `letterbox` keeps it and puts grey around the whole picture.
        resize_to: with `crop`, the shorter side before the centre is taken (pixels); None: the graph's longer side.
        filter: Pillow's resampling filter.
        exact: decode JPEGs whole, however large they are.
        channels: 3 for colours, 1 for grey.
    """

    width: int
    height: int
    resize: Resize = "stretch"
    resize_to: int | None = None
    filter: Filter = "bilinear"
    exact: bool = False
    channels: int = 3

    @property
    def least(self) -> tuple[int, int] | None:
        """Width and height that leave all that is seen in a picture decoded at a fraction; None: decode it whole."""
        return None if self.exact or self.resize == "crop" else (self.width, self.height)

    def view(self, width: int, height: int) -> View:
        """The part of a picture of that size that is shown to the model."""
        if self.resize == "stretch":
            return View(width, height, (0.0, 0.0, 1.0, 1.0))
        w, h, left, top = self._placed(width, height)
        return View(width, height, (left / w, top / h, (left + self.width) / w, (top + self.height) / h))

    def pixels(self, picture: Picture, view: View) -> Array:
        """The picture as the model sees it: uint8 (height, width, channels)."""
        image, size = picture.pixels, (self.width, self.height)
        if isinstance(image, np.ndarray):
            if self.channels == 3 and self.resize == "stretch" and image.shape[:2] == (self.height, self.width):
                return image
            image = Image.fromarray(image)
        if self.channels == 1:
            image = image.convert("L")
        w, h, left, top = self._placed(view.width, view.height)
        seen = (max(left, 0), max(top, 0), min(left + self.width, w), min(top + self.height, h))
        image = _resized(image, (w, h), seen, Resampling[self.filter.upper()])
        if image.size != size:
            grey = LETTERBOX_GREY if self.resize == "letterbox" else 0
            framed = Image.new(image.mode, size, (grey,) * self.channels if self.channels > 1 else grey)
            framed.paste(image, (max(-left, 0), max(-top, 0)))
            image = framed
        return np.asarray(image).reshape(self.height, self.width, self.channels)

    def _placed(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height to which a picture is resized, and where the frame's left and top are in it (pixels)."""
        if self.resize == "stretch":
            return self.width, self.height, 0, 0
        if self.resize == "letterbox":
            scale = min(self.width / width, self.height / height)
            w, h = max(round(width * scale), 1), max(round(height * scale), 1)
            return w, h, -((self.width - w) // 2), -((self.height - h) // 2)
        shorter = self.resize_to or max(self.width, self.height)
        longer = int(shorter * max(width, height) / min(width, height))
        w, h = (shorter, longer) if width <= height else (longer, shorter)
        return w, h, _centred(self.width, w), _centred(self.height, h)


def _centred(length: int, of: int) -> int:
    """Where the middle `length` of a side begins, as torchvision rounds it; below 0 where the side is shorter."""
    return round((of - length) / 2) if length <= of else -((length - of) // 2)


def _resized(
    image: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int], resampling: Resampling
) -> Image.Image:
    """A part of an image resized to a width and height: of the whole, unless that is very large."""
    (w, h), (left, top, right, bottom) = size, part
    if w * h <= MOST_RESIZED_PIXELS:
        if image.size != size:
            image = image.resize(size, resampling)
        return image if part == (0, 0, w, h) else image.crop(part)
    across, down = image.width / w, image.height / h
    x0, x1 = _around(left * across, right * across, across, image.width)
    y0, y1 = _around(top * down, bottom * down, down, image.height)
    box = (left * across - x0, top * down - y0, right * across - x0, bottom * down - y0)
    return image.crop((x0, y0, x1, y1)).resize((right - left, bottom - top), resampling, box=box)


def _around(start: float, stop: float, scale: float, length: int) -> tuple[int, int]:
    """The whole pixels of a side that matter for a part of it: three for each pixel made, as Lanczos' filter needs."""
    margin = 3 * max(scale, 1) + 1
    return max(math.floor(start - margin), 0), min(math.ceil(stop + margin), length)


def open_picture(data: bytes, what: str, *, max_pixels: int, least: tuple[int, int] | None) -> Picture:
    """An upright RGB picture: first frame, EXIF orientation applied, transparency composed on white.

    Args:
        data: of the file.
        what: names the file in messages, such as "Image 1".
        max_pixels: that a picture may have.
        least: width and height that it will be resized to; of a JPEG so small a fraction is decoded as still leaves
            4 pixels for each one. None: decode all of it.

    Raises:
        InvalidInput: it is no picture, or a damaged one.
        UnsupportedPicture: it is of a format or kind that is not read.
        TooLarge: it has more pixels than the limit.
    """
    if not data:
        raise InvalidInput(f"{what} has no bytes. Send the content of the file (curl: --data-binary @photo.jpg).")
    if (pixels := small_png(data, max_pixels)) is not None:
        return Picture(pixels, pixels.shape[1], pixels.shape[0])
    form = format_of(data)
    if form is None:
        if other := other_format(data):
            raise UnsupportedPicture(what, other)
        known = ", ".join(FORMATS)
        raise InvalidInput(f"{what} is not an image that can be read here. Send one of: {known}.")
    try:
        image = _opened(form, data)
        width, height = image.size
        if width * height > max_pixels:
            setting = "GRIDLOOP_MAX_IMAGE_PIXELS"
            raise TooLarge(what, limit=max_pixels, unit="pixels", setting=setting, actual=width * height)
        if least is not None:
            image.draft("RGB", (4 * least[0], 4 * least[1]))
        image.load()
        turn = _TURNS.get(_orientation(image))
        flat = _on_white(_eight_bits(image, data))
        if turn is None:
            return Picture(flat, width, height)
        upright = flat.transpose(turn)
        return Picture(upright, *((height, width) if turn in _ON_THE_SIDE else (width, height)))
    except UnsupportedKind as error:
        raise UnsupportedPicture(what, f"a kind of {form} ({error})") from None
    except _UNREADABLE as error:
        if kind := _unusual(form, data, error):
            raise UnsupportedPicture(what, f"a kind of {form} ({kind})") from None
        raise InvalidInput(f"{what} is damaged or cut short ({error}). Send the whole file again.") from None


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's file says of it.

    Attributes:
        format: one of `FORMATS`.
        mode: of its pixels as Pillow names it, such as "RGB".
        width: of the picture displayed (pixels).
        height: of the picture displayed (pixels).
        orientation: how it lies in the file, as EXIF numbers it: 1 as it is displayed, 6 a quarter turn to the left.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int


def header(data: bytes) -> Header:
    """What the file of a picture says that `open_picture` has read."""
    form = format_of(data) or ""
    image = _opened(form, data)
    if form == "PNG":  # whose metadata may come last
        image.load()
    turned = _orientation(image)
    width, height = image.size
    if _TURNS.get(turned) in _ON_THE_SIDE:
        width, height = height, width
    return Header(form, image.mode, width, height, turned if turned in _TURNS else 1)


HEADER_BYTES = 64 * 1024
"""Largest file whose header is looked at to tell its pixels; of other formats than PNG (bytes)."""
_PIXELS_PER_BYTE = 8
"""What larger files have, roughly: they are mostly photographs (pixels)."""


def pixels_in(data: bytes) -> int:
    """How many pixels a file would be decoded to, without decoding it; its length where its header cannot be read."""
    if data[:8] == png.SIGNATURE:
        return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
    if len(data) > HEADER_BYTES:
        return len(data) * _PIXELS_PER_BYTE
    form = format_of(data)
    if form is None:
        return len(data)
    try:
        width, height = _opened(form, data).size
    except (UnsupportedKind, *_UNREADABLE):
        return len(data)
    return width * height


_OPENERS: Mapping[str, Callable[[bytes], ImageFile]] = {
    "JPEG": lambda data: JpegImageFile(io.BytesIO(data)),
    "PNG": png.open_png,
    "WEBP": lambda data: WebPImageFile(io.BytesIO(data)),
    "GIF": lambda data: GifImageFile(io.BytesIO(data)),
    "BMP": lambda data: BmpImageFile(io.BytesIO(data)),
    "TIFF": tiff.open_tiff,
    "AVIF": lambda data: AvifImageFile(io.BytesIO(data)),
}

# What Pillow's decoders raise on files that they cannot read.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    TypeError,
    KeyError,
    OverflowError,
    RuntimeError,
    AssertionError,
    struct.error,
)


def _opened(form: str, data: bytes) -> ImageFile:
    """The picture, its header read: without its metadata where they are what Pillow cannot read."""
    try:
        return _OPENERS[form](data)
    except _UNREADABLE:
        if (bare := without_extras(form, data)) is None:
            raise
        return _OPENERS[form](bare)


def _unusual(form: str, data: bytes, error: Exception) -> str | None:
    """The kind of a file that Pillow could not read, where it is the kind that it cannot read; None: it is damaged."""
    message = str(error)
    if form == "JPEG":
        return jpeg.unusual(data)
    if form == "PNG":
        return png.unusual(data)
    if form == "BMP" and message.startswith("Unsupported BMP "):
        return message.removeprefix("Unsupported BMP ")
    if form == "AVIF" and any(words in message for words in _UNKNOWN_AVIF):
        return message
    return None


_UNKNOWN_AVIF = ("Unsupported", "Not implemented", "No codec", "not installed")
"""Words of libavif and Pillow for what they cannot read."""


_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF's orientation, and what makes such a picture upright."""
_ON_THE_SIDE = frozenset({Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90})
_TURNED_BY = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
_ORIENTATION = 0x0112


def _orientation(image: ImageFile) -> int:
    """As EXIF has it, 1 to 8; 1 where the metadata cannot be read."""
    if isinstance(image, tiff.Tiff):
        found = image.orientation
    elif _TURNED_BY.isdisjoint(image.info):  # parsing metadata takes longer than a small inference
        return 1
    else:
        try:
            found = image.getexif().get(_ORIENTATION)
        except _UNREADABLE:
            return 1
    return found if isinstance(found, int) else 1


def _eight_bits(image: ImageFile, data: bytes) -> Image.Image:
    """The picture with 8 bits a sample."""
    if isinstance(image, PngImageFile):
        return png.eight_bits(image, data)
    return tiff.eight_bits(image) if isinstance(image, tiff.Tiff) else image


def _on_white(picture: Image.Image) -> Image.Image:
    """Any mode of 8 bits as RGB; transparent parts become white."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
