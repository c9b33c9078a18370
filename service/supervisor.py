"""The supervisor: accepts the connections, hands them to workers, and replaces workers: one that dies, or all of them.

It knows no model, so it never waits for one. The models are loaded by the *nursery* (`service.nursery`), which forks
the workers: they share the memory of the weights, and one that dies is replaced within milliseconds. Each connection
goes to the worker with the fewest open ones: kept-alive connections are then spread evenly, where workers that accept
by themselves leave most of them with whichever woke up first. While the first models are loaded another process, the
*greeter*, answers the probes.

When models change, a new nursery loads what has changed and forks a new *generation* of workers. Once all of them
answer they get the new connections; the old ones pass their idle connections back, finish what they began, and end. A
generation that does not get so far is forgotten.

A worker whose event loop no longer comes round gets no new connections, and is killed if that lasts. Connections that
wait to be taken when a worker dies go to another. One that dies again and again is started less and less often.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import multiprocessing
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import structlog

from service import telemetry
from service.api.context import Workers
from service.app import GENERATIONS, make_registry, say_ready
from service.nursery import Nursery
from service.processes import adopt_orphans, begin_anew, end_with, hear, letter_box, name_process, tell
from service.registry.registry import Registry
from service.runtime.memory import give_back_memory, let_go_of_files
from service.settings import Settings
from service.worker import ASKS, BACK, HAS_PASSED, LEAVE, READY, TAKE_KEPT, TAKE_NEW, make_server, work

log = structlog.get_logger(__name__)

QUIET_S = 3.0
"""A worker that has shown no life for so long gets no new connections (seconds)."""
HANGS_S = 10.0
"""A worker that has shown no life for so long is killed and replaced (seconds)."""
LOOK_S = 1.0
"""The workers are looked at so often, if nothing happens before (seconds)."""
SOON_S = 0.02
"""What could not be done just now is tried again after so long (seconds)."""
BEGINS_S = 30.0
"""Time in which the workers of a new generation have to begin (seconds)."""
YOUNG_S = 10.0
"""A worker that dies younger has something wrong with it, which the next one may have, too (seconds)."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
"""Before a worker is started whose two forerunners died young; doubled with each that follows (seconds)."""
TRIES = 5
"""Workers that die before any has begun to answer, and then the server gives up (count)."""
RETRIES = 3
"""Times that a generation which came to nothing is begun again, after 2, 4 and 8 seconds (count)."""
MAX_QUESTION_BYTES = 4096
"""Of a worker's question (bytes)."""

_FORK = multiprocessing.get_context("fork")


@dataclass(slots=True)
class _Worker:
    """A worker as the supervisor sees it.

    Attributes:
        index: its place in its generation.
        channel: where connections are handed to it, and come back from it.
        untaken: its end of the channel, kept here, too: what it has not taken when it dies is read back.
        begun: when it was started (seconds of the monotonic clock).
        pid: its process; None until the nursery has told.
        given: connections handed to it.
        died_young: how many in its place have died soon after their start, one after another, itself included.
        start_again: when the next one is to be started, once it is dead.
        is_ready: it has begun to answer.
        is_told: it knows that it is to leave.
        has_passed: it has passed back all connections that were idle then.
    """

    index: int
    channel: socket.socket
    untaken: socket.socket
    begun: float
    pid: int | None = None
    given: int = 0
    died_young: int = 0
    start_again: float | None = None
    is_ready: bool = False
    is_told: bool = False
    has_passed: bool = False

    @property
    def is_alive(self) -> bool:
        return self.start_again is None


