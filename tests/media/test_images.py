"""From encoded pictures to upright RGB pixels of a graph's size."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from service.errors import InvalidInput, TooLarge
from service.graph import Array
from service.media import images
from service.media.images import Frame, Picture, open_picture
from service.media.views import View
from tests import graphs
from tests.media.reading import encoded, noise, shown


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


def as_torchvision(picture: Image.Image, resize_to: int, size: tuple[int, int], resampling: Resampling) -> Array:
    """`Resize(resize_to)` and `CenterCrop((height, width))` of torchvision 0.29, on a Pillow image."""
    width, height = picture.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = resize_to, int(resize_to * long / short)
    picture = picture.resize((new_short, new_long) if width <= height else (new_long, new_short), resampling)
    crop_width, crop_height = size
    across, down = max(crop_width - picture.width, 0), max(crop_height - picture.height, 0)
    padded = Image.new("RGB", (picture.width + across, picture.height + down))
    padded.paste(picture, (across // 2, down // 2))
    top, left = round((padded.height - crop_height) / 2.0), round((padded.width - crop_width) / 2.0)
    return np.asarray(padded.crop((left, top, left + crop_width, top + crop_height)))


SIDES = st.integers(1, 60) | st.sampled_from([1, 2, 3, 399, 400])


@given(width=SIDES, height=SIDES, resize_to=st.integers(1, 40), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@pytest.mark.parametrize("resampling", ["nearest", "box", "bilinear", "bicubic", "lanczos", "hamming"])
def test_cropping_is_torchvisions_to_the_pixel(
    resampling: Any, width: int, height: int, resize_to: int, size: tuple[int, int]
) -> None:
    """Odd and even, portrait and landscape, enlarged, and with a border where the picture is smaller than the crop."""
    picture = noise(width, height)
    frame = Frame(*size, "crop", resize_to, resampling)
    pixels = frame.pixels(Picture(picture, width, height), frame.view(width, height))
    assert np.array_equal(pixels, as_torchvision(picture, resize_to, size, Resampling[resampling.upper()]))


@pytest.mark.parametrize(("width", "height"), [(5_000_000, 1), (1, 5_000_000), (3, 400_000)])
@pytest.mark.parametrize("resize", ["crop", "letterbox", "stretch"])
def test_the_longest_pictures_take_no_more_memory_than_others(width: int, height: int, resize: Any) -> None:
    """Resized whole to a shorter side of 256, the longest one would take 980 GB."""
    frame = Frame(224, 224, resize, 256)
    picture = Picture(Image.new("RGB", (width, height), "red"), width, height)
    pixels = frame.pixels(picture, frame.view(width, height))
    assert pixels.shape == (224, 224, 3)
    assert pixels[111, 111].tolist() == [255, 0, 0]


def test_a_very_large_picture_is_cropped_at_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, picture = Frame(30, 30, "crop", 41), Picture(noise(333, 77), 333, 77)
    view = frame.view(333, 77)
    whole = frame.pixels(picture, view)
    monkeypatch.setattr(images, "MOST_RESIZED_PIXELS", 0)
    assert np.abs(frame.pixels(picture, view).astype(int) - whole).max() <= 2


def test_letterboxing_shows_the_whole_picture_within_grey() -> None:
    """16x8 into 8x8: twice as wide as high, so two rows of grey above and below."""
    pixels, view = shown(encoded(halves("red", "blue", size=(16, 8))), (8, 8), resize="letterbox", filter="box")
    assert (pixels[:2] == 114).all()
    assert (pixels[6:] == 114).all()
    assert (pixels[2:6, :4] == [255, 0, 0]).all()
    assert (pixels[2:6, 4:] == [0, 0, 255]).all()
    assert view.box == (0.0, -0.5, 1.0, 1.5)


@given(
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    frame=st.tuples(st.integers(8, 640), st.integers(8, 640)),
    resize=st.sampled_from(["stretch", "crop", "letterbox"]),
    box=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_boxes_map_back_to_the_picture(
    size: tuple[int, int], frame: tuple[int, int], resize: Any, box: tuple[float, ...]
) -> None:
    """A box of the picture, written in the frame's pixels by hand, comes back as it was."""
    width, height = size
    wanted = Frame(*frame, resize)
    view = wanted.view(width, height)
    resized_w, resized_h, left, top = wanted._placed(width, height)
    across, down = resized_w / width, resized_h / height
    (x0, x1), (y0, y1) = (sorted((a * s, b * s)) for a, b, s in ((box[0], box[2], width), (box[1], box[3], height)))
    seen = np.array([[x0 * across - left, y0 * down - top, x1 * across - left, y1 * down - top]])
    np.testing.assert_allclose(view.to_picture(seen / [*frame, *frame]), [[x0, y0, x1, y1]], rtol=1e-9, atol=1e-6)


def test_boxes_are_cut_at_the_edges_of_the_picture() -> None:
    view = Frame(8, 8, "letterbox").view(16, 8)
    assert view.to_picture(np.array([0.0, 0.0, 1.0, 1.0])).tolist() == [0, 0, 16, 8]
    assert view.to_picture(np.array([[0.25, 0.25, 0.5, 0.5]])).tolist() == [[4, 0, 8, 4]]


@pytest.mark.parametrize(
    ("options", "is_whole"),
    [({}, False), ({"resize": "letterbox"}, False), ({"exact": True}, True), ({"resize": "crop"}, True)],
)
def test_a_large_jpeg_is_decoded_at_a_fraction_unless_that_would_show(options: Any, is_whole: bool) -> None:
    data = encoded(noise(256, 256), "JPEG")
    frame = Frame(16, 16, filter="box", **options)
    picture = open_picture(data, "Image 1", max_pixels=2**20, least=frame.least)
    assert (picture.width, picture.height) == (256, 256)
    assert isinstance(picture.pixels, Image.Image)
    assert picture.pixels.size == ((256, 256) if is_whole else (64, 64))
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((16, 16), Resampling.BOX))
    pixels = frame.pixels(picture, frame.view(256, 256))
    assert np.array_equal(pixels, whole) == is_whole


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
    with suppress(InvalidInput, TooLarge):  # the damage may be to its size
        shown(around[:place] + data + around[place + len(data) :])
