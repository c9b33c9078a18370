"""A closed loop: every kept-alive connection sends its next request when it has its answer, for a bounded time."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import re
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from service.client.http import AnswerParser, ClientFailed, HttpAnswer, ServerAddress, detail

WARM_UP_S = 1.0
"""Before anything is counted (seconds)."""

GRACE_S = 30.0
"""Time for the requests in flight when a run ends; whoever still waits then counts as an error (seconds)."""

STEPS = ("decode", "queue", "infer", "encode")
"""Parts of a request's time that the server reports in `Server-Timing`."""

CONNECT_ATTEMPTS = 3
"""Refusals in a row of one connection after which nothing more can be measured (count)."""

_SERVER_TIMING = re.compile(rb"\r\nserver-timing:([^\r]*)", re.IGNORECASE)
_DURATION = re.compile(rb"([\w-]+);dur=([\d.]+)")


@dataclass(frozen=True, slots=True)
class Request:
    """A request, ready to be sent.

    Attributes:
        wire: head and body as they go over the wire.
        model: `name` or `name@version` that must answer; empty: anyone.
    """

    wire: bytes
    model: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop.

    Attributes:
        address: of the server.
        requests: sent in turn, over all connections.
        connections: kept alive throughout.
        seconds: counted.
        warm_up_s: before that.
        grace_s: for the requests in flight at the end.
        samples: answers that are kept, drawn evenly from those counted (count).
    """

    address: ServerAddress
    requests: Sequence[Request]
    connections: int
    seconds: float
    warm_up_s: float = WARM_UP_S
    grace_s: float = GRACE_S
    samples: int = 0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The figures of a load.

    Attributes:
        requests: answered well (200, by the right model) in the counted time.
        answers: answered well at any time, warm-up and end included.
        rate: `requests` per second.
        errors: everything else by kind, at any time: `status 503`, `another model`, `connection lost`, `no answer`.
        examples: one of each kind, in the server's words.
        mean_ms: latency of those counted in `requests`, from writing the request to having the whole answer.
        p50_ms: likewise, nearest rank.
        p95_ms: likewise.
        p99_ms: likewise.
        steps_ms: mean of each step that the server reported for them (`Server-Timing`); empty when it reports none.
        client_cores: cores that the client used.
        samples: (index of the request, body of its answer).
    """

    requests: int
    answers: int
    rate: float
    errors: Mapping[str, int]
    examples: Mapping[str, str]
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    steps_ms: Mapping[str, float]
    client_cores: float
    samples: Sequence[tuple[int, bytes]] = ()

    @property
    def failures(self) -> int:
        """How many errors of all kinds."""
        return sum(self.errors.values())

    @property
    def rest_ms(self) -> float | None:
        """Mean time outside the server's own steps: HTTP on both sides, the network, waiting for a processor."""
        return self.mean_ms - sum(self.steps_ms.values()) if self.steps_ms else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank); NaN of nothing.

    Args:
        ordered: ascending.
        share: above 0, at most 1.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def server_timing(head: bytes) -> dict[str, float]:
    """Milliseconds by step, of an answer's `Server-Timing` header."""
    header = _SERVER_TIMING.search(head)
    return {name.decode(): float(ms) for name, ms in _DURATION.findall(header[1])} if header else {}


def answers_as(model: str) -> Callable[[bytes], bool]:
    """A test of an answer's body: is it from this model (`name` or `name@version`; empty: any)?"""
    name, _, version = model.partition("@")
    # How an answer usually begins; one that begins otherwise is parsed.
    usual = f'{{"model":{{"name":{json.dumps(name)},"version":{json.dumps(version) if version else ""}'.encode()

    def is_its(body: bytes) -> bool:
        if not model or body.startswith(usual):
            return True
        try:
            told = json.loads(body)["model"]
            return bool(told["name"] == name and version in ("", told["version"]))
        except (ValueError, TypeError, LookupError):
            return False

    return is_its


