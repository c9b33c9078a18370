"""Address: where a client found this server, which a proxy in front of it may have told in `X-Forwarded-*`."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.settings import PREFIX, UNIX, Settings

_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""Host and port without anything that a shell or a page could take for something else."""
_MAX_PREFIX_CHARS = 256
_OWN_PATHS = re.compile(r"/(?:v1|v2)(?:/(?:models|health))?|/(?:docs|redoc|metrics|playground|static)")
"""Beginnings of our own routes: where the prefix is one, it cannot be told whether it is still before a path."""
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  the address to listen on is none to connect to


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients find a server.

    Attributes:
        authority: host, and port where it is not the scheme's own.
        scheme: http or https.
        prefix: what stands before every path; "" or such as "/ml".
        socket: path of the Unix socket that has to be named as well, if any.
    """

    authority: str
    scheme: str = "http"
    prefix: str = ""
    socket: str | None = None

    @property
    def curl(self) -> str:
        """The beginning of a command line that asks this server."""
        return f"curl --unix-socket {shlex.quote(self.socket)}" if self.socket else "curl"

    @property
    def url(self) -> str:
        """What a path is appended to."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @classmethod
    def configured(cls, settings: Settings) -> Address:
        """Where clients on the same machine find the server, without a proxy."""
        if settings.host.startswith(UNIX):
            return cls("localhost", settings.scheme, socket=settings.host.removeprefix(UNIX))
        host = _ANYWHERE.get(settings.host, settings.host)
        return cls(f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}", settings.scheme)


class Addresses:
    """Finds the address under which each request was sent.

    What a request says of it is an answer's text at most, never the target of a redirect.

    Args:
        settings: address, prefix and trusted proxies of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self.root_path = settings.root_path
        self._configured = Address.configured(settings)
        self._trusts = trusted_peers(settings.trusted_proxies)

    def prefix(self, scope: Any) -> str:
        """What stands before every path as the client knows it: as configured, or as a trusted proxy says.

        Several proxies have each added what they stand for, the outermost first.
        """
        if self.root_path:
            return self.root_path
        sent = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
        if not sent or not self._trusts(_peer(scope)):
            return ""
        parts = [part.strip().strip("/") for part in b",".join(sent).decode("latin-1").split(",")]
        prefix = "".join(f"/{part}" for part in parts if part)
        return prefix if len(prefix) <= _MAX_PREFIX_CHARS and PREFIX.fullmatch(prefix) else ""

    def of(self, scope: Any, headers: Mapping[bytes, bytes], prefix: str) -> Address:
        """The whole address: the forwarded one, else the `Host` that was asked, else the configured one.

        Args:
            scope: of ASGI.
            headers: of the request, names in lower case.
            prefix: see `prefix`.
        """
        told: Mapping[bytes, bytes] = headers if self._trusts(_peer(scope)) else {}
        scheme = _first(told.get(b"x-forwarded-proto", b"")).lower()
        forwarded = _first(told.get(b"x-forwarded-host", b""))
        configured, authority = self._configured, headers.get(b"host", b"")
        if _AUTHORITY.fullmatch(forwarded):
            authority = forwarded
        elif configured.socket and authority == b"localhost":  # what curl and proxies say for want of a name
            authority = b""
        if not _AUTHORITY.fullmatch(authority):
            return Address(configured.authority, configured.scheme, prefix, configured.socket)
        return Address(
            authority.decode(), scheme.decode() if scheme in (b"http", b"https") else scope["scheme"], prefix
        )


def without_prefix(path: str, prefix: str) -> str:
    """A path as our routes know it, whether or not a proxy has taken the prefix off."""
    if not prefix or _OWN_PATHS.fullmatch(prefix):
        return path
    if path.startswith(prefix + "/"):
        return path[len(prefix) :]
    return "/" if path == prefix else path


def trusted_peers(trusted: Iterable[str]) -> Callable[[str | None], bool]:
    """A function that says whether a peer is one of these: IP addresses, networks, "unix", or "*" for everybody.

    It takes the peer's address, None for one on a Unix socket.
    """
    items = set(trusted)
    unix, everybody = "unix" in items, "*" in items
    networks = [ipaddress.ip_network(item, strict=False) for item in items - {"unix", "*"}]

    @lru_cache(maxsize=1024)
    def trusts(peer: str | None) -> bool:
        if everybody or peer is None:
            return everybody or unix
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 peer on a socket that takes both kinds
        return any((mapped or address) in network for network in networks)

    return trusts


def _peer(scope: Any) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def _first(value: bytes) -> bytes:
    """Of a list to which every proxy has added its own, what the outermost said."""
    return value.partition(b",")[0].strip()
