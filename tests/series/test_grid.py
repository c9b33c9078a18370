"""The grid of a stream: its step, its holes, and what goes on from one request to the next."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.series import timestamps
from service.series.grid import EARNED_POINTS, MAX_HOLE_POINTS, Grid, StepBack

DIFFERENCES = st.one_of(st.sampled_from([0, 60, 120, 300, 3600, 86_400]), st.integers(0, 10**6), st.integers(290, 310))


def missing(stamps: list[Any], grid: Grid | None = None) -> list[int]:
    grid = grid or Grid()
    found: list[int] = grid.advance(timestamps.read(stamps, grid.unit_ns)).tolist()
    return found


def test_a_hole_is_as_many_points_as_are_missing_on_the_grid() -> None:
    assert missing([0, 10, 20, 60, 70]) == [0, 0, 0, 3, 0]


def test_the_step_is_the_commonest_difference_so_far() -> None:
    """The first difference is the only one there is; from the second on the smaller one is the step, then the commoner."""
    grid = Grid()
    assert missing([0, 30], grid) == [0, 0]
    assert grid.step_ns == 30 * 10**9
    assert missing([40], grid) == [0]
    assert grid.step_ns == 10 * 10**9
    assert missing([50, 80, 110, 140], grid) == [0, 2, 0, 0]
    assert grid.step_ns == 30 * 10**9


def test_equal_stamps_are_points_of_their_own() -> None:
    assert missing([0, 10, 10, 20, 20, 30, 60]) == [0, 0, 0, 0, 0, 0, 2]


def test_stamps_that_jitter_lie_on_the_nearest_point() -> None:
    noise = np.random.default_rng(0)
    stamps = 300 * np.arange(500) + noise.uniform(-12, 12, 500)
    stamps[200:] += 300 * 7
    found = missing(stamps.tolist())
    assert found[200] == 7
    assert sum(found) == 7


def test_months_have_one_step() -> None:
    assert missing([f"2024-{month:02}" for month in (1, 2, 3, 4, 5, 8)]) == [0, 0, 0, 0, 0, 2]


def test_a_stream_may_change_its_step() -> None:
    grid = Grid()
    missing(list(range(0, 60_000, 60)), grid)
    later = missing(list(range(60_000, 660_000, 300)), grid)
    assert later[1] > 0
    assert later[-1] == 0
    assert grid.step_ns == 300 * 10**9


@pytest.mark.parametrize("at", [1, 2])
def test_a_step_back_is_refused_by_its_place(at: int) -> None:
    stamps = [0, 10, 20]
    stamps[at] = -5
    with pytest.raises(StepBack) as caught:
        missing(stamps)
    assert (caught.value.index, caught.value.before_ns) == (at, stamps[at - 1] * 10**9)


def local(minutes: int) -> str:
    return f"2024-10-27T{minutes // 60:02}:{minutes % 60:02}:00"


AUTUMN = [local(m) for m in range(60, 180, 5)] + [local(m) for m in range(120, 240, 5)]
"""Local time in steps of five minutes, where the hour from 2 to 3 comes twice."""


def test_the_hour_that_local_time_repeats_is_accepted() -> None:
    assert sum(missing(AUTUMN)) == 0


@pytest.mark.parametrize("offset", ["Z", "+01:00"])
def test_times_with_an_offset_repeat_no_hour(offset: str) -> None:
    with pytest.raises(StepBack):
        missing([text + offset for text in AUTUMN])


def test_two_points_that_changed_places_are_no_repeated_hour() -> None:
    with pytest.raises(StepBack):
        missing([local(m) for m in (0, 5, 10, 20, 15)])
    with pytest.raises(StepBack):
        missing([f"2024-01-01T{hour:02}:00:00" for hour in (0, 1, 2, 4, 3)])


def test_a_hole_counts_as_no_more_than_the_largest() -> None:
    assert missing([0, 1, 2, 10**9]) == [0, 0, 0, MAX_HOLE_POINTS]


@given(st.lists(st.sampled_from([1, 1000]), min_size=1, max_size=300))
def test_holes_are_bounded_by_the_points_that_are_sent(differences: list[int]) -> None:
    found = missing(np.cumsum([0, *differences]).tolist())
    assert sum(found) <= MAX_HOLE_POINTS + EARNED_POINTS * len(found)


@given(st.lists(DIFFERENCES, min_size=1, max_size=60), st.data())
def test_a_stream_in_pieces_has_the_holes_of_the_whole(differences: list[int], data: st.DataObject) -> None:
    stamps = np.cumsum([1_704_067_200, *differences]).tolist()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stamps) - 1), max_size=8)))
    grid, found = Grid(), []
    for start, end in zip([0, *cuts], [*cuts, len(stamps)], strict=True):
        found += missing(stamps[start:end], grid)
        grid = Grid.from_json(json.loads(json.dumps(grid.to_json())))
    assert found == missing(stamps)


@given(st.lists(DIFFERENCES, min_size=1, max_size=60))
def test_the_holes_of_a_point_do_not_depend_on_later_ones(differences: list[int]) -> None:
    stamps = np.cumsum([0, *differences]).tolist()
    half = len(stamps) // 2
    assert missing(stamps)[:half] == missing(stamps[:half])


GRID = {"last": 0, "local": False, "unit": None, "spare": 9, "differences": [[3, 30]]}


def test_a_grid_of_centuries_still_fits_a_token() -> None:
    """Also one that a made-up token began."""
    first, last = "1677-09-22", "2262-04-11"
    grid = Grid.from_json(GRID | {"last": None, "differences": [[1, 2**63 - 1]]})
    missing([first, last], grid)
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))).step_ns == grid.step_ns


def test_after_points_without_stamps_no_hole_is_seen_but_the_step_is_known() -> None:
    grid = Grid()
    missing([0, 10, 20], grid)
    grid.leave()
    assert missing([500, 530], grid) == [0, 2]


@pytest.mark.parametrize(
    "changed",
    [{"last": "x"}, {"last": 2**70}, {"unit": 7}, {"spare": -1}, {"spare": 1.5}, {"differences": [[0, 1]]},
     {"differences": [[1, 0]]}, {"differences": [[1]]}, {"differences": [[1, 1]] * 17}, {"differences": 3}],
)  # fmt: skip
def test_what_is_no_grid_is_refused(changed: dict[str, Any]) -> None:
    assert Grid.from_json(GRID).step_ns == 10
    with pytest.raises((ValueError, KeyError, TypeError)):
        Grid.from_json(GRID | changed)
