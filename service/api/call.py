"""The short way: a small request goes from the connection to its model's batcher and back by plain calls.

No task is made for it and no ASGI message sent. A request with a large, compressed or slow body is answered by the same
endpoint in a task of its own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from service.api.context import EXCHANGE, Answer, Asked, Exchange, RequestContext, StreamedAnswer
from service.api.headers import answer_headers
from service.api.problems import answer_of
from service.errors import InferenceFailed, ServiceError
from service.registry.first_use import NotLoadedYet
from service.runtime.job import Done, Job, Outcome

if TYPE_CHECKING:
    from service.api.edge import Edge

log = structlog.get_logger(__name__)

CLIENT_LEFT = 499
"""Status of a request whose client has left, as proxies count it."""


class Endpoint(Protocol):
    """Answers POST requests past the framework's stack; `path` is their label in the metrics.

    Where `is_short` is false, a request is never answered the short way.

    All of it raises what `problems` knows.
    """

    path: str
    is_short: bool

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer | StreamedAnswer:
        """Receive the body and answer."""

    def ask(self, context: RequestContext, scope: Any, body: bytes) -> Asked:
        """What a request wants whose body is small and here, and not compressed."""

    def answer(self, done: Done[Any]) -> Answer:
        """The answer, when that is done."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request on the short way, read once: the same bytes will come again.

    Attributes:
        scope: of ASGI, but for the connection's addresses.
        body_bytes: length of the body that follows.
        endpoint: what answers.
    """

    scope: dict[str, Any]
    body_bytes: int
    endpoint: Endpoint


class Call:
    """A request on the short way: begun, worked on by a batcher, answered by whoever knows how it ended."""

    __slots__ = ("_asked", "_context", "_edge", "_endpoint", "_exchange", "_job", "_scope", "_waiting")

    def __init__(self, edge: Edge, endpoint: Endpoint, exchange: Exchange, scope: Any) -> None:
        self._edge, self._endpoint, self._exchange, self._scope = edge, endpoint, exchange, scope
        self._asked: Asked | None = None
        self._job: Job | None = None
        self._waiting: asyncio.Future[None] | None = None  # until the version is loaded

    def begin(self, arrived: int) -> None:
        """Check the request and hand it to its model; `arrived` requests are begun together."""
        edge, scope = self._edge, self._scope
        self._context = context = edge.open(scope, arrived)
        self._exchange.on_disconnect = self._leave
        try:
            edge.admit(context, scope)
        except Exception as error:
            self._end(error)
        else:
            self._ask(self._exchange.whole_body() or b"")

    def _ask(self, body: bytes) -> None:
        context = self._context
        try:
            self._asked = asked = self._endpoint.ask(context, self._scope, body)
            self._job = asked.batcher.begin(
                asked.steps,
                self._end,
                rows=asked.rows,
                timeout_s=context.remaining_s,
                alone=context.alone,
                small=True,
                work=asked.work,
                size_bytes=asked.size_bytes,
            )
        except NotLoadedYet as first:
            self._waiting = asyncio.ensure_future(self._ask_when_loaded(first, body))
        except Exception as error:
            self._end(error)

    async def _ask_when_loaded(self, first: NotLoadedYet, body: bytes) -> None:
        try:
            await first.first_use.wait(self._context.remaining_s)
        except Exception as error:
            self._end(error)
        else:
            self._ask(body)

    def _end(self, outcome: Outcome[Any]) -> None:
        context = self._context
        try:
            if not isinstance(outcome, Done):
                raise outcome
            context.timings = outcome.timings
            answer = self._endpoint.answer(outcome)
        except Exception as error:
            answer = problem_answer(error, self._scope["path"], context)
        self._exchange.on_disconnect = None
        self._exchange.write(answer.status, answer_headers(answer, context), answer.body)
        self._count(answer.status)

    def _leave(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._asked and self._job:
            self._asked.batcher.abandon(self._job)
        self._count(CLIENT_LEFT)

    def _count(self, status: int) -> None:
        self._edge.close(self._scope, self._context, self._endpoint.path, status)
        self._job = None  # it knows us: without this, the collector would have to find both
        self._scope.pop(EXCHANGE, None)


def log_crash(error: Exception, path: str, context: RequestContext) -> None:
    """Log what went wrong where the caller is told no more than the request's id."""
    if isinstance(error, InferenceFailed):  # the batcher has logged the traceback; this ties the request to it
        log.error("inference failed", request_id=context.request_id, model=context.model, cause=str(error.__cause__))
    elif not isinstance(error, ServiceError):
        log.error("request crashed", request_id=context.request_id, path=path, exc_info=error)


def problem_answer(error: Exception, path: str, context: RequestContext) -> Answer:
    """The answer to a request that failed; a crash is logged."""
    log_crash(error, path, context)
    status, kind, body, headers = answer_of(error, path=path, request_id=context.request_id)
    fields = tuple((name.lower().encode(), value.encode()) for name, value in headers.items())
    return Answer(body, kind.encode(), status, fields)
