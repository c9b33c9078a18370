"""`POST /v2/models/{m}[/versions/{v}]/infer`: the endpoint that runs a graph on tensors."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import Any

from service.api import reach
from service.api.attended import attended
from service.api.body import INLINE_BYTES, PARSERS, receive_body
from service.api.context import Answer, Asked, RequestContext
from service.api.in_flight import BytesInFlight
from service.api.inputs import json_text
from service.api.open_inference.codec import Codec, Reply
from service.api.open_inference.compression import accepted
from service.api.open_inference.message import names_timeout, timeout_s
from service.errors import BadRequest
from service.registry.handle import ModelHandle
from service.registry.registry import Registry
from service.runtime.job import Done
from service.settings import Settings
from service.tasks.base import ModelRef

PATHS = ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{model_version}/infer")

_JSON_BYTES = b"inference-header-content-length"
_VARY = (b"vary", b"accept-encoding")
_SHAPE = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,9})')
_LOOK_BYTES = 512


@lru_cache(maxsize=1024)
def match(path: str) -> tuple[str, str | None] | None:
    """Model and version of `/v2/models/{m}[/versions/{v}]/infer`, the model with its graph; None for any other path."""
    if not path.startswith("/v2/models/"):
        return None
    parts = path.split("/")
    if parts[-1] != "infer" or not parts[3]:
        return None
    if len(parts) == 5:
        return parts[3], None
    return (parts[3], parts[5]) if len(parts) == 7 and parts[4] == "versions" and parts[5] else None


class InferEndpoint:
    """What answers `POST /v2/models/{m}[/versions/{v}]/infer`; no FastAPI route, for speed.

    Attributes:
        path: its label in the metrics, with and without a version.

    Args:
        settings: the server's limits.
        registry: where the models are.
        in_flight: where large bodies are counted.
    """

    path = PATHS[0]
    is_short = True

    def __init__(self, settings: Settings, registry: Registry, in_flight: BytesInFlight) -> None:
        self._settings, self._registry, self._in_flight = settings, registry, in_flight
        self._codecs: dict[tuple[str, str], tuple[ModelHandle, Codec]] = {}

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer:
        """See `Endpoint`."""
        with self._in_flight.body() as counted:  # until the answer is there: it is the model's thread that parses
            body = await receive_body(self._settings, context.headers, scope, receive, counted)
            json_bytes = _json_bytes(context.headers.get(_JSON_BYTES), len(body))
            if len(body) > INLINE_BYTES and names_timeout(body, json_bytes):  # too much to be read by the event loop
                loop = asyncio.get_running_loop()
                context.shorten(await loop.run_in_executor(PARSERS, timeout_s, body, json_bytes))
            asked = await reach.when_loaded(lambda: self.ask(context, scope, body), context)
            return self.answer(await attended(asked, context, receive))

    def ask(self, context: RequestContext, scope: Any, body: bytes) -> Asked:
        """See `Endpoint`. A parameter `timeout` shortens the time there is; that of a large body is known already."""
        json_bytes = _json_bytes(context.headers.get(_JSON_BYTES), len(body))
        if len(body) <= INLINE_BYTES and names_timeout(body, json_bytes):
            context.shorten(timeout_s(body, json_bytes))
        context.check_deadline()
        size_bytes = len(body)
        asked, version = match(scope["path"]) or ("", None)
        handle, graph = reach.for_tensors(self._registry, context.key, asked, version, context)
        context.model = handle.name
        handle.batcher.check(context.remaining_s)
        if json_bytes is None:
            body = json_text(context.headers.get(b"content-type"), body)
        sent = context.headers.get(b"accept-encoding")
        encoding = accepted(sent) if sent is not None else None
        watch = handle.shadow.offer_run if handle.shadow is not None else None
        steps = self._codec(handle, asked, graph).steps(body, json_bytes, encoding, since=context.started, watch=watch)
        rows = _rows(body) if json_bytes != 0 else 1
        return Asked(handle.batcher, steps, rows, size_bytes, size_bytes)

    def answer(self, done: Done[Reply]) -> Answer:
        """See `Endpoint`."""
        reply = done.value
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if reply.encoding:
            headers = ((b"content-encoding", reply.encoding.encode()), _VARY)
        if reply.json_bytes is None:
            return Answer(reply.body, headers=headers)
        length = (_JSON_BYTES, b"%d" % reply.json_bytes)
        return Answer(reply.body, b"application/octet-stream", headers=(length, *headers))

    def _codec(self, handle: ModelHandle, asked: str, graph: str) -> Codec:
        place = handle.name, asked
        known, codec = self._codecs.get(place, (None, None))
        if codec is None or known is not handle:  # loaded anew
            settings = self._settings
            codec = Codec(
                ModelRef(name=asked, version=handle.ref.version),
                handle.graphs[graph].signature,
                graph=graph,
                max_bytes=settings.max_body_bytes,
                max_length=settings.max_series_points,
                max_rows=settings.max_rows,
                whole=handle.task.runs_whole,
                labels=handle.task.labels,
            )
            self._codecs[place] = handle, codec
        return codec


def _json_bytes(header: bytes | None, size: int) -> int | None:
    """Length of the JSON part as the caller says; None when the whole body is JSON."""
    if header is None:
        return None
    if not header.isdigit() or len(header) > 10 or int(header) > size:
        raise BadRequest(
            "Inference-Header-Content-Length must be the number of bytes of the body's JSON part; it is "
            f"{header.decode('latin-1')[:20]!r}, and the body has {size} bytes."
        )
    return int(header)


def _rows(body: bytes) -> int:
    """About how many rows a request has, for the queue's limit: the first axis of the first shape near its beginning.

    It is the model's thread that reads the body. What is said here without being so does no harm but to its author: a
    row has at least a byte.
    """
    found = _SHAPE.search(body, 0, _LOOK_BYTES)
    return max(1, min(int(found[1]), len(body))) if found else 1
