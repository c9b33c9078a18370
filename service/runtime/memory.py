"""What is kept of the memory that nobody needs just now, and what goes back to the operating system."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST_KEPT = 32 * 2**20
"""Blocks up to this size are kept when they are freed (bytes): the largest that glibc would keep by itself…"""
MOST_KEPT = 64 * 2**20
"""…and so much of free memory at the end of a heap (bytes)."""
HEAPS = 2
"""Heaps that all threads share: each keeps what was freed in it, and glibc would make eight for each core (count)."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt`, from glibc's `malloc.h`."""
_TOLD = re.compile(r"malloc[._](?:trim|mmap)_threshold", re.IGNORECASE)
_TOLD_HEAPS = re.compile(r"malloc[._]arena_max", re.IGNORECASE)
"""Whoever starts the server can choose these: of names of environment variables, and of the tunables in one."""
IDLE_S = 5.0
"""A process that has done next to nothing for so long gives back what it keeps (seconds)."""
BUSY_S = 60.0
"""One that always has something to do gives it back so often: holes between what is kept would add up (seconds)."""
IDLE_CPU_S = 0.1
"""What is next to nothing: probes and timers (seconds of CPU time in `IDLE_S`)."""
_DONTNEED = 4
"""Advice to `madvise`, from Linux's `mman.h`."""
_REGION = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-.p \S+ \S+ \d+ +/", re.ASCII)
"""Of `/proc/self/smaps`: the first line of a part of a file in memory that nobody writes to."""


def keep_freed_memory() -> None:
    """Let glibc keep what a run frees for the next run, up to a limit. For a process that serves models.

    A batch over a large vocabulary needs some tens of megabytes for a moment. By itself glibc returns them after each
    run, and in the next one every page is mapped and filled with zeros again. With another C library nothing happens,
    nor where its variables say something else (`MALLOC_TRIM_THRESHOLD_` and the like).
    """
    told = "\n".join((*os.environ, os.environ.get("GLIBC_TUNABLES", "")))
    set_parameter = _glibc("mallopt")
    if set_parameter is None:
        return
    if not _TOLD.search(told):
        set_parameter(_MMAP_THRESHOLD, LARGEST_KEPT)
        set_parameter(_TRIM_THRESHOLD, MOST_KEPT)
    if not _TOLD_HEAPS.search(told):
        set_parameter(_ARENA_MAX, HEAPS)


def give_back_freed_memory() -> None:
    """Return all that glibc keeps: parsing a graph takes several times its size."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def give_back_memory() -> None:
    """Release what loading models leaves behind."""
    gc.collect()
    give_back_freed_memory()


class FreedMemory:
    """When a process gives back what it keeps: once it has nothing to do, and now and then while it works.

    Args:
        cpu_s: CPU time of the process so far (seconds); a test has its own.
    """

    def __init__(self, cpu_s: Callable[[], float] = time.process_time) -> None:
        self._cpu_s = cpu_s
        self._looked_s, self._used_s = 0.0, cpu_s()
        self._busy_since_s: float | None = None

    def is_due(self, now_s: float) -> bool:
        """Whether memory is to be given back now; asked every second or so.

        Args:
            now_s: of the monotonic clock.
        """
        if now_s - self._looked_s < IDLE_S:
            return False
        used_s = self._cpu_s()
        is_idle = used_s - self._used_s < IDLE_CPU_S
        busy_since_s = now_s if self._busy_since_s is None else self._busy_since_s
        due = now_s - busy_since_s >= BUSY_S or (is_idle and self._busy_since_s is not None)
        self._looked_s, self._used_s = now_s, used_s
        self._busy_since_s = None if is_idle else now_s if due else busy_since_s
        return due


def _glibc(name: str) -> Any:
    """A function of glibc; None where there is another C library, as musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def let_go_of_files() -> None:
    """Unmap the code and constants of libraries that were used so far: what is needed again is mapped again.

    They stay in the system's file cache. For a process that has done its main work, such as the supervisor after
    loading, which needs a tenth of them. Linux only; elsewhere nothing happens.
    """
    try:
        text = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    madvise: Any = ctypes.CDLL(None).madvise
    for region in re.split(r"\n(?=[0-9a-f]+-)", text):
        # Pages that the dynamic linker wrote to, while it still could, are not those of the file any more.
        if (found := _REGION.match(region)) and re.search(r"^Anonymous: +0 kB$", region, re.MULTILINE):
            begin, end = int(found[1], 16), int(found[2], 16)
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)
