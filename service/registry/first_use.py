"""First use: loads a version when somebody first asks for it, once; whoever asks meanwhile waits for the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

from service.errors import DeadlineExceeded, ModelNotReady


class FirstUse:
    """What the first request for a version begins.

    Args:
        name: of the version, for its thread.
        load: loads it, in a thread of its own; what is wrong with the version becomes its state.
    """

    def __init__(self, name: str, load: Callable[[], None]) -> None:
        self._name, self._load = name, load
        self._lock = threading.Lock()
        self._loaded: Future[None] | None = None

    async def wait(self, timeout_s: float) -> None:
        """Begin to load, if nobody has, and wait until that has ended, well or not.

        Raises:
            DeadlineExceeded: it takes longer; the loading goes on.
            Draining: the server stops.
        """
        loaded = asyncio.wrap_future(self._begin())
        try:
            await asyncio.wait_for(asyncio.shield(loaded), timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(timeout_s) from None

    def _begin(self) -> Future[None]:
        with self._lock:
            if self._loaded is None:
                self._loaded = Future()
                self._loaded.set_running_or_notify_cancel()  # who leaves cancels nothing
                name = f"first-use-{self._name}"
                threading.Thread(target=self._run, args=[self._loaded], name=name, daemon=True).start()
            return self._loaded

    def _run(self, loaded: Future[None]) -> None:
        try:
            self._load()
        except BaseException as error:  # those who wait raise it
            loaded.set_exception(error)
        else:
            loaded.set_result(None)


class NotLoadedYet(ModelNotReady):
    """The version is loaded when it is first asked for, which is now.

    Args:
        model: as asked for.
        first_use: what to wait for, and then to ask again.
    """

    def __init__(self, model: str, first_use: FirstUse) -> None:
        super().__init__(model, "loading", None)
        self.first_use = first_use
