"""Time stamps: what is read, as what, and what is refused with which words."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.series import timestamps
from service.series.timestamps import Unreadable

NEW_YEAR_S = 1_704_067_200  # 2024-01-01T00:00:00Z, a Monday
MOMENTS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))


def nanoseconds(stamp: Any) -> int:
    return int(timestamps.read([stamp]).nanoseconds[0])


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01T00:00:00Z",
        "2024-01-01T00:00:00",
        "2024-01-01t00:00:00z",
        "2024-01-01 00:00:00",
        "2024-01-01 00:00:00+00:00",
        "2024-01-01 00:00:00 +0000",
        "2024-01-01 00:00:00 UTC",
        "2024-01-01T00:00",
        "2024-01-01T00",
        "2024-01-01",
        "2024-01",
        "20240101",
        "20240101T000000Z",
        "20240101T0000",
        "20240101T00Z",
        "2024-W01-1",
        "2024W011",
        "2024-W01",
        "2024-W01-1T00:00Z",
        "2024-001",
        "2024001T000000Z",
        "2024-01-01T05:30:00+05:30",
        "2024-01-01T05:30:00+0530",
        "2023-12-31T16:00:00-08",
        "2023-12-31T24:00:00Z",
        "2023-12-31T23:59:60Z",
        "2024-01-01T00:00:00.000",
        "2024-01-01T00:00:00,000000000000Z",
        "1704067200",
        "1704067200000",
    ],
)
def test_iso_8601_is_read_in_all_its_forms(text: str) -> None:
    assert nanoseconds(text) == NEW_YEAR_S * 10**9


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("1970-01-01T00:00:00.5", 500_000_000),
        ("1970-01-01T00:00:00,123456789Z", 123_456_789),
        ("1970-01-01T00:00:00.1234567891234567891234", 123_456_789),
        ("1970-01-01T00:30,5", 1_830_000_000_000),
        ("1970-01-01T01.25", 4_500_000_000_000),
        ("1969-12-31T23:59:59.9Z", -100_000_000),
    ],
)
def test_fractions_may_have_any_length_and_belong_to_the_last_part(text: str, expected_ns: int) -> None:
    assert nanoseconds(text) == expected_ns


@pytest.mark.parametrize("number", [NEW_YEAR_S, float(NEW_YEAR_S), NEW_YEAR_S * 1000, NEW_YEAR_S * 10**6])
def test_numbers_are_recognised_as_seconds_milli_or_microseconds(number: float) -> None:
    assert nanoseconds(number) == NEW_YEAR_S * 10**9


def test_nanoseconds_keep_their_last_digit() -> None:
    assert nanoseconds(NEW_YEAR_S * 10**9 + 1) == NEW_YEAR_S * 10**9 + 1


def test_fractions_of_seconds_are_exact_as_far_as_a_float_is() -> None:
    assert nanoseconds(NEW_YEAR_S + 0.25) == NEW_YEAR_S * 10**9 + 250_000_000


def test_the_first_number_tells_the_unit_of_a_stream() -> None:
    """A counter of nanoseconds from the start of a program, or of steps, has no year to tell it by."""
    assert timestamps.read([0, 7]).unit_ns == 10**9
    assert timestamps.read([10**11, 10**12], unit_ns=1).nanoseconds.tolist() == [10**11, 10**12]
    assert timestamps.read([NEW_YEAR_S * 1000, 0]).nanoseconds.tolist() == [NEW_YEAR_S * 10**9, 0]


@given(MOMENTS, st.sampled_from(["seconds", "milliseconds", "microseconds"]), st.integers(-14 * 60, 14 * 60))
def test_what_python_writes_is_read(moment: datetime, precision: str, offset_minutes: int) -> None:
    zone = timezone(timedelta(minutes=offset_minutes))
    text = moment.replace(tzinfo=zone).isoformat(timespec=precision)
    expected = datetime.fromisoformat(text)
    assert nanoseconds(text) == (expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


@given(MOMENTS)
def test_a_stamp_is_written_as_it_is_read(moment: datetime) -> None:
    text = timestamps.written(nanoseconds(moment.isoformat()), None)
    assert datetime.fromisoformat(text) == moment.replace(tzinfo=UTC)


def test_numbers_are_written_in_their_unit() -> None:
    assert timestamps.written(5_000_000_000, 10**9) == "5"
    assert timestamps.written(5_500_000_000, 10**9) == "5.5"
    assert timestamps.written(5_000_000_000, 10**6) == "5000"


def test_only_texts_without_an_offset_may_be_local() -> None:
    found = timestamps.read(["2024-01-01T00:00:00", "2024-01-01", "2024-01-01T00:00:00Z", NEW_YEAR_S])
    assert found.local.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "stamp",
    ["01/02/2024 03:00", "yesterday", "", "2024-13-01", "2023-02-29", "2023-366", "2024-01-01x00:00:00",
     "2024-01-01T25:00", "2024-01-01T24:01", "2024-01-01T00:60", "2024-01-01T00:00:00+24:00", "202401010000",
     "20240101000000", "٢٠٢٤-01-01", True, None, [1], {}, float("nan"), float("inf")],
)  # fmt: skip
def test_what_is_no_stamp_is_refused_by_its_place(stamp: Any) -> None:
    with pytest.raises(Unreadable) as caught:
        timestamps.read([NEW_YEAR_S, stamp, stamp])
    assert str(caught.value) == "timestamps[1]: send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds"


@pytest.mark.parametrize("stamp", ["0001-01-01", "2300-01-01T00:00:00Z", 10**10, 10**30, 1e300])
def test_what_64_bits_of_nanoseconds_cannot_hold_is_refused(stamp: Any) -> None:
    with pytest.raises(Unreadable, match="between the years 1678 and 2261"):
        timestamps.read([stamp])


@given(st.text(max_size=40) | st.from_regex(r"\d{4}-?[\dW]{2}-?\d?[T ]?[\d:.,+-]*Z?", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(Unreadable):
        assert len(timestamps.read([text]).nanoseconds) == 1
