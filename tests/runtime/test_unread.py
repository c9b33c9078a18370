"""Parts of an answer are read as they come, in their order, and a slow reader holds its own request up alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.errors import DeadlineExceeded
from service.graph import Part, Run, Settled, Steps
from service.runtime.batcher import Batcher
from service.runtime.job import Done, Job, Outcome
from service.runtime.unread import MOST_UNREAD, Unread
from tests.runtime.test_batcher import Gated, ask, double, make, until

__all__ = ["double", "make"]  # fixtures


class Telling:
    """A request that tells a part after each of its runs."""

    def __init__(self, runs: int) -> None:
        self.runs, self.told, self.is_closed = runs, 0, False

    def steps(self) -> Steps[str]:
        try:
            for _ in range(self.runs):
                yield Run({"x": graph_row()})
                self.told += 1
                yield Settled(lambda: [Part("n", b"%d" % self.told)])
            return "all"
        finally:
            self.is_closed = True


def graph_row() -> Any:
    return np.ones((1, 2), np.float32)


class Reader:
    """Who reads the parts of a request, and how it ended."""

    def __init__(self, batcher: Batcher, steps: Steps[Any], timeout_s: float = 30.0) -> None:
        self.unread = Unread()
        self.outcome: Outcome[Any] | None = None
        self.job: Job = batcher.begin(steps, self._end, timeout_s=timeout_s, unread=self.unread)

    def _end(self, outcome: Outcome[Any]) -> None:
        self.outcome = outcome
        self.unread.end()

    async def rest(self) -> list[int]:
        """All parts that are still to come."""
        numbers: list[int] = []
        while True:
            ended = self.outcome is not None
            numbers += [int(part.data) for part in await self.unread.take()]
            if ended or (self.outcome is not None and not self.unread._parts):
                return numbers


async def test_parts_are_read_in_their_order_before_the_end(double: Gated, make: Callable[..., Batcher]) -> None:
    telling = Telling(20)
    reader = Reader(make(double), telling.steps())
    assert await asyncio.wait_for(reader.rest(), 30) == list(range(1, 21))
    assert isinstance(reader.outcome, Done)
    assert reader.outcome.value == "all"


async def test_nobody_makes_parts_that_nobody_reads(double: Gated, make: Callable[..., Batcher]) -> None:
    def steps() -> Steps[int]:
        made: list[Part] = []
        yield Settled(lambda: made)
        yield Run({"x": graph_row()})
        yield Settled(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        return 7

    assert (await make(double).submit(steps())).value == 7


async def test_a_slow_reader_holds_its_own_request_up_and_no_other(double: Gated, make: Callable[..., Batcher]) -> None:
    """So many parts and no more are ever unread, others are answered meanwhile, and nothing is lost."""
    batcher, telling = make(double), Telling(5 * MOST_UNREAD)
    reader = Reader(batcher, telling.steps())
    await until(lambda: bool(batcher._paused))
    assert telling.told == MOST_UNREAD
    assert (await batcher.submit(ask([[1, 2]]))).value.tolist() == [[3, 5]]
    assert telling.told == MOST_UNREAD
    assert await asyncio.wait_for(reader.rest(), 30) == list(range(1, 5 * MOST_UNREAD + 1))


async def test_a_slow_reader_who_leaves_is_forgotten(double: Gated, make: Callable[..., Batcher]) -> None:
    batcher, telling = make(double), Telling(5 * MOST_UNREAD)
    reader = Reader(batcher, telling.steps())
    await until(lambda: bool(batcher._paused))
    batcher.abandon(reader.job)
    await until(lambda: telling.is_closed)
    assert not batcher._paused
    assert telling.told == MOST_UNREAD


async def test_a_slow_reader_is_told_when_its_time_is_over(double: Gated, make: Callable[..., Batcher]) -> None:
    batcher, telling = make(double), Telling(5 * MOST_UNREAD)
    reader = Reader(batcher, telling.steps(), timeout_s=0.5)
    await until(lambda: telling.is_closed)
    assert isinstance(reader.outcome, DeadlineExceeded)
    assert await asyncio.wait_for(reader.rest(), 30) == list(range(1, telling.told + 1))


async def test_a_batcher_that_closes_finishes_what_is_read_slowly(double: Gated, make: Callable[..., Batcher]) -> None:
    batcher, telling = make(double), Telling(2 * MOST_UNREAD)
    reader = Reader(batcher, telling.steps())
    await until(lambda: bool(batcher._paused))
    closing = asyncio.create_task(asyncio.to_thread(batcher.close, 10))
    assert await asyncio.wait_for(reader.rest(), 30) == list(range(1, 2 * MOST_UNREAD + 1))
    assert await closing


async def test_what_fails_while_parts_are_made_is_the_end(double: Gated, make: Callable[..., Batcher]) -> None:
    def steps() -> Steps[int]:
        yield Run({"x": graph_row()})
        yield Settled(lambda: [Part("n", b"%d" % (1 // 0))])
        return 7

    reader = Reader(make(double), steps())
    assert await asyncio.wait_for(reader.rest(), 30) == []
    assert isinstance(reader.outcome, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        raise reader.outcome
