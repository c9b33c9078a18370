"""What is known of a request while it is answered: its id, its deadline, and where its time went."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from service.errors import DeadlineExceeded
from service.graph import Steps
from service.keys import Key
from service.runtime.batcher import Batcher
from service.runtime.job import Timings

_KEY = "gridloop.context"
IN_FLIGHT = "gridloop.in_flight"
"""Key of the ASGI scope under which the server puts the set of all requests being answered in the process."""
EXCHANGE = "gridloop.exchange"
"""Key of the ASGI scope under which the server puts the `Exchange`."""
HEADERS = "gridloop.headers"
"""Key of the ASGI scope for the headers as `RequestContext` has them, once somebody has looked at them."""


CANARY_HEADER = b"x-canary-key"
"""Header of a request, in lower case: whoever sends the same value is answered by the same version of a model."""


@dataclass(slots=True)
class Workers:
    """What the workers of a server know of each other: an entry for each, in memory that all share.

    Attributes:
        loaded: whether it has loaded its models.
        in_flight: requests being answered.
        closed: connections closed since it started.
        beat: when its event loop last came round (seconds of the monotonic clock, which all processes share).
        leaving: one entry for all, 1 once the server is to stop: it answers still, and says that it is not ready.
        own: this worker's entry; nobody else writes there.
        generation: which of the places for workers that are alive at a time, old ones and new, these have.
        others: `in_flight` of all those places.
    """

    loaded: MutableSequence[int] = field(default_factory=lambda: [0])
    in_flight: MutableSequence[int] = field(default_factory=lambda: [0])
    closed: MutableSequence[int] = field(default_factory=lambda: [0])
    beat: MutableSequence[float] = field(default_factory=lambda: [0.0])
    leaving: MutableSequence[int] = field(default_factory=lambda: [0])
    own: int = 0
    generation: int = 0
    others: Sequence[Sequence[int]] = ()

    @property
    def row(self) -> int:
        """This worker's place among those of all generations."""
        return self.generation * len(self.loaded) + self.own

    @property
    def all_in_flight(self) -> int:
        """Requests being answered, by workers that are about to leave as well (count)."""
        return sum(map(sum, self.others or (self.in_flight,)))

    def point_at(self, other: Workers) -> None:
        """Stand for other workers from now on, wherever this object is known already."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))


@dataclass(slots=True)
class Answer:
    """A whole answer: what an endpoint returns and the edge sends."""

    body: bytes
    media_type: bytes = b"application/json"
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


class StreamedAnswer(Protocol):
    """An answer that is sent as it comes."""

    async def send(self, receive: Any, send: Any) -> int:
        """Send all of it by ASGI's messages, while its client is there.

        Returns:
            The status that it counts as: a stream that has begun may still fail.

        Raises:
            ClientDisconnected: the client has left.
        """


@dataclass(slots=True)
class Asked:
    """What a request wants done: which steps, and where; the rest as `Batcher.begin` takes it."""

    batcher: Batcher
    steps: Steps[Any]
    rows: int
    work: int
    size_bytes: int


class Exchange(Protocol):
    """A request and its answer as the server's protocol holds them: a short way past ASGI's messages.

    Attributes:
        on_disconnect: called when the client has left before its answer was sent.
    """

    on_disconnect: Callable[[], None] | None

    def whole_body(self) -> bytes | None:
        """The request's body where all of it has arrived already; None where it is still to be received."""

    def write(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer."""

    async def drain(self) -> None:
        """Wait until the client has taken what was sent before."""


class ClientDisconnected(Exception):
    """The client closed the connection; there is nobody to answer."""


@dataclass(slots=True)
class RequestContext:
    """One request's own facts; kept in the ASGI scope.

    Attributes:
        headers: of the request, names in lower case; of a name sent twice the last.
        request_id: the caller's own `X-Request-ID`, or a new one.
        timeout_s: the deadline, counted from `started`.
        started: `time.perf_counter()` when the request's head had arrived.
        timings: seconds spent per stage.
        model: `name@version` that answered.
        trace: `traceparent` to hand on: the caller's trace with a span of ours.
        alone: no other request is being answered in this process, nor was a moment ago.
        cors: headers of the answer for pages of other origins.
        prefix: what stands before the path as the client knows it, where a proxy takes it off.
        closing: the server is to stop, so the connection is closed after the answer.
        key: the API key that was sent; None where none is asked for.
    """

    headers: Mapping[bytes, bytes]
    request_id: str
    timeout_s: float
    started: float = field(default_factory=time.perf_counter)
    timings: Timings = field(default_factory=Timings)
    model: str | None = None
    trace: str | None = None
    alone: bool = False
    cors: tuple[tuple[bytes, bytes], ...] = ()
    prefix: str = ""
    closing: bool = False
    key: Key | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds left until the deadline; not below 0."""
        return max(0.0, self.started + self.timeout_s - time.perf_counter())

    @property
    def canary_key(self) -> str:
        """What tells this caller from others where a canary answers some: their own word, else the request's id."""
        key = self.headers.get(CANARY_HEADER)
        return key.decode("latin-1") if key is not None else self.request_id

    def shorten(self, timeout_s: float | None) -> None:
        """Bring the deadline forward, where one is given that comes sooner."""
        if timeout_s is not None:
            self.timeout_s = min(self.timeout_s, timeout_s)

    def check_deadline(self) -> None:
        """See that there is time left.

        Raises:
            DeadlineExceeded: there is none.
        """
        if not self.remaining_s:
            raise DeadlineExceeded(self.timeout_s)


def new_request_id() -> str:
    """128 random bits in hex.

    Not from the operating system: that call releases the interpreter's lock, and a busy worker thread keeps it for
    milliseconds. The generator is seeded from the operating system in every process.
    """
    return f"{random.getrandbits(128):032x}"


def set_context(scope: Any, context: RequestContext) -> None:
    """Attach the context to the ASGI scope."""
    scope[_KEY] = context


def context_of(scope: Any) -> RequestContext:
    """The context of a request that came through the edge."""
    context: RequestContext = scope[_KEY]
    return context
