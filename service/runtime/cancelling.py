"""Cancellation: ends what ONNX Runtime does in another thread, whose calls Python alone cannot interrupt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import onnxruntime as ort


class Cancellation:
    """Ends the opening and the runs of graphs that it covers, those that begin later included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._ends: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """End them: they raise an exception of ONNX Runtime's, at their next operator."""
        with self._lock:
            self._cancelled = True
            for end in self._ends:
                end()

    def cover_opening(self, options: ort.SessionOptions) -> None:
        """Cover the opening of a graph with these options: it folds constants, which may be a loop without end."""
        self._cover(lambda: options.set_load_cancellation_flag(True))

    def cover_runs(self, options: ort.RunOptions) -> None:
        """Cover every run with these options."""

        def end() -> None:
            options.terminate = True

        self._cover(end)

    def _cover(self, end: Callable[[], Any]) -> None:
        with self._lock:
            self._ends.append(end)
            if self._cancelled:
                end()
