"""The HTTP/1.1 connection: uvicorn's, with limits that it leaves to a proxy.

A client that sends its headers a byte at a time, or headers without end, must not hold a connection for ever; and
what is refused here gets the same body as every other error.

An offer to go on in another protocol (`Upgrade: h2c`, as Java's and curl's clients make by default) is passed over, as
RFC 9110, section 7.8, lets a server do: the request is answered as if it had not been made.

A client sends the same head again and again, with another body. So the head of a request that went the short way is
remembered byte for byte, with what it said, and is not parsed when it comes again.

Connections are bounded. To make room for one more, some that have been idle for longest are closed, as their clients
have to expect at any time; where none is idle, the new one is answered with 503 to whatever it asks.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, ClassVar

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service import telemetry
from service.api.call import Endpoint, Head
from service.api.context import EXCHANGE, IN_FLIGHT, Workers, new_request_id
from service.api.edge import Edge
from service.api.exchange import CycleExchange
from service.api.problems import answer_of
from service.errors import BadRequest, BodyTimeout, TooManyConnections

MAX_URL_BYTES = 16 * 1024
"""Longest target of a request (bytes)."""

MAX_HEADER_BYTES = 64 * 1024
"""Longest head of a request (bytes)."""

REMEMBERED_HEADS = 512
"""Heads remembered in a process (count). At one more, all are forgotten."""

REMEMBERED_HEAD_BYTES = 2048
"""Longest head that is remembered (bytes)."""

CONNECTIONS_PER_CLOSED = 64
"""To make room for connections, one in so many that may be open is closed: looking for them costs, too (count)."""

MAX_TURNED_AWAY = 64
"""Connections over the limit whose request is waited for, to be answered with 503 (count)."""

TURNED_AWAY_S = 1.0
"""Time that such a connection has for its request (seconds)."""

BODY_GRACE_S = 1.0
"""A body is cut off so long after whoever waits for it should have refused it (seconds)."""

MIN_TAKEN_BYTES = 64 * 1024
"""Bytes that a client must take of an answer in the time it has for sending a body."""

LAST_REQUEST_S = 0.5
"""An idle connection of a server that ends is closed after so long: a request may be on its way (seconds)."""

_CHANGING_HEADERS = frozenset({b"x-request-id", b"traceparent"})
"""Headers that differ from request to request: a head with one will not come again."""
_END = b"\r\n\r\n"


class LimitedHttpProtocol(HttpToolsProtocol):
    """Refuses long URLs (414), long headers (431) and slow headers (408); cuts off slow bodies and slow readers.

    Attributes:
        header_timeout_s: time from a request's first byte to the end of its headers, then to the end of its body, and
            for the client to take `MIN_TAKEN_BYTES` of what it is sent; set by `worker`.
        workers: where closed connections are counted; set by `worker`.
        edge: what answers by the short way; set by `worker`.
        ending: the server ends; set by `worker`.
        on_idle: called with each connection that becomes idle, once they are to be passed on; set by `worker`.
        max_connections: that this process may have open; set by `worker`.
    """

    header_timeout_s: float = 20.0
    workers: Workers = Workers()
    edge: Edge | None = None
    ending: bool = False
    on_idle: ClassVar[Callable[[LimitedHttpProtocol], None] | None] = None
    max_connections: int = 4096

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = self._piece_bytes = 0
        self._in_head = self._in_message = self._may_be_short = False
        self._piece = b""  # as received, while it may be a whole request
        self._endpoint: Endpoint | None = None  # that waits for the body
        self._exchange: CycleExchange | None = None
        self._refusal: Exception | None = None
        self._header_timer: TimerHandle | None = None
        self._body_timer: TimerHandle | None = None
        self._send_timer: TimerHandle | None = None
        self._unsent_bytes = 0  # when the timer was started
        self._idle_timer: TimerHandle | None = None
        self._idle_since = math.inf
        self.was_kept = False
        """Whether requests were answered on the connection by another worker: then it may be idle for long."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being received, answered or sent, so that another process may go on from here."""
        is_answered = self.cycle is None or self.cycle.response_complete
        waits = self._in_message or self.pipeline or self.transport.is_closing()
        return is_answered and not waits and not self.transport.get_write_buffer_size()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if self.was_kept:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)
        else:
            self._start_timer()
        if self.ending:
            self.shutdown()
        if len(self.connections) > self.max_connections and not self._make_room():
            self._turn_away()

    def _make_room(self) -> bool:
        """Close the connections that have been idle for longest; says whether there were any."""
        others: Any = self.connections - {self}
        idle = sorted((o._idle_since, id(o), o) for o in others if o._idle_since < math.inf)
        for _, _, connection in idle[: max(1, self.max_connections // CONNECTIONS_PER_CLOSED)]:
            connection.transport.close()
            self.connections.discard(connection)  # it is told of its end a little later
        return bool(idle)

    def _turn_away(self) -> None:
        """Answer the first request with 503; without one to read, a client might see no answer but a reset."""
        telemetry.REFUSED_CONNECTIONS.inc()
        self._refusal = TooManyConnections()
        self._idle_since = math.inf
        self._in_message = True  # whose head is none that is known
        self._stop_timer()
        waits = len(self.connections) <= self.max_connections + MAX_TURNED_AWAY
        self._header_timer = self.loop.call_later(TURNED_AWAY_S if waits else 0, self.send_400_response, "")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        for timer in (self._idle_timer, self._body_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        self.workers.closed[self.workers.own] += 1
        super().connection_lost(exc)
        if self._exchange is not None and self._exchange.on_disconnect is not None:
            self._exchange.on_disconnect()

    def data_received(self, data: bytes) -> None:
        if self.edge is not None and not self._in_message and (self.cycle is None or self.cycle.response_complete):
            end = data.find(_END) + len(_END)
            head = self.edge.heads.get(data[:end])
            if head is not None and head.body_bytes == len(data) - end:
                self._begin_again(self.edge, head, data[end:])
                return
            self._piece = data
        self._piece_bytes = len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        self._piece = b""
        if self._endpoint is not None and not self.transport.is_closing():  # the body is still to come: as every other
            self._endpoint = None
            super()._start_asgi_task(self.cycle, self.app)
        if self._in_head and not self.transport.is_closing():
            self._await_rest_of_head()
        elif self._in_message and self._body_timer is None:
            self._body_timer = self.loop.call_later(self.header_timeout_s + BODY_GRACE_S, self._body_too_slow)

    def _parse(self, data: bytes) -> None:
        """Feed the parser. At an offer to upgrade it stops and drops the body: another one goes on from there."""
        pieces: list[bytes | memoryview] = [data]
        while pieces:
            piece = pieces.pop()
            try:
                self.parser.feed_data(piece)
            except HttpParserUpgrade as stopped:
                pieces += [memoryview(piece)[stopped.args[0] :], self._head_without_offer()]
                self.parser = _new_parser(self)
            except HttpParserError:
                if self._refusal is None:
                    self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
                return

    def _head_without_offer(self) -> bytes:
        """The head that was just parsed, for another parser: what it says but for the protocols offered."""
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([line, *fields, b"", b""])

    def _await_rest_of_head(self) -> None:
        """Nearly always the whole head is in one piece; one that is not is timed, and may not go on for ever."""
        if self._header_timer is None:
            self._start_timer()
            return
        self._head_bytes += self._piece_bytes
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refusal = HTTPException(431)
            self.send_400_response("")

    def _begin_again(self, edge: Edge, head: Head, body: bytes) -> None:
        """Do what the parser and its callbacks would for a request with a head that is known."""
        self._unset_keepalive_if_required()
        self._stop_timer()
        scope = head.scope | {"client": self.client, "server": self.server}
        self.cycle = cycle = RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        cycle.body += body
        cycle.more_body = False
        self._exchange = scope[EXCHANGE] = CycleExchange(cycle)
        edge.begin(head.endpoint, self._exchange, scope)

    def _remember(self, edge: Edge, endpoint: Endpoint) -> None:
        """Keep the head of the request that has just arrived, if it came as a whole and alone, and may come again."""
        piece, self._piece = self._piece, b""
        end = piece.find(_END) + len(_END)
        names = {name for name, _ in self.headers}
        whole = len(piece) - end == len(self.cycle.body) and end <= REMEMBERED_HEAD_BYTES
        if whole and self.cycle.keep_alive and _CHANGING_HEADERS.isdisjoint(names):
            if len(edge.heads) >= REMEMBERED_HEADS:
                edge.heads.clear()
            scope = {key: value for key, value in self.scope.items() if key != EXCHANGE}
            edge.heads[piece[:end]] = Head(scope, len(piece) - end, endpoint)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = self._in_message = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._refuse(HTTPException(414))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if self._refusal is not None:
            self._refuse(self._refusal)
        much = self._head_bytes + self._piece_bytes > MAX_HEADER_BYTES  # the body may be among it
        if much and sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEADER_BYTES:
            self._refuse(HTTPException(431))
        if self.parser.should_upgrade():  # it stops here, and `_parse` goes on
            if self.parser.get_method() == b"CONNECT":  # what follows would be another server's
                self._refuse(HTTPException(405, headers={"Allow": "GET, POST"}))
            return
        scope: Any = self.scope
        self._may_be_short = True
        super().on_headers_complete()  # makes the cycle; the application begins later
        self._may_be_short = False
        self._exchange = scope[EXCHANGE] = CycleExchange(self.cycle)
        scope[IN_FLIGHT] = self.tasks

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer, if not by the short way: that begins when the whole body is here."""
        self._endpoint = self.edge.takes(cycle.scope) if self.edge and self._may_be_short else None
        if self._endpoint is None:
            super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_message = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if self._endpoint is not None and self._exchange is not None and self.edge is not None:
            self._remember(self.edge, self._endpoint)
            self.edge.begin(self._endpoint, self._exchange, self.cycle.scope)
            self._endpoint = None

    def shutdown(self) -> None:
        """Close the connection after the answer that is being made, or after the one to a request on its way."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_REQUEST_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if not self.transport.is_closing() and not self._in_message:
            super().shutdown()

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = math.inf

    def on_response_complete(self) -> None:
        """Begin with the next request if it is here; else the connection is idle.

        As uvicorn does, but with one timer that looks again, instead of one set and cancelled for every request.
        """
        if self.pipeline or self.transport.is_closing():
            if self.transport.is_closing():
                self._watch_reader()
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self.flow.write_paused:
            self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)
        on_idle = LimitedHttpProtocol.on_idle
        if on_idle is not None and not self._in_message:
            self.flow.pause_reading()  # the next request is for whoever comes after
            self.loop.call_soon(on_idle, self)

    def _look_if_idle(self) -> None:
        self._idle_timer = None
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.timeout_keep_alive_handler()
            self._watch_reader()
        elif not self.transport.is_closing():
            self._idle_timer = self.loop.call_later(min(left, self.timeout_keep_alive), self._look_if_idle)

    # --- clients that do not read

    def pause_writing(self) -> None:
        """The client takes less than it is sent: read nothing more from it, and see that it goes on taking."""
        super().pause_writing()
        self.flow.pause_reading()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.pipeline:
            self.flow.resume_reading()

    def _watch_reader(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        if self._unsent_bytes and self._send_timer is None:
            self._send_timer = self.loop.call_later(self.header_timeout_s, self._look_if_taken)

    def _look_if_taken(self) -> None:
        """Cut the connection if too little was taken; go on watching as long as a lot waits, or it is being closed."""
        self._send_timer = None
        unsent = self.transport.get_write_buffer_size()
        if unsent > max(0, self._unsent_bytes - MIN_TAKEN_BYTES):
            self.transport.abort()
        elif self.flow.write_paused or self.transport.is_closing():
            self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, or was refused above, and close."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        error = self._refusal or BadRequest(
            "This is not HTTP/1.1 as it can be read here. Check the request line and headers."
        )
        request_id = new_request_id()
        path = self.url.partition(b"?")[0][:200].decode("latin-1") if getattr(self, "url", b"") else "/"
        cors = self.edge.cors.fields(dict(self.headers or ())) if self.edge is not None else ()
        status, kind, body, headers = answer_of(error, path=path, request_id=request_id)
        fields = {
            "content-type": kind,
            "content-length": str(len(body)),
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            "connection": "close",
        }
        fields |= {name.decode(): value.decode("latin-1") for name, value in cors}
        head = "".join(f"{name}: {value}\r\n" for name, value in (headers | fields).items() if name != "Connection")
        body = b"" if self._is_head() else body
        self.transport.write(b"".join([STATUS_LINE[status], head.encode("latin-1"), b"\r\n", body]))
        self.transport.close()
        self._watch_reader()

    def _is_head(self) -> bool:
        """Whether an answer to what is being parsed must have no body."""
        return self._in_message and self.parser.get_method() == b"HEAD"

    def _refuse(self, error: Exception) -> None:
        """Stop the parser, which reports any exception of a callback to `send_400_response`."""
        self._refusal = error
        raise error

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self.headers is None:  # nothing was sent at all: nobody waits for an answer
            self.transport.close()
            return
        self._refusal = BodyTimeout(self.header_timeout_s)
        self.send_400_response("")

    def _body_too_slow(self) -> None:
        """Cut off a body that still comes in, whether it is waited for or was answered already."""
        self._body_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_started:
            self.transport.close()
            self._watch_reader()
        else:
            self._refusal = BodyTimeout(self.header_timeout_s)
            self.send_400_response("")


def _new_parser(callbacks: LimitedHttpProtocol) -> HttpRequestParser:
    """A parser as uvicorn makes one for a connection."""
    parser = HttpRequestParser(callbacks)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # the last of pipelined requests may ask to close
    return parser
