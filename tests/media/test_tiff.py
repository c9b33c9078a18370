"""TIFF: every kind that is answered has the pixels its numbers mean; every other is refused by name."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidInput, UnsupportedPicture
from service.graph import Array
from tests.media.reading import opened
from tests.pictures import packed, ramps, tiff

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
UNSPECIFIED, PREMULTIPLIED, ALPHA = 0, 1, 2

orders = pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
layouts = pytest.mark.parametrize(
    "layout",
    [{}, {"deflated": True}, {"planes_apart": True}, {"planes_apart": True, "deflated": True}],
    ids=["plain", "deflated", "planes", "deflated-planes"],
)


def numbers(samples: int, bits: int) -> Array:
    """Integers of that many bits over all their range."""
    return np.rint(ramps(samples, 2**bits - 1)).astype(np.int64)


def on_white(colours: Array, alpha: Array) -> Array:
    """Both 0..1; the result 0..255."""
    return np.asarray((colours * alpha + 1 - alpha) * 255)


def grey(values: Array) -> Array:
    return np.repeat(values, 3, axis=-1)


@orders
@layouts
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_are_scaled_by_their_range(order: str, layout: Any, bits: int) -> None:
    samples = numbers(3, bits)
    pixels = opened(tiff(samples, bits, RGB, order=order, **layout))
    assert np.abs(pixels - samples / (2**bits - 1) * 255).max() <= 1


@orders
@layouts
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("meaning", [UNSPECIFIED, PREMULTIPLIED, ALPHA], ids=["unspecified", "premultiplied", "alpha"])
def test_alpha_is_composed_on_white_and_what_is_unspecified_is_left_out(
    order: str, layout: Any, bits: int, meaning: int
) -> None:
    samples, most = numbers(4, bits), 2**bits - 1
    if meaning == PREMULTIPLIED:
        samples[..., :3] = samples[..., :3] * samples[..., 3:] // most
    colours, alpha = samples[..., :3] / most, samples[..., 3:] / most
    expected = {
        UNSPECIFIED: colours * 255,
        PREMULTIPLIED: (colours + 1 - alpha) * 255,
        ALPHA: on_white(colours, alpha),
    }
    pixels = opened(tiff(samples, bits, RGB, order=order, extra=[meaning], **layout))
    assert np.abs(pixels - expected[meaning]).max() <= 2.5


@orders
@layouts
@pytest.mark.parametrize("bits", [8, 16])
def test_inks_are_mixed(order: str, layout: Any, bits: int) -> None:
    samples, most = numbers(4, bits), 2**bits - 1
    expected = (1 - samples[..., :3] / most) * (1 - samples[..., 3:] / most) * 255
    assert np.abs(opened(tiff(samples, bits, CMYK, order=order, **layout)) - expected).max() <= 2


@orders
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_is_scaled_by_its_range(order: str, deflated: bool, bits: int) -> None:
    samples = numbers(1, bits)
    pixels = opened(tiff(samples, bits, BLACK_IS_ZERO, order=order, deflated=deflated))
    assert np.abs(pixels - grey(samples / (2**bits - 1) * 255)).max() <= 1


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("bits", [12, 32])
def test_grey_of_unusual_depth_is_scaled_by_its_own_range(deflated: bool, bits: int) -> None:
    samples = numbers(1, bits)
    pixels = opened(tiff(samples, bits, BLACK_IS_ZERO, deflated=deflated))
    assert np.abs(pixels - grey(samples / (2**bits - 1) * 255)).max() <= 1


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_where_white_is_zero_grey_is_turned_round(deflated: bool, bits: int) -> None:
    samples = numbers(1, bits)
    pixels = opened(tiff(samples, bits, WHITE_IS_ZERO, deflated=deflated))
    assert np.abs(pixels - grey(255 - samples / (2**bits - 1) * 255)).max() <= 1


@orders
@pytest.mark.parametrize("meaning", [UNSPECIFIED, PREMULTIPLIED, ALPHA], ids=["unspecified", "premultiplied", "alpha"])
def test_grey_may_have_alpha(order: str, meaning: int) -> None:
    samples = numbers(2, 8)
    if meaning == PREMULTIPLIED:
        samples[..., :1] = samples[..., :1] * samples[..., 1:] // 255
    value, alpha = samples[..., :1] / 255, samples[..., 1:] / 255
    expected = {UNSPECIFIED: value * 255, PREMULTIPLIED: (value + 1 - alpha) * 255, ALPHA: on_white(value, alpha)}
    pixels = opened(tiff(samples, 8, BLACK_IS_ZERO, order=order, extra=[meaning]))
    assert np.abs(pixels - grey(expected[meaning])).max() <= 1.5


@orders
@pytest.mark.parametrize("deflated", [False, True])
def test_numbers_of_floating_point_go_from_0_to_1(order: str, deflated: bool) -> None:
    samples = ramps(1, 1.0)
    pixels = opened(tiff(samples, 32, BLACK_IS_ZERO, order=order, kind="f", deflated=deflated))
    assert np.abs(pixels - grey(samples * 255)).max() <= 1


@pytest.mark.parametrize("value", [-0.5, 1.5, 255.0, float("nan"), float("inf")])
def test_numbers_of_floating_point_beyond_that_are_refused(value: float) -> None:
    """Their range is not known: a temperature, a height, 0 to 255."""
    samples = ramps(1, 1.0)
    samples[3, 4] = value
    with pytest.raises(UnsupportedPicture, match=r"kind of TIFF \(float numbers from .* instead of 0 to 1\)"):
        opened(tiff(samples, 32, BLACK_IS_ZERO, kind="f"))


@orders
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_is_looked_up(order: str, bits: int) -> None:
    indices = numbers(1, bits)
    palette = np.random.default_rng(0).integers(0, 256, (3, 2**bits)) * 257
    data = tiff(indices, bits, PALETTE, order=order, tags={320: (3, palette.reshape(-1).tolist())})
    assert np.array_equal(opened(data), palette[:, indices[..., 0]].transpose(1, 2, 0) // 257)


@orders
def test_ycbcr_becomes_rgb(order: str) -> None:
    """Pure colours by the matrix of ITU-R BT.601."""
    samples = np.zeros((8, 16, 3), np.int64)
    samples[:, :8], samples[:, 8:] = (76, 85, 255), (150, 44, 21)
    pixels = opened(tiff(samples, 8, YCBCR, order=order, tags={530: (3, [1, 1])}))
    assert np.abs(pixels[4, 4] - [254, 0, 0]).max() <= 2
    assert np.abs(pixels[4, 12] - [0, 255, 1]).max() <= 2


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff(numbers(1, 16), 16, BLACK_IS_ZERO, kind="i"), "16-bit signed grey"),
        (tiff(numbers(1, 8), 8, BLACK_IS_ZERO, kind="i"), "8-bit signed grey"),
        (tiff(numbers(1, 32), 32, BLACK_IS_ZERO, kind="i", order=">"), "32-bit signed grey"),
        (tiff(numbers(3, 32), 32, RGB), "32-bit RGB"),
        (tiff(ramps(3, 1), 32, RGB, kind="f"), "32-bit float RGB"),
        (tiff(ramps(3, 1), 64, RGB, kind="f", planes_apart=True), "64-bit float RGB, one plane after another"),
        (tiff(ramps(1, 1), 16, BLACK_IS_ZERO, kind="f"), "16-bit float grey"),
        (tiff(ramps(1, 1), 32, WHITE_IS_ZERO, kind="f"), r"32-bit float grey \(0 is white\)"),
        (tiff(numbers(1, 16), 16, WHITE_IS_ZERO, order=">"), r"16-bit grey \(0 is white\)"),
        (tiff(numbers(2, 16), 16, BLACK_IS_ZERO, extra=[ALPHA]), "16-bit grey with alpha"),
        (tiff(numbers(2, 8), 8, BLACK_IS_ZERO, extra=[ALPHA], planes_apart=True), "8-bit grey with alpha, one plane"),
        (tiff(numbers(2, 8), 8, BLACK_IS_ZERO, extra=[PREMULTIPLIED], planes_apart=True, deflated=True), "premultiplied"),
        (tiff(numbers(1, 14), 14, BLACK_IS_ZERO), "14-bit grey"),
        (tiff(numbers(3, 8), 8, CIELAB), "8-bit CIELAB"),
        (tiff(numbers(3, 16), 16, CIELAB), "16-bit CIELAB"),
        (tiff(numbers(5, 8), 8, CMYK, extra=[ALPHA]), "8-bit CMYK with alpha"),
        (tiff(numbers(3, 8), 8, RGB, tags={259: (3, [34712])}), "8-bit RGB, JPEG 2000 compression"),
        (tiff(numbers(3, 8), 8, RGB, tags={259: (3, [50002])}), "8-bit RGB, JPEG XL compression"),
        (tiff(numbers(3, 8), 8, RGB, tags={259: (3, [6])}), "old-style JPEG compression"),
        (tiff(numbers(3, 8), 8, RGB, tags={259: (3, [4711])}), "8-bit RGB, number 4711 compression"),
        (tiff(numbers(1, 16), 16, 32803), "camera's RAW"),
        (tiff(numbers(3, 8), 8, RGB, tags={50706: (4, [1])}), "camera's RAW"),
        (tiff(numbers(3, 8), 8, RGB, tags={254: (4, [1]), 330: (4, [8])}), "camera's RAW"),
        (b"MM\0+\0\x08\0\0" + struct.pack(">Q", 16) + bytes(40), "BigTIFF in big-endian order"),
    ],
)  # fmt: skip
def test_a_kind_that_is_not_read_is_named_and_not_called_damaged(data: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedPicture, match=rf"kind of TIFF \(.*{kind}.*\).*not supported.*JPEG or PNG"):
        opened(data)


@pytest.mark.parametrize("layout", [{}, {"deflated": True}, {"planes_apart": True}])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_damaged(layout: Any, share: float) -> None:
    data = tiff(numbers(3, 16), 16, RGB, **layout)
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        opened(data[: int(len(data) * share)])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_at_every_depth(orientation: int) -> None:
    samples = numbers(1, 16)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that store it so
    stored = Image.fromarray((samples[..., 0] >> 8).astype(np.uint8))
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    data = tiff(np.asarray(stored).astype(np.int64) * 257, 16, BLACK_IS_ZERO, tags={274: (3, [orientation])})
    assert np.array_equal(opened(data), grey(samples >> 8))


def test_tags_that_say_nothing_about_the_pixels_may_be_broken() -> None:
    """EXIF, GPS and Photoshop's data beyond the file, a profile of nonsense, an orientation that there is not."""
    broken = {
        tag: (4, [2**31]) for tag in (34665, 34853, 40965)
    } | {34377: (4, [1, 2, 3]), 34675: (4, [7] * 1000), 274: (3, [77]), 282: (4, [0]), 700: (4, [1])}  # fmt: skip
    samples = numbers(3, 8)
    assert np.array_equal(opened(tiff(samples, 8, RGB, tags=broken)), samples)


def test_packing_puts_the_highest_bit_first() -> None:
    """The writer of these tests: 12 bits, 0xABC and 0xDEF."""
    assert packed(np.array([0xABC, 0xDEF]), 12, ">") == b"\xab\xcd\xef"
