"""The pages that a browser opens: `/docs`, `/redoc` and their icon. Nothing in them comes from another host.

Links in them are relative, so that they work below any path prefix.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

_HERE = files(__name__)
_HTML = {name: (_HERE / f"{name}.html").read_text(encoding="utf-8") for name in ("docs", "redoc")}
_ICON = (_HERE / "static" / "favicon.ico").read_bytes()

SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Enforced by the browser, whatever the libraries of the pages would load."""

SECURITY_HEADERS = {
    "Content-Security-Policy": SECURITY_POLICY,
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",  # for browsers older than `frame-ancestors`
}

_LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Every endpoint, to read and to try."""
    return _page("docs")


@router.get("/redoc")
async def redoc() -> HTMLResponse:
    """Every endpoint, to read and to print."""
    return _page("redoc")


@router.get("/static/redoc.js")
def redoc_library() -> Response:
    """Redoc, without the logo that it would ask its maker's host for."""
    return Response(_redoc_library(), media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


@cache
def _redoc_library() -> bytes:
    vendored = files("fastapi_offline") / "static" / "redoc.standalone.js"
    return vendored.read_bytes().replace(_LOGO.encode(), b"data:,")


@router.get("/favicon.ico")
async def favicon() -> Response:
    """The icon, for whoever asks without reading the page."""
    return Response(_ICON, media_type="image/x-icon", headers={"Cache-Control": "max-age=86400"})


def _page(name: str) -> HTMLResponse:
    return HTMLResponse(_HTML[name], headers=SECURITY_HEADERS)


def mount(app: FastAPI) -> None:
    """Add the pages and what they load."""
    app.include_router(router)
    app.mount("/static", StaticFiles(packages=[(__name__, "static")]), name="static")
