"""HTTP/1.1 as a measuring client speaks it: requests as bytes, answers put together from bytes, a server asked.

A general client would be busier than the server it measures. Redirects are not followed and proxies not asked: only
the address that was given is put under load.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

DEFAULT_URL = "http://127.0.0.1:8000"

UNIX = "unix:"
"""Beginning of the address of a Unix socket, as in the setting GRIDLOOP_HOST."""

LOOK_UP_TIMEOUT_S = 5.0
"""Time to connect to one of the addresses of a name (seconds)."""

ASK_TIMEOUT_S = 30.0
"""Time for the answer to one question about the server (seconds)."""

FIRST_USES = 16
"""So often a lazy version is asked for, which each worker loads by itself, until one says that it is there (count)."""


class ClientFailed(Exception):
    """The server could not be asked, or not measured; the message says why."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens.

    Attributes:
        host: its name or IP address, as requests and certificates have it.
        port: of TCP.
        tls: whether it speaks HTTPS.
        unix_path: of its Unix socket, in place of a port; empty for none.
        ip: connected to in place of the host; empty: the host is looked up for every connection.
    """

    host: str
    port: int
    tls: bool = False
    unix_path: str = ""
    ip: str = ""

    @property
    def url(self) -> str:
        """As it would be given to a command."""
        if self.unix_path:
            return f"{UNIX}{self.unix_path}"
        return f"{'https' if self.tls else 'http'}://{_in_brackets(self.host)}:{self.port}"

    def looked_up(self) -> ServerAddress:
        """The same, with an IP address that answers: looked up once for all connections.

        Raises:
            ClientFailed: there is none.
        """
        if self.unix_path:
            return self
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ClientFailed(f"{self.host}: {error.strerror or error}") from None
        for *_, where in found:
            ip = str(where[0])
            try:
                socket.create_connection((ip, self.port), timeout=LOOK_UP_TIMEOUT_S).close()
            except OSError:
                continue
            return replace(self, ip=ip)
        raise ClientFailed(f"no server answers at {self.host}:{self.port}")

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Open a connection; the protocol is told.

        Raises:
            OSError: the server takes none.
        """
        loop = asyncio.get_running_loop()
        if self.unix_path:
            await loop.create_unix_connection(protocol, self.unix_path)
        else:
            await loop.create_connection(protocol, self.ip or self.host, self.port, **self._tls())

    async def open_streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection as a pair of streams.

        Raises:
            OSError: the server takes none.
        """
        if self.unix_path:
            return await asyncio.open_unix_connection(self.unix_path)
        return await asyncio.open_connection(self.ip or self.host, self.port, **self._tls())

    def blocking_connection(self) -> http.client.HTTPConnection:
        """A connection of the standard library's client, for a question before or after a load."""
        if self.unix_path:
            return _UnixConnection(self.unix_path, timeout=ASK_TIMEOUT_S)
        if self.tls:
            return http.client.HTTPSConnection(self.host, self.port, timeout=ASK_TIMEOUT_S, context=_trust())
        return http.client.HTTPConnection(self.host, self.port, timeout=ASK_TIMEOUT_S)

    def _tls(self) -> dict[str, Any]:
        return {"ssl": _trust(), "server_hostname": self.host} if self.tls else {}


@cache
def _trust() -> ssl.SSLContext:
    """The certificates that this machine trusts; OpenSSL reads SSL_CERT_FILE for others."""
    return ssl.create_default_context()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def split_url(url: str) -> ServerAddress:
    """The address of a server.

    Raises:
        ValueError: it is not `http://host:port`, `https://host:port` or `unix:PATH`.
    """
    if url.startswith(UNIX) and len(url) > len(UNIX):
        return ServerAddress("localhost", 80, unix_path=url.removeprefix(UNIX))
    parts = urllib.parse.urlsplit(url)
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or extra:
        raise ValueError(f"{url!r} is not http://host:port, https://host:port or unix:PATH")
    is_tls = parts.scheme == "https"
    return ServerAddress(parts.hostname, parts.port or (443 if is_tls else 80), tls=is_tls)


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def http_request(
    host: str, port: int, target: str, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
) -> bytes:
    """A POST as it goes over the wire; the connection is kept alive.

    Raises:
        ValueError: the target or a header holds a character that would end its line.
    """
    lines = [f"POST {target} HTTP/1.1", f"Host: {_in_brackets(host)}:{port}", f"Content-Type: {content_type}"]
    lines += [f"Content-Length: {len(body)}", *(f"{key}: {value}" for key, value in (headers or {}).items())]
    if any(not line.isprintable() or not line.isascii() for line in lines):
        raise ValueError("a request's head must be printable ASCII")
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpAnswer(NamedTuple):
    """An HTTP answer; `closes` when the server will close the connection after it."""

    status: int
    head: bytes
    body: bytes
    closes: bool


