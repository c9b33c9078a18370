"""The batcher's laws, on real graphs. Time is held by a gate that the test opens, never slept away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeadlineExceeded, Draining, InferenceFailed, InvalidInput, Overloaded
from service.graph import Run, Steps
from service.runtime import batcher as batcher_module
from service.runtime.batcher import Batcher
from service.runtime.job import Done
from service.runtime.session import OnnxSession
from service.runtime.stop import Stop
from tests import graphs


class Gated:
    """A session whose runs wait for a gate, and which remembers how many rows each run had."""

    def __init__(self, session: OnnxSession) -> None:
        self._session, self.signature = session, session.signature
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.rows: list[int] = []
        self.alone: list[bool] = []

    def run(
        self, tensors: Any, outputs: tuple[str, ...] = (), *, alone: bool = False, stop: Stop | None = None
    ) -> dict[str, Any]:
        self.rows.append(len(next(iter(tensors.values()))))
        self.alone.append(alone)
        self.entered.set()
        assert self.gate.wait(10)
        return self._session.run(tensors, outputs, stop=stop)

    async def busy(self, batcher: Batcher) -> asyncio.Task[Any]:
        """Occupy the graph with one request of its own shape, and close the gate behind it."""
        self.gate.clear()
        self.entered.clear()
        task = asyncio.create_task(batcher.submit(ask(np.zeros((1, 9)))))
        await asyncio.to_thread(self.entered.wait, 10)
        self.rows.clear()
        return task


async def until(condition: Callable[[], bool]) -> None:
    """Wait, without holding the event loop up."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


def ask(x: Any) -> Steps[Any]:
    """One run of y = 2x + 1; the result is y."""
    outputs = yield Run({"x": np.asarray(x, np.float32)})
    return outputs["y"]


@pytest.fixture
def double(tmp_path: Path) -> Gated:
    return Gated(OnnxSession(graphs.affine(tmp_path / "affine.onnx")))


@pytest.fixture
def make() -> Iterator[Callable[..., Batcher]]:
    """Makes batchers and closes them at the end."""
    made: list[Batcher] = []

    def build(session: Any, **options: Any) -> Batcher:
        made.append(Batcher(session, model="tiny", **options))
        return made[-1]

    yield build
    for batcher in made:
        assert batcher.close(10)


async def settled(batcher: Batcher, rows: int) -> None:
    """Let the submitted tasks reach the queue."""
    await until(lambda: batcher.waiting == rows)


async def test_a_lone_request_is_run_at_once(double: Gated, make: Any) -> None:
    done = await make(double).submit(ask([[1, 2]]))
    assert done.value.tolist() == [[3, 5]]
    assert double.rows == [1]


