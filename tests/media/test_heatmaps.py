"""Heatmaps cover the picture as it is displayed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.media.heatmaps import heatmap
from service.media.images import Frame


@settings(deadline=None)
@given(
    picture=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    cells=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.sampled_from(["stretch", "crop", "letterbox"]),
    seed=st.integers(0, 9),
)
def test_every_heatmap_has_two_cells_each_way_and_values_from_0_to_1(
    picture: tuple[int, int], cells: tuple[int, int], resize: str, seed: int
) -> None:
    view = Frame(224, 224, resize).view(*picture)  # type: ignore[arg-type]
    values = heatmap(np.random.default_rng(seed).normal(size=cells), view)
    assert min(values.shape) >= 2
    assert max(values.shape) == 16
    assert ((values >= 0) & (values <= 1)).all()


def test_a_map_that_says_nothing_is_zero() -> None:
    assert not heatmap(np.full((7, 7), 3.0), Frame(8, 8).view(30, 20)).any()


def test_a_fine_map_is_averaged_and_none_of_its_spots_is_missed() -> None:
    """One spot of 256 x 256 cells: sampled at 16 x 16 places, it would be lost between them."""
    spot = np.zeros((256, 256))
    spot[3, 9] = 1
    values = heatmap(spot, Frame(256, 256).view(640, 640))
    assert values[0, 0] == pytest.approx(1)
    assert values[1:].max() < 0.5


def test_a_fine_map_may_be_sampled_as_classifiers_do() -> None:
    """Of every four cells the two in the middle are looked up."""
    fine = np.zeros((64, 64))
    fine[4, 20] = 1
    assert not heatmap(fine, Frame(64, 64).view(640, 640), average=False).any()
    fine[5, 21] = 1
    assert heatmap(fine, Frame(64, 64).view(640, 640), average=False)[1, 5] == 1
