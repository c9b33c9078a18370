"""A request and its answer on one of uvicorn's connections, past ASGI's messages."""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


class CycleExchange:
    """An `Exchange` by uvicorn's request-response cycle: ASGI's messages would cost as much as a small inference."""

    __slots__ = ("_cycle", "on_disconnect")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self.on_disconnect: Callable[[], None] | None = None

    def whole_body(self) -> bytes | None:
        """See `Exchange`. A body over uvicorn's limit is read piece by piece, as each piece is taken."""
        cycle = self._cycle
        if cycle.more_body or len(cycle.body) > HIGH_WATER_LIMIT:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    async def drain(self) -> None:
        """See `Exchange`."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()

    def write(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """See `Exchange`. What `RequestResponseCycle.send` does for a start and a body, in one write."""
        cycle = self._cycle
        if cycle.disconnected or cycle.transport.is_closing():
            return
        if (b"connection", b"close") in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        pieces = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            pieces += (name, b": ", value, b"\r\n")
        pieces += (b"\r\n", body)
        cycle.transport.write(b"".join(pieces))
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
