"""Work with a time limit: a version is loaded in a thread of its own, which is ended when it takes too long.

A task's code may loop, and so may a graph on its golden samples. The thread that waits stays free for signals. A thread
cannot be killed, but nearly everything that one does here can be ended: Python's code by an exception raised in it,
ONNX Runtime's by its own means. What is left, such as a library's call that never returns, goes on in a daemon thread:
it neither keeps the process from ending, nor is it in the workers, which are forked later.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import structlog

from service.runtime.stop import Stop

log = structlog.get_logger(__name__)

T = TypeVar("T")

ENDS_S = 5.0
"""Time that work which was ended may take to end (seconds)."""
_AGAIN_S = 0.1
"""So often the work is ended again: a library may have caught the exception (seconds)."""


class Ended(BaseException):
    """Raised in a thread whose work is to end; no `except Exception` of a task's keeps it."""


class Stopped(Exception):
    """The loading was given up, as the server stops."""


class Limited(Generic[T]):
    """Work in a thread of its own.

    Args:
        name: of the thread.
        work: what to do; it hands the stop to the graphs that it opens and runs.
    """

    def __init__(self, name: str, work: Callable[[Stop], T]) -> None:
        self._work = work
        self._stop = Stop()
        self._changed = threading.Event()
        self._stopped = self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def result(self, timeout_s: float) -> T:
        """Do the work and wait for it.

        Raises:
            TimeoutError: it took longer.
            Stopped: `stop` was called.
            BaseException: whatever it raised, or a signal's handler in the thread that waits.
        """
        self._thread.start()
        try:
            in_time = self._changed.wait(timeout_s)
        finally:
            if not self._done:
                self._end()
        if self._stopped:
            raise Stopped
        if not in_time:
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def stop(self) -> None:
        """Give up. From another thread."""
        self._stopped = True
        self._changed.set()

    def _run(self) -> None:
        try:
            self._value = self._work(self._stop)
        except BaseException as error:  # whoever waits raises it
            self._error = error
        self._done = True
        self._changed.set()

    def _end(self) -> None:
        log.warning("loading is given up", thread=self._thread.name, stack=self._stack())
        self._stop.set()
        for _ in range(round(ENDS_S / _AGAIN_S)):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(Ended))
            self._thread.join(_AGAIN_S)
            if not self._thread.is_alive():
                return
        log.error("a thread that loads cannot be ended", thread=self._thread.name)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)[-3:]) if frame else ""
