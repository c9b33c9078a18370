"""Formats that are not read have their names; kinds that are not read are not called damaged; broken extras are no obstacle."""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidInput, UnsupportedPicture
from service.media.formats import FORMATS, format_of, other_format
from tests.media.reading import encoded, noise, opened


def brands(*names: bytes) -> bytes:
    """The beginning of a file in ISO's base media format."""
    body = names[0] + bytes(4) + b"".join(names[1:])
    return struct.pack(">I", len(body) + 8) + b"ftyp" + body + b"\0\0\0\x08mdat"


OTHERS = {
    "HEIC": brands(b"heic", b"mif1", b"heic"),
    "HEIC picture": brands(b"mif1", b"mif1", b"heix"),
    "HEIF": brands(b"mif1", b"mif1", b"miaf"),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20),
    "JPEG 2000 picture": b"\xff\x4f\xff\x51" + bytes(20),
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "JPEG XL picture": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20),
    "JPEG XR": b"II\xbc\x01" + bytes(20),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG drawing": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC "x">\n<svg width="1">',
    "PDF": b"%PDF-1.7\n",
    "ICO": b"\0\0\1\0\1\0\x10\x10" + bytes(20),
    "RAW": brands(b"crx ", b"crx ", b"isom"),
    "camera's RAW": b"FUJIFILMCCD-RAW 0201",
    "Photoshop": b"8BPS\0\1",
    "OpenEXR": b"\x76\x2f\x31\x01\2\0\0\0",
    "Radiance": b"#?RADIANCE\n",
    "PNM": b"P6\n2 2\n255\n" + bytes(12),
    "DICOM": bytes(128) + b"DICM",
    "video": brands(b"isom", b"isom", b"mp42"),
    "WebM": b"\x1aE\xdf\xa3" + bytes(20),
    "ZIP": b"PK\x03\x04" + bytes(20),
    "HTML": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "base64": b"data:image/png;base64,iVBORw0KGgo=",
}


@pytest.mark.parametrize(("name", "data"), OTHERS.items(), ids=OTHERS.keys())
def test_another_format_is_named(name: str, data: bytes) -> None:
    assert format_of(data) is None
    with pytest.raises(UnsupportedPicture, match=rf"^Image 1 is an? .*{name}.*not supported here\. Send JPEG or PNG"):
        opened(data)


@pytest.mark.parametrize(
    "data", [b"hello", b"BM is short for bowel movement", bytes(200), b"\xff\xd8", b"RIFF1234WAVE"]
)
def test_what_is_no_picture_is_told_which_formats_there_are(data: bytes) -> None:
    assert other_format(data) is None
    with pytest.raises(InvalidInput, match=f"is not an image that can be read here. Send one of: {', '.join(FORMATS)}"):
        opened(data)


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_known_by_its_first_bytes(form: str) -> None:
    assert format_of(encoded(noise(8, 8), form)) == form


# --- AVIF


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_is_read_with_its_transparency(mode: str) -> None:
    y, x = np.mgrid[0:32, 0:48]
    samples = np.stack([x * 5, y * 7, (x + y) * 3, np.where(x < 24, 255, 0)], axis=-1).astype(np.uint8)
    picture = Image.fromarray(samples).convert(mode)
    expected = np.asarray(picture.convert("RGB"), float)
    if mode == "RGBA":
        expected[:, 24:] = 255
    pixels = opened(encoded(picture, "AVIF", quality=100, subsampling="4:4:4"))
    assert np.abs(pixels - expected).max() <= 6


def test_an_avif_is_turned_upright_though_its_exif_is_broken() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    data = encoded(Image.new("RGB", (32, 16), "red"), "AVIF", exif=exif)
    broken = re.sub(rb"II\*\0|MM\0\*", b"XXXX", data)
    assert broken != data
    for file in (data, broken):
        assert opened(file).shape == (32, 16, 3)


def test_an_avif_that_is_cut_short_is_damaged() -> None:
    data = encoded(noise(40, 40), "AVIF")
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(InvalidInput, match="damaged or cut short"):
            opened(data[: int(len(data) * share)])


# --- BMP and JPEG


def bmp(bits: int, compression: int, masks: tuple[int, ...], pixels: bytes) -> bytes:
    """A BMP of 8 x 8 pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, compression, 0, 2835, 2835, 0, 0)
    header += b"".join(struct.pack("<I", mask) for mask in masks)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bmp(8, 3, (0xC0, 0x38, 0x07), bytes(64)), "bitfields layout"),
        (bmp(16, 3, (0xF00, 0xF0, 0xF), bytes(128)), "bitfields layout"),
        (bmp(24, 5, (), bytes(192)), r"compression \(5\)"),
        (bmp(64, 0, (), bytes(512)), r"pixel depth \(64\)"),
        (b"BM" + struct.pack("<IHHI", 100, 0, 0, 30) + struct.pack("<I", 16) + bytes(80), r"header type \(16\)"),
    ],
)
def test_a_bmp_of_an_unusual_kind_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedPicture, match=rf"kind of BMP \({kind}\).*Send JPEG or PNG"):
        opened(data)


@pytest.mark.parametrize(
    ("bits", "masks"),
    [(16, (0xF800, 0x7E0, 0x1F)), (16, (0x7C00, 0x3E0, 0x1F)), (32, (0xFF0000, 0xFF00, 0xFF))],
)
def test_a_bmp_of_a_usual_kind_is_read(bits: int, masks: tuple[int, ...]) -> None:
    word = np.full(64, masks[0] | masks[2], f"<u{bits // 8}")
    assert (opened(bmp(bits, 3, masks, word.tobytes())) == [255, 0, 255]).all()


def test_a_bmp_that_is_cut_short_is_damaged() -> None:
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        opened(encoded(noise(8, 8), "BMP")[:-50])


JPEG = encoded(Image.fromarray(np.mgrid[0:32, 0:24][0].astype(np.uint8) * 8), "JPEG")
FRAME = JPEG.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("place", "byte", "kind"),
    [
        (FRAME + 1, 0xC3, "lossless"),
        (FRAME + 1, 0xC5, "hierarchical"),
        (FRAME + 1, 0xF7, "JPEG-LS"),
        (FRAME + 4, 12, "12 bits"),
        (FRAME + 9, 2, "2 components"),
    ],
)
def test_a_jpeg_of_an_unusual_kind_is_named(place: int, byte: int, kind: str) -> None:
    data = bytearray(JPEG)
    data[place] = byte
    with pytest.raises(UnsupportedPicture, match=rf"kind of JPEG \({kind}"):
        opened(bytes(data))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_is_cut_short_is_damaged(share: float) -> None:
    data = encoded(noise(40, 40), "JPEG")
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        opened(data[: int(len(data) * share)])


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_a_jpeg_of_every_colour_space_is_read(mode: str) -> None:
    """Adobe's inverted inks, too, which is what Pillow writes."""
    picture = Image.new("RGB", (16, 16), (200, 40, 90)).convert(mode)
    expected = np.asarray(picture.convert("RGB"), float)
    assert np.abs(opened(encoded(picture, "JPEG", quality=100, subsampling=0)) - expected).max() <= 4