@dataclass(slots=True)
class _Question:
    """What a worker asks for: a model to be loaded or unloaded, on a socket on which it waits for the answer."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    what: str = ""
    model: str = ""


@dataclass(slots=True)
class _Generation:
    """Workers with the same models, and the nursery that has forked them.

    Attributes:
        number: counted from the start.
        slots: what its workers know of each other.
        control: of the nursery; None once that is gone.
        workers: by their index.
        order: what it was begun with.
        questions: that are answered once it has taken over.
        begun: when (seconds of the monotonic clock).
        nursery: its process; None until it has told.
        loading: what it loads now, as `name@version`.
        grown: what it has told of the models, once they are loaded and the workers forked.
        begun_to_serve: when it took over.
    """

    number: int
    slots: Workers
    control: socket.socket | None
    workers: list[_Worker]
    order: dict[str, Any]
    questions: list[_Question]
    begun: float
    nursery: int | None = None
    loading: str | None = None
    grown: dict[str, Any] | None = None
    begun_to_serve: float = 0.0

    @property
    def alive(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.is_alive]


class Supervisor:
    """Keeps a number of workers alive and hands them their connections.

    Args:
        settings: of the server, with the port that was chosen.
        listening: the server's socket.
        count: workers to keep alive.
    """

    def __init__(self, settings: Settings, listening: socket.socket, count: int) -> None:
        self._settings, self._listening, self._count = settings, listening, count
        leaving = _FORK.RawArray("i", 1)
        self._slots = [self._make_slots(number, leaving) for number in range(GENERATIONS)]
        in_flight = [slots.in_flight for slots in self._slots]
        for slots in self._slots:
            slots.others = in_flight
        self._leaving_flag = leaving
        self._current: _Generation | None = None
        self._coming: _Generation | None = None
        self._old: list[_Generation] = []
        self._numbers = 0
        self._homeless: deque[tuple[socket.socket, bytes]] = deque()
        self._asking: list[_Question] = []
        self._wanted: list[_Question] = []
        self._unanswered: list[tuple[_Question, dict[str, Any]]] = []
        self._changed: set[str] = set()
        self._again = False
        self._unloaded: list[str] = []
        self._not_before, self._failures = 0.0, 0
        self._ended: dict[int, int] = {}
        self._turn = 0
        self._woke = self._looked = time.monotonic()
        self._one_has_begun = self._accepts = False
        self._greeter: int | None = None
        self._pid, self._signals = os.getpid(), 0

    def _make_slots(self, number: int, leaving: Any) -> Workers:
        loaded, in_flight, closed = (_FORK.RawArray("i", self._count) for _ in range(3))
        return Workers(loaded, in_flight, closed, _FORK.RawArray("d", self._count), leaving, generation=number)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Returns:
            The exit code: 0 after a signal, 1 when nothing can be served.
        """
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)  # a signal ends the wait for connections
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_wake)
        try:
            adopt_orphans()
            name_process("gridloop")
            telemetry.forget()
            self._registry = make_registry(self._settings)
            give_back_memory()
            gc.freeze()  # the collector's marks would copy the pages that all processes share
            greet = functools.partial(_greet, self._settings, self._listening, self._registry)
            self._greeter = self._fork(greet, "gridloop greet", [self._listening])
            self._begin(again=True)
            self._listening.setblocking(False)
            self._serve(math.inf, signals=1)
            if self._current is not None:
                self._leaving_flag[0] = 1
                self._serve(time.monotonic() + self._settings.drain_grace_s, signals=2)
                self._accept()  # who waits in the kernel's queue would be reset
                self._serve(time.monotonic() + (LOOK_S if self._homeless else 0), signals=2)
        except _CannotServe as error:
            log.error(str(error))
            return 1
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self._end()
        return 0

    def _on_signal(self, number: int, _: Any) -> None:
        """Note a signal; an exception would be lost where it met a fork's own calls."""
        if os.getpid() != self._pid:  # a process that was forked a moment ago
            if number in (signal.SIGTERM, signal.SIGINT):
                raise SystemExit(0)
        elif number == signal.SIGHUP:
            self._again = True
        elif number != signal.SIGCHLD:
            self._signals += 1

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    # --- the loop

    def _serve(self, until: float, signals: int) -> None:
        """Do all that is to be done until a moment of the monotonic clock, or so many signals."""
        while self._signals < signals and (left_s := until - time.monotonic()) > 0:
            self._reap()
            self._look_after_workers()
            self._renew()
            self._settle_down()
            self._accept_or_not()
            for key, _ in self._selector.select(min(left_s, self._patience_s())):
                if key.fileobj in self._selector.get_map():  # nobody has taken it out meanwhile
                    key.data()

    def _patience_s(self) -> float:
        """How long nothing need be done, if nothing happens (seconds)."""
        untold = any(not worker.is_told for generation in self._old for worker in generation.alive)
        if self._homeless or untold:
            return SOON_S
        pauses = [worker.start_again for worker in self._current.workers if worker.start_again] if self._current else []
        return max(0.0, min([LOOK_S, *(when - time.monotonic() for when in pauses)]))

    def _reap(self) -> None:
        """Learn which processes have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._ended[pid] = os.waitstatus_to_exitcode(status)
            if len(self._ended) > 1000:  # of processes that nobody asks for
                del self._ended[next(iter(self._ended))]

    # --- generations

    def _begin(
        self,
        questions: Iterable[_Question] = (),
        names: Iterable[str] = (),
        *,
        again: bool = False,
        known_bad: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Have a generation of workers grown with the models as they are now; says whether that was begun."""
        used = {id(generation.slots) for generation in self._generations()}
        slots = next((slots for slots in self._slots if id(slots) not in used), None)
        if slots is None:
            return False
        questions = list(questions)
        asked = {what: [q.model for q in questions if q.what == what] for what in ("load", "unload")}
        control = self._current.control if self._current else None
        unload = asked["unload"] if control else [*self._unloaded, *asked["unload"]]
        order = {
            "do": "grow",
            "slots": slots.generation,
            "names": sorted(names),
            "load": asked["load"],
            "unload": unload,
            "again": again or control is None,
            "known_bad": dict(known_bad),
        }
        pairs = [socket.socketpair() for _ in range(self._count)]
        ours, theirs = letter_box()
        try:
            if control is not None:
                tell(control, order, [theirs, *(there for _, there in pairs)])
        except OSError:  # it is busy, or has just died
            for end in (ours, theirs, *(end for pair in pairs for end in pair)):
                end.close()
            return False
        now = time.monotonic()
        for here, _ in pairs:
            here.setblocking(False)  # a worker that hangs must not keep connections from the others
        workers = [_Worker(index, here, there, now) for index, (here, there) in enumerate(pairs)]
        self._numbers += 1
        self._coming = coming = _Generation(self._numbers, slots, ours, workers, order, questions, now)
        for index in range(self._count):
            slots.loaded[index] = slots.in_flight[index] = slots.closed[index] = 0
            slots.beat[index] = now
        if control is None:
            keep = [theirs, *(there for _, there in pairs)]
            nursery = Nursery(self._settings, self._registry, self._slots)
            coming.nursery = self._fork(lambda: nursery.run((theirs, order, keep[1:])), "gridloop nurse", keep)
        theirs.close()
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear_of(coming))
        for worker in workers:
            self._listen_to(coming, worker)
        return True

    def _generations(self) -> Iterator[_Generation]:
        yield from (generation for generation in (self._current, self._coming) if generation)
        yield from self._old

    def _hear_of(self, generation: _Generation) -> None:
        """Take what a nursery tells."""
        while generation.control is not None:
            try:
                heard = hear(generation.control)
            except BlockingIOError:
                return
            if heard is None:
                self._lose_nursery(generation)
                return
            message, _ = heard
            kind = message["is"]
            if kind == "nursery":
                generation.nursery = message["pid"]
            elif kind == "loading":
                generation.loading = message["what"]
            elif kind == "changed":
                self._changed |= set(message["names"])
                self._again |= message["more"]
            elif kind == "worker":
                generation.workers[message["index"]].pid = message["pid"]
            elif kind == "grown":
                generation.grown, generation.loading = message, None
                for worker, pid in zip(generation.workers, message["pids"], strict=True):
                    worker.pid, worker.begun = pid, time.monotonic()
                    generation.slots.beat[worker.index] = worker.begun
            elif kind == "refused":
                self._forget_coming(message["reason"])
                return

    def _lose_nursery(self, generation: _Generation) -> None:
        """A nursery has ended that should not have."""
        self._close(generation.control)
        generation.control = None
        ended = None
        if generation.nursery is not None:
            with contextlib.suppress(ChildProcessError):  # it is about to end, if it has not
                ended = os.waitstatus_to_exitcode(os.waitpid(generation.nursery, 0)[1])
            ended = self._ended.pop(generation.nursery, ended)
            generation.nursery = None
        if generation is not self._coming:
            if generation is self._current:
                log.error("the nursery died: the models are loaded anew", exit_code=ended)
                for worker in generation.workers:  # whoever was to be forked is not
                    if worker.is_alive and worker.pid is None:
                        self._bury(generation, worker, time.monotonic())
            return
        what, known_bad = generation.loading, dict(generation.order["known_bad"])
        if what is not None and what not in known_bad:
            how = f"signal {signal.Signals(-ended).name}" if ended and ended < 0 else f"exit code {ended}"
            name = what.replace("@", "/")
            known_bad[what] = f"{name}: ended the process that loaded it ({how}). See that its graph can be run at all."
            log.error("a model ended the process that loaded it", model=what, exit_code=ended)
            order, questions = generation.order, generation.questions
            generation.questions = []
            self._forget_coming(None)
            if not self._begin(questions, order["names"], again=order["again"], known_bad=known_bad):
                self._wanted = questions + self._wanted
                self._changed |= set(order["names"])
            return
        self._forget_coming(f"the process that loads models ended (exit code {ended})")

    def _forget_coming(self, reason: str | None) -> None:
        """Give up the generation that was to come; nothing has changed for anybody."""
        coming = self._coming
        assert coming is not None  # noqa: S101
        self._coming = None
        if reason is not None:
            log.error("models not swapped", reason=reason, seconds=round(time.monotonic() - coming.begun, 2))
            for question in coming.questions:
                self._answer(question, {"refused": reason})
            if self._current is None:
                raise _CannotServe(f"nothing can be served: {reason}")
            if self._failures < RETRIES:  # what passes by itself must not keep a change from being taken up
                self._failures += 1
                self._changed |= set(coming.order["names"])
                self._again |= coming.order["again"]
        self._not_before = time.monotonic() + LOOK_S * 2**self._failures
        if coming.control is not None:
            self._close(coming.control)
            coming.control = None
        if coming.grown is None and coming.nursery is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(coming.nursery, signal.SIGKILL)
        for worker in coming.workers:
            if worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)  # it has served nobody
            worker.is_told = worker.has_passed = True
            if worker.pid is None:
                self._bury(coming, worker, time.monotonic())
        self._old.append(coming)

    def _renew(self) -> None:
        """Have the next generation take over if it can, and begin another one if something has changed."""
        coming, now = self._coming, time.monotonic()
        if coming is not None and coming.grown is not None:
            dead = next((w.pid for w in coming.workers if w.pid in self._ended), None)
            if self._current is None or all(worker.is_ready for worker in coming.workers):
                self._take_over(coming, coming.grown)
            elif dead is not None:
                self._forget_coming(f"a new worker ended before it could answer (exit code {self._ended[dead]})")
            elif now - coming.workers[0].begun > BEGINS_S:
                self._forget_coming(f"new workers did not begin to answer within {BEGINS_S:g} s")
        if self._coming is not None or self._current is None or now < self._not_before or self._leaving_flag[0]:
            return
        lost = self._current.control is None
        if self._wanted or self._changed or self._again or lost:
            questions = list({(q.model): q for q in self._wanted}.values())  # of a model, the last word
            if self._begin(questions, self._changed, again=self._again):
                superseded = [q for q in self._wanted if q not in questions]
                self._coming.questions += superseded  # type: ignore[attr-defined]  # begun above
                self._wanted, self._changed, self._again = [], set(), False

    def _take_over(self, coming: _Generation, grown: Mapping[str, Any]) -> None:
        """From now on, new connections are for the workers of a new generation."""
        old, self._current, self._coming = self._current, coming, None
        self._unloaded, self._failures = grown["unloaded"], 0
        coming.begun_to_serve = time.monotonic()
        if old is not None:
            self._old.append(old)
            self._close(old.control)  # upon which its nursery ends
            old.control = None
            for worker in old.workers:
                if worker.is_alive and worker.pid is None:
                    self._bury(old, worker, time.monotonic())
                if worker.pid is not None:
                    telemetry.forget(worker.pid)  # its gauges are of what was
            log.info(
                "models swapped",
                came=grown["came"],
                went=grown["went"],
                **({"refused": grown["refused"]} if grown["refused"] else {}),
                seconds=round(time.monotonic() - coming.begun, 2),
                loading_s=grown["seconds"],
            )
        for question in coming.questions:
            answer: dict[str, Any] = {"refused": ""}
            if question.model in grown["missing"]:
                answer = {"available": grown["summary"]["models"]}
            elif question.what == "load":
                answer = {"refused": grown["failed"].get(question.model, "")}
            self._unanswered.append((question, answer))
        coming.questions = []
        if old is None and self._greeter is not None:
            self._signal(self._greeter, signal.SIGTERM)

    def _follow_greeter(self, current: _Generation, greeter: int) -> None:
        """Begin to accept once the greeter has ended, which it was told to do when the first workers were there."""
        if greeter not in self._ended:
            if time.monotonic() - current.begun_to_serve > self._settings.drain_timeout_s + 5:
                self._signal(greeter, signal.SIGKILL)
            return
        del self._ended[greeter]
        self._greeter = None
        telemetry.forget()
        if current.grown:
            say_ready(self._settings, current.grown["summary"])
        let_go_of_files()  # from here on this process only accepts

    def _settle_down(self) -> None:
        """See to those who leave: tell them, let go of them, answer who waits for it; deliver what could not be."""
        if self._greeter is not None and self._current is not None:
            self._follow_greeter(self._current, self._greeter)
        for generation in list(self._old):
            for worker in generation.alive:
                if not worker.is_told:
                    with contextlib.suppress(OSError):
                        worker.channel.send(LEAVE)
                        worker.is_told = True
            if not generation.alive:
                self._old.remove(generation)
                self._have_merged()
        if self._unanswered and all(w.has_passed for generation in self._old for w in generation.alive):
            for question, answer in self._unanswered:
                self._answer(question, answer)
            self._unanswered = []
        while self._homeless:
            connection, kind = self._homeless[0]
            if not self._hand_over(connection, kind):
                break
            self._homeless.popleft()
            connection.close()

    def _have_merged(self) -> None:
        """Have the counters of processes that have ended put together."""
        if self._current is not None and self._current.control is not None:
            with contextlib.suppress(OSError):
                tell(self._current.control, {"do": "merge"})

    # --- questions of workers

    def _read_question(self, question: _Question) -> None:
        try:
            piece = question.socket.recv(MAX_QUESTION_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        question.received += piece
        if piece and len(question.received) <= MAX_QUESTION_BYTES:
            return
        self._selector.unregister(question.socket)
        self._asking.remove(question)
        try:
            asked = json.loads(question.received)
            question.what, question.model = asked["what"], asked["model"]
        except (ValueError, KeyError):  # whoever asked has died meanwhile
            question.socket.close()
            return
        self._wanted.append(question)

    def _answer(self, question: _Question, answer: Mapping[str, Any]) -> None:
        with question.socket, contextlib.suppress(OSError):
            question.socket.send(json.dumps(answer).encode())

    # --- workers

    def _fork(self, run: Callable[[], int], name: str, keep: Iterable[socket.socket] = ()) -> int:
        """Fork a process that is not a worker, without what is this one's alone."""

        def run_apart() -> int:
            kept = {id(each) for each in keep}
            begin_anew(name, [each for each in self._sockets() if id(each) not in kept])
            self._selector.close()
            return run()

        pid = os.fork()
        if pid == 0:
            end_with(run_apart)
        return pid

    def _sockets(self) -> Iterator[socket.socket]:
        yield from (self._wake, self._waker, self._listening)
        for generation in self._generations():
            if generation.control is not None:
                yield generation.control
            for worker in generation.workers:
                yield from (worker.channel, worker.untaken)
        for question in (*self._asking, *self._wanted, *(each for each, _ in self._unanswered)):
            yield question.socket
        yield from (connection for connection, _ in self._homeless)

    def _close(self, end: socket.socket | None) -> None:
        if end is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            end.close()

    def _listen_to(self, generation: _Generation, worker: _Worker) -> None:
        self._selector.register(
            worker.channel, selectors.EVENT_READ, lambda: self._hear_from(generation, worker, worker.channel)
        )

    def _hear_from(self, generation: _Generation, worker: _Worker, channel: socket.socket) -> None:
        """Take what a worker sends: word of itself, questions, and connections that are for others."""
        for message, received in _messages(channel):
            if message == READY:
                worker.is_ready = self._one_has_begun = True
            elif message == HAS_PASSED:
                worker.has_passed = True
            elif message == BACK and received:
                self._homeless.append((received, TAKE_KEPT))
            elif message == ASKS and received:
                received.setblocking(False)
                question = _Question(received)
                self._asking.append(question)
                self._selector.register(
                    received, selectors.EVENT_READ, lambda question=question: self._read_question(question)
                )

    def _look_after_workers(self) -> None:
        """Kill workers that hang, put new ones in the place of the dead."""
        now = time.monotonic()
        if now - self._looked > 2 * LOOK_S:  # this process was stopped, or starved: so may the workers have been
            self._woke = now
        self._looked = now
        for generation in (*([self._current] if self._current else []), *self._old):
            for worker in generation.alive:
                if worker.pid is None:
                    continue
                if worker.pid not in self._ended and self._silent_s(generation, worker) > HANGS_S:
                    seconds = round(self._silent_s(generation, worker), 1)
                    log.error("a worker hangs and is killed", worker=worker.index, seconds=seconds)
                    generation.slots.beat[worker.index] = now  # once is enough
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)
                if worker.pid in self._ended:
                    self._bury(generation, worker, now)
            if generation is not self._current or generation.control is None:
                continue
            for worker in generation.workers:
                if worker.start_again is not None and worker.start_again <= now:
                    self._start_again(generation, worker)

    def _start_again(self, generation: _Generation, dead: _Worker) -> None:
        assert generation.control is not None  # noqa: S101
        here, there = socket.socketpair()
        here.setblocking(False)
        now = time.monotonic()
        generation.slots.closed[dead.index] = generation.slots.in_flight[dead.index] = 0
        generation.slots.beat[dead.index] = now
        try:
            tell(generation.control, {"do": "fork", "index": dead.index}, [there])
        except OSError:  # it is busy, or has just died
            here.close()
            there.close()
            dead.start_again = now + SOON_S
            return
        worker = _Worker(dead.index, here, there, now, died_young=dead.died_young)
        generation.workers[dead.index] = worker
        self._listen_to(generation, worker)

    def _bury(self, generation: _Generation, worker: _Worker, now: float) -> None:
        """Settle when a dead worker's successor starts, and give to others the connections that it has not taken."""
        code = self._ended.pop(worker.pid, None) if worker.pid is not None else None
        is_current = generation is self._current
        worker.died_young = worker.died_young + 1 if now - worker.begun < YOUNG_S else 0
        pause_s = 0.0
        if worker.died_young > 1:
            pause_s = min(FIRST_PAUSE_S * 2 ** (worker.died_young - 2), LONGEST_PAUSE_S)
        if is_current:
            log.error("a worker died and is replaced", worker=worker.index, exit_code=code, pause_s=pause_s)
        elif code and not (worker.is_told and worker.has_passed and code == -signal.SIGKILL):
            log.error("a worker died while it left", worker=worker.index, exit_code=code)
        worker.start_again = now + pause_s
        generation.slots.loaded[worker.index] = generation.slots.in_flight[worker.index] = 0
        if worker.pid is not None:
            telemetry.forget(worker.pid)
        self._hear_from(generation, worker, worker.channel)
        self._close(worker.channel)
        with worker.untaken as channel:
            channel.setblocking(False)
            self._homeless.extend((each, kind) for kind, each in _messages(channel) if each is not None)
        if is_current:
            self._have_merged()
            if not self._one_has_begun and worker.died_young >= TRIES:
                raise _CannotServe("no worker lives long enough to begin")

    def _silent_s(self, generation: _Generation, worker: _Worker) -> float:
        """Time since a worker last showed life (seconds); time in which this process did not run is not counted."""
        return time.monotonic() - max(generation.slots.beat[worker.index], self._woke)

    def _is_well(self, worker: _Worker) -> bool:
        """Whether a worker of those who are asked may be given connections."""
        generation = self._current
        return generation is not None and worker.is_alive and self._silent_s(generation, worker) < QUIET_S

    # --- connections

    def _accept_or_not(self) -> None:
        """Accept while there is somebody to hand connections to; else clients wait in the kernel's queue."""
        accepts = (
            self._current is not None
            and self._greeter is None
            and not self._homeless
            and any(map(self._is_well, self._current.workers))
        )
        if accepts != self._accepts:
            self._accepts = accepts
            if accepts:
                self._selector.register(self._listening, selectors.EVENT_READ, self._accept)
            else:
                self._selector.unregister(self._listening)

    def _accept(self) -> None:
        """Hand every connection that waits to the worker that has the fewest; of equals, to each in turn."""
        while not self._homeless:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # nobody waits any more, or who did has left
                return
            if self._hand_over(connection, TAKE_NEW):
                connection.close()
            else:
                self._homeless.append((connection, TAKE_NEW))

    def _hand_over(self, connection: socket.socket, kind: bytes) -> bool:
        """Give a connection to a worker; says whether one takes it."""
        if self._current is None:
            return False
        for worker in sorted(self._current.alive, key=self._load):
            with contextlib.suppress(OSError):  # it died a moment ago, or takes nothing more
                socket.send_fds(worker.channel, [kind], [connection.fileno()])
                worker.given += 1
                self._turn = (self._turn + 1) % self._count
                return True
        return False

    def _load(self, worker: _Worker) -> tuple[bool, int, int]:
        """Whether a worker hangs, its open connections, and how far off its turn is."""
        assert self._current is not None  # noqa: S101
        open_ = worker.given - self._current.slots.closed[worker.index]
        return not self._is_well(worker), open_, (worker.index - self._turn) % self._count

    # --- the end

    def _end(self) -> None:
        """Let the workers finish what they have, and wait."""
        self._reap()
        if self._accepts:
            self._selector.unregister(self._listening)
        self._listening.close()
        for question in (*self._asking, *self._wanted, *(each for each, _ in self._unanswered)):
            question.socket.close()
        if self._coming is not None:
            for question in self._coming.questions:
                question.socket.close()
        ending: set[int] = set()
        for generation in self._generations():
            if generation.nursery is not None and generation.control is not None:
                ending.add(generation.nursery)
                self._signal(generation.nursery, signal.SIGKILL)  # it has nothing to finish
            for worker in generation.alive:
                if worker.pid is not None and worker.pid not in self._ended:
                    ending.add(worker.pid)
                    hangs = self._silent_s(generation, worker) > QUIET_S  # it would not hear the signal
                    self._signal(worker.pid, signal.SIGKILL if hangs else signal.SIGTERM)
        if self._greeter is not None:
            ending.add(self._greeter)
            self._signal(self._greeter, signal.SIGTERM)
        until = time.monotonic() + self._settings.drain_timeout_s + 5
        while True:
            self._reap()
            ending -= self._ended.keys()
            left_s = until - time.monotonic()
            if not ending or left_s <= 0:
                break
            self._on_wake()
            with contextlib.suppress(ChildProcessError):
                _wait(self._wake, min(left_s, LOOK_S))
        for pid in ending:
            log.error("a worker did not stop in time and is killed", pid=pid)
            self._signal(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in self._sockets():
            end.close()

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class _CannotServe(Exception):
    """There is nothing that could answer."""


def _wait(end: socket.socket, timeout_s: float) -> None:
    """Wait until there is something to read."""
    with selectors.DefaultSelector() as selector:
        selector.register(end, selectors.EVENT_READ)
        selector.select(timeout_s)


def _messages(channel: socket.socket) -> Iterator[tuple[bytes, socket.socket | None]]:
    """What waits in a channel: single bytes, and the sockets that came with them."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        except OSError:
            return
        if not message:
            return
        yield message, socket.socket(fileno=descriptors[0]) if descriptors else None


def _greet(settings: Settings, listening: socket.socket, registry: Registry) -> int:
    """Answer probes, and everything else with "still loading", until the workers are there."""
    work(make_server(settings, registry=registry), listening)
    return 0
