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

Image.MAX_IMAGE_PIXELS = None  # the server's own limit is checked instead, before anything is decoded
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the workers have all cores already
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata in files that can be read all the same

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
    if form == "AVIF" and any(
        words in message for words in ("Unsupported", "Not implemented", "No codec", "not installed")
    ):
        return message
    return None


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
