"""Files without what says nothing about their pixels, for when Pillow stumbles over that.

Broken profiles, comments and camera data do not make a picture unreadable; they make Pillow refuse to open it. What
is left out here is what viewers do not need. PNG has its own way (`service.media.png`), TIFF's tags do no harm.

References:
    JPEG: ITU-T T.81, annex B. WebP: RFC 9649, section 2. GIF: GIF89a specification (CompuServe, 1990).
    AVIF: ISO/IEC 14496-12, section 8.11.6 (`infe`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping


def without_extras(form: str, data: bytes) -> bytes | None:
    """The file without its metadata; None where there is nothing to leave out, or the file cannot be followed."""
    strip = _STRIPPERS.get(form)
    try:
        bare = strip(data) if strip else None
    except (IndexError, struct.error):
        return None
    return None if bare == data else bare


_JPEG_SCAN = 0xDA
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
# Shorter ones are broken. These two say how colours are meant, and EXIF and XMP which side is up.
_JPEG_NEEDED = re.compile(
    rb"\xff(?:\xe0..JFIF\0.{9}|\xee..Adobe.{7}|\xe1..(?:Exif\0\0|http://ns\.adobe\.com/xap/))", re.DOTALL
)


def _jpeg(data: bytes) -> bytes:
    """Without application segments and comments, but those that matter."""
    kept, at = [data[:2]], 2
    while data[at] == 0xFF and data[at + 1] != _JPEG_SCAN:
        marker = data[at + 1]
        if marker in _JPEG_WITHOUT_LENGTH or marker == 0xFF:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        is_extra = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_extra or _JPEG_NEEDED.match(data[at:end]):
            kept.append(data[at:end])
        at = max(end, at + 2)
    return b"".join([*kept, data[at:]])


_WEBP_FLAGS = 0x12  # transparency and animation; the others announce metadata
_WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})


def _webp(data: bytes) -> bytes:
    """Without profile, EXIF, XMP and chunks that are not known."""
    kept, at = [b"WEBP"], 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if kind in _WEBP_PIXELS:
            chunk = data[at:end]
            if kind == b"VP8X":
                chunk = chunk[:8] + bytes([chunk[8] & _WEBP_FLAGS]) + chunk[9:]
            kept.append(chunk)
        at = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


_GIF_EXTENSION, _GIF_PICTURE, _GIF_END = 0x21, 0x2C, b"\x3b"
_GIF_CONTROL = b"\x21\xf9\x04"  # a graphic control extension of the length that there is: transparency


def _gif(data: bytes) -> bytes:
    """The first frame, without comments and applications' extensions."""
    at = 13 + _gif_palette(data[10])
    kept = [data[:at]]
    while data[at] == _GIF_EXTENSION:
        end = _after_blocks(data, at + 2)
        if data[at : at + 3] == _GIF_CONTROL:
            kept.append(data[at:end])
        at = end
    if data[at] != _GIF_PICTURE:
        return data
    end = _after_blocks(data, at + 11 + _gif_palette(data[at + 9]))
    return b"".join([*kept, data[at:end], _GIF_END])


def _gif_palette(flags: int) -> int:
    """Length of the palette that a header's flags announce (bytes)."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    """Where a chain of blocks ends, each with its length before it, the last with 0."""
    while length := data[at]:
        at += 1 + length
    return at + 1


def _avif(data: bytes) -> bytes:
    """With its EXIF item renamed, so that nobody reads it; libavif knows the orientation without it."""
    return re.sub(rb"(infe.{8})Exif", rb"\1none", data, flags=re.DOTALL)


_STRIPPERS: Mapping[str, Callable[[bytes], bytes]] = {"JPEG": _jpeg, "WEBP": _webp, "GIF": _gif, "AVIF": _avif}
