"""The soak says what has grown, failed or been lost, and stays silent about the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_benchmarks import script


@pytest.fixture(scope="module")
def soak() -> Any:
    return script("soak")


def measured(**last: float) -> dict[str, Any]:
    """100 seconds of a calm server, with other numbers in the last fifth."""
    calm = {"memory_mib": 200.0, "oldest_mib": 100.0, "threads": 20, "descriptors": 50}
    samples = [{"at_s": at, **calm, **(last if at >= 80 else {})} for at in range(100)]
    return {"samples": samples, "unexpected": [], "answers": [{"client": "valid", "outcome": "200", "count": 9}]}


def test_a_calm_server_is_nothing_to_complain_about(soak: Any) -> None:
    assert soak.complaints(measured()) == []
    assert soak.complaints(measured(memory_mib=209.0, threads=30)) == []


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ({"memory_mib": 211.0}, "memory of the server (MiB) grew by 5.5%: 200 to 211"),
        ({"oldest_mib": 150.0}, "memory of its oldest worker (MiB) grew by 50.0%: 100 to 150"),
        ({"threads": 34}, "threads grew from 20 to 34"),
        ({"descriptors": 65}, "descriptors grew from 50 to 65"),
    ],
)
def test_what_has_grown_is_told(soak: Any, last: dict[str, float], sentence: str) -> None:
    assert soak.complaints(measured(**last)) == [sentence]


def test_what_was_lost_is_told(soak: Any) -> None:
    lost = {"client": "valid", "request": "models", "outcome": "lost: ConnectionResetError", "count": 2}
    assert soak.complaints(measured() | {"unexpected": [lost]}) == ["valid, models: lost: ConnectionResetError ×2"]
    assert soak.complaints(measured() | {"answers": []}) == ["no valid request was answered"]


def test_growth_in_the_first_fifth_is_warm_up(soak: Any) -> None:
    found = measured()
    found["samples"][:20] = [sample | {"memory_mib": 50.0} for sample in found["samples"][:20]]
    assert soak.complaints(found) == []


def test_a_broken_connection_is_a_kills_only_when_it_was_sound_before(soak: Any) -> None:
    traffic = soak.Traffic(1, 0.0, 10.0, soak.Seen(kills=[5.0]))
    assert traffic.killed_since(4.9)
    assert not traffic.killed_since(5.1)
