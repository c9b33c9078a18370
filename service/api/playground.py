"""The playground: `GET /`, and the static files below `/playground/` that the page is made of.

Everything is read once and kept, with its compressed form and an ETag of its content, which is the same on every
replica. Links are relative, or begin with the prefix that a proxy puts before our paths where we know it.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from service.api.pages import SECURITY_HEADERS

_FOLDER = files("service") / "playground"
_LINK = "playground/"
"""How every link of the page begins."""
_TYPES = {".js": "text/javascript", ".webp": "image/webp", ".flac": "audio/flac", ".md": "text/markdown"}
"""Content types that a machine's own table may lack or have otherwise."""
_COMPRESSIBLE = ("text/", "application/json", "image/svg+xml")

SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
"""No script and no style but those of our own files; pictures and sounds also from the page's own memory."""

HEADERS = SECURITY_HEADERS | {
    "Content-Security-Policy": SECURITY_POLICY,
    "Permissions-Policy": SECURITY_HEADERS["Permissions-Policy"]
    .replace("camera=()", "camera=(self)")
    .replace("microphone=()", "microphone=(self)"),
    "Cache-Control": "no-cache",  # kept, and asked about each time: a new version is seen at once
    "Vary": "Accept-Encoding",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Content:
    """A file as it is sent.

    Attributes:
        data: its bytes.
        kind: its content type.
        etag: of these bytes, quoted.
        packed: the same bytes as gzip; None where that would not be shorter.
    """

    data: bytes
    kind: str
    etag: str
    packed: bytes | None

    @classmethod
    def of(cls, data: bytes, kind: str) -> Content:
        """Bytes of a content type."""
        packed = gzip.compress(data, mtime=0) if kind.startswith(_COMPRESSIBLE) else data
        return cls(data, kind, hashlib.sha256(data).hexdigest()[:32], packed if len(packed) < len(data) else None)


@router.get("/")
def home(request: Request) -> Response:
    """The playground: every task can be tried in a browser, and its call copied."""
    return _answer(request, _page(request.scope["root_path"]))


@router.get("/playground/{path:path}")
def file(request: Request, path: str) -> Response:
    """A file of the page; of `/playground/` itself the page, which is above it."""
    if not path:
        return RedirectResponse("..", 308)  # as it is: behind a proxy nobody here knows what stands before it
    found = _files().get(path)
    if found is None:
        raise HTTPException(404)
    return _answer(request, found)


def _answer(request: Request, content: Content) -> Response:
    packed = content.packed if "gzip" in request.headers.get("accept-encoding", "") else None
    etag = f'"{content.etag}-gzip"' if packed else f'"{content.etag}"'
    headers = HEADERS | {"ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(packed or content.data, media_type=content.kind, headers=headers)


@cache
def _files() -> dict[str, Content]:
    """Every file below the folder, by its path there."""
    found, folders = {}, [("", _FOLDER)]
    while folders:
        before, folder = folders.pop()
        for entry in folder.iterdir():
            path = f"{before}{entry.name}"
            if entry.is_dir():
                folders.append((f"{path}/", entry))
            else:
                suffix = path[path.rfind(".") :]
                kind = _TYPES.get(suffix) or mimetypes.guess_type(path)[0] or "text/plain"
                found[path] = Content.of(entry.read_bytes(), kind)
    return found


@lru_cache(maxsize=64)
def _page(prefix: str) -> Content:
    """The page, for clients who know our paths below a prefix."""
    html = _files()["index.html"].data.decode()
    if prefix:  # without its last slash, relative links would lead to another place
        html = html.replace(f'="{_LINK}', f'="{prefix}/{_LINK}').replace('="static/', f'="{prefix}/static/')
    return Content.of(html.encode(), "text/html")
