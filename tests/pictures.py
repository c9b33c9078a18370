"""PNG and TIFF files written from their specifications, so that what reads them is not tested with its own writer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.graph import Array

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""PNG's colour types."""
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    """A chunk of a PNG, with its right checksum unless another is given."""
    crc = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(
    samples: Array,
    bits: int,
    colours: int,
    *,
    interlaced: bool = False,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
) -> bytes:
    """A PNG.

    Args:
        samples: integers (height, width) or (height, width, samples), 0 to 2^bits - 1.
        bits: of each sample.
        colours: one of the colour types above.
        interlaced: by Adam7.
        before: chunks before the pixels.
        after: chunks after them.
    """
    height, width = samples.shape[:2]
    passes = [samples[y::down, x::across] for x, y, across, down in _ADAM7] if interlaced else [samples]
    rows = [b"\0" + packed(row, bits, ">") for part in passes if part.size for row in part]
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *before, pixels, *after, chunk(b"IEND", b"")])


def packed(row: Array, bits: int, order: str, kind: str = "u") -> bytes:
    """Samples of a row one after another, the highest bit first; whole bytes in the given order."""
    flat = np.asarray(row).reshape(-1)
    if bits % 8 == 0:
        return flat.astype(f"{order}{kind}{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((flat.astype(np.int64)[:, None] >> shifts) & 1).tobytes()


def tiff(
    samples: Array,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    kind: str = "u",
    extra: Sequence[int] = (),
    planes_apart: bool = False,
    deflated: bool = False,
    tags: Mapping[int, tuple[int, Sequence[int]]] | None = None,
) -> bytes:
    """A TIFF of strips of five rows.

    Args:
        samples: (height, width) or (height, width, samples).
        bits: of each sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 CIELAB.
        order: of bytes, "<" or ">".
        kind: of numbers, NumPy's: "u", "i" or "f".
        extra: meaning of each sample beyond the colours: 0 unspecified, 1 premultiplied alpha, 2 alpha.
        planes_apart: each plane in strips of its own.
        deflated: compressed.
        tags: more, or others, as type (3 for 16 bits, 4 for 32) and values.
    """
    cube = samples[..., None] if samples.ndim == 2 else samples
    height, width, count = cube.shape
    planes = [cube[..., [n]] for n in range(count)] if planes_apart else [cube]
    strips = [
        b"".join(packed(row, bits, order, kind) for row in plane[top : top + 5])
        for plane in planes
        for top in range(0, height, 5)
    ]
    if deflated:
        strips = [zlib.compress(strip) for strip in strips]
    offsets, at = [], 8
    for strip in strips:
        offsets.append(at)
        at += len(strip) + len(strip) % 2
    directory: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * count),
        259: (3, [8 if deflated else 1]),
        262: (3, [photometric]),
        273: (4, offsets),
        277: (3, [count]),
        278: (4, [5]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planes_apart else 1]),
        339: (3, [{"u": 1, "i": 2, "f": 3}[kind]] * count),
        **({338: (3, list(extra))} if extra else {}),
        **(tags or {}),
    }
    entries, beyond, free = [], b"", at + 2 + 12 * len(directory) + 4
    for tag, (form, values) in sorted(directory.items()):
        data = struct.pack(f"{order}{len(values)}{'H' if form == 3 else 'I'}", *values)
        if len(data) > 4:
            place, beyond = struct.pack(f"{order}I", free + len(beyond)), beyond + data
        else:
            place = data.ljust(4, b"\0")
        entries.append(struct.pack(f"{order}HHI", tag, form, len(values)) + place)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    body = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    return head + body + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4) + beyond


def ramps(samples: int, most: float, size: tuple[int, int] = (17, 13)) -> Array:
    """Smooth samples from 0 to `most`, each another pattern: float64 (height, width, samples)."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    planes = [((x * (7 + 4 * n) + y * (5 + 3 * n)) % 61) / 60 for n in range(samples)]
    found: Any = np.stack(planes, axis=-1) * most
    return np.asarray(found)
