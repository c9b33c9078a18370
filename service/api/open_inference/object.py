"""The JSON object of a request that is no inference: small, and often not there at all."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import HTTPException, Request

from service.api.body import receive_body
from service.api.context import context_of
from service.errors import BadRequest

MAX_BYTES = 64 * 1024
"""Longest body (bytes)."""


async def json_object(request: Request) -> dict[str, Any]:
    """What a request sends; nothing where it has no body.

    Raises:
        BadRequest: it is no JSON object.
        TooLarge: it is longer than the server takes.
        HTTPException: it is longer than any that makes sense here.
    """
    state = request.app.state
    with state.in_flight.body() as counted:
        headers = context_of(request.scope).headers
        body = await receive_body(state.settings, headers, request.scope, request.receive, counted)
    if len(body) > MAX_BYTES:
        raise HTTPException(413, f"The body has more than {MAX_BYTES:,} bytes. Send no more than the few fields.")
    try:
        sent = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body cannot be read: {error}.") from None
    if type(sent) is not dict:
        raise BadRequest("The body must be a JSON object.")
    return sent
