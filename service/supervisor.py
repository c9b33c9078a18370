"""Several workers: one process for each core, because Python computes on one core at a time.

The supervisor loads every model once and then forks, so that the workers share the memory of the weights, and a worker
that dies is replaced within milliseconds. It accepts the connections, too, and hands each to the worker with the fewest
open ones: kept-alive connections are then spread evenly, where workers that accept by themselves leave most of them
with whichever woke up first. While the models are loaded a first process, the *greeter*, answers the probes.

A worker whose event loop no longer comes round gets no new connections, and is killed if that lasts. Connections that
wait to be taken when a worker dies go to another. One that dies again and again is started less and less often.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import structlog

from service import telemetry
from service.api.context import Workers
from service.app import make_registry, say_ready
from service.registry.registry import Registry
from service.runtime.memory import give_back_memory, let_go_of_files
from service.settings import Settings
from service.worker import Server, make_server, work

log = structlog.get_logger(__name__)

QUIET_S = 3.0
"""A worker that has shown no life for so long gets no new connections (seconds)."""
HANGS_S = 10.0
"""A worker that has shown no life for so long is killed and replaced (seconds)."""
LOOK_S = 1.0
"""The workers are looked at so often, if nothing happens before (seconds)."""
YOUNG_S = 10.0
"""A worker that dies younger has something wrong with it, which the next one may have, too (seconds)."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
"""Before a worker is started whose two forerunners died young; doubled with each that follows (seconds)."""
TRIES = 5
"""Workers that die before any has begun to answer, and then the server gives up (count)."""

_FORK = multiprocessing.get_context("fork")


class _Stop(BaseException):
    """A signal asked the server to stop while it loads."""


