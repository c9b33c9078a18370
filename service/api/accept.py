"""Accept: whether a client wants an answer whole or as a stream of events (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from enum import Enum

EVENT_STREAM = b"text/event-stream"
"""Content type of server-sent events."""

_JSON = ("application/json", "application/*", "*/*")
"""What names JSON, the most exact first."""


class Wish(Enum):
    """What a client would like.

    Every other answer is sent as JSON whatever `Accept` says, as clients send the oddest ones.
    """

    WHOLE = "whole"
    EVENTS = "events"
    """Events, or JSON where there are none."""
    EVENTS_ONLY = "events only"


def wish(accept: bytes) -> Wish:
    """What an `Accept` header asks for.

    Events are wanted where they are named, and JSON is not named before them or with more weight.
    """
    if EVENT_STREAM not in accept.lower():
        return Wish.WHOLE
    weights: dict[str, float] = {}
    for part in accept.decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights.setdefault(name, _weight(parameters))
    events = weights.get(EVENT_STREAM.decode(), 0.0)
    json = next((weights[name] for name in _JSON if name in weights), 0.0)
    if not events:
        return Wish.WHOLE
    if not json:
        return Wish.EVENTS_ONLY
    named = list(weights)
    is_first = _JSON[0] not in weights or named.index(EVENT_STREAM.decode()) < named.index(_JSON[0])
    return Wish.EVENTS if events > json or (events == json and is_first) else Wish.WHOLE


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
