"""PNG: every depth and kind of transparency; small files the quick way; extras that may be broken, pixels that may not."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from service.errors import InvalidInput, UnsupportedPicture
from service.graph import Array
from service.media.png import small_png
from tests.media.reading import encoded, noise, opened
from tests.pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk, png, ramps

interlacing = pytest.mark.parametrize("interlaced", [False, True], ids=["in order", "interlaced"])


def numbers(samples: int, bits: int) -> Array:
    """Integers of that many bits over all their range."""
    return np.rint(ramps(samples, 2**bits - 1)).astype(np.int64)


def grey(values: Array) -> Array:
    return np.repeat(values, 3, axis=-1)


@interlacing
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_is_scaled_by_its_range(bits: int, interlaced: bool) -> None:
    samples = numbers(1, bits)
    pixels = opened(png(samples, bits, GREY, interlaced=interlaced))
    assert np.abs(pixels - grey(samples / (2**bits - 1) * 255)).max() <= 1


@interlacing
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_every_depth(bits: int, interlaced: bool) -> None:
    samples, most = numbers(1, bits), 2**bits - 1
    for value in {0, most, int(samples[3, 5, 0])}:
        expected = np.where(samples == value, 255, samples / most * 255)
        data = png(samples, bits, GREY, interlaced=interlaced, before=[chunk(b"tRNS", struct.pack(">H", value))])
        assert np.abs(opened(data) - grey(expected)).max() <= 1


@interlacing
@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_white_and_one_that_differs_in_the_last_bit_is_not(bits: int, interlaced: bool) -> None:
    samples = numbers(3, bits)
    value = samples[2, 3].copy()
    samples[5, 5] = value ^ 1
    expected = samples / (2**bits - 1) * 255
    expected[(samples == value).all(axis=-1)] = 255
    data = png(samples, bits, RGB, interlaced=interlaced, before=[chunk(b"tRNS", struct.pack(">3H", *value))])
    assert np.abs(opened(data) - expected).max() <= 1


@interlacing
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colours", [GREY_ALPHA, RGBA])
def test_alpha_is_composed_on_white(bits: int, colours: int, interlaced: bool) -> None:
    samples = numbers(2 if colours == GREY_ALPHA else 4, bits)
    values, alpha = samples[..., :-1] / (2**bits - 1), samples[..., -1:] / (2**bits - 1)
    expected = np.broadcast_to((values * alpha + 1 - alpha) * 255, (*samples.shape[:2], 3))
    assert np.abs(opened(png(samples, bits, colours, interlaced=interlaced)) - expected).max() <= 1.5


@interlacing
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("opaque", [[], [0], [255, 0], [128, 255, 3]])
def test_a_palette_may_have_alpha(bits: int, opaque: list[int], interlaced: bool) -> None:
    indices, draw = numbers(1, bits)[..., 0], np.random.default_rng(0)
    palette = draw.integers(0, 256, (2**bits, 3))
    alpha = np.array((opaque + [255] * 2**bits)[: 2**bits])[:, None] / 255
    before = [chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
    if opaque:
        before.append(chunk(b"tRNS", bytes(opaque[: 2**bits])))
    expected = (palette * alpha + 255 * (1 - alpha))[indices]
    data = png(indices, bits, PALETTE, interlaced=interlaced, before=before)
    assert np.abs(opened(data) - expected).max() <= 1


# --- small files


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (32, 32), (128, 128)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_small_png_is_read_as_pillow_reads_it(size: tuple[int, int], level: int) -> None:
    picture = noise(*size)
    pixels = small_png(encoded(picture, compress_level=level), 2**20)
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(picture))
    data = encoded(picture, dpi=(72, 72))
    assert b"pHYs" in data
    assert np.array_equal(small_png(data, 2**20), np.asarray(picture))  # type: ignore[arg-type]


def test_other_files_are_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small, plain = noise(8, 8), encoded(noise(8, 8))
    lamed = plain[:-12] + chunk(b"tRNS", b"\0\0\0\0\0\0") + plain[-12:]
    for data in (
        b"",
        plain[:30],
        encoded(small, "JPEG"),
        encoded(small, exif=exif),
        encoded(small.convert("RGBA")),
        encoded(small.convert("L")),
        encoded(small.convert("P")),
        encoded(small, transparency=(0, 0, 0)),
        encoded(noise(129, 128)),
        lamed,
        plain + b"more",
        plain[:-12] + chunk(b"eXIf", exif.tobytes()) + plain[-12:],
    ):
        assert small_png(data, 2**20) is None
    assert small_png(plain, 63) is None
    assert small_png(plain, 64) is not None


@given(place=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_damaged_small_png_is_left_to_pillow_or_whole(place: int, byte: int) -> None:
    picture = noise(8, 8)
    data = bytearray(encoded(picture))
    data[place % len(data)] = byte
    pixels = small_png(bytes(data), 2**20)
    assert pixels is None or np.array_equal(pixels, np.asarray(picture))


GAMMA = chunk(b"gAMA", struct.pack(">I", 100_000))
WRONG_GAMMA = chunk(b"gAMA", struct.pack(">I", 100_000), checksum=7)


@pytest.mark.parametrize(
    "extra", [GAMMA, WRONG_GAMMA, chunk(b"sBIT", b"\5\6\5"), chunk(b"bKGD", bytes(6)), chunk(b"sRGB", b"\0")]
)
def test_gamma_and_the_like_change_no_pixel_of_a_small_png(extra: bytes) -> None:
    samples = numbers(3, 8)
    for before, after in (([extra], []), ([], [extra])):
        data = png(samples, 8, RGB, before=before, after=after)
        assert small_png(data, 2**20) is not None
        assert np.array_equal(opened(data), samples)


@interlacing
@pytest.mark.parametrize(
    ("bits", "colours", "samples"),
    [(16, RGB, 3), (8, GREY, 1), (16, GREY, 1), (8, RGBA, 4), (8, GREY_ALPHA, 2), (4, GREY, 1), (1, GREY, 1)],
)
def test_only_8_bits_of_three_colours_in_order_go_the_quick_way(
    bits: int, colours: int, samples: int, interlaced: bool
) -> None:
    assert small_png(png(numbers(samples, bits), bits, colours, interlaced=interlaced), 2**20) is None
    assert small_png(png(numbers(3, 8), 8, RGB, interlaced=True), 2**20) is None


# --- chunks that say nothing about the pixels, and those that do

LARGE = bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK)
EXTRAS = {
    "large profile": chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(LARGE)),
    "broken profile": chunk(b"iCCP", b"sRGB\0\0nonsense"),
    "profile of an unknown compression": chunk(b"iCCP", b"sRGB\0\7nonsense"),
    "empty profile": chunk(b"iCCP", b""),
    "large text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
    "large international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LARGE)),
    "text of an unknown compression": chunk(b"zTXt", b"Comment\0\7nonsense"),
    "text that is not text": chunk(b"iTXt", b"\xff\xfe\0\0\0\0\0\xff"),
    "broken EXIF": chunk(b"eXIf", b"nonsense"),
    "empty EXIF": chunk(b"eXIf", b""),
    "EXIF cut short": chunk(b"eXIf", b"II*\0\x08\0\0\0\x09\0\x12\1"),
    "EXIF as text, not in hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\nzzzz"),
    "large EXIF as text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LARGE)),
    "broken XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x"),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short size": chunk(b"pHYs", b"\0"),
    "short chromaticities": chunk(b"cHRM", b"\0"),
    "wrong checksum of a time": chunk(b"tIME", bytes(7), checksum=1),
    "wrong checksum of a text": chunk(b"tEXt", b"Comment\0hello", checksum=1),
    "wrong checksum of EXIF": chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0", checksum=1),
    "unknown chunk": chunk(b"abCd", b"nonsense"),
    "unknown chunk with a wrong checksum": chunk(b"abCd", b"nonsense", checksum=1),
    "animation that is none": chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0\0\0\7" + bytes(22)),
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("colours", [RGB, RGBA])
def test_what_says_nothing_about_the_pixels_may_be_broken(extra: bytes, colours: int) -> None:
    samples = numbers(4, 8)[..., : 3 if colours == RGB else 4]
    expected = opened(png(samples, 8, colours))
    assert np.array_equal(opened(png(samples, 8, colours, before=[extra])), expected)
    assert np.array_equal(opened(png(samples, 8, colours, after=[extra])), expected)


def test_many_texts_are_no_obstacle() -> None:
    """Together they are more than Pillow reads of texts in one file."""
    text = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK - 1))
    texts = [chunk(b"zTXt", b"Comment\0\0" + text)] * (
        PngImagePlugin.MAX_TEXT_MEMORY // PngImagePlugin.MAX_TEXT_CHUNK + 2
    )
    samples = numbers(3, 8)
    assert np.array_equal(opened(png(samples, 8, RGB, before=texts)), samples)


EXIF = Image.Exif()
EXIF[0x0112] = 6
TURNED = {
    "EXIF": chunk(b"eXIf", EXIF.tobytes()[6:]),
    "EXIF as text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n1\n" + EXIF.tobytes().hex().encode()),
    "XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
}


@pytest.mark.parametrize("turn", TURNED.values(), ids=TURNED.keys())
def test_an_orientation_is_found_before_and_after_the_pixels(turn: bytes) -> None:
    samples = numbers(3, 8)
    for before, after in (([turn], []), ([], [turn])):
        pixels = opened(png(samples, 8, RGB, before=before, after=after))
        assert np.array_equal(pixels, np.rot90(samples, -1))


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_wrong_checksum_of_what_matters_is_damage(kind: bytes) -> None:
    palette = [chunk(b"PLTE", bytes(range(48))), chunk(b"tRNS", b"\1\2\3")]
    data = bytearray(png(numbers(1, 4), 4, PALETTE, before=palette))
    at = data.index(kind)
    data[at + 4 + int.from_bytes(data[at - 4 : at])] ^= 1
    with pytest.raises(InvalidInput, match=f"damaged or cut short.*checksum of chunk {kind.decode()} is wrong"):
        opened(bytes(data))


@pytest.mark.parametrize("samples", [3, 4])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_pixels_that_are_cut_short_are_damage(samples: int, share: float) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, samples), np.uint8)))
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        opened(data[: int(len(data) * share)])


def test_a_cut_after_the_pixels_is_not() -> None:
    samples = numbers(4, 8)
    whole = png(samples, 8, RGBA, after=[chunk(b"tEXt", b"Comment\0hello")])
    for cut in (4, 12, 15, 24):
        assert np.array_equal(opened(whole[:-cut]), opened(whole))


def test_apples_variant_is_named() -> None:
    plain = png(numbers(3, 8), 8, RGB)
    data = (
        plain[:8] + chunk(b"CgBI", bytes(4)) + plain[8:41].replace(b"zzzz", b"") + chunk(b"IDAT", b"raw") + plain[-12:]
    )
    with pytest.raises(UnsupportedPicture, match=r"kind of PNG \(Apple's variant"):
        opened(data)


def test_the_first_frame_of_an_animation_is_shown() -> None:
    first, second = noise(9, 7), noise(9, 7, seed=1)
    data = encoded(first, save_all=True, append_images=[second])
    assert b"fdAT" in data
    assert np.array_equal(opened(data), np.asarray(first))
