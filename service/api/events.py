r"""An answer as server-sent events: its parts as they are settled, then the whole of it.

    event: bar
    data: {"number":1,"abc":"dfd cec |"}

    event: done
    server-timing: decode;dur=0.31, queue;dur=0.92, infer;dur=40.13, encode;dur=0.20
    data: {"model":{"name":"folk-gru","version":"1"},"abc":"X:1\n…"}

Nothing is sent before there is a first part or the end, so what is refused until then has its own status. What fails
later is the last event, `error`, with the problem. Fields that a reader does not know, such as `server-timing`, it
passes over.

References:
    WHATWG, *HTML Living Standard*, section 9.2, "Server-sent events".
"""

from __future__ import annotations

from typing import Any

from service.api.accept import EVENT_STREAM
from service.api.attended import Attended
from service.api.call import problem_answer
from service.api.context import Asked, RequestContext
from service.api.headers import common_headers, server_timing
from service.runtime.job import Done, Job, Outcome
from service.runtime.unread import Unread
from service.tasks.base import DONE, ERROR

_HEADERS = (
    (b"content-type", EVENT_STREAM),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the events otherwise
)


class EventStream:
    """An answer that has begun; see `StreamedAnswer`."""

    def __init__(self, asked: Asked, context: RequestContext, path: str) -> None:
        self._asked, self._context, self._path = asked, context, path
        self._unread = Unread()
        self._ready = b""  # events to be sent
        self._outcome: Outcome[Any] | None = None
        self._job: Job = asked.batcher.begin(
            asked.steps,
            self._end,
            rows=asked.rows,
            timeout_s=context.remaining_s,
            alone=context.alone,
            work=asked.work,
            size_bytes=asked.size_bytes,
            unread=self._unread,
        )
        context.timings = self._job.timings

    @classmethod
    async def begun(cls, asked: Asked, context: RequestContext, receive: Any, path: str) -> EventStream:
        """Have a request worked on until there is something to send.

        Args:
            asked: what it wants done.
            context: of the request.
            receive: ASGI's.
            path: of the endpoint.

        Raises:
            ClientDisconnected: the client has left.
            ServiceError: it is refused, or fails before anything of its answer is settled.
        """
        stream = cls(asked, context, path)
        try:
            async with Attended(receive):
                while not stream._ready and stream._outcome is None:
                    stream._ready = await stream._parts()
            if not stream._ready and not isinstance(stream._outcome, Done):
                assert stream._outcome is not None  # noqa: S101  it has ended
                raise stream._outcome
        except BaseException:
            stream._leave()
            raise
        return stream

    async def send(self, receive: Any, send: Any) -> int:
        """See `StreamedAnswer`. Each message waits until the client has taken most of those before."""
        try:
            async with Attended(receive):
                headers = [*_HEADERS, *common_headers(self._context)]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while self._outcome is None:
                    if self._ready:
                        await send({"type": "http.response.body", "body": self._ready, "more_body": True})
                    self._ready = await self._parts()
            status, last = self._last()
            await send({"type": "http.response.body", "body": self._ready + last})
            return status
        finally:
            self._leave()

    def _end(self, outcome: Outcome[Any]) -> None:
        self._outcome = outcome
        self._unread.end()

    def _leave(self) -> None:
        """Have nothing more done where that has not ended."""
        self._asked.batcher.abandon(self._job)

    async def _parts(self) -> bytes:
        """The parts that come next, as events; maybe none."""
        return b"".join([_event(part.event, part.data) for part in await self._unread.take()])

    def _last(self) -> tuple[int, bytes]:
        """The last event, and the status that the whole counts as."""
        timing = b"server-timing: %b\n" % server_timing(self._context.timings)
        if isinstance(self._outcome, Done):
            return 200, _event(DONE, self._outcome.value, timing)
        assert isinstance(self._outcome, Exception)  # noqa: S101  it has ended
        answer = problem_answer(self._outcome, self._path, self._context)
        return answer.status, _event(ERROR, answer.body, timing)


def _event(name: str, data: bytes, fields: bytes = b"") -> bytes:
    """One event; JSON as it is written here has no line breaks."""
    return b"event: %b\n%bdata: %b\n\n" % (name.encode(), fields, data)
