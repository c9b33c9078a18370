"""Gate: who may ask, and how often."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.errors import Draining, NotAuthorised, RateLimited

OPEN_PATHS = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
"""Probes, which need no key and are answered while the server drains."""
_GUARDED = ("/v1", "/v2", "/metrics")


@dataclass(slots=True)
class Gate:
    """Whether requests are let in: keys, rate limit, draining.

    Attributes:
        api_keys: keys of which one must be sent; empty lets everybody in.
        rate_limit: requests per second and client in this process; 0 for no limit.
        draining: the server is stopping.
    """

    api_keys: tuple[str, ...] = ()
    rate_limit: float = 0.0
    draining: bool = False
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def check(self, path: str, headers: Mapping[bytes, bytes], client: str) -> None:
        """Let a request in or raise.

        Raises:
            NotAuthorised: keys are configured and none of them was sent.
            RateLimited: this client asks too often.
            Draining: the server is stopping.
        """
        if path in OPEN_PATHS or not path.startswith(_GUARDED):
            return
        if self.api_keys:
            client = self._authorise(headers.get(b"authorization", b""))
        if self.draining:
            raise Draining
        if self.rate_limit:
            self._take_token(client)

    def _authorise(self, header: bytes) -> str:
        scheme, _, sent = header.partition(b" ")
        # Compared with every key, in constant time, so that the time taken tells nothing about them.
        matches = [hmac.compare_digest(sent.strip(), key.encode()) for key in self.api_keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise NotAuthorised
        return f"key {matches.index(True)}"

    def _take_token(self, client: str) -> None:
        """Token bucket of one second's size per client; the longest unseen client is forgotten first."""
        now = time.monotonic()
        size = max(1.0, self.rate_limit)
        tokens, seen = self._buckets.pop(client, (size, now))
        tokens = min(size, tokens + (now - seen) * self.rate_limit)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self._buckets) > 10_000:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise RateLimited(self.rate_limit)
