"""Unread: parts of an answer on their way from the thread that makes them to the event loop that sends them.

A reader that takes them slowly must not fill the memory: from so many unread parts on, the batcher leaves the request
where it is until they are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable

from service.graph import Part

MOST_UNREAD = 64
"""Parts that may be unread when more are worked on (count). One step may settle several: they are all kept."""


class Unread:
    """The parts of one answer that nobody has taken yet. Made on the event loop that takes them.

    Attributes:
        resume: called on the event loop when parts were taken, and the batcher waits for that; the batcher sets it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: list[Part] = []
        self._lock = threading.Lock()
        self._news = asyncio.Event()
        self._paused = False
        self.resume: Callable[[], None] = lambda: None

    # --- in the thread that works on the request

    def put(self, parts: Iterable[Part]) -> None:
        """Have parts read, after those before."""
        more = list(parts)
        if not more:
            return
        with self._lock:
            self._parts += more
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._news.set)

    def pause(self) -> bool:
        """Whether no more should be worked on before these are taken; `resume` is called then, once."""
        with self._lock:
            self._paused = len(self._parts) >= MOST_UNREAD
            return self._paused

    # --- on the event loop

    def end(self) -> None:
        """Say that no more will come."""
        self._news.set()

    async def take(self) -> list[Part]:
        """Wait for parts, or for the end, and take all that are there; there may be none."""
        await self._news.wait()
        self._news.clear()
        with self._lock:
            parts, self._parts = self._parts, []
            was_paused, self._paused = self._paused, False
        if was_paused:
            self.resume()
        return parts