# --- metadata


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def exif(entry: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4))


SEGMENTS = {
    "EXIF of nonsense": segment(0xE1, b"Exif\0\0nonsense"),
    "EXIF cut short": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"),
    "EXIF in a circle": exif(struct.pack("<HHII", 0x8769, 4, 1, 8)),
    "EXIF beyond the file": exif(struct.pack("<HHII", 0x0112, 3, 2**32 - 1, 8)),
    "EXIF with an orientation of 0": exif(struct.pack("<HHII", 0x0112, 3, 1, 0)),
    "EXIF with an orientation as text": exif(struct.pack("<HHI4s", 0x0112, 2, 2, b"6\0")),
    "XMP of nonsense": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<<<"),
    "large profile of nonsense": segment(0xE2, b"ICC_PROFILE\0\1\1" + b"x" * 60_000) * 20,
    "profile cut short": segment(0xE2, b"ICC_PROFILE\0"),
    "profile of which parts are missing": segment(0xE2, b"ICC_PROFILE\0\x09\x01x"),
    "index of pictures that is none": segment(0xE2, b"MPF\0nonsense"),
    "Photoshop's data cut short": segment(0xED, b"Photoshop 3.0\08BIM\x04"),
    "Adobe's marker cut short": segment(0xEE, b"Adobe"),
    "JFIF's marker cut short": segment(0xE0, b"JFIF"),
    "large comments": segment(0xFE, b"x" * 65_000) * 20,
    "unknown segment": segment(0xE7, b"nonsense"),
}


@pytest.mark.parametrize("extra", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_metadata_of_a_jpeg_may_be_broken(extra: bytes) -> None:
    for mode in ("RGB", "CMYK"):
        data = encoded(noise(16, 24).convert(mode), "JPEG")
        assert np.array_equal(opened(data[:2] + extra + data[2:]), opened(data))


def test_a_sound_orientation_beside_broken_metadata_is_applied() -> None:
    data = encoded(noise(16, 24), "JPEG")
    turned = exif(struct.pack("<HHII", 0x0112, 3, 1, 6)) + SEGMENTS["profile cut short"]
    assert np.array_equal(opened(data[:2] + turned + data[2:]), np.rot90(opened(data), -1))


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(v)) + v + b"\0" * (len(v) % 2) for k, v in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_metadata_of_a_webp_may_be_broken_or_cut_short() -> None:
    picture = noise(16, 24)
    plain = encoded(picture, "WEBP", lossless=True)
    pixels = plain[20 : 20 + int.from_bytes(plain[16:20], "little")]
    header = (b"VP8X", bytes([0x2C]) + bytes(3) + bytes([15, 0, 0, 23, 0, 0]))  # announces a profile, EXIF and XMP
    for extras in (
        [(b"EXIF", b"nonsense")],
        [(b"XMP ", b"<x")],
        [(b"JUNK", b"odd")],
        [(b"EXIF", b"Exif\0\0II*\0\x08\0\0\0\x05\0")],
    ):
        data = riff(header, (b"ICCP", b"nonsense" * 100_000), (b"VP8L", pixels), *extras)
        assert np.array_equal(opened(data), np.asarray(picture))
        assert np.array_equal(opened(data[:-6]), np.asarray(picture))
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        opened(plain[:-200])


EXTENSIONS = {
    "comment": b"\x21\xfe\xffx" + b"x" * 254 + b"\0",
    "long comment": b"\x21\xfe" + (b"\xff" + b"x" * 255) * 9000 + b"\0",
    "application without data": b"\x21\xff\x0bNETSCAPE2.0\0",
    "control of no length": b"\x21\xf9\0",
    "control of another length": b"\x21\xf9\x02\0\0\0",
    "unknown": b"\x21\x77\x02ab\0",
}


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS.keys())
def test_extensions_of_a_gif_may_be_broken(extension: bytes) -> None:
    picture = noise(16, 24).convert("P")
    file = io.BytesIO()
    picture.save(file, "GIF")
    data = file.getvalue()
    place = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    expected: Any = np.asarray(picture.convert("RGB"))
    assert np.array_equal(opened(data[:place] + extension + data[place:]), expected)
