"""Answers drawn on pictures: as large as the picture, in each label's own colour, and never hiding a small one."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.graph import Array
from service.media.overlays import Box, draw_boxes, lay_heat, lay_over
from service.media.palette import colour, on, palette

GREY = (128, 128, 128)


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def drawn(data: bytes) -> Array:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def share_of(pixels: Array, wanted: tuple[int, int, int]) -> float:
    return float((pixels == wanted).all(axis=2).mean())


# --- boxes


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5),
    text=st.sampled_from(["", "x", "RBC 97 %", "a very long label that no small picture has room for", "Müsli 文"]),
)
def test_boxes_are_drawn_on_pictures_of_any_size(
    size: tuple[int, int], corners: list[tuple[float, ...]], text: str
) -> None:
    whole = np.sort(np.array(corners).reshape(-1, 2, 2), axis=1).reshape(-1, 4) * [*size, *size]
    boxes = [Box(box.tolist(), text, index) for index, box in enumerate(whole)]
    assert drawn(draw_boxes(grey(*size), boxes)).shape == (size[1], size[0], 3)


def test_a_box_without_a_label_is_its_outline_and_nothing_else() -> None:
    pixels = drawn(draw_boxes(grey(40, 30), [Box((10, 5, 20, 15), "", 3)]))
    wanted = np.zeros((30, 40), bool)
    wanted[5:15, 10:20] = True
    wanted[6:14, 11:19] = False
    assert np.array_equal((pixels == colour(3)).all(axis=2), wanted)
    assert (pixels[~wanted] == GREY).all()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_lines_and_letters_grow_with_the_picture(scale: int) -> None:
    """So the parts of the picture that they cover are about the same."""
    box = Box(tuple(side * scale for side in (200, 150, 400, 300)), "cat 93 %", 0)
    pixels = drawn(draw_boxes(grey(640 * scale, 480 * scale), [box]))
    assert share_of(pixels, colour(0)) == pytest.approx(0.012, abs=0.004)


def test_a_label_at_the_edge_is_moved_into_the_picture() -> None:
    """As many pixels of its ground are seen at the right edge as in the middle."""
    middle = drawn(draw_boxes(grey(300, 200), [Box((100, 100, 110, 110), "cat 93 %", 0)]))
    edge = drawn(draw_boxes(grey(300, 200), [Box((290, 0, 300, 10), "cat 93 %", 0)]))
    assert share_of(edge, colour(0)) == pytest.approx(share_of(middle, colour(0)), rel=0.1)


def test_labels_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    boxes = [Box((100, 100, 200, 160), "cat 93 %", index) for index in range(3)]
    pixels = drawn(draw_boxes(grey(640, 480), boxes))
    alone = drawn(draw_boxes(grey(640, 480), boxes[2:]))
    assert share_of(pixels, colour(2)) > 0.4 * share_of(alone, colour(2))  # its outline is covered, its label is not


def test_a_small_picture_is_not_hidden_by_labels() -> None:
    boxes = [Box((8 * n, 8, 8 * n + 7, 40), "platelets 93 %", n) for n in range(8)]
    pixels = drawn(draw_boxes(grey(64, 48), boxes))
    assert share_of(pixels, GREY) > 0.3
    assert share_of(drawn(draw_boxes(grey(16, 16), [Box((2, 2, 12, 12), "cat 93 %", 0)])), GREY) > 0.7


def test_the_best_box_lies_above_the_others() -> None:
    boxes = [Box((10, 10, 30, 30), "", 0), Box((10, 10, 30, 30), "", 1)]
    assert drawn(draw_boxes(grey(40, 40), boxes))[10, 10].tolist() == list(colour(0))


# --- classes


def test_classes_are_laid_over_the_picture_half_transparent() -> None:
    classes = np.zeros((20, 30), np.uint8)
    classes[:, 15:] = 4
    pixels = drawn(lay_over(grey(30, 20), classes, [(0, "sky 50 %"), (4, "road 50 %")]))
    for place, index in (((10, 0), 0), ((10, 29), 4)):
        assert np.abs(pixels[place] - (0.45 * 128 + 0.55 * palette()[index])).max() <= 1


def test_the_legend_has_a_swatch_for_each_class_and_hides_no_small_picture() -> None:
    legend = [(index, f"class {index} 10 %") for index in range(10)]
    classes = np.zeros((480, 640), np.uint8)
    pixels = drawn(lay_over(grey(640, 480), classes, legend))
    assert all(share_of(pixels, colour(index)) > 0.0001 for index in range(10))
    small = drawn(lay_over(grey(64, 48), classes[:48, :64], legend))
    assert share_of(small, tuple(small[0, 0].tolist())) == 1  # no room


def test_a_legend_that_is_too_long_keeps_the_largest_classes() -> None:
    legend = [(index, f"class {index} 1 %") for index in range(100)]
    pixels = drawn(lay_over(grey(640, 480), np.zeros((480, 640), np.uint8), legend))
    assert share_of(pixels, colour(0)) > 0
    assert share_of(pixels, colour(99)) == 0
    drawn(lay_over(grey(640, 480), np.zeros((480, 640), np.uint8), []))


# --- heat


def test_heat_is_bright_where_something_is() -> None:
    values = np.zeros((2, 2))
    values[1, 0] = 1
    pixels = drawn(lay_heat(grey(100, 80), values)).astype(int).sum(axis=2)
    assert pixels[79, 0] > 128 * 3 > pixels[0, 99]


@given(size=st.tuples(st.integers(1, 60), st.integers(1, 60)), cells=st.tuples(st.integers(1, 16), st.integers(1, 16)))
@settings(deadline=None, max_examples=40)
def test_heat_covers_pictures_of_any_size(size: tuple[int, int], cells: tuple[int, int]) -> None:
    assert drawn(lay_heat(grey(*size), np.ones(cells))).shape == (size[1], size[0], 3)


def test_large_pictures_are_drawn_on_in_pieces_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    values, classes = np.random.default_rng(0).random((12, 16)), np.eye(48, 64, dtype=np.uint8)
    whole = [lay_heat(grey(64, 48), values), lay_over(grey(64, 48), classes, [])]
    monkeypatch.setattr("service.media.overlays.BAND_PIXELS", 64 * 7)
    monkeypatch.setattr("service.media.views.TILE_NUMBERS", 64 * 7)
    pieces = [lay_heat(grey(64, 48), values), lay_over(grey(64, 48), classes, [])]
    assert all(np.array_equal(drawn(one), drawn(other)) for one, other in zip(whole, pieces, strict=True))


# --- colours


def test_every_label_has_a_colour_of_its_own() -> None:
    assert len({tuple(row) for row in palette().tolist()}) == 256
    assert colour(3) == colour(259)


def seen_by(kind: str, colours: Array) -> Array:
    """Colours as a dichromat sees them (Viénot, Brettel, Mollon 1999), float (n, 3), 0..1, linear."""
    linear = (colours / 255.0) ** 2.2
    red_blind = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    green_blind = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    return linear @ {"red": red_blind, "green": green_blind}[kind].T


@pytest.mark.parametrize("kind", ["red", "green"])
def test_the_first_colours_are_told_apart_by_colour_blind_readers(kind: str) -> None:
    seen = np.clip(seen_by(kind, palette()[:7]), 0, 1) ** (1 / 2.2) * 255
    assert min(np.abs(a - b).max() for a, b in combinations(seen, 2)) > 25


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_text_is_readable_on_every_colour(ground: tuple[int, int, int]) -> None:
    """A contrast of 4.5 or more, as WCAG 2 asks for small text."""
    light = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in ground]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
    contrast = (luminance + 0.05) / 0.05 if on(ground) == (0, 0, 0) else 1.05 / (luminance + 0.05)
    assert contrast >= 4.5
