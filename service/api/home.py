"""`GET /`: where a browser begins."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home(request: Request) -> RedirectResponse:
    """The documentation page, where every endpoint can be tried."""
    prefix = request.scope["root_path"]
    return RedirectResponse(f"{prefix}/docs" if prefix else "docs")  # a prefix that nobody has told is kept, too
