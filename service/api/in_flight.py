"""A bound on the bytes of bodies that one worker receives and parses at a time.

Each body has its own limit, but many at once could still fill the memory. Those that come with their head and are small
are not counted: there is one of them for a connection at most, and it is parsed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from service.errors import TooManyBytes


class BytesInFlight:
    """What a worker has taken of bodies whose parsing is not done yet.

    Args:
        most: bytes that all of them may have together. A body that is alone is taken whatever its size: its own limit
            holds for it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._lock = Lock()  # bodies are inflated in threads

    @property
    def taken(self) -> int:
        """Bytes of all bodies."""
        return self._taken

    @contextmanager
    def body(self) -> Iterator[BodyBytes]:
        """Count one body for as long as the block runs."""
        body = BodyBytes(self)
        try:
            yield body
        finally:
            self._release(body.counted)

    def _take(self, own: int, more: int) -> None:
        with self._lock:
            if self._taken > own and self._taken + more > self._most:
                raise TooManyBytes(self._taken, self._most)
            self._taken += more

    def _release(self, count: int) -> None:
        with self._lock:
            self._taken -= count


class BodyBytes:
    """The bytes of one body.

    Attributes:
        counted: how many are counted so far.
    """

    def __init__(self, all_bodies: BytesInFlight) -> None:
        self._all, self.counted = all_bodies, 0

    def grow_to(self, size: int) -> None:
        """Count so many bytes, if they are not counted yet.

        Raises:
            TooManyBytes: there is no room for them.
        """
        if size > self.counted:
            self._all._take(self.counted, size - self.counted)
            self.counted = size
