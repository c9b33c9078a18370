"""Log lines leave through a thread of their own, so that whatever becomes of them, no answer waits for it.

A disk that is full, a reader that is gone and a reader that stalls are all the same to who logs: the line is put into a
bounded queue, and what cannot be written is counted as lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

MAX_WAITING_BYTES = 1024 * 1024
"""Lines that may wait to be written (bytes); more are lost."""
GATHER_S = 0.01
"""Time in which lines gather that are then written together (seconds): a wake-up costs more than a small inference."""
ATOMIC_BYTES = select.PIPE_BUF
"""Most that the kernel writes to a pipe in one piece, so that lines of several processes never mix (bytes)."""
_LOOK_S = 0.2
"""A descriptor that takes nothing just now is looked at again after so long (seconds)."""


class LogWriter:
    """Writes lines to a file descriptor, in a thread that starts with the first line.

    Args:
        descriptor: where to; 2 is standard error.
        lost: called with the number of lines that could not be written, from any thread.
    """

    def __init__(self, descriptor: int, lost: Callable[[int], None]) -> None:
        self._descriptor, self._lost = descriptor, lost
        self._begin_anew()
        # Threads do not survive a fork, and a fork should not meet one that holds a lock.
        os.register_at_fork(before=self._stop_for_fork, after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._awake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Have a line written, its line end included. Never waits, never fails."""
        data = line.encode(errors="backslashreplace")
        with self._lock:
            fits = self._waiting_bytes + len(data) <= MAX_WAITING_BYTES
            if fits:
                self._lines.append(data)
                self._waiting_bytes += len(data)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name="log-writer", daemon=True)
                    self._thread.start()
        if not fits:
            self._lost(1)
        elif not self._awake.is_set():
            self._awake.set()

    def close(self, timeout_s: float = 1.0) -> bool:
        """Write what waits, for at most `timeout_s`; the next line starts anew.

        Returns:
            Whether everything was written or given up in time. A thread that is stuck ends with the process.
        """
        thread = self._thread
        if thread is None:
            return True
        self._closing = True
        self._awake.set()
        thread.join(timeout_s)
        if thread.is_alive():
            return False
        late = self._lines  # since the thread took its last look
        self._begin_anew()
        for data in late:
            self.write(data.decode())
        return True

    def _stop_for_fork(self) -> None:
        self.close(timeout_s=_LOOK_S)

    # --- in the thread

    def _serve(self) -> None:
        while True:
            self._awake.wait()
            if not self._closing:
                time.sleep(GATHER_S)
            self._awake.clear()
            closing = self._closing  # what comes after this look is written by the thread that the next line starts
            with self._lock:
                lines, self._lines = self._lines, []
            self._put(lines)
            if closing and not self._lines:
                return

    def _put(self, lines: list[bytes]) -> None:
        """Write lines together, as many as leave in one piece."""
        start = 0
        while start < len(lines):
            end, size = start + 1, len(lines[start])
            while end < len(lines) and size + len(lines[end]) <= ATOMIC_BYTES:
                size += len(lines[end])
                end += 1
            if not self._put_piece(b"".join(lines[start:end])):
                self._lost(end - start)
            with self._lock:
                self._waiting_bytes -= size
            start = end

    def _put_piece(self, data: bytes) -> bool:
        """Whether all could be written. Waits for a reader that stalls, while the queue fills."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody has made the descriptor non-blocking
                with contextlib.suppress(OSError, ValueError):
                    select.select([], [self._descriptor], [], _LOOK_S)
                if self._closing:
                    return False
            except OSError:  # the disk is full, or nobody reads any more
                return False
        return True