async def test_only_a_request_that_is_alone_may_use_every_core(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    double.alone.clear()
    others = [asyncio.create_task(batcher.submit(ask([[n]]), alone=True)) for n in range(2)]
    await settled(batcher, 2)
    double.gate.set()
    await asyncio.gather(first, *others)
    await batcher.submit(ask([[1]]), alone=True)
    await batcher.submit(ask([[1]]))
    assert double.alone == [False, True, False]  # the two shared a run


async def test_requests_that_gather_while_the_graph_is_busy_share_the_next_run(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    others = [asyncio.create_task(batcher.submit(ask([[n, n]]))) for n in range(5)]
    await settled(batcher, 5)
    double.gate.set()
    answers = [(await task).value.tolist() for task in others]
    await first
    assert answers == [[[2 * n + 1, 2 * n + 1]] for n in range(5)]
    assert double.rows == [5]


async def test_unequal_shapes_never_share_a_run(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    others = [asyncio.create_task(batcher.submit(ask([[0.0] * width]))) for width in (1, 2, 1, 2)]
    await settled(batcher, 4)
    double.gate.set()
    assert [(await task).value.shape for task in others] == [(1, 1), (1, 2), (1, 1), (1, 2)]
    await first
    assert double.rows == [2, 2]


async def test_rows_are_counted_not_requests(double: Gated, make: Any) -> None:
    batcher = make(double, max_batch_size=4)
    first = await double.busy(batcher)
    others = [asyncio.create_task(batcher.submit(ask([[n]] * 2), rows=2)) for n in range(3)]
    await settled(batcher, 6)
    double.gate.set()
    await asyncio.gather(first, *others)
    assert double.rows == [4, 2]


async def test_a_turn_may_take_more_rows_than_a_run(double: Gated, make: Any) -> None:
    batcher = make(double, max_batch_size=4, turn_rows=8)
    first = await double.busy(batcher)
    others = [asyncio.create_task(batcher.submit(ask([[n]] * 3), rows=3)) for n in range(3)]
    await settled(batcher, 9)
    double.gate.set()
    answers = [(await task).value.ravel().tolist() for task in others]
    await first
    assert answers == [[2 * n + 1] * 3 for n in range(3)]
    assert double.rows == [4, 2, 3]  # a turn of six rows, and one of three


async def test_a_run_that_asks_for_few_rows_is_in_a_batch_of_few(double: Gated, make: Any) -> None:
    """The others of its kind come in the next one; of two wishes the smaller counts, and a request of more rows is whole."""

    def ask_for_few(rows: int, most_rows: int | None) -> Steps[None]:
        yield Run({"x": np.zeros((rows, 1), np.float32)}, most_rows=most_rows)

    batcher = make(double, max_batch_size=8)
    first = await double.busy(batcher)
    wishes = [(1, 3), (1, None), (1, 3), (1, None), (1, 2), (1, None), (4, 2)]
    others = [asyncio.create_task(batcher.submit(ask_for_few(*wish))) for wish in wishes]
    await settled(batcher, len(wishes))
    double.gate.set()
    await asyncio.gather(first, *others)
    assert double.rows == [3, 2, 1, 4]


@pytest.mark.parametrize("rows", [[2, 2], [1, 1, 1, 1]])
async def test_while_half_a_batch_waits_the_run_with_less_work_is_taken(
    double: Gated, make: Any, rows: list[int]
) -> None:
    def either() -> Steps[int]:
        one, two = (Run({"x": np.zeros((n, 1), np.float32)}) for n in (1, 2))
        outputs = yield Run(two.tensors, when_busy=one)
        return len(outputs["y"])

    batcher = make(double, max_batch_size=6)
    first = await double.busy(batcher)
    others = [asyncio.create_task(batcher.submit(either())) for _ in rows]
    await settled(batcher, len(rows))
    double.gate.set()
    assert [(await task).value for task in others] == rows
    await first


async def test_a_request_larger_than_a_batch_is_run_in_slices(double: Gated, make: Any) -> None:
    done = await make(double, max_batch_size=4).submit(ask([[n] for n in range(10)]), rows=10)
    assert done.value.ravel().tolist() == [2 * n + 1 for n in range(10)]
    assert double.rows == [4, 4, 2]


async def test_a_graph_with_a_fixed_batch_is_padded_and_trimmed(tmp_path: Path, make: Any) -> None:
    session = OnnxSession(graphs.affine(tmp_path / "fixed.onnx", batch=4))
    done = await make(session).submit(ask([[1], [2]]), rows=2)
    assert done.value.tolist() == [[3], [5]]


async def test_a_caller_cancelled_in_the_queue_is_not_run(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    leaves, stays = (asyncio.create_task(batcher.submit(ask([[n]]))) for n in (1, 2))
    await settled(batcher, 2)
    leaves.cancel()
    await asyncio.sleep(0)
    double.gate.set()
    assert (await stays).value.tolist() == [[5]]
    await first
    assert leaves.cancelled()
    assert double.rows == [1]


async def test_a_caller_cancelled_mid_run_does_not_disturb_its_batch(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    leaves, stays = (asyncio.create_task(batcher.submit(ask([[n]]))) for n in (1, 2))
    await settled(batcher, 2)
    double.entered.clear()
    double.gate.set()
    await asyncio.to_thread(double.entered.wait, 10)
    leaves.cancel()
    assert (await stays).value.tolist() == [[5]]
    await first
    with suppress(asyncio.CancelledError):
        await leaves


async def test_one_bad_row_fails_alone(tmp_path: Path, make: Any) -> None:
    """An index outside the table makes the whole run fail; the others get their answers all the same."""
    session = Gated(OnnxSession(graphs.reciprocal_index(tmp_path / "table.onnx")))
    batcher = make(session)

    def look_up(index: int) -> Steps[float]:
        outputs = yield Run({"x": np.array([index])})
        return float(outputs["y"][0])

    session.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(look_up(index))) for index in (0, 1, 4, 3)]
    await asyncio.sleep(0.01)
    session.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [a.value if isinstance(a, Done) else type(a) for a in answers] == [10, 20, InferenceFailed, 40]
    assert (await batcher.submit(look_up(2))).value == 30


async def test_a_task_that_refuses_its_input_fails_alone(double: Gated, make: Any) -> None:
    def refuse() -> Steps[Any]:
        raise InvalidInput("no")
        yield Run({})

    batcher = make(double)
    bad, good = await asyncio.gather(batcher.submit(refuse()), batcher.submit(ask([[1]])), return_exceptions=True)
    assert isinstance(bad, InvalidInput)
    assert good.value.tolist() == [[3]]


async def test_a_full_queue_refuses_at_once(double: Gated, make: Any) -> None:
    batcher = make(double, max_queue=2)
    first = await double.busy(batcher)
    waiting = [asyncio.create_task(batcher.submit(ask([[n]]))) for n in range(2)]
    await settled(batcher, 2)
    with pytest.raises(Overloaded, match="2 rows already wait for model 'tiny'"):
        await batcher.submit(ask([[3]]))
    double.gate.set()
    await asyncio.gather(first, *waiting)


async def test_a_request_larger_than_the_queue_is_taken_when_nobody_waits(double: Gated, make: Any) -> None:
    done = await make(double, max_queue=2).submit(ask([[0]] * 5), rows=5)
    assert len(done.value) == 5


async def test_work_whose_deadline_passed_in_the_queue_is_not_run(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        await batcher.submit(ask([[1]]), timeout_s=0.01)
    double.gate.set()
    await first
    assert double.rows == []


async def test_a_long_request_whose_deadline_passes_is_worked_on_no_further(double: Gated, make: Any) -> None:
    ended: list[bool] = []

    def endless() -> Steps[None]:
        try:
            while True:
                yield Run({"x": np.zeros((1, 1), np.float32)})
        finally:
            ended.append(True)

    batcher = make(double)
    with pytest.raises(DeadlineExceeded):
        await batcher.submit(endless(), timeout_s=0.05)
    await until(lambda: bool(ended))
    runs = len(double.rows)
    await batcher.submit(ask([[1]]))
    assert len(double.rows) == runs + 1


async def test_closing_finishes_what_was_accepted_and_refuses_the_rest(double: Gated, make: Any) -> None:
    batcher = make(double)
    first = await double.busy(batcher)
    accepted = asyncio.create_task(batcher.submit(ask([[1]])))
    await settled(batcher, 1)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close, 10))
    while not batcher._admission.is_closed:  # noqa: ASYNC110  the batcher has no event for it
        await asyncio.sleep(0)
    with pytest.raises(Draining):
        await batcher.submit(ask([[2]]))
    double.gate.set()
    assert await closing
    assert (await accepted).value.tolist() == [[3]]
    await first


async def test_a_long_request_lets_a_short_one_pass_between_its_runs(double: Gated, make: Any) -> None:
    """Twenty runs one after another, of another shape: the short one comes after the first, not after the last."""
    order: list[str] = []

    def long() -> Steps[None]:
        for _ in range(20):
            yield Run({"x": np.zeros((1, 3), np.float32)})
            order.append("long")

    def short() -> Steps[None]:
        yield Run({"x": np.zeros((1, 1), np.float32)})
        order.append("short")

    batcher = make(double)
    first = await double.busy(batcher)
    tasks = [asyncio.create_task(batcher.submit(long())), asyncio.create_task(batcher.submit(short()))]
    await settled(batcher, 2)
    double.gate.set()
    await asyncio.gather(first, *tasks)
    assert order[:3] == ["long", "short", "long"]


async def test_timings_say_where_the_time_went(double: Gated, make: Any) -> None:
    timings = (await make(double).submit(ask([[1]]))).timings
    assert min(timings.queue, timings.decode, timings.infer, timings.encode) > 0


def total(x: list[float], h: float = 0) -> Steps[tuple[list[float], float]]:
    """The running sum of x, and the state after it."""
    outputs = yield Run(
        {
            "x": np.array([x], np.float32),
            "sequence_lens": np.array([len(x)], np.int32),
            "h": np.array([[h]], np.float32),
        }
    )
    return outputs["total"][0].tolist(), float(outputs["next_h"][0, 0])


@pytest.fixture(scope="module")
def summing(tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    return OnnxSession(graphs.running_sum(tmp_path_factory.mktemp("graphs") / "sum.onnx"))


async def test_sequences_of_unequal_length_share_a_run(summing: OnnxSession, make: Any) -> None:
    session = Gated(summing)
    session.gate.clear()
    batcher = make(session)
    series = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [5.0, 5.0, 5.0]]
    warm = asyncio.create_task(batcher.submit(total([0.0])))
    await asyncio.to_thread(session.entered.wait, 10)
    session.rows.clear()
    tasks = [asyncio.create_task(batcher.submit(total(x, h=100))) for x in series]
    await settled(batcher, 3)
    session.gate.set()
    answers = [(await task).value for task in tasks]
    await warm
    assert answers == [([101, 102, 103], 103), ([102, 104, 106, 108], 108), ([105, 110, 115], 115)]
    assert session.rows == [3]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=40), min_size=1, max_size=20), st.integers(1, 8))
