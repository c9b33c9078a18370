"""A worker: the process that answers requests, with uvicorn.

It listens by itself, or, beside others, is handed its connections by the supervisor over a Unix socket. TLS is spoken
here, whichever way a connection came.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from service.api.context import Workers
from service.api.edge import Edge
from service.api.protocol import LimitedHttpProtocol
from service.app import create_app
from service.errors import Draining, LoadRefused, ModelNotFound
from service.registry.registry import Registry
from service.runtime.memory import FreedMemory, give_back_freed_memory
from service.settings import Settings
from service.tls import Certificate

ALLOCATIONS = 10_000
"""Objects made before the collector looks for cycles: a request makes hundreds, and leaves none (count)."""
BEAT_S = 0.5
"""A worker shows that its event loop comes round so often (seconds)."""
KEEP_ALIVE_S = 75
"""Idle time after which a kept-alive connection is closed: longer than the pools of usual clients (seconds)."""


TAKE_NEW, TAKE_KEPT, LEAVE = b"c", b"k", b"h"
"""From the supervisor: a new connection; one on which another worker has answered; pass yours on and end."""
READY, BACK, ASKS, HAS_PASSED = b"r", b"k", b"a", b"d"
"""To it: begun; a connection passed back; a socket with a question; all idle connections are passed back."""
_AGAIN_S = 0.02
"""What cannot be passed on just now is tried again after so long (seconds)."""
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)


class Server(uvicorn.Server):
    """uvicorn's server, which exits with 0 after a signal and tells the application as soon as one arrives."""

    grace_s: float = 0.0
    """Time between the signal and the end of taking requests (seconds); under a supervisor it has passed before."""
    channel: socket.socket | None = None
    """Where connections are handed over, each as a file descriptor; closed by the supervisor, or by its death."""
    certificate: Certificate | None = None
    """What connections are encrypted with; None for HTTP in the clear."""
    handshake_timeout_s: float = 20.0
    """Time for a client to agree on how to encrypt (seconds)."""
    is_leaving: bool = False
    """Newer workers are there: connections are passed on as soon as they are idle, and then this one ends."""

    @property
    def edge(self) -> Edge:
        """The application."""
        edge: Edge = self.config.app  # type: ignore[assignment]
        return edge

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Say that the server is not ready; stop after the time of grace, or at once when told a second time."""
        state = self.edge.app.state
        was_leaving, state.workers.leaving[0] = state.workers.leaving[0], 1
        if self.grace_s and not was_leaving:
            self._loop.call_soon_threadsafe(self._loop.call_later, self.grace_s, self.handle_exit, sig, frame)
            return
        state.gate.draining = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._freed_memory = FreedMemory()
        state = self.edge.app.state
        self._show_life(state.workers)
        if self.certificate is not None:
            self._renewing = self._loop.create_task(self.certificate.renewal.keep_fresh())
        await super().startup([])
        for listener in sockets or ():
            server = await self._loop.create_server(
                self._protocol, sock=listener, backlog=self.config.backlog, **self._encryption()
            )
            self.servers.append(server)
        if self.channel is not None:
            self.channel.setblocking(False)
            self._adopting: set[asyncio.Task[Any]] = set()
            state.control = SupervisorControl(self.channel)
            state.workers.loaded[state.workers.own] = 1
            self.channel.send(READY)
            asyncio.get_running_loop().add_reader(self.channel, self._take, self.channel)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        LimitedHttpProtocol.ending = True
        await super().shutdown(sockets)

    def _show_life(self, workers: Workers) -> None:
        workers.beat[workers.own] = now = time.monotonic()
        if self._freed_memory.is_due(now):
            self._loop.run_in_executor(None, give_back_freed_memory)
        self._loop.call_later(BEAT_S, self._show_life, workers)

    def _take(self, channel: socket.socket) -> None:
        """Serve the connections that were handed over."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            except BlockingIOError:
                return
            if not message:  # the supervisor is gone: nobody would stop or replace this worker any more
                loop.remove_reader(channel)
                self.handle_exit(signal.SIGTERM, None)
                return
            if message == LEAVE and not self.is_leaving:
                self.is_leaving = True
                self._pass_on(channel)
            for descriptor in descriptors:
                connection = socket.socket(fileno=descriptor)
                task = loop.create_task(self._adopt(connection, was_kept=message == TAKE_KEPT))
                self._adopting.add(task)
                task.add_done_callback(self._adopting.discard)

    # --- leaving for newer workers

    def _pass_on(self, channel: socket.socket) -> None:
        """Pass every connection back as soon as it is idle, say when those that are idle now are gone, and end."""
        passed = False

        def pass_back(connection: LimitedHttpProtocol) -> None:
            if connection.is_idle:
                self._pass_back(channel, connection)

        def look() -> None:
            nonlocal passed
            idle = [each for each in list(self.server_state.connections) if each.is_idle]  # type: ignore[union-attr]
            left = sum(not self._pass_back(channel, connection) for connection in idle)  # type: ignore[arg-type]
            if not passed and not self._adopting and not left:
                with contextlib.suppress(BlockingIOError):
                    passed = channel.send(HAS_PASSED) == 1
            if passed and not self.server_state.connections and not self._adopting:
                self.should_exit = True
            elif not self.should_exit:
                self._loop.call_later(_AGAIN_S, look)

        if self.certificate is None:
            LimitedHttpProtocol.on_idle = pass_back
        else:
            self.edge.closes_connections = True
        look()

    def _pass_back(self, channel: socket.socket, connection: LimitedHttpProtocol) -> bool:
        """Give a connection to the supervisor, but for encrypted ones, whose state is known here alone.

        Returns:
            Whether there is nothing more to do now.
        """
        if self.certificate is not None:
            return True
        connection.flow.pause_reading()
        descriptor = os.dup(connection.transport.get_extra_info("socket").fileno())
        try:
            socket.send_fds(channel, [BACK], [descriptor])
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return False
        finally:
            os.close(descriptor)
        connection.transport.abort()  # which closes our descriptor of it alone
        return True

    async def _adopt(self, connection: socket.socket, *, was_kept: bool = False) -> None:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        protocol = self._protocol()
        protocol.was_kept = was_kept
        with contextlib.suppress(OSError):  # the client has left already, or does not speak TLS
            await self._loop.connect_accepted_socket(lambda: protocol, connection, **self._encryption())
        if protocol.transport is None:  # it was never a connection to the protocol, which counts those that are closed
            workers = self.edge.app.state.workers
            workers.closed[workers.own] += 1

    def read_secrets(self) -> None:
        """Read certificate and keys again if they have changed, for processes that begin from here."""
        for renewal in (self.certificate and self.certificate.renewal, self.edge.app.state.gate.keys.renewal):
            if renewal:
                renewal.refresh()

    def _encryption(self) -> dict[str, Any]:
        if self.certificate is None:
            return {}
        return {"ssl": self.certificate.context, "ssl_handshake_timeout": self.handshake_timeout_s}

    def _protocol(self) -> LimitedHttpProtocol:
        return LimitedHttpProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


