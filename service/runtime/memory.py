"""Giving freed memory back to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Release what loading a model leaves behind: parsing a graph takes several times its size, and glibc keeps it."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
