"""Edge: what every request passes first and every answer last.

It gives a request its id and deadline, refuses who may not ask, turns a crash into a problem, and writes the headers,
the metrics and the log line. Three ways lead through it. Nearly every inference goes *the short way*, by plain calls
from the connection to its model's batcher and back (`Edge.begin`); one with a large, compressed or slow body is
answered by the same endpoint in a task of its own; everything else by FastAPI. Pure ASGI, because each of Starlette's
`BaseHTTPMiddleware` costs more than a whole small inference.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from service import telemetry
from service.api.accept import EVENT_STREAM
from service.api.address import Addresses, without_prefix
from service.api.body import INLINE_BYTES
from service.api.call import CLIENT_LEFT, Call, Endpoint, Head, log_crash, problem_answer
from service.api.context import (
    EXCHANGE,
    HEADERS,
    IN_FLIGHT,
    Answer,
    ClientDisconnected,
    Exchange,
    RequestContext,
    Workers,
    set_context,
)
from service.api.cors import Cors
from service.api.gate import OPEN_PATHS, Gate
from service.api.headers import answer_headers, common_headers, is_kept, request_id, timeout_s, trace
from service.api.traces import Traces, answered

CROWDED_S = 0.05
"""After two requests met, none counts as alone for so long (seconds)."""

_PROBES = (*OPEN_PATHS, "/metrics")


class Edge:
    """The ASGI application that a server runs: everything passes here.

    Attributes:
        heads: of requests on the short way, by their bytes; the protocol keeps them here.
        cors: as given; the protocol refuses some requests by itself.
        closes_connections: after each answer, as others are to go on.

    Args:
        app: what answers.
        endpoint_of: what answers POST requests of a path instead; None where nothing does.
        gate: who is let in.
        cors: what browsers are told about pages of other origins.
        addresses: finds the prefix that a proxy puts before our paths.
        workers: what the workers know of each other.
        default_timeout_s: the deadline of requests that set none.
        max_body_bytes: largest body taken.
        access_log: called with the facts of each answer; None for no log lines.
        log_probes: whether answers to probes and scrapes are logged too.
        on_flush: called whenever counts that have gathered are written.
        traces: makes spans of what was answered; None where there are to be none.
    """

    def __init__(
        self,
        app: FastAPI,
        endpoint_of: Callable[[str], Endpoint | None],
        gate: Gate,
        cors: Cors,
        addresses: Addresses,
        workers: Workers,
        default_timeout_s: float,
        max_body_bytes: int,
        access_log: Callable[[dict[str, Any]], None] | None = None,
        *,
        log_probes: bool = False,
        on_flush: Callable[[], None] = lambda: None,
        traces: Traces | None = None,
    ) -> None:
        self.app, self._endpoint_of, self._gate, self._workers = app, endpoint_of, gate, workers
        self._default_timeout_s, self._access_log, self._log_probes = default_timeout_s, access_log, log_probes
        self.cors, self._addresses, self._on_flush, self._traces = cors, addresses, on_flush, traces
        self.heads: dict[bytes, Head] = {}
        self.closes_connections = False
        self._small_bytes = min(max_body_bytes, INLINE_BYTES)
        self._crowded_until = 0.0
        self._arrived: list[Call] = []
        self._answered: Counter[tuple[str, str, int]] = Counter()
        self._flush: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = self.open(scope)
        context.prefix = prefix = self._addresses.prefix(scope)
        scope["path"] = without_prefix(scope["path"], prefix)
        endpoint = self._endpoint_of(scope["path"]) if scope["method"] == "POST" else None
        status = CLIENT_LEFT
        try:
            preflight = self.cors.preflight(scope["method"], context.headers)
            if preflight is not None:  # before the gate: a browser asks without the page's key
                await _send(preflight, context, scope, send)
                status = preflight.status
                return
            self.admit(context, scope)
            if endpoint is None:
                status = await self._through_framework(context, scope, receive, send)
            else:
                answer = await endpoint(context, scope, receive)
                if isinstance(answer, Answer):
                    await _send(answer, context, scope, send)
                    status = answer.status
                else:
                    status = await answer.send(receive, send)
        except ClientDisconnected:
            pass
        except _AlreadyAnswered as crash:
            status = crash.status
            if not crash.is_complete:  # too late for another status: let the server cut the connection
                raise crash.error from None
        except Exception as error:
            answer = problem_answer(error, scope["path"], context)
            await _send(answer, context, scope, send)
            status = answer.status
        finally:
            self.close(scope, context, endpoint.path if endpoint else None, status)

    def open(self, scope: Any, arrived: int = 0) -> RequestContext:
        """Begin to count a request as in flight; `arrived` requests are begun together."""
        headers = scope.get(HEADERS) or dict(scope["headers"])
        context = RequestContext(headers, request_id(headers), self._default_timeout_s)
        context.cors = self.cors.fields(headers)
        self._workers.in_flight[self._workers.own] += 1
        context.alone = self._is_alone(scope, context.started, arrived)
        context.closing = self.closes_connections or self._workers.leaving[0] == 1
        return context

    def admit(self, context: RequestContext, scope: Any) -> None:
        """Read what the headers say for every request alike, and refuse who may not ask."""
        headers = context.headers
        context.trace = trace(headers)
        if context.trace is None and self._traces is not None and scope["path"] not in _PROBES:
            context.trace = self._traces.new_trace()
        context.timeout_s = timeout_s(headers, self._default_timeout_s)
        if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise HTTPException(417)
        context.key = self._gate.check(scope["path"], headers, (scope.get("client") or ("",))[0])

    def _is_alone(self, scope: Any, now: float, arrived: int) -> bool:
        """Whether this is the only request: no other worker has one, and none waits here to be begun."""
        here = scope.get(IN_FLIGHT)
        if here is None or len(here) + arrived > 1 or sum(self._workers.in_flight) > 1:
            self._crowded_until = now + CROWDED_S
        return now >= self._crowded_until

    # --- the short way: no task, no messages

    def takes(self, scope: Any) -> Endpoint | None:
        """What answers a request that may go the short way: handed to `begin` as soon as its whole body is here.

        Nearly all inferences may. Not those with large bodies, which may take long to read, with compressed ones, and
        with bodies that come in pieces or without a length.
        """
        if scope["method"] != "POST":
            return None
        path = without_prefix(scope["path"], self._addresses.root_path)  # a proxy's word goes the long way
        if (endpoint := self._endpoint_of(path)) is None or not endpoint.is_short:
            return None
        scope["path"] = path
        scope[HEADERS] = headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > self._small_bytes:
            return None
        if EVENT_STREAM in headers.get(b"accept", b"").lower():
            return None
        return None if b"expect" in headers or b"content-encoding" in headers else endpoint

    def begin(self, endpoint: Endpoint, exchange: Exchange, scope: Any) -> None:
        """Answer a request that `takes` took, as `__call__` would; after a look at who else has just arrived."""
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._begin_arrived)
        self._arrived.append(Call(self, endpoint, exchange, scope))

    def _begin_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        for call in arrived:
            call.begin(len(arrived))

    async def _through_framework(self, context: RequestContext, scope: Any, receive: Any, send: Any) -> int:
        """Let FastAPI answer, and add our headers to what it sends.

        It is shown the request a little changed. HEAD is GET, whose body is then left out. The path has its prefix, for
        links and redirects. And the host is withheld, so that whatever a client writes there, no redirect leads away.
        """
        status, complete = 0, False
        headless = scope["method"] == "HEAD"
        path = context.prefix + scope["path"]
        shown = scope | {
            "method": "GET" if headless else scope["method"],
            "root_path": context.prefix,
            "path": path,
            "raw_path": quote(path).encode(),
            "headers": [(name, value) for name, value in scope["headers"] if name != b"host"],
            "server": None,
        }
        set_context(shown, context)

        async def send_with_headers(message: Any) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *common_headers(context)]
            else:
                complete = not message.get("more_body", False)
                if headless:
                    message = message | {"body": b""}
            await send(message)

        try:
            await self.app(shown, receive, send_with_headers)
        except Exception as error:
            if not status:
                raise
            log_crash(error, scope["path"], context)
            raise _AlreadyAnswered(error, status, is_complete=complete) from None
        finally:
            scope["route"] = shown.get("route")
        return status or CLIENT_LEFT

    def flush_metrics(self) -> None:
        """Write the counts and times that have gathered."""
        self._flush = None
        for labels, count in self._answered.items():
            telemetry.REQUESTS.labels(*labels).inc(count)
        self._answered.clear()
        telemetry.Recorder.flush_all()
        self._on_flush()
        if self._traces is not None:
            self._traces.flush()

    def close(self, scope: Any, context: RequestContext, path: str | None, status: int) -> None:
        """Count a request as answered."""
        self._workers.in_flight[self._workers.own] -= 1
        self._record(scope, context, path, status)

    def _record(self, scope: Any, context: RequestContext, path: str | None, status: int) -> None:
        seconds = time.perf_counter() - context.started
        # The template: a caller's own text would never end.
        route = path or str(getattr(scope.get("route"), "path", "none"))
        _seconds(route).observe(seconds)
        if context.trace is not None:
            if is_kept(context.trace):
                telemetry.note_exemplar(route, seconds, context.trace[3:35])
            if self._traces is not None and scope["path"] not in _PROBES:
                self._traces.note(answered(context, scope, route, status, seconds))
        self._answered[route, scope["method"], status] += 1
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(telemetry.FLUSH_S, self.flush_metrics)
        if self._access_log and (self._log_probes or scope["path"] not in _PROBES):
            facts = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1e3, 2),
                "model": context.model,
                "request_id": context.request_id,
                "trace_id": context.trace[3:35] if context.trace else None,
            }
            if context.key is not None:
                facts["key"] = context.key.name
            self._access_log(facts)


@cache
def _seconds(route: str) -> telemetry.Recorder:
    return telemetry.Recorder(telemetry.REQUEST_SECONDS, route)


class _AlreadyAnswered(Exception):
    """The framework crashed after it had begun to answer."""

    def __init__(self, error: Exception, status: int, *, is_complete: bool) -> None:
        self.error, self.status, self.is_complete = error, status, is_complete


async def _send(answer: Answer, context: RequestContext, scope: Any, send: Any) -> None:
    headers, body = answer_headers(answer, context), b"" if scope["method"] == "HEAD" else answer.body
    exchange: Exchange | None = scope.get(EXCHANGE)
    if exchange is not None:
        await exchange.drain()
        exchange.write(answer.status, headers, body)
        return
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
