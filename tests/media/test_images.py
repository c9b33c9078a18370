"""From encoded pictures to upright RGB pixels of a graph's size."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidInput, TooLarge
from service.media.images import View
from tests import graphs
from tests.media.reading import encoded, shown


def halves(left: Any, right: Any, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    """A picture whose left and right halves have one colour each."""
    picture = Image.new(mode, size, left)
    picture.paste(Image.new(mode, (size[0] // 2, size[1]), right), (size[0] // 2, 0))
    return picture


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG", "AVIF"])
def test_every_format_is_read(form: str) -> None:
    picture = halves("red", "blue", size=(64, 64))
    pixels, view = shown(encoded(picture, form), filter="box")
    assert pixels.shape == (2, 2, 3)
    assert np.abs(pixels[0].astype(int) - [[255, 0, 0], [0, 0, 255]]).max() <= 20  # JPEG, WebP and AVIF are not exact
    assert view == View(64, 64, (0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int) -> None:
    """A picture stored turned or mirrored comes out upright, with its upright size."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that store it so
    upright = halves("red", "blue", size=(8, 4))
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, view = shown(encoded(stored, exif=exif), filter="box")
    assert (view.width, view.height) == (8, 4)
    assert pixels[0].tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))],
)
def test_transparency_is_composed_on_white(mode: str, colour: Any) -> None:
    pixels, _ = shown(encoded(Image.new(mode, (2, 2), colour)))
    assert pixels.min() == 255


def test_a_transparent_palette_is_composed_on_white() -> None:
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([0, 0, 0] * 256)
    pixels, _ = shown(encoded(picture, transparency=0))
    assert pixels.min() == 255


def test_sixteen_bits_a_pixel_keep_their_brightness() -> None:
    grey = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    pixels, _ = shown(encoded(grey))
    assert set(pixels.ravel().tolist()) == {0x80}


def test_grey_and_cmyk_become_colours() -> None:
    assert shown(encoded(Image.new("L", (2, 2), 7)))[0][0, 0].tolist() == [7, 7, 7]
    pixels, _ = shown(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG"))
    assert pixels.min() >= 250


def test_only_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    pixels, _ = shown(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_cropping_takes_the_centre_and_keeps_the_aspect_ratio() -> None:
    """A 16x8 picture, red only at its far sides: the centre is green."""
    picture = Image.new("RGB", (16, 8), "red")
    picture.paste("lime", (4, 0, 12, 8))
    pixels, view = shown(encoded(picture), resize="crop", filter="box")
    assert pixels.reshape(-1, 3).tolist() == [[0, 255, 0]] * 4
    assert view.box == (0.25, 0.0, 0.75, 1.0)


def test_an_image_over_the_limit_is_refused_before_it_is_decoded() -> None:
    header_only = graphs.png(size=(11, 10))[:60]
    with pytest.raises(TooLarge, match="110 pixels, more than the 100 pixels"):
        shown(header_only, max_pixels=100)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", graphs.png(size=(50, 50))[:100], b"GIF89a", b"\xff\xd8\xff"]
)
def test_what_is_no_whole_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="Image 1"):
        shown(data)


JPEG = graphs.png(size=(64, 48), form="JPEG")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, len(JPEG)), st.sampled_from([graphs.png(size=(40, 40)), JPEG, b""]))
def test_damaged_bytes_are_refused_or_read_but_never_crash(data: bytes, place: int, around: bytes) -> None:
    with suppress(InvalidInput):
        shown(around[:place] + data + around[place + len(data) :])