def test_batched_equals_one_by_one(summing: OnnxSession, series: list[list[int]], max_batch_size: int) -> None:
    """Whatever arrives together, everybody gets exactly their own answer."""

    async def together() -> list[Any]:
        batcher = Batcher(summing, model="tiny", max_batch_size=max_batch_size)
        try:
            return list(await asyncio.gather(*(batcher.submit(total([float(v) for v in x])) for x in series)))
        finally:
            assert await asyncio.to_thread(batcher.close, 10)

    for x, done in zip(series, asyncio.run(together()), strict=True):
        assert done.value == (np.cumsum(x).tolist(), sum(x))


# --------------------------------------------------------------------------------------- in the event loop's thread


def noting(threads: list[int], *inputs: Any) -> Steps[Any]:
    """Runs y = 2x + 1 on each input; notes in which thread the code between the runs is executed."""
    y = None
    for x in inputs:
        threads.append(threading.get_ident())
        y = (yield Run({"x": np.asarray(x, np.float32)}))["y"]
    threads.append(threading.get_ident())
    return y


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's mood, nothing takes too long for the event loop's thread."""
    monkeypatch.setattr(batcher_module, "MAX_INLINE_S", 60.0)
    monkeypatch.setattr(batcher_module, "INLINE_BUDGET_S", 60.0)


async def idle(batcher: Batcher) -> None:
    """Let the worker thread give up its turn."""
    await until(lambda: not batcher._turn.locked())


async def practised(batcher: Batcher) -> Batcher:
    """Let a batcher see how long a small request takes, and come to rest."""
    await batcher.submit(ask([[1]]), alone=True, small=True)
    await idle(batcher)
    return batcher


async def test_a_small_request_is_worked_on_in_the_event_loops_thread(
    double: Gated, make: Any, unhurried: None
) -> None:
    batcher = make(double)
    here = threading.get_ident()

    async def worked_on(**options: bool) -> set[int]:
        threads: list[int] = []
        await idle(batcher)
        done = await batcher.submit(noting(threads, [[1]]), **options)
        assert done.value.tolist() == [[3]]
        return set(threads)

    assert here not in await worked_on(alone=True, small=True)  # nobody knows yet how long it takes
    assert await worked_on(alone=True, small=True) == {here}
    assert here not in await worked_on(alone=True)
    assert await worked_on(small=True) == {here}
    assert double.alone == [True, True, True, False]


async def test_a_few_that_arrive_together_are_a_batch_in_the_event_loops_thread(
    double: Gated, make: Any, unhurried: None
) -> None:
    batcher = await practised(make(double))
    here = threading.get_ident()
    for count in (2, batcher_module.MAX_INLINE_REQUESTS, batcher_module.MAX_INLINE_REQUESTS + 1):
        await idle(batcher)
        double.rows.clear()
        threads: list[int] = []
        asked = (batcher.submit(noting(threads, [[n]]), small=True) for n in range(count))
        assert [done.value.tolist() for done in await asyncio.gather(*asked)] == [[[2 * n + 1]] for n in range(count)]
        if count <= batcher_module.MAX_INLINE_REQUESTS:
            assert set(threads) == {here}
            assert double.rows == [count]
        else:
            assert here not in threads


async def test_who_should_take_longer_goes_to_the_worker_thread(
    double: Gated, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "MAX_INLINE_S", 0.5)
    batcher = await practised(make(double))
    for row_s, is_here in ((0.2, True), (0.3, False)):  # of two requests
        await idle(batcher)
        batcher.pace.longest_s[1] = row_s
        threads: list[int] = []
        await asyncio.gather(*(batcher.submit(noting(threads, [[n]]), small=True) for n in range(2)))
        assert (set(threads) == {threading.get_ident()}) == is_here


async def test_a_request_whose_time_is_over_before_its_run_does_not_stop_the_others(
    double: Gated, make: Any, unhurried: None
) -> None:
    batcher = await practised(make(double))

    def dawdling() -> Steps[Any]:
        time.sleep(0.05)
        yield from ask([[1]])

    late, refused = await asyncio.gather(
        batcher.submit(dawdling(), small=True, timeout_s=0.02),
        batcher.submit(refusing(), small=True),
        return_exceptions=True,
    )
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(refused, InvalidInput)
    assert double.rows == [1]


async def test_while_the_worker_thread_is_busy_nobody_works_beside_it(
    double: Gated, make: Any, unhurried: None
) -> None:
    batcher = await practised(make(double))
    first = await double.busy(batcher)
    threads: list[int] = []
    asked = [asyncio.create_task(batcher.submit(noting(threads, [[n]]), small=True)) for n in range(3)]
    await until(lambda: batcher._queue.qsize() == 3)
    double.gate.set()
    assert [done.value.tolist() for done in await asyncio.gather(*asked)] == [[[1]], [[3]], [[5]]]
    await first
    assert threading.get_ident() not in threads
    assert double.rows == [3]


async def test_who_has_arrived_before_the_batcher_closes_is_answered(double: Gated, make: Any, unhurried: None) -> None:
    batcher = await practised(make(double))
    outcomes: list[Any] = []
    for n in range(3):
        batcher.begin(ask([[n]]), outcomes.append, small=True)
    assert not batcher.close(0.1)  # they wait for a look at who else comes
    await until(lambda: len(outcomes) == 3)
    assert [done.value.tolist() for done in outcomes] == [[[1]], [[3]], [[5]]]
    assert await asyncio.to_thread(batcher.close, 10.0)


async def test_a_lone_request_that_takes_longer_goes_on_in_the_worker_thread(
    double: Gated, make: Any, unhurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = await practised(make(double))
    monkeypatch.setattr(batcher_module, "MAX_INLINE_S", 0.001)

    def slow(threads: list[int]) -> Steps[Any]:
        steps = noting(threads, [[1]], [[2]])
        run = next(steps)
        outputs = yield run
        double.entered.clear()
        double.gate.clear()
        threading.Timer(0.01, double.gate.set).start()
        double.gate.wait(10)  # longer than it may take here
        run = steps.send(outputs)
        outputs = yield run
        try:
            steps.send(outputs)
        except StopIteration as stop:
            return stop.value

    batcher.pace.longest_s[1] = 0.0
    threads: list[int] = []
    done = await batcher.submit(slow(threads), alone=True, small=True)
    assert done.value.tolist() == [[5]]
    assert threads[0] == threading.get_ident() != threads[-1]
    threads.clear()
    await batcher.submit(noting(threads, [[1]]), alone=True, small=True)
    assert threading.get_ident() not in threads  # it is remembered


async def test_a_failure_in_the_event_loops_thread_is_told_like_any_other(
    tmp_path: Path, make: Any, unhurried: None
) -> None:
    batcher = await practised(make(OnnxSession(graphs.affine(tmp_path / "affine.onnx"))))
    with pytest.raises(InferenceFailed):
        await batcher.submit(ask([1]), alone=True, small=True)  # one axis too few
    with pytest.raises(InvalidInput):
        await batcher.submit(refusing(), alone=True, small=True)
    assert (await batcher.submit(ask([[1]]), alone=True, small=True)).value.tolist() == [[3]]


def refusing() -> Steps[Any]:
    raise InvalidInput("no")
    yield
