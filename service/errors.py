"""Everything that can go wrong, as one hierarchy that knows nothing of HTTP.

An exception takes facts and composes the sentence: what was wrong, and what to do about it.

    ServiceError
    ├── InvalidInput            the request is well-formed but unusable
    │   ├── InvalidState        a state token is damaged or belongs to another model
    │   └── ValidationFailed    fields are missing, unknown or out of bounds
    ├── BadRequest              the request itself is broken (a header, the multipart framing)
    ├── NotAuthorised           an API key is needed
    ├── TooLarge                over a configured limit
    ├── UnsupportedMedia        a content type or encoding that is not taken here
    ├── BodyTimeout             the client sends too slowly
    ├── RateLimited             one client asks too often
    ├── ModelNotFound           no such model, version or task
    ├── ModelNotReady           known, but not loaded
    ├── ManifestInvalid         a model folder that cannot be served
    ├── NameTaken               two public types of one name
    ├── Unavailable             nothing wrong with the request, try again
    │   ├── Overloaded          too many rows wait already
    │   └── Draining            the server is stopping
    ├── DeadlineExceeded        the caller's deadline passed first
    └── InferenceFailed         the runtime refused what it was given
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar


class ServiceError(Exception):
    """Base of every error the service raises on purpose; `str(error)` is safe to show to a caller."""

    retry_after_s: ClassVar[int | None] = None


class InvalidInput(ServiceError):
    """The request can be read, but nothing can be inferred from it."""


class InvalidState(InvalidInput):
    """A state token that is damaged, or that another model made."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The state {reason}. Send the state of the previous answer unchanged, or leave it out to start anew."
        )


class ValidationFailed(InvalidInput):
    """One or more fields break the schema; `errors` lists each with its place.

    Args:
        errors: one `{"loc": [...], "msg": "..."}` per problem.
    """

    def __init__(self, errors: Sequence[dict[str, Any]]) -> None:
        first = errors[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{place}: {first['msg']}{more}. See /docs for the schema of this endpoint.")
        self.errors = list(errors)


class BadRequest(ServiceError):
    """The HTTP itself is broken."""


class NotAuthorised(ServiceError):
    """API keys are configured and none, or a wrong one, was sent."""

    def __init__(self) -> None:
        super().__init__("This server needs an API key: send it as `Authorization: Bearer <key>`.")


class TooLarge(ServiceError):
    """Something is over a configured limit.

    Args:
        what: the thing measured, such as "The request body".
        limit: the most that is allowed, in `unit`.
        unit: "bytes", "pixels", "points", "characters".
        setting: the environment variable that raises the limit.
        actual: the size found, where it is known.
    """

    def __init__(self, what: str, *, limit: int, unit: str, setting: str, actual: int | None = None) -> None:
        size = f" has {actual:,} {unit}, more than" if actual is not None else " is larger than"
        super().__init__(
            f"{what}{size} the {limit:,} {unit} this server takes. Send less, or have its operator raise {setting}."
        )


class UnsupportedMedia(ServiceError):
    """A content type or content encoding that this endpoint does not take."""

    def __init__(self, what: str, got: str, accepted: Iterable[str]) -> None:
        super().__init__(f"{what} {got!r} is not supported here. Send one of: {', '.join(accepted)}.")


class BodyTimeout(ServiceError):
    """The client did not send its body in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"The request body did not arrive within {timeout_s:g} s. Send it faster or in smaller pieces, "
            "or have the operator raise GRIDLOOP_BODY_TIMEOUT_S."
        )


class RateLimited(ServiceError):
    """One client is over its rate limit."""

    retry_after_s = 1

    def __init__(self, per_second: float) -> None:
        super().__init__(f"More than {per_second:g} requests per second from one client. Slow down and try again.")


class ModelNotFound(ServiceError):
    """No such model or version, or it serves another task; the message lists what there is."""

    def __init__(self, asked: str, *, available: Sequence[str], what: str = "model", note: str = "") -> None:
        close = get_close_matches(asked, available, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        there = (
            f" There are: {', '.join(available)}." if available else f" There is no {what} at all; see GET /v1/models."
        )
        super().__init__(f"There is no {what} {asked!r}.{note}{hint}{there}")


class ModelNotReady(ServiceError):
    """The model is known, but this server has not loaded it (yet)."""

    retry_after_s = 5

    def __init__(self, model: str, state: str, reason: str | None) -> None:
        why = f": {reason}" if reason else ""
        super().__init__(f"Model {model!r} is {state}{why}. Try again later, or look at GET /v1/models for others.")


class ManifestInvalid(ServiceError):
    """A model folder that cannot be served; the message names the file and the remedy."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where, self.problem = where, problem


class NameTaken(ServiceError):
    """Two public types have one name, so that a generated client would know only one of them.

    Args:
        name: in the OpenAPI document.
        module: where the second one is defined.
        owner: who uses it, such as "task 'shout'".
        first_module: where the first one is defined.
        first_owner: who uses that.
    """

    def __init__(self, name: str, module: str, owner: str, first_module: str, first_owner: str) -> None:
        super().__init__(
            f"Two types are called {name}: one of {first_owner} (in {first_module}) and one of {owner} (in {module}). "
            f"Every type that callers see needs a name of its own: rename the class in {module}."
        )


class Unavailable(ServiceError):
    """The request is fine but cannot be taken just now."""

    retry_after_s = 1


class Overloaded(Unavailable):
    """The model's queue is full."""

    def __init__(self, model: str, *, waiting: int, limit: int) -> None:
        super().__init__(
            f"{waiting} rows already wait for model {model!r} and its queue takes {limit}. Try again in a moment, "
            "add replicas, or raise GRIDLOOP_MAX_QUEUE."
        )


class Draining(Unavailable):
    """The server is stopping; another replica should take this request."""

    def __init__(self) -> None:
        super().__init__("This server is shutting down. Send the request again, to another replica if there is one.")


class DeadlineExceeded(ServiceError):
    """The deadline passed before the work was done."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"The answer was not ready within {timeout_s:g} s. Allow more time with X-Request-Timeout, send less at "
            "once, or add replicas."
        )


class InferenceFailed(ServiceError):
    """The runtime refused a run; the cause is in the server's log, not in the answer."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"Model {model!r} failed on this input. Quote the request_id to the operator: the log has the cause."
        )
