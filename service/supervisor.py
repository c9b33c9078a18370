"""Several workers: one process for each core, because Python computes on one core at a time.

The supervisor loads every model once and then forks, so that the workers share the memory of the weights, and a worker
that dies is replaced within milliseconds. It accepts the connections, too, and hands each to the worker with the fewest
open ones: kept-alive connections are then spread evenly, where workers that accept by themselves leave most of them
with whichever woke up first. While the models are loaded a first process, the *greeter*, answers the probes.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import structlog

from service import telemetry
from service.api.context import Workers
from service.app import make_registry
from service.registry.registry import Registry
from service.runtime.memory import give_back_memory, let_go_of_files
from service.settings import Settings
from service.worker import Server, make_server, work

log = structlog.get_logger(__name__)

_FORK = multiprocessing.get_context("fork")


class _Stop(BaseException):
    """A signal asked the server to stop."""


@dataclass(slots=True)
class _Worker:
    """A worker as the supervisor sees it."""

    process: BaseProcess
    channel: socket.socket
    given: int = 0
    """Connections handed to it."""


@dataclass(frozen=True, slots=True)
class _Begin:
    """What every worker begins with, made before it is forked."""

    registry: Registry
    server: Server


class Supervisor:
    """Keeps a number of workers alive and hands them their connections.

    Args:
        settings: of the server, with the port that was chosen.
        listening: the server's socket.
        count: workers to keep alive.
    """

    def __init__(self, settings: Settings, listening: socket.socket, count: int) -> None:
        self._settings, self._listening, self._count = settings, listening, count
        self._slots = Workers(*(_FORK.RawArray("i", count) for _ in range(3)))
        self._workers: list[_Worker] = []
        self._turn = 0

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Returns:
            The exit code: 0 after a signal, 1 when a worker cannot live.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        greeter: BaseProcess | None = None
        try:
            registry = make_registry(self._settings)
            greeter = self._fork(_greet, self._settings, self._listening, registry)
            registry.load()
            telemetry.forget()  # what the loading has counted: the workers tell it
            begin = _Begin(registry, make_server(self._settings, registry=registry, workers=self._slots))
            give_back_memory()
            gc.freeze()  # the collector's marks would copy the shared pages
            self._workers = [self._start(index, begin) for index in range(self._count)]
            self._end(greeter)
            let_go_of_files()  # from here on this process only accepts
            self._listening.setblocking(False)
            while True:
                self._replace_the_dead(begin)
                waiting: list[Any] = [self._listening, *(worker.process.sentinel for worker in self._workers)]
                if self._listening in multiprocessing.connection.wait(waiting):
                    self._accept()
        except _Stop:
            return 0
        except _WorkerCannotLive:
            return 1
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            self._listening.close()
            self._end(*([greeter] if greeter else []), *(worker.process for worker in self._workers))

    def _fork(self, target: Any, *arguments: Any) -> BaseProcess:
        process = _FORK.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process

    def _start(self, index: int, begin: _Begin) -> _Worker:
        here, there = socket.socketpair()
        here.setblocking(False)  # a worker that hangs must not keep connections from the others
        inherited = [self._listening, here, *(worker.channel for worker in self._workers)]
        self._slots.closed[index] = self._slots.in_flight[index] = 0
        process = self._fork(_work, begin, self._slots, index, there, inherited)
        there.close()
        return _Worker(process, here)

    def _replace_the_dead(self, begin: _Begin) -> None:
        for index, worker in enumerate(self._workers):
            if worker.process.is_alive():
                continue
            log.error("a worker died and is replaced", worker=index, exit_code=worker.process.exitcode)
            worker.channel.close()
            telemetry.forget(worker.process.pid)
            if not self._slots.loaded[index]:
                log.error("it had not even begun", worker=index)
                raise _WorkerCannotLive
            self._slots.loaded[index] = 0
            self._workers[index] = self._start(index, begin)

    def _accept(self) -> None:
        """Hand every connection that waits to the worker that has the fewest; of equals, to each in turn."""
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # nobody waits any more, or who did has left
                return
            with connection:
                for index in sorted(range(self._count), key=self._load):
                    worker = self._workers[index]
                    with contextlib.suppress(OSError):  # it died a moment ago, or hangs
                        socket.send_fds(worker.channel, [b"c"], [connection.fileno()])
                        worker.given += 1
                        break
            self._turn = (self._turn + 1) % self._count

    def _load(self, index: int) -> tuple[int, int]:
        """A worker's open connections, and how far off its turn is."""
        return self._workers[index].given - self._slots.closed[index], (index - self._turn) % self._count

    def _end(self, *processes: BaseProcess) -> None:
        """Let processes finish what they have, and wait."""
        for process in processes:
            if process.is_alive():
                process.terminate()
        until = time.monotonic() + self._settings.drain_timeout_s + 5
        for process in processes:
            process.join(max(0.1, until - time.monotonic()))
            if process.is_alive():
                log.error("a worker did not stop in time and is killed", pid=process.pid)
                process.kill()
                process.join()


class _WorkerCannotLive(Exception):
    """A worker died before it could answer anything: another one would, too."""


def _stop(*_: Any) -> None:
    raise _Stop


def _greet(settings: Settings, listening: socket.socket, registry: Registry) -> None:
    """Answer probes, and everything else with "still loading", until the workers are there."""
    _quiet()
    try:
        work(make_server(settings, registry=registry), listening)
    finally:
        telemetry.flush_logs()


def _work(begin: _Begin, slots: Workers, index: int, channel: socket.socket, inherited: list[socket.socket]) -> None:
    _quiet()
    for other in inherited:  # a worker notices the supervisor's death when nobody else holds its end of the channel
        other.close()
    slots.own = index
    try:
        begin.registry.announce()
        slots.loaded[index] = 1
        work(begin.server, channel)
    finally:
        telemetry.flush_logs()
    sys.exit(0)


def _quiet() -> None:
    """Until uvicorn handles signals, one ends the process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