@dataclass(slots=True)
class _Worker:
    """A worker as the supervisor sees it.

    Attributes:
        process: of the worker.
        channel: where connections are handed to it.
        untaken: its end of the channel, kept here, too: what it has not taken when it dies is read back.
        begun: when it was started (seconds of the monotonic clock).
        given: connections handed to it.
        died_young: how many in its place have died soon after their start, one after another, itself included.
        start_again: when the next one is to be started, once it is dead.
    """

    process: BaseProcess
    channel: socket.socket
    untaken: socket.socket
    begun: float
    given: int = 0
    died_young: int = 0
    start_again: float | None = None


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
        loaded, in_flight, closed = (_FORK.RawArray("i", count) for _ in range(3))
        self._slots = Workers(loaded, in_flight, closed, _FORK.RawArray("d", count), _FORK.RawArray("i", 1))
        self._workers: list[_Worker] = []
        self._turn = 0
        self._woke = self._looked = time.monotonic()
        self._one_has_begun = False
        self._pid, self._signals, self._is_serving = os.getpid(), 0, False

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Returns:
            The exit code: 0 after a signal, 1 when a worker cannot live.
        """
        self._wake, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())  # a signal ends the wait for connections
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
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
            say_ready(self._settings, registry)
            let_go_of_files()  # from here on this process only accepts
            self._listening.setblocking(False)
            self._is_serving = True
            self._serve(begin, math.inf, signals=1)
            self._slots.leaving[0] = 1
            self._serve(begin, time.monotonic() + self._settings.drain_grace_s, signals=2)
            self._accept()  # who waits in the kernel's queue would be reset
        except _Stop:
            pass
        except _WorkerCannotLive:
            return 1
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            for end in (self._wake, waker, self._listening):
                end.close()
            self._end(*([greeter] if greeter else []), *(worker.process for worker in self._workers))
        return 0

    def _on_signal(self, *_: Any) -> None:
        """Note a signal. An exception would be lost where it met a fork's own calls, so it ends nothing but loading."""
        if os.getpid() != self._pid:  # a worker that was forked a moment ago
            sys.exit(0)
        self._signals += 1
        if not self._is_serving:
            raise _Stop

    def _serve(self, begin: _Begin, until: float, signals: int) -> None:
        """Look after the workers and hand out connections until a moment of the monotonic clock, or so many signals."""
        while self._signals < signals and (left_s := until - time.monotonic()) > 0:
            self._look_after_workers(begin)
            alive = [worker for worker in self._workers if worker.start_again is None]
            waiting: list[Any] = [self._wake, *(worker.process.sentinel for worker in alive)]
            if any(self._is_well(index) for index in range(self._count)):  # else clients wait in the kernel's queue
                waiting.append(self._listening)
            ready = multiprocessing.connection.wait(waiting, min(left_s, self._patience_s()))
            if self._wake in ready:
                self._wake.recv(1024)
            if self._listening in ready:
                self._accept()

    def _fork(self, target: Any, *arguments: Any) -> BaseProcess:
        process = _FORK.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process

    def _start(self, index: int, begin: _Begin, died_young: int = 0) -> _Worker:
        here, there = socket.socketpair()
        here.setblocking(False)  # a worker that hangs must not keep connections from the others
        others = [end for worker in self._workers for end in (worker.channel, worker.untaken)]
        self._slots.closed[index] = self._slots.in_flight[index] = 0
        self._slots.beat[index] = time.monotonic()
        process = self._fork(_work, begin, self._slots, index, there, [self._listening, here, *others])
        return _Worker(process, here, there, begun=time.monotonic(), died_young=died_young)

    def _look_after_workers(self, begin: _Begin) -> None:
        """Kill workers that hang, put new ones in the place of the dead."""
        now = time.monotonic()
        if now - self._looked > 2 * LOOK_S:  # this process was stopped, or starved: so may the workers have been
            self._woke = now
        self._looked = now
        self._one_has_begun = self._one_has_begun or any(self._slots.loaded)
        for index, worker in enumerate(self._workers):
            if worker.start_again is None:
                if worker.process.is_alive() and self._silent_s(index) > HANGS_S:
                    log.error("a worker hangs and is killed", worker=index, seconds=round(self._silent_s(index), 1))
                    worker.process.kill()
                    worker.process.join()
                if not worker.process.is_alive():
                    self._bury(index, now)
            if worker.start_again is not None and worker.start_again <= now:
                self._workers[index] = self._start(index, begin, worker.died_young)

    def _bury(self, index: int, now: float) -> None:
        """Settle when a dead worker's successor starts, and give to others the connections that it has not taken."""
        worker = self._workers[index]
        worker.died_young = worker.died_young + 1 if now - worker.begun < YOUNG_S else 0
        pause_s = 0.0
        if worker.died_young > 1:
            pause_s = min(FIRST_PAUSE_S * 2 ** (worker.died_young - 2), LONGEST_PAUSE_S)
        log.error("a worker died and is replaced", worker=index, exit_code=worker.process.exitcode, pause_s=pause_s)
        worker.start_again = now + pause_s
        self._slots.loaded[index] = self._slots.in_flight[index] = 0
        worker.channel.close()
        telemetry.forget(worker.process.pid)
        with worker.untaken as channel:
            channel.setblocking(False)
            for connection in _untaken(channel):
                with connection:
                    self._hand_over(connection)
        if not self._one_has_begun and worker.died_young >= TRIES:
            log.error("no worker lives long enough to begin")
            raise _WorkerCannotLive

    def _silent_s(self, index: int) -> float:
        """Time since a worker last showed life (seconds); time in which this process did not run is not counted."""
        return time.monotonic() - max(self._slots.beat[index], self._woke)

    def _is_well(self, index: int) -> bool:
        """Whether a worker may be given connections."""
        return self._workers[index].start_again is None and self._silent_s(index) < QUIET_S

    def _patience_s(self) -> float:
        """How long nothing need be done, if no connection comes and no worker dies (seconds)."""
        pauses = [worker.start_again for worker in self._workers if worker.start_again is not None]
        return max(0.0, min([LOOK_S, *(when - time.monotonic() for when in pauses)]))

    def _accept(self) -> None:
        """Hand every connection that waits to the worker that has the fewest; of equals, to each in turn."""
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # nobody waits any more, or who did has left
                return
            with connection:
                self._hand_over(connection)

    def _hand_over(self, connection: socket.socket) -> None:
        for index in sorted(range(self._count), key=self._load):
            worker = self._workers[index]
            if worker.start_again is None:
                with contextlib.suppress(OSError):  # it died a moment ago, or takes nothing more
                    socket.send_fds(worker.channel, [b"c"], [connection.fileno()])
                    worker.given += 1
                    break
        self._turn = (self._turn + 1) % self._count

    def _load(self, index: int) -> tuple[bool, int, int]:
        """Whether a worker hangs, its open connections, and how far off its turn is."""
        open_ = self._workers[index].given - self._slots.closed[index]
        return not self._is_well(index), open_, (index - self._turn) % self._count

    def _end(self, *processes: BaseProcess) -> None:
        """Let processes finish what they have, and wait."""
        for process in processes:
            if process.is_alive():
                process.terminate()
        for index, worker in enumerate(self._workers):
            if worker.process in processes and worker.process.is_alive() and self._silent_s(index) > QUIET_S:
                worker.process.kill()  # it would not hear the signal
        until = time.monotonic() + self._settings.drain_timeout_s + 5
        for process in processes:
            process.join(max(0.1, until - time.monotonic()))
            if process.is_alive():
                log.error("a worker did not stop in time and is killed", pid=process.pid)
                process.kill()
                process.join()


class _WorkerCannotLive(Exception):
    """A worker died before it could answer anything: another one would, too."""


def _untaken(channel: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait in a channel which nobody else reads any more."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        except OSError:
            return
        for descriptor in descriptors:
            yield socket.socket(fileno=descriptor)
        if not message:
            return


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
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
