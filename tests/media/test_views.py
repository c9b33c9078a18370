"""From what a model says of places to places in the displayed picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from service.graph import Array
from service.media import views
from service.media.images import Frame
from service.media.views import View, has_area

SIDES = st.integers(1, 5000)
RESIZES = st.sampled_from(["stretch", "crop", "letterbox"])


def from_picture(boxes: Array, view: View, size: tuple[int, int]) -> Array:
    """The way back from `to_picture`, corner by corner, in pixels of what the model sees."""
    left, top, right, bottom = view.box
    x, y = boxes[:, ::2] / view.width, boxes[:, 1::2] / view.height
    x, y = (x - left) / (right - left) * size[0], (y - top) / (bottom - top) * size[1]
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


@given(
    picture=st.tuples(SIDES, SIDES),
    frame=st.tuples(st.integers(8, 1280), st.integers(8, 1280)),
    resize=RESIZES,
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=4),
)
def test_a_box_of_the_picture_seen_by_the_model_comes_back_as_it_was(
    picture: tuple[int, int], frame: tuple[int, int], resize: Any, boxes: list[tuple[float, ...]]
) -> None:
    view = Frame(*frame, resize).view(*picture)
    corners = np.sort(np.array(boxes).reshape(-1, 2, 2), axis=1) * picture
    wanted = corners.reshape(-1, 4)
    np.testing.assert_allclose(view.to_picture(from_picture(wanted, view, frame), frame), wanted, rtol=0, atol=1e-3)
    np.testing.assert_allclose(view.to_picture(from_picture(wanted, view, (1, 1))), wanted, rtol=0, atol=1e-3)


@given(
    picture=st.tuples(SIDES, SIDES),
    frame=st.tuples(st.integers(8, 640), st.integers(8, 640)),
    resize=RESIZES,
    boxes=st.lists(st.tuples(*[st.floats(-2, 3)] * 4), min_size=1, max_size=4),
)
def test_whatever_the_model_says_no_box_leaves_the_picture(
    picture: tuple[int, int], frame: tuple[int, int], resize: Any, boxes: list[tuple[float, ...]]
) -> None:
    found = Frame(*frame, resize).view(*picture).to_picture(np.array(boxes))
    assert (found >= 0).all()
    assert (found <= [*picture, *picture]).all()


def test_a_box_in_the_border_is_cut_to_nothing_and_told() -> None:
    """A picture twice as wide as high in a square: a quarter above and below is grey."""
    view = Frame(8, 8, "letterbox").view(16, 8)
    boxes = view.to_picture(np.array([[1, 0, 5, 2], [1, 1, 5, 4]]), (8, 8))
    assert boxes.tolist() == [[2, 0, 10, 0], [2, 0, 10, 4]]
    assert has_area(boxes).tolist() == [False, True]


@pytest.mark.parametrize(
    ("resize", "seen"),
    [("stretch", (0, 0, 16, 8)), ("letterbox", (0, 0, 16, 8)), ("crop", (4, 0, 12, 8))],
)
def test_what_the_model_saw_is_told_in_whole_pixels(resize: Any, seen: tuple[int, ...]) -> None:
    assert Frame(8, 8, resize).view(16, 8).seen == seen


@settings(deadline=None)
@given(
    picture=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    cells=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_a_map_of_the_whole_picture_is_resized_as_pillow_does_it(
    picture: tuple[int, int], cells: tuple[int, int], seed: int
) -> None:
    """Enlarged, made smaller, or one this way and one that."""
    values = np.random.default_rng(seed).normal(size=cells[::-1]).astype(np.float32)
    resized = View(*picture, (0.0, 0.0, 1.0, 1.0)).resized(values)
    np.testing.assert_allclose(
        resized, np.asarray(Image.fromarray(values).resize(picture, Resampling.BILINEAR)), atol=1e-4
    )


def test_a_map_with_a_border_is_resized_without_it() -> None:
    """Rows 2 to 5 of 8 are the picture."""
    values = np.repeat(np.arange(8, dtype=np.float32)[:, None], 8, axis=1)
    assert Frame(8, 8, "letterbox").view(8, 4).resized(values)[:, 0].tolist() == [2, 3, 4, 5]


def test_where_the_model_did_not_look_the_edge_of_its_map_is_repeated() -> None:
    values = np.repeat(np.arange(8, dtype=np.float32)[None], 8, axis=0)
    resized = Frame(8, 8, "crop").view(16, 8).resized(values)
    assert resized[3].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7]


def test_tiles_are_the_whole_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    view = Frame(35, 25, "letterbox").view(70, 61)
    (whole,) = (part.copy() for _, part in view.tiles(scores))
    monkeypatch.setattr(views, "TILE_COLUMNS", 32)
    monkeypatch.setattr(views, "TILE_NUMBERS", 32 * 3 * 4)
    joined, shapes = np.empty_like(whole), set()
    for (rows, columns), part in view.tiles(scores):
        shapes.add(part.shape)
        joined[:, rows, columns] = part
    assert np.array_equal(joined, whole)
    assert shapes == {(3, 4, 32), (3, 4, 6), (3, 1, 32), (3, 1, 6)}


def test_the_longest_picture_is_resized_within_little_memory() -> None:
    """A stack of a hundred maps for 50 megapixels would take 20 GB whole."""
    sizes = [part.nbytes for _, part in View(1, 50_000, (0.0, 0.0, 1.0, 1.0)).tiles(np.zeros((100, 3, 3)))]
    sizes += [part.nbytes for _, part in View(200_000, 1, (0.0, 0.0, 1.0, 1.0)).tiles(np.zeros((100, 3, 3)))]
    assert max(sizes) <= 4 * 2**20
