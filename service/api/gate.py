"""Gate: who may ask, and how often."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.errors import Draining, NotAuthorised, RateLimited
from service.keys import Key, Keyring

OPEN_PATHS = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
"""Probes, which need no key and are answered while the server drains."""
_GUARDED = ("/v1", "/v2", "/metrics", "/anomalydetector")


@dataclass(slots=True)
class Gate:
    """Whether requests are let in: keys, rate limit, draining.

    Attributes:
        keys: those of which one must be sent; where there are none, everybody is let in.
        rate_limit: requests per second and client in this process; 0 for no limit.
        draining: the server is stopping.
    """

    keys: Keyring = field(default_factory=lambda: Keyring(()))
    rate_limit: float = 0.0
    draining: bool = False
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def check(self, path: str, headers: Mapping[bytes, bytes], client: str) -> Key | None:
        """Let a request in or raise.

        Returns:
            The key that was sent; None where none is asked for.

        Raises:
            NotAuthorised: keys are configured and none of them was sent.
            RateLimited: this client asks too often.
            Draining: the server is stopping.
        """
        if path in OPEN_PATHS or not path.startswith(_GUARDED):
            return None
        key = None
        if not self.keys.is_open:
            sent = headers.get(b"authorization", b"")
            if not sent and path.startswith("/anomalydetector"):  # as clients of Azure's service send it
                sent = b"Bearer " + headers.get(b"ocp-apim-subscription-key", b"")
            key = self.keys.find(sent)
            if key is None:
                raise NotAuthorised
            client = key.name
        if self.draining:
            raise Draining
        if self.rate_limit:
            self._take_token(client)
        return key

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
