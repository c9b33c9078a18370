"""Headers that every request may have and every answer has: id, deadline, trace, times."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping

from service.api.context import Answer, RequestContext, new_request_id
from service.errors import BadRequest
from service.runtime.job import Timings

MAX_TIMEOUT_S = 3600.0
"""Longest deadline that a request may set (seconds)."""

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NOSNIFF = (b"x-content-type-options", b"nosniff")
"""An answer quotes what callers sent: no browser may take one for a page, whatever its content type says."""


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's own id where it is 1 to 128 visible ASCII characters, else a new one."""
    sent = headers.get(b"x-request-id", b"")
    return sent.decode("ascii") if _REQUEST_ID.fullmatch(sent) else new_request_id()


def timeout_s(headers: Mapping[bytes, bytes], default: float) -> float:
    """The deadline that `X-Request-Timeout` sets (seconds).

    Raises:
        BadRequest: it is no number of seconds, or out of bounds.
    """
    sent = headers.get(b"x-request-timeout")
    if sent is None:
        return default
    try:
        seconds = float(sent)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise BadRequest(f"X-Request-Timeout must be a number of seconds above 0 and at most {MAX_TIMEOUT_S:g}.")
    return seconds


def trace(headers: Mapping[bytes, bytes]) -> str | None:
    """W3C Trace Context: the caller's trace id with a new span id; None without a valid `traceparent`."""
    match = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    if not match or match[1] == b"ff" or not match[2].strip(b"0") or not match[3].strip(b"0"):
        return None
    return f"00-{match[2].decode()}-{random.getrandbits(64):016x}-{match[4].decode()}"


def is_kept(traceparent: str) -> bool:
    """Whether whoever began a trace keeps it: the last bit of its flags."""
    return int(traceparent[-1], 16) & 1 == 1


def answer_headers(answer: Answer, context: RequestContext) -> list[tuple[bytes, bytes]]:
    """All headers of a whole answer."""
    if answer.status == 204:  # it has no body to tell of
        return [*answer.headers, *common_headers(context)]
    return [
        (b"content-type", answer.media_type),
        (b"content-length", b"%d" % len(answer.body)),
        *answer.headers,
        *common_headers(context),
    ]


def common_headers(context: RequestContext) -> list[tuple[bytes, bytes]]:
    """Headers of every answer: its id, where its time went, and how a browser and a proxy are to treat it."""
    timing = server_timing(context.timings)
    headers = [(b"x-request-id", context.request_id.encode()), (b"server-timing", timing), _NOSNIFF, *context.cors]
    if context.trace:
        headers.append((b"traceparent", context.trace.encode()))
    if context.closing:
        headers.append((b"connection", b"close"))
    return headers


def server_timing(timings: Timings) -> bytes:
    """Where the time went, as the header `Server-Timing` tells it (milliseconds)."""
    return b"decode;dur=%.2f, queue;dur=%.2f, infer;dur=%.2f, encode;dur=%.2f" % (
        timings.decode * 1e3,
        timings.queue * 1e3,
        timings.infer * 1e3,
        timings.encode * 1e3,
    )
