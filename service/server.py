"""The server's start: takes the port, says what will run, and runs the supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from service.errors import ServiceError
from service.keys import Keyring
from service.listening import listening
from service.registry.installed import located
from service.registry.remote import is_fetched, keep_up_to_date
from service.runtime.memory import keep_freed_memory
from service.settings import UNIX, Settings
from service.tls import Certificate

log = structlog.get_logger(__name__)

METRICS_PREFIX = "gridloop-metrics-"
"""What the names of the folders begin with in which the workers share their metrics."""
OTHER_DESCRIPTORS = 256
"""File descriptors kept for what is no connection: models, metrics, pipes (count)."""
UNLOCKED_S = 60.0
"""A folder that is younger may belong to a server that has not locked it yet (seconds)."""


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, 1 when the port or path could not be had.

    Raises:
        ServiceError: a file that a setting names cannot be used, or the workers have no place for their metrics.
    """
    keep_freed_memory()
    plan = settings.plan()
    Keyring(settings.api_keys, settings.api_keys_file)  # refused before a port is taken and models are loaded…
    Certificate.of(settings)  # …as this is
    with contextlib.ExitStack() as stack:
        stack.enter_context(_metrics_folder(needed=plan.workers > 1))
        # Not at the top: the metrics look for their folder when they are imported.
        from service.supervisor import Supervisor
        from service.telemetry import configure_logging, flush_logs

        configure_logging(settings.log_format, settings.log_level, in_background=True)
        stack.callback(flush_logs)
        settings = settings.model_copy(update={"models": located(settings.models)})
        stack.enter_context(_kept_up_to_date(settings))
        try:
            listener, settings = stack.enter_context(listening(settings))
        except OSError as error:
            reason = error.strerror or str(error)
            log.error("cannot listen", host=settings.host, port=settings.port, reason=reason)
            return 1
        settings = _with_descriptors(settings)
        log.info(
            "starting",
            url=settings.host
            if settings.host.startswith(UNIX)
            else f"{settings.scheme}://{settings.host}:{settings.port}",
            workers=plan.workers,
            cpu_budget=plan.budget.reason,
            models=str(settings.models),
        )
        if unknown := settings.unknown_variables(os.environ):
            log.warning("variables that are no settings are ignored", variables=unknown)
        return Supervisor(settings, listener, plan.workers).run()


@contextlib.contextmanager
def _kept_up_to_date(settings: Settings) -> Iterator[None]:
    """Have a process of its own fetch again what has changed of models from elsewhere: the folder changes, and is seen.

    A nursery cannot wait for a network, and what the libraries of the clouds start must not be forked.
    """
    if not settings.watch_s or not is_fetched(settings.models):
        yield
        return
    from service.processes import begin_anew, end_with

    here, there = socket.socketpair()

    def fetch() -> int:
        begin_anew("gridloop fetch", [here])
        keep_up_to_date(settings.models, there)
        return 0

    if os.fork() == 0:
        end_with(fetch)
    there.close()
    with here:
        yield


def _with_descriptors(settings: Settings) -> Settings:
    """Have as many file descriptors as the connections need; where the system gives less, take fewer connections.

    Shells commonly allow 1,024 and programs to ask for more. A server that runs out of them can accept nothing, not
    even to say so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + OTHER_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return settings
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most == needed:
        return settings
    fewer = max(1, most - OTHER_DESCRIPTORS)
    log.warning("fewer connections are taken: raise the limit of open files (ulimit -n)", max_connections=fewer)
    return settings.model_copy(update={"max_connections": fewer})


@contextlib.contextmanager
def _metrics_folder(*, needed: bool) -> Iterator[None]:
    """A folder for the numbers of all workers; `telemetry` reads its name from the environment.

    Whoever uses a folder holds a lock on it, so that those of servers that were killed are known, and removed.

    Args:
        needed: a single worker's numbers are right without one, until another takes its place.

    Raises:
        ServiceError: there is no place for one.
    """
    try:
        folder = tempfile.mkdtemp(prefix=METRICS_PREFIX)
    except OSError as error:
        if not needed:
            yield
            return
        raise ServiceError(
            f"The workers share their metrics in a folder of files, and none can be made ({error.strerror}). Mount a "
            "place to write (docker run --tmpfs /tmp), name one in TMPDIR, or set GRIDLOOP_WORKERS=1: it needs none."
        ) from None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        with _locked(Path(folder)):
            _remove_what_was_left(Path(folder).parent)
            yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)


def _remove_what_was_left(parent: Path) -> None:
    """Remove the folders of servers that were killed: nobody holds their locks."""
    for folder in parent.glob(f"{METRICS_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > UNLOCKED_S:
                with _locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; it ends with the last process that has inherited it, however these end.

    Raises:
        OSError: somebody else holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
