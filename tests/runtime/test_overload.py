"""Too much work, or work that takes too long: who is refused, and what is stopped.

What requests take is told to the batcher, and a gate holds the graph, so that no clock decides.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from service.errors import DeadlineExceeded, Overloaded, TooBusy
from service.graph import Run, Steps
from service.runtime import admission
from service.runtime import batcher as batcher_module
from service.runtime.batcher import Batcher
from service.runtime.pace import Pace, kind_of
from service.runtime.session import OnnxSession
from tests import graphs
from tests.runtime.test_batcher import Gated, ask, double, idle, make, settled, until

__all__ = ["double", "make"]

SHORT, LONG = 1, 1000
"""Work of two kinds of requests."""


def dropped(reason: str) -> float:
    """How many requests to the batchers of this file were dropped for that reason."""
    return REGISTRY.get_sample_value("gridloop_dropped_requests_total", {"model": "tiny", "reason": reason}) or 0.0


def taking(batcher: Batcher, short_s: float, long_s: float) -> Batcher:
    """A batcher that has seen how long its requests take."""
    batcher.pace.note(kind_of(SHORT), short_s, short_s, with_few=False)
    batcher.pace.note(kind_of(LONG), long_s, long_s, with_few=False)
    return batcher


# --- how long requests take


def test_the_pace_of_one_size_says_nothing_of_another_that_is_known() -> None:
    pace = Pace()
    pace.note(kind_of(5), 0.001, 0.002, with_few=False)
    pace.note(kind_of(2000), 0.1, 0.3, with_few=False)
    assert (pace.busy_s(kind_of(4)), pace.busy_s(kind_of(1500))) == (0.001, 0.1)
    assert (pace.through_s(kind_of(4)), pace.through_s(kind_of(1500))) == (0.002, 0.3)


def test_a_size_that_was_never_seen_is_taken_for_its_nearest() -> None:
    pace = Pace()
    assert pace.busy_s(kind_of(1)) == 0.0  # nothing is known at all
    pace.note(kind_of(64), 0.5, 0.5, with_few=False)
    pace.note(kind_of(1000), 2.0, 2.0, with_few=False)
    assert [pace.busy_s(kind_of(work)) for work in (1, 64, 500, 1000, 10**30)] == [0.5, 0.5, 0.5, 2.0, 2.0]


def test_the_pace_follows_what_is_measured() -> None:
    pace = Pace()
    for seconds in (1.0, *[0.1] * 30):
        pace.note(kind_of(5), seconds, seconds, with_few=True)
    assert pace.busy_s(kind_of(5)) == pytest.approx(0.1, rel=0.05)
    assert pace.longest_s[kind_of(5)] == pytest.approx(0.95**30)  # slowly: one that was slow may come again
    assert pace.longest_s[kind_of(50)] == float("inf")


async def test_a_batcher_learns_what_requests_of_each_size_take(double: Gated, make: Any) -> None:
    batcher = make(double)
    await batcher.submit(ask([[1]]), work=SHORT)
    assert 0 < batcher.pace.busy_s(kind_of(SHORT)) <= batcher.pace.through_s(kind_of(SHORT))
    known = batcher.pace.longest_s
    assert known[kind_of(SHORT)] < known[kind_of(LONG)] == float("inf")


# --- who is refused


async def test_a_request_that_cannot_be_done_in_time_is_refused_at_once(double: Gated, make: Any) -> None:
    batcher = taking(make(double), short_s=0.5, long_s=8.0)
    first = await double.busy(batcher)
    waiting = asyncio.create_task(batcher.submit(ask([[1]]), work=LONG, timeout_s=30))
    await settled(batcher, 1)
    before = dropped("predicted")
    with pytest.raises(TooBusy, match=r"about 9 s of the 4 s") as refusal:  # 0.5 s of the first, 8 s of the second
        await batcher.submit(ask([[2]]), work=SHORT, timeout_s=4)
    assert refusal.value.retry_after_s == 6  # 9 s, less 90 % of 4 s
    assert dropped("predicted") == before + 1
    patient = asyncio.create_task(batcher.submit(ask([[3]]), work=SHORT, timeout_s=60))
    await settled(batcher, 2)
    double.gate.set()
    assert [(await task).value.tolist() for task in (waiting, patient)] == [[[3]], [[7]]]
    await first


async def test_in_a_line_that_stands_less_of_the_time_is_used(
    double: Gated, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = taking(make(double), short_s=0.5, long_s=6.0)
    first = await double.busy(batcher)
    waiting = asyncio.create_task(batcher.submit(ask([[1]]), work=LONG, timeout_s=60))
    await settled(batcher, 1)
    monkeypatch.setattr(admission, "STANDING_S", 3600.0)
    burst = asyncio.create_task(batcher.submit(ask([[2]]), work=SHORT, timeout_s=10))
    await settled(batcher, 2)
    monkeypatch.setattr(admission, "STANDING_S", -1.0)
    with pytest.raises(TooBusy):
        await batcher.submit(ask([[2]]), work=SHORT, timeout_s=10)
    double.gate.set()
    await asyncio.gather(first, waiting, burst)


async def test_nobody_is_refused_by_what_is_expected_when_nobody_is_before(double: Gated, make: Any) -> None:
    batcher = taking(make(double), short_s=1000.0, long_s=1000.0)  # as it may look after a bad minute
    done = await batcher.submit(ask([[1]]), work=SHORT, timeout_s=10)
    assert done.value.tolist() == [[3]]
    assert batcher.pace.busy_s(kind_of(SHORT)) < 1000


async def test_those_who_left_are_nobody_before(double: Gated, make: Any) -> None:
    batcher = taking(make(double), short_s=0.0, long_s=100.0)
    first = await double.busy(batcher)
    left = asyncio.create_task(batcher.submit(ask([[1]]), work=LONG, timeout_s=1000, rows=3))
    await settled(batcher, 3)
    left.cancel()
    await settled(batcher, 0)
    here = asyncio.create_task(batcher.submit(ask([[2]]), work=SHORT, timeout_s=10))
    await settled(batcher, 1)
    double.gate.set()
    assert (await here).value.tolist() == [[5]]
    await first


async def test_a_request_whose_time_became_too_short_in_line_is_not_begun(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    late = asyncio.create_task(batcher.submit(ask([[1]]), work=LONG, timeout_s=20))
    others = [asyncio.create_task(batcher.submit(ask([[n]]), work=SHORT, timeout_s=20)) for n in (2, 3)]
    await settled(batcher, 3)
    taking(batcher, short_s=0.001, long_s=30.0)  # it has become slow since
    before = dropped("late")
    double.gate.set()
    with pytest.raises(TooBusy):
        await late
    assert [(await task).value.tolist() for task in others] == [[[5]], [[7]]]
    await first
    assert (dropped("late"), double.rows) == (before + 1, [2])


async def test_bytes_bound_a_queue_too(double: Gated, make: Any) -> None:
    batcher = make(double, max_queue_bytes=100)
    first = await double.busy(batcher)
    waiting = asyncio.create_task(batcher.submit(ask([[1]]), size_bytes=1_000))  # more than all: nobody waits
    await settled(batcher, 1)
    with pytest.raises(Overloaded, match=r"1,000 bytes already wait .* GRIDLOOP_MAX_QUEUE_BYTES") as refusal:
        await batcher.submit(ask([[2]]), size_bytes=1)
    assert refusal.value.retry_after_s == 1
    double.gate.set()
    await asyncio.gather(first, waiting)
    assert batcher._admission.waiting_bytes == 0


async def test_who_could_not_be_in_time_is_refused_before_the_body_is_read(double: Gated, make: Any) -> None:
    batcher = taking(make(double), short_s=0.0, long_s=8.0)
    batcher.check(1)
    first = await double.busy(batcher)
    waiting = asyncio.create_task(batcher.submit(ask([[1]]), work=LONG, timeout_s=30))
    await settled(batcher, 1)
    batcher.check(10)
    with pytest.raises(TooBusy):
        batcher.check(7)
    double.gate.set()
    await asyncio.gather(first, waiting)


# --- what is stopped

STUCK, QUICK = [[1.0]], [[-1.0]]
"""Inputs of a graph that never ends with the first."""


@pytest.fixture
def looping(tmp_path: Path) -> OnnxSession:
    return OnnxSession(graphs.endless_above_zero(tmp_path / "endless.onnx"))


def failed_runs() -> float:
    return REGISTRY.get_sample_value("gridloop_failed_runs_total", {"model": "tiny"}) or 0.0


async def test_a_run_ends_at_the_deadline_of_its_last_caller(looping: OnnxSession, make: Any) -> None:
    batcher = make(looping)
    before = failed_runs()
    with pytest.raises(DeadlineExceeded):
        await batcher.submit(ask(STUCK), timeout_s=0.05)
    assert (await batcher.submit(ask(QUICK))).value.tolist() == QUICK
    assert failed_runs() == before


async def test_a_run_whose_callers_have_all_left_is_stopped(looping: OnnxSession, make: Any) -> None:
    batcher = make(looping)
    caller = asyncio.create_task(batcher.submit(ask(STUCK)))
    await until(lambda: batcher._running is not None)
    caller.cancel()
    assert (await batcher.submit(ask(QUICK))).value.tolist() == QUICK


async def test_a_run_goes_on_while_one_of_its_callers_waits(looping: OnnxSession, make: Any) -> None:
    batcher = make(looping)
    with batcher._turn:  # so that the two share a run
        leaves = asyncio.create_task(batcher.submit(ask(STUCK)))
        stays = asyncio.create_task(batcher.submit(ask(QUICK), timeout_s=0.3))
        await settled(batcher, 2)
    await until(lambda: batcher._running is not None)
    batch, stop = batcher._running
    assert len(batch) == 2
    leaves.cancel()
    await until(leaves.done)
    assert not stop.is_set
    with pytest.raises(DeadlineExceeded):
        await stays
    assert stop.is_set


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any request is expected to be quick enough for the event loop's thread."""
    monkeypatch.setattr(batcher_module, "MAX_INLINE_S", 60.0)
    monkeypatch.setattr(batcher_module, "INLINE_BUDGET_S", 0.05)


