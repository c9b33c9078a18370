"""Server processes: one in the foreground, or several under a supervisor that replaces those that die.

Every worker has a listening socket of its own on the same port (`SO_REUSEPORT`): the kernel spreads connections over
them, where a shared socket leaves most kept-alive connections with whichever worker woke up first.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, MutableSequence
from multiprocessing.process import BaseProcess
from typing import Any

import structlog
import uvicorn
from prometheus_client import multiprocess

from service import telemetry
from service.settings import Settings

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 75
"""Idle time after which a kept-alive connection is closed: longer than the pools of usual clients (seconds)."""


class _Server(uvicorn.Server):
    """uvicorn's server, which exits with 0 after a signal and tells the application as soon as one arrives."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.config.app.app.state.gate.draining = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, 1 when the server could not start.
    """
    telemetry.configure_logging(settings.log_format, settings.log_level)
    try:
        reserved = _bind(settings.host, settings.port)
    except OSError as error:
        log.error("cannot listen", host=settings.host, port=settings.port, reason=error.strerror)
        return 1
    settings = settings.model_copy(update={"port": reserved.getsockname()[1]})
    plan = settings.plan()
    log.info(
        "starting",
        url=f"http://{settings.host}:{settings.port}",
        workers=plan.workers,
        threads_per_model=plan.threads,
        cpu_budget=plan.budget.reason,
        models=str(settings.models),
    )
    if unknown := settings.unknown_variables(os.environ):
        log.warning("variables that are no settings are ignored", variables=unknown)
    if plan.workers == 1:
        with reserved:
            return _run(settings, [0])
    # Only the workers listen; this socket keeps the port while one of them is replaced.
    with reserved, _metrics_folder():
        return _supervise(settings, plan.workers)


def _bind(host: str, port: int) -> socket.socket:
    """A socket on the address, not listening. The first bind, without sharing, notices another server there."""
    with _socket(host, port) as probe:
        port = probe.getsockname()[1]
    return _socket(host, port, shared=True)


def _socket(host: str, port: int, *, shared: bool = False) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _run(settings: Settings, loaded: MutableSequence[int], own: int = 0, *, load_first: bool = False) -> int:
    """One worker, in this process.

    Args:
        settings: of the server, with the port that was chosen.
        loaded: one flag per worker, shared by all.
        own: index of this worker's flag.
        load_first: load the models before connections are taken.
    """
    # Not at the top: the supervisor needs none of this, and with it would weigh as much as a worker.
    from service.api.health import Workers
    from service.api.protocol import LimitedHttpProtocol
    from service.app import create_app

    workers = Workers(loaded, own)
    app = create_app(settings, workers=workers, load_first=load_first)
    LimitedHttpProtocol.header_timeout_s = settings.body_timeout_s
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
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    _Server(config).run(sockets=[_socket(settings.host, settings.port, shared=True)])
    return 0


def _worker(settings: Settings, loaded: Any, own: int, load_first: bool) -> None:
    telemetry.configure_logging(settings.log_format, settings.log_level)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    sys.exit(_run(settings, loaded, own, load_first=load_first))


def _end_with_supervisor() -> None:
    """Stop this worker when the supervisor is gone without a word: nobody would stop or replace it any more."""
    if supervisor := multiprocessing.parent_process():
        multiprocessing.connection.wait([supervisor.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _metrics_folder() -> Iterator[None]:
    """A folder for the numbers of all workers; `telemetry` reads its name from the environment."""
    folder = tempfile.mkdtemp(prefix="gridloop-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)


def _supervise(settings: Settings, count: int) -> int:
    """Start the workers and keep as many alive until a signal; then stop them and wait."""
    # Workers are forked from a process that has imported everything and started nothing: quick, and they share memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["service.app", "service.api.protocol", "uvloop"])
    loaded = context.Array("b", count, lock=False)
    stopping = failed = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def start(index: int, *, load_first: bool) -> BaseProcess:
        process = context.Process(target=_worker, args=(settings, loaded, index, load_first), name=f"worker-{index}")
        process.start()
        return process

    workers = [start(index, load_first=False) for index in range(count)]
    while not stopping:
        multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=0.2)
        for index, worker in enumerate(workers):
            if stopping or worker.is_alive():
                continue
            if not loaded[index]:
                log.error("a worker died before it was ready", worker=index, exit_code=worker.exitcode)
                stopping = failed = True
                break
            log.error("a worker died and is replaced", worker=index, exit_code=worker.exitcode)
            _forget_metrics(worker.pid)
            # The others go on serving: this one takes connections when its models are loaded.
            workers[index] = start(index, load_first=True)
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
    until = time.monotonic() + settings.drain_timeout_s + 5
    for worker in workers:
        worker.join(max(0.1, until - time.monotonic()))
        if worker.is_alive():
            log.error("a worker did not stop in time and is killed", pid=worker.pid)
            worker.kill()
            worker.join()
    return 1 if failed else 0


def _forget_metrics(pid: int | None) -> None:
    """Drop the gauges of a process that is gone; its counters stay."""
    if pid is not None:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
