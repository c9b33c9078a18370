"""The nursery: the process that holds the loaded models and forks the workers, which share its memory.

When something has changed it forks another nursery. That one loads what has changed, forks a new generation of workers,
and takes over; or it fails, and nothing has happened. It computes in one thread, but for the one that loads, and starts
no other: what is forked has to be whole. It looks at the folders, and tells the supervisor what has changed.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

import structlog

from service import telemetry
from service.api.context import Workers
from service.api.control import why_not
from service.app import summary
from service.errors import ManifestInvalid
from service.processes import begin_anew, end_with, fork_apart, hear, tell
from service.registry.registry import Asked, Registry
from service.registry.watcher import Look, Watcher, changed, look
from service.runtime.memory import give_back_memory, let_go_of_files
from service.settings import Settings
from service.worker import Server, make_server, work

log = structlog.get_logger(__name__)

MAX_REASON_CHARS = 400
"""Of a reason, as the supervisor hears and logs it (characters); clients are told all of it."""
MAX_NAMES = 64
"""Of models and versions that the supervisor hears of (count)."""

Begin = tuple[socket.socket, dict[str, Any], list[socket.socket]]
"""What a nursery begins with: the supervisor, what is asked for, and the channel of each worker."""


class Nursery:
    """One nursery after another, each forked from the one before.

    Args:
        settings: of the server.
        registry: its models, nothing of which is loaded.
        slots: what the workers of each generation know of each other.
    """

    def __init__(self, settings: Settings, registry: Registry, slots: Sequence[Workers]) -> None:
        self._settings, self._registry, self._slots = settings, registry, slots
        self._workers = Workers()
        self._server: Server | None = None
        self._watcher = Watcher(settings.models, settings.model_name)

    def run(self, begin: Begin) -> int:
        """Grow a generation, and look after it until the supervisor says that another one has taken over."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the supervisor says when to end
        while True:
            control, order, channels = begin
            try:
                self._grow(control, order, channels)
                for channel in channels:
                    channel.close()
                let_go_of_files()  # until something changes
                following = self._tend(control)
            except (BrokenPipeError, ConnectionError):  # the supervisor is gone, or has given this one up
                return 0
            except ManifestInvalid as error:
                tell(control, {"is": "refused", "reason": str(error)[:MAX_REASON_CHARS]})
                return 1
            if following is None:
                return 0
            begin = following  # in another process

    def _grow(self, control: socket.socket, order: dict[str, Any], channels: Sequence[socket.socket]) -> None:
        """Load what has changed, and fork a worker for each channel."""
        tell(control, {"is": "nursery", "pid": os.getpid()})
        begun = time.perf_counter()
        asked = Asked(order["load"], order["unload"], again=order["again"], known_bad=order["known_bad"])
        changes = self._registry.renew(
            *self._looked(order, asked), asked, lambda what: tell(control, {"is": "loading", "what": what})
        )
        if self._server is None:
            self._server = make_server(self._settings, registry=self._registry, workers=self._workers)
            self._registry.expect_traffic()
        self._workers.point_at(self._slots[order["slots"]])
        telemetry.forget()  # what the loading has counted: the workers tell it
        give_back_memory()
        gc.freeze()  # the collector's marks would copy the shared pages; what is replaced is freed without it
        pids = [
            self._fork_worker(index, channel, [control, *(other for other in channels if other is not channel)])
            for index, channel in enumerate(channels)
        ]
        refused = {name: reason[:MAX_REASON_CHARS] for name, reason in list(changes.refused.items())[:MAX_NAMES]}
        tell(
            control,
            {
                "is": "grown",
                "pids": pids,
                "came": changes.came[:MAX_NAMES],
                "went": changes.went[:MAX_NAMES],
                "refused": refused,
                "missing": [name for name in (*asked.load, *asked.unload) if name not in self._names()],
                "unloaded": [model.name for model in self._registry if model.is_unloaded],
                "failed": {model: why_not(self._registry, model)[:MAX_REASON_CHARS] for model in asked.load},
                "summary": summary(self._registry, MAX_NAMES, MAX_REASON_CHARS),
                "seconds": round(time.perf_counter() - begun, 3),
            },
        )

    def _looked(self, order: dict[str, Any], asked: Asked) -> tuple[Look, set[str]]:
        """What the folders look like, and which models are to be looked at."""
        now = look(self._settings.models, self._settings.model_name) or {}
        if order["again"] or not self._watcher.taken:
            names = {*now, *self._watcher.taken}
        else:
            names = set(order["names"]) - changed(self._watcher.last, now)  # those are being written again
        names |= {*asked.load, *asked.unload}
        self._watcher.take(now, names)
        return now, names

    def _names(self) -> set[str]:
        return {model.name for model in self._registry}

    def _fork_worker(self, index: int, channel: socket.socket, close: Sequence[socket.socket]) -> int:
        """Fork the worker with that place, which answers what comes over a channel; returns its number."""
        server = self._server
        assert server is not None  # noqa: S101
        server.read_secrets()

        def answer() -> int:
            begin_anew("gridloop worker", close)
            self._workers.own = index
            self._registry.announce()
            work(server, channel)
            return 0

        pid = fork_apart()
        if pid == 0:
            end_with(answer)
        return pid

    def _tend(self, control: socket.socket) -> Begin | None:
        """Replace workers, merge what dead ones have counted, look at the folders.

        Returns:
            None once another nursery has taken over; in that other one, what it begins with.
        """
        told: Look | None = None
        listening = select.poll()
        listening.register(control, select.POLLIN)
        pause_s = self._settings.watch_s / 2 or None
        due = time.monotonic() + (pause_s or 0)
        while True:
            left_s = max(0.0, due - time.monotonic()) if pause_s else None
            if not listening.poll(None if left_s is None else left_s * 1e3):
                due = time.monotonic() + (pause_s or 0)
                names = self._watcher.changes()
                if names and (told is None or changed(told, self._watcher.last)):
                    told = self._watcher.last
                    tell(control, {"is": "changed", "names": sorted(names)[:MAX_NAMES], "more": len(names) > MAX_NAMES})
                continue
            heard = hear(control)
            if heard is None:
                return None
            order, sockets = heard
            if order["do"] == "grow":
                if fork_apart() == 0:
                    control.close()
                    begin_anew("gridloop nurse")
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    return sockets[0], order, sockets[1:]
            elif order["do"] == "fork":
                pid = self._fork_worker(order["index"], sockets[0], [control])
                tell(control, {"is": "worker", "index": order["index"], "pid": pid})
            elif order["do"] == "merge":
                telemetry.merge_ended()
            for each in sockets:
                each.close()