_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)


class AnswerParser:
    """Puts HTTP/1.1 answers together from pieces, however the network cut them."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._body_at = self._end = 0

    def feed(self, data: bytes) -> HttpAnswer | None:
        """The answer that these bytes complete, or None.

        Raises:
            ValueError: this is no answer with a `Content-Length`, or more than one.
        """
        self._received += data
        if not self._end and not self._read_head():
            return None
        if len(self._received) < self._end:
            return None
        if len(self._received) > self._end:
            raise ValueError("bytes after the answer")
        head, body = bytes(self._received[: self._body_at]), bytes(self._received[self._body_at :])
        self._received.clear()
        self._body_at = self._end = 0
        return HttpAnswer(int(head[9:12]), head, body, _CLOSE.search(head) is not None)

    def _read_head(self) -> bool:
        place = self._received.find(b"\r\n\r\n")
        if place < 0:
            return False
        length = _CONTENT_LENGTH.search(self._received, 0, place + 2)
        if length is None or not re.match(rb"HTTP/1\.1 \d{3} ", self._received):
            raise ValueError("not an HTTP/1.1 answer with a Content-Length")
        self._body_at = place + 4
        self._end = self._body_at + int(length[1])
        return True


class Server:
    """A server that runs somewhere, asked before and after the load.

    Attributes:
        address: where it is.
        headers: of every request.

    Args:
        address: where it is.
        key: sent as `Authorization: Bearer`; empty for none.
    """

    def __init__(self, address: ServerAddress, key: str = "") -> None:
        self.address = address
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def request(self, target: str, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """A POST to this server as it goes over the wire; see `http_request`."""
        headers = {**(headers or {}), **self.headers}
        return http_request(self.address.host, self.address.port, target, content_type, body, headers)

    def ask(self, target: str) -> bytes:
        """The body of the 200 that a GET gets.

        Raises:
            ClientFailed: another status, or no answer.
        """
        connection = self.address.blocking_connection()
        try:
            connection.request("GET", target, headers=self.headers)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ClientFailed(f"no server answers at {self.address.url}: {error}") from None
        finally:
            connection.close()
        if status != 200:
            raise ClientFailed(f"{target} answered {status}: {detail(body)}")
        return body

    def ask_json(self, target: str) -> dict[str, Any]:
        """The object that a GET gets.

        Raises:
            ClientFailed: as `ask`, or it is none.
        """
        try:
            found = json.loads(self.ask(target))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ClientFailed(f"{target} is no JSON object: is this a Gridloop server?")
        return found

    def model(self, name: str, version: str = "") -> dict[str, Any]:
        """What the server says of a model, whose version is loaded where it was to wait for somebody to ask.

        Args:
            name: of the model.
            version: of it; empty for the one that answers when none is named.

        Raises:
            ClientFailed: as `ask`.
        """
        quoted = urllib.parse.quote(name, safe="")
        for _ in range(FIRST_USES):
            told = self.ask_json(f"/v1/models/{quoted}")
            wanted = version or told.get("default_version")
            states = {entry["version"]: entry["state"] for entry in told.get("versions", [])}
            if states.get(wanted) not in ("lazy", "loading"):
                break
            for _ in range(2):  # workers are asked in turn: with one question more, the next one is another's
                self.ask(f"/v2/models/{quoted}/versions/{urllib.parse.quote(str(wanted), safe='')}")
        return told

    def runs(self, model: str) -> tuple[float, float]:
        """Rows and runs of a model so far, over all workers; (0, 0) where there are no metrics."""
        try:
            text = self.ask("/metrics").decode(errors="replace")
        except ClientFailed:
            return 0.0, 0.0
        rows, runs = (
            sum(map(float, re.findall(rf'^{name}\{{model="{re.escape(model)}"\}} (\S+)$', text, re.MULTILINE)))
            for name in ("gridloop_batch_rows_sum", "gridloop_batch_rows_count")
        )
        return rows, runs


def detail(body: bytes) -> str:
    """The words of an answer that is an error: a problem's `detail`, else its text, shortened."""
    try:
        found = json.loads(body)
        text = found["detail"] if isinstance(found, dict) and "detail" in found else found
    except ValueError:
        text = body.decode(errors="replace")
    text = text if isinstance(text, str) else json.dumps(text)
    return text if len(text) <= 300 else text[:299] + "…"
