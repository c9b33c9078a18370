"""The step of a series' stamps, the places they have, and the stamps that follow."""

from __future__ import annotations

from typing import Any

import pytest

from service.series import timestamps
from service.series.calendar import FixedStep, Months, OffGrid, Step, WorkingDays, find_step
from service.series.timestamps import HOUR_NS, Form

DAY_NS = 24 * HOUR_NS


def step_of(stamps: list[Any]) -> Step | None:
    return find_step(timestamps.read(stamps))


@pytest.mark.parametrize(
    ("stamps", "step"),
    [
        (["2026-03-01T00:00Z", "2026-03-01T01:00Z", "2026-03-01T04:00Z", "2026-03-01T05:00Z"], FixedStep(HOUR_NS)),
        (["2026-03-06", "2026-03-07", "2026-03-08"], FixedStep(DAY_NS)),
        (["2026-03-06", "2026-03-13", "2026-03-20"], FixedStep(7 * DAY_NS)),
        (["2026-03-05", "2026-03-06", "2026-03-09", "2026-03-10"], WorkingDays()),
        (["2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05", "2026-03-06"], FixedStep(DAY_NS)),
        (["2026-01-15", "2026-02-15", "2026-03-15"], Months(1, 15)),
        (["2026-01-31", "2026-02-28", "2026-03-31"], Months(1, 31)),
        (["2026-01-30", "2026-02-28", "2026-03-30"], Months(1, 30)),
        (["2026-02-28", "2026-03-28", "2026-04-28"], Months(1, 28)),
        (["2026-01-01", "2026-04-01", "2026-07-01"], Months(3, 1)),
        (["2024-12-31", "2025-12-31", "2026-12-31"], Months(12, 31)),
        (["2026-01-01", "2026-01-29", "2026-02-26"], FixedStep(28 * DAY_NS)),
        (["2026-01-01"], None),
        (["2026-01-01", "2026-01-01"], None),
    ],
)
def test_the_step_is_found(stamps: list[str], step: Step | None) -> None:
    assert step_of(stamps) == step


def test_a_step_says_its_name() -> None:
    names = [
        str(step)
        for step in (FixedStep(HOUR_NS), FixedStep(14 * DAY_NS), FixedStep(250_000_000), Months(3, 1), WorkingDays())
    ]
    assert names == ["1 hour", "14 days", "0.25 seconds", "3 months", "1 working day"]


@pytest.mark.parametrize(
    ("stamps", "places"),
    [
        (["2026-03-01T00:00Z", "2026-03-01T01:00Z", "2026-03-01T04:00Z", "2026-03-01T05:00Z"], [0, 1, 4, 5]),
        (["2026-03-05", "2026-03-06", "2026-03-09", "2026-03-11"], [0, 1, 2, 4]),
        (["2026-01-31", "2026-02-28", "2026-04-30", "2026-05-31"], [0, 1, 3, 4]),
        # a clock that jitters by seconds, and a day of 23 hours at Unix time
        ([1700000000, 1700003603, 1700007198, 1700010800], [0, 1, 2, 3]),
        ([1774652400, 1774738800, 1774821600, 1774908000], [0, 1, 2, 3]),
    ],
)
def test_each_stamp_has_a_place(stamps: list[Any], places: list[int]) -> None:
    read = timestamps.read(stamps)
    step = find_step(read)
    assert step is not None
    assert step.places(read).tolist() == places


@pytest.mark.parametrize(
    ("stamps", "index"),
    [
        (["2026-03-01T00:00Z", "2026-03-01T01:00Z", "2026-03-01T02:00Z", "2026-03-01T02:20Z"], 3),
        (["2026-01-15", "2026-02-15", "2026-03-17", "2026-04-15"], 2),
        (["2026-03-05", "2026-03-06", "2026-03-09T12:00", "2026-03-10", "2026-03-11"], 2),
        ([1700000000, 1700000060, 1700000120, 1700000060], 3),
    ],
)
def test_the_first_stamp_off_the_grid_is_named(stamps: list[Any], index: int) -> None:
    read = timestamps.read(stamps)
    step = find_step(read)
    assert step is not None
    with pytest.raises(OffGrid) as caught:
        step.places(read)
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("sample", "written"),
    [
        ("2026-03-01T00:00:00Z", "2026-03-02T12:30:00Z"),
        ("2026-03-01T00:00:00+0200", "2026-03-02T14:30:00+0200"),
        ("2026-03-01T00:00+02", "2026-03-02T14:30+02"),
        ("2026-03-01 00", "2026-03-02 12:30"),
        ("2026-03-01", "2026-03-02T12:30:00"),
        ("20260301T0000", "20260302T1230"),
        ("2026-W09-7", "2026-03-02T12:30:00"),
        (1772323200, 1772454600),
        (1772323200.0, 1772454600.0),
        (1772323200000, 1772454600000),
        ("1772323200", "1772454600"),
    ],
)
def test_a_stamp_is_written_as_the_sample_is(sample: Any, written: Any) -> None:
    read = timestamps.read([sample])
    moment = timestamps.read(["2026-03-02T12:30:00Z"])
    found = Form(sample, read.unit_ns).write(int(moment.nanoseconds[0]), int(read.offsets_s[0]))
    assert found == written
    assert type(found) is type(written)