class _Tally:
    """The tally of one load, and its end."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self.load, self.loop = load, loop
        # (place in the list, bytes, test of the answer), round and round
        self.turn = itertools.cycle([(n, r.wire, answers_as(r.model)) for n, r in enumerate(load.requests)])
        self.finished: asyncio.Future[None] = loop.create_future()
        self.open: set[_Connection] = set()
        self.over = False
        self.answers = 0
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.latencies = array("d")  # seconds
        self.steps: defaultdict[str, float] = defaultdict(float)  # milliseconds
        self.samples: list[tuple[int, bytes]] = []
        self.began = self.ended = self.cpu_began = self.cpu_ended = math.nan
        self._counting = False
        self._draw = random.Random(0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """One more connection; a server that refuses it again and again ends the run."""
        for _ in range(CONNECT_ATTEMPTS):
            try:
                await self.load.address.connect(lambda: _Connection(self))
            except OSError as error:
                reason = error.strerror or str(error)
                self.errors["connection refused"] += 1
                await asyncio.sleep(0.1)
            else:
                return
        self.fail(f"the server takes no connection: {reason}")

    def reconnect(self) -> None:
        """Open another connection in place of one that was closed."""
        if not self.over:
            task = self.loop.create_task(self.connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def begin(self) -> None:
        """The warm-up is over."""
        self._counting = True
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Send nothing more."""
        self.over, self._counting = True, False
        self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
        self.close_if_done()

    def give_up(self) -> None:
        """Whoever still waits has waited long enough."""
        if self.open:
            self.errors["no answer"] += len(self.open)
            self.examples.setdefault("no answer", f"none within {self.load.grace_s:g} s of the end")
        for connection in list(self.open):
            connection.transport.abort()
        self.open.clear()
        self.close_if_done()

    def fail(self, reason: str) -> None:
        """Nothing more can be measured."""
        if not self.finished.done():
            self.finished.set_exception(ClientFailed(reason))

    def answered(self, index: int, is_its: Callable[[bytes], bool], answer: HttpAnswer, seconds: float) -> None:
        """Count an answer."""
        if answer.status != 200:
            self._count_error(f"status {answer.status}", answer.body)
            return
        if not is_its(answer.body):
            self._count_error("another model", answer.body)
            return
        self.answers += 1
        if not self._counting:
            return
        self.latencies.append(seconds)
        for name, ms in server_timing(answer.head).items():
            self.steps[name] += ms
        count = len(self.latencies)
        if count <= self.load.samples:  # reservoir sampling (Vitter's algorithm R): each is as likely to be kept
            self.samples.append((index, answer.body))
        elif self.load.samples and (place := int(self._draw.random() * count)) < self.load.samples:
            self.samples[place] = (index, answer.body)

    def _count_error(self, kind: str, body: bytes) -> None:
        self.errors[kind] += 1
        if kind not in self.examples:
            self.examples[kind] = detail(body)

    def lost(self, connection: _Connection) -> None:
        """A connection is gone; one that was not closed on purpose is opened again, a bounded number of times."""
        if connection not in self.open:
            return
        self.open.discard(connection)
        if not connection.is_closed:
            self.errors["connection lost"] += 1
            if self.errors["connection lost"] > 4 * self.load.connections:
                self.fail("the server keeps closing connections")
            self.reconnect()
        self.close_if_done()

    def close_if_done(self) -> None:
        """The run is finished when it is over and nobody waits."""
        if self.over and not self.open and not self.finished.done():
            self.finished.set_result(None)

    def result(self) -> LoadResult:
        """The tally as numbers."""
        ordered = sorted(self.latencies)
        count, wall = len(ordered), self.ended - self.began
        return LoadResult(
            requests=count,
            answers=self.answers,
            rate=count / wall,
            errors=dict(self.errors),
            examples=self.examples,
            mean_ms=sum(ordered) / count * 1e3 if count else math.nan,
            p50_ms=percentile(ordered, 0.50) * 1e3,
            p95_ms=percentile(ordered, 0.95) * 1e3,
            p99_ms=percentile(ordered, 0.99) * 1e3,
            steps_ms={name: total / count for name, total in self.steps.items()},
            client_cores=(self.cpu_ended - self.cpu_began) / wall,
            samples=self.samples,
        )


class _Connection(asyncio.Protocol):
    """A kept-alive connection that asks, waits for the answer, and asks again."""

    transport: asyncio.Transport

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally
        self._parser = AnswerParser()
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._tally.open.add(self)
        self._ask()

    def _ask(self) -> None:
        if self._tally.over:
            self._close()
            return
        self._index, wire, self._is_its = next(self._tally.turn)
        self._asked = time.perf_counter()
        self.transport.write(wire)

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._parser.feed(data)
        except ValueError as error:
            self._close()
            self._tally.fail(f"the server does not speak HTTP as it should: {error}")
            return
        if answer is None:
            return
        self._tally.answered(self._index, self._is_its, answer, time.perf_counter() - self._asked)
        if answer.closes:
            self._close()
            self._tally.reconnect()
        else:
            self._ask()

    def _close(self) -> None:
        self.is_closed = True
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._tally.lost(self)


async def run_load(load: Load) -> LoadResult:
    """Put a load on a server, in this process.

    Raises:
        ClientFailed: the server is not there any more, or is no HTTP server.
    """
    loop = asyncio.get_running_loop()
    tally = _Tally(load, loop)
    await asyncio.gather(*(tally.connect() for _ in range(load.connections)))
    end = load.warm_up_s + load.seconds
    timers = [
        loop.call_later(load.warm_up_s, tally.begin),
        loop.call_later(end, tally.end),
        loop.call_later(end + load.grace_s, tally.give_up),
    ]
    try:
        await tally.finished
    finally:
        tally.over = True
        for timer in timers:
            timer.cancel()
        for connection in list(tally.open):
            connection.transport.abort()
    return tally.result()
