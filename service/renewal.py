"""Renewal: files outside the model repository that are read again when they change, while the server runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from service.errors import SettingUnusable

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""Files are looked at so often (seconds)."""

_Signature = tuple[tuple[int, int, int] | None, ...]


class Renewal:
    """Reads files when it is made, and again when they have changed.

    A new file that cannot be used changes nothing: what was read before stays, and the log says why, once.

    Args:
        what: is in the files, for the log.
        paths: of the files.
        read: reads them and puts to use what they hold, all of it or nothing; raises `SettingUnusable`.

    Raises:
        SettingUnusable: they cannot be used as they are now.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], None]) -> None:
        self._what, self._paths, self._read = what, paths, read
        self._seen, self._is_good = self._signature(), True
        read()

    def refresh(self) -> None:
        """Read the files if they have changed since they were last read, or could not be used then. Blocking."""
        signature = self._signature()
        if signature == self._seen and self._is_good:
            return
        try:
            self._read()
        except SettingUnusable as error:
            if signature != self._seen or self._is_good:
                log.error(f"new {self._what} cannot be used: the old stay in use", reason=str(error))
            self._is_good = False
        else:
            self._is_good = True
            log.info(f"new {self._what} in use")
        self._seen = signature

    async def keep_fresh(self) -> None:
        """Look at the files about once a second, for ever, in a thread: a folder of the network may hang."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # a bug here must not mean that no file is ever read again
                log.exception(f"{self._what} could not be looked at")

    def _signature(self) -> _Signature:
        """What changes when a file is written or replaced, or a link leads elsewhere."""
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116  three numbers of one look
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
