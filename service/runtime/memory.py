"""Giving memory back to the operating system."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path
from typing import Any

_DONTNEED = 4
"""Advice to `madvise`, from Linux's `mman.h`."""
_REGION = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-.p \S+ \S+ \d+ +/", re.ASCII)
"""Of `/proc/self/smaps`: the first line of a part of a file in memory that nobody writes to."""


def give_back_memory() -> None:
    """Release what loading a model leaves behind: parsing a graph takes several times its size, and glibc keeps it."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


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
