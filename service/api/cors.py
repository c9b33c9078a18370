"""Cross-origin resource sharing: which pages of other origins may call from a browser (fetch.spec.whatwg.org)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from starlette.exceptions import HTTPException

from service.api.context import Answer

HeaderFields = tuple[tuple[bytes, bytes], ...]

METHODS = "GET, HEAD, POST"
REQUEST_HEADERS = (
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Inference-Header-Content-Length",
    "X-Canary-Key",
    "X-Request-ID",
    "X-Request-Timeout",
    "traceparent",
)
"""Headers that mean something here and that a page may not send unasked."""
ANSWER_HEADERS = ("Inference-Header-Content-Length", "Retry-After", "Server-Timing", "X-Request-ID", "traceparent")
"""Headers of an answer that a page could not read otherwise."""
MAX_AGE_S = 3600
"""How long a browser may go by the answer to its first question (seconds)."""

_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")


class Cors:
    """What is told to browsers.

    No cookie is ever read here and keys are sent by the page itself, so credentials are not spoken of.

    Args:
        origins: that may call, as browsers send them, or "*" for all; none switches it off.
        task_headers: of answers, beside `ANSWER_HEADERS`.
    """

    def __init__(self, origins: Collection[str], task_headers: Collection[str] = ()) -> None:
        self._on, self._all = bool(origins), "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)
        self._vary: HeaderFields = ((b"vary", b"Origin"),) if self._on and not self._all else ()
        self._exposed = ((b"access-control-expose-headers", ", ".join((*ANSWER_HEADERS, *task_headers)).encode()),)

    def fields(self, headers: Mapping[bytes, bytes]) -> HeaderFields:
        """What every answer carries, errors included, to a request with these headers."""
        if not self._on:
            return ()
        allowed = self._allowed(headers.get(b"origin"))
        return self._vary + allowed + self._exposed if allowed else self._vary

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> Answer | None:
        """The answer to a browser that asks whether a page may send a request; None for every other request.

        `fields` are not in it.

        Raises:
            HTTPException: 403, the page's origin is not among those that may.
        """
        if not self._on or method != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        if not self._allowed(headers.get(b"origin")):
            raise HTTPException(403)
        names = list(REQUEST_HEADERS)
        asked = headers.get(b"access-control-request-headers", b"").strip()
        if len(asked) <= 1024 and _NAMES.fullmatch(asked):  # whatever libraries add: it does no harm
            known = {name.lower() for name in names}
            names += [name for part in asked.decode().split(",") if (name := part.strip()).lower() not in known]
        return Answer(
            b"",
            status=204,
            headers=(
                (b"access-control-allow-methods", METHODS.encode()),
                (b"access-control-allow-headers", ", ".join(names).encode()),
                (b"access-control-max-age", b"%d" % MAX_AGE_S),
            ),
        )

    def _allowed(self, origin: bytes | None) -> HeaderFields:
        if origin is None:
            return ()
        if self._all:
            return ((b"access-control-allow-origin", b"*"),)
        return ((b"access-control-allow-origin", origin),) if origin in self._origins else ()
