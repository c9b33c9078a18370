"""Attended: a request is worked on for as long as its client is there."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from service.api.body import INLINE_BYTES
from service.api.context import Asked, ClientDisconnected, RequestContext
from service.runtime.job import Done

WATCH_AFTER_S = 0.05
"""A request that takes longer is watched for its client hanging up (seconds); shorter ones are not worth a task."""


async def attended(asked: Asked, context: RequestContext, receive: Any) -> Done[Any]:
    """Have a request worked on for as long as its client is there."""
    async with Attended(receive):
        done: Done[Any] = await asked.batcher.submit(
            asked.steps,
            rows=asked.rows,
            timeout_s=context.remaining_s,
            alone=context.alone,
            small=asked.size_bytes <= INLINE_BYTES,
            work=asked.work,
            size_bytes=asked.size_bytes,
        )
    context.timings = done.timings
    return done


class Attended:
    """Cancels the block when the client hangs up, so that nobody works for a caller who has left."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> None:
        self._caller = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._watch)

    def _watch(self) -> None:
        self._watcher = asyncio.ensure_future(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        if self._caller:
            self._caller.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._timer.cancel()
        if self._watcher and not self._watcher.done():
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        if kind is asyncio.CancelledError and self._has_left and self._caller:
            self._caller.uncancel()
            raise ClientDisconnected
        return False
