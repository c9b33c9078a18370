"""Formats of pictures, told by their first bytes: those that are read here, and names for others that people send."""

from __future__ import annotations

import re

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""All that are read, as messages name them."""


class UnsupportedKind(Exception):
    """A file of one of `FORMATS`, but of a kind that is not read; the message is the kind: "32-bit float RGB"."""


_READ = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    # Two letters are little to go by, so the length of the header that follows has to be one there is.
    "BMP": re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*|II\0\*|MM\*\0|II\+\0|MM\0\+"),
}

_OTHERS = {
    "a JPEG 2000 picture": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "a JPEG XL picture": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
    "a camera's RAW picture": rb"IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb",
    "an ICO icon": rb"\0\0[\x01\x02]\0[^\0]\0",
    "a Photoshop document": rb"8BPS",
    "an OpenEXR picture": rb"\x76\x2f\x31\x01",
    "a Radiance HDR picture": rb"#\?(?:RADIANCE|RGBE)",
    "a PNM picture": rb"P[1-7Ff]\s",
    "a DDS texture": rb"DDS ",
    "a QOI picture": rb"qoif",
    "an XCF document of GIMP": rb"gimp xcf",
    "an animation in MNG": rb"\x8aMNG\r\n\x1a\n",
    "a JNG picture": rb"\x8bJNG\r\n\x1a\n",
    "a JPEG XR picture": rb"II\xbc",
    "a PostScript document": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a PDF document": rb"\s*%PDF-",
    "an SVG drawing": rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?\?>\s*|<!--.*?-->\s*|<!DOCTYPE svg.*?>\s*)*<(?:\w+:)?svg[\s>]",
    "an SVG drawing, compressed by gzip": rb"\x1f\x8b\x08.{7}[^\0]*\.svg\0",
    "an HTML page": rb"(?i:(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)[\s>])",
    "a video in Matroska or WebM": rb"\x1aE\xdf\xa3",
    "a video in AVI": rb"RIFF....AVI ",
    "a ZIP archive": rb"PK\x03\x04",
    "a gzip archive": rb"\x1f\x8b\x08",
    "a FITS picture": rb"SIMPLE  =",
    "a picture as base64 text": rb"data:image/|/9j/[\w+/]|iVBORw0KGgo",
}
_OTHERS_COMPILED = {name: re.compile(pattern, re.DOTALL) for name, pattern in _OTHERS.items()}

_HEIC = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"})
_HEIF = frozenset({b"mif1", b"msf1", b"mif2"})


def format_of(data: bytes) -> str | None:
    """One of `FORMATS`, or None. The file may be damaged all the same."""
    for name, pattern in _READ.items():
        if pattern.match(data):
            return name
    return "AVIF" if not _brands(data).isdisjoint({b"avif", b"avis"}) else None


def other_format(data: bytes) -> str | None:
    """What a file of none of `FORMATS` is, with its article: "a HEIC picture"; None where that is not known."""
    if brands := _brands(data):
        if not brands.isdisjoint(_HEIC):
            return "a HEIC picture"
        if b"crx " in brands:
            return "a camera's RAW picture"
        return "a HEIF picture" if not brands.isdisjoint(_HEIF) else "a video"
    if data[128:132] == b"DICM":
        return "a DICOM file"
    beginning = data[:4096]
    return next((name for name, pattern in _OTHERS_COMPILED.items() if pattern.match(beginning)), None)


def _brands(data: bytes) -> frozenset[bytes]:
    """The brands of a file in ISO's base media format (ISO/IEC 14496-12, section 4.3); none of every other file."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4]), 1024)
    return frozenset(data[at : at + 4] for at in (8, *range(16, end, 4)))