class SupervisorControl:
    """Control over what all workers serve, by way of the supervisor.

    Args:
        channel: to it.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    async def load(self, model: str) -> None:
        """As `service.api.control.Control` says."""
        await self._ask("load", model)

    async def unload(self, model: str) -> None:
        """As `service.api.control.Control` says."""
        await self._ask("unload", model)

    async def _ask(self, what: str, model: str) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                while True:
                    try:
                        socket.send_fds(self._channel, [ASKS], [theirs.fileno()])
                        break
                    except BlockingIOError:
                        await asyncio.sleep(_AGAIN_S)
            await loop.sock_sendall(ours, json.dumps({"what": what, "model": model}).encode())
            ours.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := await loop.sock_recv(ours, 65536):
                answer += piece
        if not answer:  # the supervisor ends, or has ended
            raise Draining
        told = json.loads(answer)
        if "available" in told:
            raise ModelNotFound(model, available=told["available"])
        if told["refused"]:
            raise LoadRefused(model, told["refused"])


def make_server(settings: Settings, *, registry: Registry | None = None, workers: Workers | None = None) -> Server:
    """All that can be made before there is an event loop: what is made before a fork, the workers share.

    Args:
        settings: of the server.
        registry: the models as they are to be served; left out, they are loaded once the server runs.
        workers: what the workers know of each other; left out, this is the only one.
    """
    workers = workers or Workers()
    app = create_app(settings, registry=registry, workers=workers)
    LimitedHttpProtocol.header_timeout_s, LimitedHttpProtocol.workers = settings.body_timeout_s, workers
    LimitedHttpProtocol.edge = app
    LimitedHttpProtocol.max_connections = math.ceil(settings.max_connections / settings.plan().workers)
    config = uvicorn.Config(
        app,
        http=LimitedHttpProtocol,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        proxy_headers=False,  # no answer depends on the caller's address
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    config.load()  # imports what the server needs, as does the next line
    config.get_loop_factory()
    server = Server(config)
    server.certificate, server.handshake_timeout_s = Certificate.of(settings), settings.body_timeout_s
    return server


def work(server: Server, source: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Args:
        server: from `make_server`.
        source: a listening socket, or the connected one on which connections are handed over.
    """
    gc.set_threshold(ALLOCATIONS, 20, 50)
    if source.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        server.run(sockets=[source])
    else:
        server.channel = source
        server.run(sockets=[])