async def test_a_run_that_takes_too_long_in_the_event_loops_thread_goes_on_in_the_other(
    looping: OnnxSession, make: Any, brief: None
) -> None:
    """It held the event loop up for as long as it took, which was for ever, and its own deadline could not pass."""
    batcher = make(looping)
    await batcher.submit(ask(QUICK), small=True, alone=True)
    await idle(batcher)
    batcher.pace.longest_s[kind_of(1)] = 0.0
    here = threading.get_ident()
    threads: list[int] = []

    def stuck() -> Steps[Any]:
        threads.append(threading.get_ident())
        yield Run({"x": np.array(STUCK, np.float32)})

    outcomes: list[Any] = []
    batcher.begin(stuck(), outcomes.append, small=True, alone=True, timeout_s=0.3)  # comes back
    assert threads == [here]
    await until(lambda: bool(outcomes))
    assert isinstance(outcomes[0], DeadlineExceeded)

    def noting() -> Steps[Any]:
        threads.append(threading.get_ident())
        return (yield from ask(QUICK))

    await idle(batcher)
    batcher.pace.longest_s[kind_of(1)] = 0.0
    await batcher.submit(noting(), small=True, alone=True)
    assert threads[-1] != here  # for a while


async def test_only_what_is_small_by_its_like_is_worked_on_in_the_event_loops_thread(
    double: Gated, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pictures of 6 kB held the event loop up for seconds, as small bodies of another size had been quick."""
    monkeypatch.setattr(batcher_module, "MAX_INLINE_S", 60.0)
    monkeypatch.setattr(batcher_module, "INLINE_BUDGET_S", 60.0)
    batcher = make(double)
    here = threading.get_ident()
    threads: list[int] = []

    def noting() -> Steps[Any]:
        threads.append(threading.get_ident())
        return (yield from ask([[1]]))

    for work, is_here in ((SHORT, False), (SHORT, True), (LONG, False), (LONG, True)):
        await idle(batcher)
        await batcher.submit(noting(), small=True, alone=True, work=work)
        assert (threads[-1] == here) == is_here


async def test_the_event_loops_thread_works_only_while_it_is_watched(
    double: Gated, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "MAX_INLINE_S", 60.0)
    monkeypatch.setattr(batcher_module, "WATCHED_S", 0.0)
    batcher = make(double)
    threads: list[int] = []

    def noting() -> Steps[Any]:
        threads.append(threading.get_ident())
        return (yield from ask([[1]]))

    for _ in range(3):
        await idle(batcher)
        await batcher.submit(noting(), small=True, alone=True)
    assert threading.get_ident() not in threads
