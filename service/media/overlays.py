"""Answers drawn on the picture they are about: boxes with labels, classes of pixels with a legend, heat.

    picture = task.displayed(file, "Image 1")
    png = draw_boxes(picture, [Box((68, 315, 186, 411), "RBC 97 %", index=0)])

Every function changes the picture it is given, and returns it as the bytes of a PNG. Lines and letters grow with the
picture, so that it reads the same on a screen whatever its pixels; on pictures too small for letters there are none.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from service.graph import Array
from service.media.palette import colour, on, palette
from service.media.views import View

LEAST_LETTER = 9
"""Smallest font that can be read (pixels)."""
LETTERS_PER_SIDE, LINES_PER_SIDE = 32, 280
"""Fonts and lines that fit along the side of a square as large as the picture (count): what their size follows from."""
BAND_PIXELS = 2**20
"""Pixels that are blended at a time (count), so that large pictures take little memory."""
MOST_LABELLED = 0.3
"""Part of a picture that labels may hide together; the best boxes have theirs, 0..1."""
MOST_OVERLAPPED = 0.3
"""Part of a label that others may hide; one for which there is no freer place is left out, 0..1."""
MOST_LEGEND = (0.6, 0.6)
"""Most of a picture's width and height that a legend may take; below, it becomes smaller, shorter or is left out."""
CLASS_OPACITY, LEGEND_OPACITY = 0.55, 0.75
"""How much of the picture classes and the ground of a legend hide, 0..1."""
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
"""From nothing to most: matplotlib's "inferno", which grows lighter all the way, for every reader."""
_HEAT_OPACITY = (0.25, 0.75)
"""How much of the picture is hidden where there is nothing and where there is most."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box to draw.

    Attributes:
        corners: left, top, right, bottom in pixels of the picture.
        text: what is written at it.
        index: of its label, which has a colour of its own.
    """

    corners: Sequence[float]
    text: str
    index: int


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> bytes:
    """Draw boxes with their labels.

    Args:
        picture: RGB, as displayed; it is drawn on.
        boxes: best first: what is drawn of them lies above the others'.
    """
    draw, line = ImageDraw.Draw(picture), _line(picture)
    placed = [(box, _whole(box.corners, picture)) for box in boxes]
    for box, (left, top, right, bottom) in reversed(placed):
        edge = -(-line // 2) if line > 1 else 0
        around = (left - edge, top - edge, right + edge, bottom + edge)
        draw.rectangle(around, outline=on(colour(box.index)), width=line + 2 * edge)
        draw.rectangle((left, top, right, bottom), outline=colour(box.index), width=line)
    font = _font(_letter(picture))
    margin = max(1, round(font.size / 6))
    high, taken, left_to_hide = _high(font) + margin, np.empty((0, 4)), picture.width * picture.height * MOST_LABELLED
    for box, corners in placed:
        size = (math.ceil(font.getlength(box.text)) + 2 * margin, high)
        area = size[0] * size[1]
        if not box.text or size[0] > picture.width or area > left_to_hide:
            continue  # it would hide the picture
        at, overlapped = _free_place(corners, size, picture.size, taken)
        if overlapped > MOST_OVERLAPPED * area:
            continue
        taken = np.vstack([taken, [*at, at[0] + size[0], at[1] + size[1]]])
        left_to_hide -= area
        _write(draw, at, size, box.text, font, margin, colour(box.index))
    return to_png(picture)


def lay_over(picture: Image.Image, class_map: Array, legend: Sequence[tuple[int, str]]) -> bytes:
    """Colour each pixel by its class, half transparent, and say in a corner which colour is which.

    Args:
        picture: RGB, as displayed; it is drawn on.
        class_map: uint8 (height, width), a label's index for each pixel.
        legend: a label's index and what is written beside its colour, such as "road 31 %"; largest first.
    """
    colours = palette()
    for top, band in _bands(picture):
        classes = colours[class_map[top : top + band.height]]
        picture.paste(Image.blend(band, Image.fromarray(classes), CLASS_OPACITY), (0, top))
    _draw_legend(picture, legend)
    return to_png(picture)


def lay_heat(picture: Image.Image, values: Array) -> bytes:
    """Show where something is: bright where it is, dark elsewhere.

    Args:
        picture: RGB, as displayed; it is drawn on.
        values: float (rows, columns), 0..1, over the whole picture, as of `service.media.heatmaps.heatmap`.
    """
    steps = np.linspace(0, len(_HEAT) - 1, 256)
    table = [np.interp(steps, range(len(_HEAT)), _HEAT[:, channel]).round().tolist() for channel in range(3)]
    opacity = (np.linspace(*_HEAT_OPACITY, 256) * 255).round().tolist()
    for (rows, columns), part in View(*picture.size, (0.0, 0.0, 1.0, 1.0)).tiles(values[None]):
        tile = picture.crop((columns.start, rows.start, columns.stop, rows.stop))
        heat = Image.fromarray((np.clip(part[0], 0, 1) * 255).round().astype(np.uint8))
        coloured = Image.merge("RGB", [heat.point(channel) for channel in table])
        picture.paste(Image.composite(coloured, tile, heat.point(opacity)), (columns.start, rows.start))
    return to_png(picture)


def to_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG; packed quickly: the tightest one takes five times as long and is a fifth smaller."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# --- sizes


def _side(picture: Image.Image) -> float:
    """Of a square as large as the picture (pixels), but at most thrice its shorter side: panoramas are low."""
    return min(math.sqrt(picture.width * picture.height), 3 * min(picture.size))


def _line(picture: Image.Image) -> int:
    return max(1, round(_side(picture) / LINES_PER_SIDE))


def _letter(picture: Image.Image) -> int:
    return max(LEAST_LETTER, round(_side(picture) / LETTERS_PER_SIDE))


@lru_cache(maxsize=32)
def _font(size: int) -> FreeTypeFont:
    """Pillow's own font, which is there wherever Pillow is."""
    font = ImageFont.load_default(size)
    if not isinstance(font, FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType; install its wheel.")  # noqa: TRY004
    return font


def _high(font: FreeTypeFont) -> int:
    """Height of a line of text (pixels)."""
    ascent, descent = font.getmetrics()
    return ascent + descent


def _bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Copies of the picture's rows, some at a time, with the first row's number."""
    high = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, high):
        yield top, picture.crop((0, top, picture.width, min(top + high, picture.height)))


# --- labels


def _whole(corners: Sequence[float], picture: Image.Image) -> tuple[int, int, int, int]:
    """First and last column and row of the pixels in a box, at least one."""
    left, top, right, bottom = corners
    x, y = min(max(round(left), 0), picture.width - 1), min(max(round(top), 0), picture.height - 1)
    return x, y, max(x, min(round(right), picture.width) - 1), max(y, min(round(bottom), picture.height) - 1)


def _free_place(
    corners: tuple[int, int, int, int], size: tuple[int, int], picture: tuple[int, int], taken: Array
) -> tuple[tuple[int, int], float]:
    """Left and top of a label, and how many pixels of others it covers: above its box, inside, below, or at its right.

    Of those places the first where it covers nothing and need not be moved into the picture, or does both least.
    """
    (left, top, right, bottom), (width, high) = corners, size
    best, least, covered = (0, 0), math.inf, 0.0
    for x, y in (
        (left, top - high),
        (left, top),
        (left, bottom + 1),
        (right + 1 - width, top - high),
        (right + 1 - width, bottom + 1 - high),
        (right + 1 - width, bottom + 1),
    ):
        at = (min(max(x, 0), picture[0] - width), min(max(y, 0), picture[1] - high))
        moved = abs(at[0] - x) + abs(at[1] - y)
        across = np.minimum(taken[:, 2], at[0] + width) - np.maximum(taken[:, 0], at[0])
        down = np.minimum(taken[:, 3], at[1] + high) - np.maximum(taken[:, 1], at[1])
        hidden = float((np.maximum(across, 0) * np.maximum(down, 0)).sum())
        if hidden + moved < least:
            best, least, covered = at, hidden + moved, hidden
        if least == 0:
            break
    return best, covered


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    size: tuple[int, int],
    text: str,
    font: FreeTypeFont,
    margin: int,
    ground: tuple[int, int, int],
) -> None:
    """Write on a ground of a colour."""
    (x, y), (width, high) = at, size
    draw.rectangle((x, y, x + width - 1, y + high - 1), fill=ground)
    draw.text((x + margin, y + high / 2), text, fill=on(ground), font=font, anchor="lm")


def _draw_legend(picture: Image.Image, legend: Sequence[tuple[int, str]]) -> None:
    """Write the legend into the lower left corner, in the largest letters with which it hides little; or none."""
    most = (picture.width * MOST_LEGEND[0], picture.height * MOST_LEGEND[1])
    lines, largest = list(legend), _letter(picture)
    sizes = [*range(largest, LEAST_LETTER, -max(1, largest // 12)), LEAST_LETTER]
    font = next((font for font in map(_font, sizes) if _fits(font, lines, most)), _font(LEAST_LETTER))
    while lines and not _fits(font, lines, most):
        lines.pop()
    if not lines:
        return
    (width, high), row = _legend_size(font, lines), _high(font)
    left, top = row // 3, picture.height - high - row // 3
    box = (left, top, left + width, top + high)
    ground = Image.new("RGB", (width, high), "white")
    picture.paste(Image.blend(picture.crop(box), ground, LEGEND_OPACITY), box)
    draw = ImageDraw.Draw(picture)
    for line, (index, text) in enumerate(lines):
        x, y = left + row // 3, top + row // 3 + line * row
        swatch = (x, y + row // 8, x + row - row // 4, y + row - row // 8)
        draw.rectangle(swatch, fill=colour(index), outline=(0, 0, 0), width=max(1, row // 24))
        draw.text((x + row + row // 8, y + row / 2), text, fill=(0, 0, 0), font=font, anchor="lm")


def _fits(font: FreeTypeFont, lines: Sequence[tuple[int, str]], most: tuple[float, float]) -> bool:
    """Whether a legend is no larger than a width and height."""
    width, high = _legend_size(font, lines)
    return width <= most[0] and high <= most[1]


def _legend_size(font: FreeTypeFont, lines: Sequence[tuple[int, str]]) -> tuple[int, int]:
    """Width and height of a legend with its margins (pixels)."""
    row = _high(font)
    widest = max((font.getlength(text) for _, text in lines), default=0.0)
    return math.ceil(widest) + row * 2, row * len(lines) + 2 * (row // 3)
