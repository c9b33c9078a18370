"""Masks are read back as they were, by the readers that callers use."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from service.media.masks import class_map_png, mask_png, mask_rle
from service.media.palette import palette

# pycocotools.mask.decode gives NumPy 2 an object of NumPy 1's ways.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(SIZES, st.integers(0, 99))
def test_a_class_map_is_read_back_index_by_index(size: tuple[int, int], seed: int) -> None:
    classes = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    image = Image.open(io.BytesIO(class_map_png(classes)))
    assert (image.format, image.mode) == ("PNG", "P")
    assert np.array_equal(np.asarray(image), classes)
    assert np.array_equal(np.asarray(image.convert("RGB")), palette()[classes])


def test_the_palette_is_the_same_whatever_classes_occur() -> None:
    one, other = (Image.open(io.BytesIO(class_map_png(np.full((2, 2), index, np.uint8)))) for index in (0, 7))
    assert one.getpalette() == other.getpalette()


@settings(deadline=None)
@given(SIZES, st.floats(0, 1), st.integers(0, 99))
def test_a_mask_is_read_back_from_both_forms(size: tuple[int, int], share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    image = Image.open(io.BytesIO(mask_png(mask)))
    assert (image.format, image.mode) == ("PNG", "1")
    assert np.array_equal(np.asarray(image), mask)
    runs = mask_rle(mask)
    assert runs["size"] == [*size]
    assert np.array_equal(coco.decode({**runs, "counts": runs["counts"].encode()}), mask)
    assert coco.area({**runs, "counts": runs["counts"].encode()}) == mask.sum()


@pytest.mark.parametrize("full", [True, False])
def test_nothing_and_everything_are_masks(full: bool) -> None:
    mask = np.full((3, 5), full)
    assert np.asarray(Image.open(io.BytesIO(mask_png(mask)))).all() == full
    assert coco.area({**mask_rle(mask), "counts": mask_rle(mask)["counts"].encode()}) == 15 * full
