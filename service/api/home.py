"""`GET /`: where a browser begins."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home() -> RedirectResponse:
    """The documentation page, where every endpoint can be tried."""
    return RedirectResponse("docs")
