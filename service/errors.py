"""Everything that can go wrong, as one hierarchy that knows nothing of HTTP.

An exception takes facts and composes the sentence: what was wrong, and what to do about it. A caller's own text is cut
short where it is long, so that the answer stays small whatever was sent.

    ServiceError
    ├── InvalidInput            the request is well-formed but unusable
    │   ├── InvalidState        a state token is damaged or belongs to another model
    │   ├── FilesUnusable       several files were sent, and none can be used
    │   ├── UnsupportedPicture  a whole picture, of a format or kind that is not read here
    │   └── ValidationFailed    fields are missing, unknown or out of bounds
    │       └── InvalidTimestamp    one cannot be read, or goes back
    ├── BadRequest              the request itself is broken (a header, the multipart framing)
    ├── NotAuthorised           an API key is needed
    ├── NotAllowed              the API key does not reach so far
    ├── TooLarge                over a configured limit
    ├── UnsupportedMedia        a content type or encoding that is not taken here
    ├── NotAcceptable           the answer has none of the content types that are wanted
    ├── BodyTimeout             the client sends too slowly
    ├── RateLimited             one client asks too often
    ├── ModelNotFound           no such model, version or task
    ├── ModelNotReady           known, but not loaded
    ├── NotReady                the server as a whole: a model that must be there is not
    ├── NotOffered              a part of a protocol that this server does not have
    ├── ManifestInvalid         a model folder that cannot be served
    ├── NameTaken               two public types of one name
    ├── SettingUnusable         a file that a setting names
    ├── TaskUnusable            a task of a plug-in or of a folder of tasks
    ├── Unavailable             nothing wrong with the request, try again
    │   ├── Overloaded          too many rows, or bytes, wait already
    │   │   └── TooBusy             so much is to be done before that the answer would be late
    │   ├── TooManyBytes        too many bytes of bodies are being received and parsed
    │   ├── TooManyConnections  as many are open as may be, and none is idle
    │   └── Draining            the server is stopping
    ├── DeadlineExceeded        the caller's deadline passed first
    └── InferenceFailed         the runtime refused what it was given
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, ClassVar

from pydantic import ValidationError

MAX_PROBLEMS = 20
"""Problems of one request that are listed; more are only counted (count)."""
MAX_NAME_CHARS = 64
"""Length of a caller's own name for a field, as it is quoted (characters)."""
MAX_MESSAGE_CHARS = 300
"""Length of the sentence about one field (characters)."""

MAX_QUOTED_CHARS = 80
"""Length of a caller's own text within a sentence (characters)."""

_QUOTE = Repr()
_QUOTE.maxstring = _QUOTE.maxother = MAX_QUOTED_CHARS
_QUOTE.maxlevel, _QUOTE.fillvalue = 3, "…"


def quoted(value: object) -> str:
    """What a caller sent, as a sentence quotes it: its `repr`, without the middle where it is long."""
    if isinstance(value, str) and len(value) <= MAX_QUOTED_CHARS:  # nearly always, and ten times quicker
        return repr(value)
    return _QUOTE.repr(value)


def shortened(text: str, most_chars: int) -> str:
    """A text, or its beginning and an ellipsis where it has more than `most_chars` characters."""
    return text if len(text) <= most_chars else f"{text[: most_chars - 1]}…"


def schema_problems(error: ValidationError) -> list[dict[str, Any]]:
    """The first `MAX_PROBLEMS` places that break a schema, each as `{"type": …, "loc": […], "msg": …}`.

    A million wrong elements are a million errors, which pydantic gives only all at once: as text they take a fifth of
    the memory of Python's objects, and a tenth of the time.
    """
    text = error.json(include_url=False, include_context=False, include_input=False)
    decoder, found, at = json.JSONDecoder(), [], 1  # after the bracket
    for _ in range(min(error.error_count(), MAX_PROBLEMS)):
        problem, end = decoder.raw_decode(text, at)
        problem["msg"] = problem["msg"].removeprefix("Value error, ")
        found.append(problem)
        at = end + 1  # after the comma
    return found


def as_sentence(reason: object) -> str:
    """A reason, perhaps another library's exception, as something to put a sentence after: it ends in one full stop.

    Of pydantic's exceptions, whose text has several lines and links, what is wrong at each place.
    """
    text = str(reason)
    if isinstance(reason, ValidationError):
        problems = [_bounded(problem) for problem in schema_problems(reason)]
        places = [".".join(str(part) for part in problem["loc"]) for problem in problems]
        told = [f"{place}: {p['msg']}" if place else p["msg"] for place, p in zip(places, problems, strict=True)]
        more = reason.error_count() - len(told)
        text = "; ".join([*told, f"and {more} more"] if more else told)
    return f"{text.strip().rstrip('.')}."


class ServiceError(Exception):
    """Base of every error the service raises on purpose; `str(error)` is safe to show to a caller.

    Attributes:
        slug: last part of the problem's `type`.
        retry_after_s: when to try again; None where that would not help.
        problems: one `{"loc": [...], "msg": "..."}` for each of the first `MAX_PROBLEMS` parts that are wrong.
        problem_count: how many parts are wrong, of those that were looked at.
    """

    slug: ClassVar[str] = "internal-error"
    retry_after_s: int | None = None
    problems: Sequence[dict[str, Any]] = ()
    problem_count: int = 0

    @property
    def type(self) -> str:
        """Stable identifier of the kind of problem, as `application/problem+json` has it."""
        return f"/problems/{self.slug}"


class InvalidInput(ServiceError):
    """The request can be read, but nothing can be inferred from it."""

    slug = "invalid-input"


class InvalidState(InvalidInput):
    """A state token that is damaged, or that another model made."""

    slug = "invalid-state"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The state {reason}. Send the state of the previous answer unchanged, or leave it out to start anew."
        )


class FilesUnusable(InvalidInput):
    """None of several files can be used.

    Args:
        details: what is wrong with each file, in the order sent.
    """

    def __init__(self, details: Sequence[str]) -> None:
        self.problems = [
            _bounded({"loc": ["body", "file", place], "msg": detail})
            for place, detail in enumerate(details[:MAX_PROBLEMS])
        ]
        self.problem_count = len(details)
        super().__init__(f"None of the {len(details)} files can be used. The first: {details[0]}")


class UnsupportedPicture(InvalidInput):
    """A file of a format, or of a kind within a format, that is not read here.

    Args:
        what: names the file, such as "Image 1".
        kind: with its article, such as "a HEIC picture".
    """

    def __init__(self, what: str, kind: str) -> None:
        super().__init__(f"{what} is {kind}, which is not supported here. Send JPEG or PNG instead.")


class ValidationFailed(InvalidInput):
    """One or more fields break the schema.

    Args:
        problems: at least the first `MAX_PROBLEMS` of them, each with its place: `{"loc": [...], "msg": "..."}`.
        count: how many there are; left out, as many as are given.
        at_least: there may be more, which were not looked for.
    """

    slug = "validation-failed"

    def __init__(self, problems: Sequence[dict[str, Any]], count: int | None = None, *, at_least: bool = False) -> None:
        self.problems = [_bounded(problem) for problem in problems[:MAX_PROBLEMS]]
        self.problem_count = len(problems) if count is None else count
        first = self.problems[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        more = f" (and {'at least ' * at_least}{self.problem_count - 1} more)" if self.problem_count > 1 else ""
        super().__init__(f"{place}: {first['msg'].rstrip('.')}{more}. See /docs for the schema of this endpoint.")


def _bounded(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem's place and message, which may be the caller's own text, at a length to read."""
    place = [shortened(part, MAX_NAME_CHARS) if isinstance(part, str) else part for part in problem["loc"]]
    return {"loc": place, "msg": shortened(problem["msg"], MAX_MESSAGE_CHARS)}


class InvalidTimestamp(ValidationFailed):
    """A time stamp that cannot be read, or is earlier than the one before it.

    Args:
        index: which one.
        problem: what is wrong with it, or what to send instead.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__([{"loc": ["body", "timestamps", index], "msg": problem}])
        self.args = (f"timestamps[{index}]: {problem}.",)


class BadRequest(ServiceError):
    """The HTTP itself is broken."""

    slug = "bad-request"


class NotAuthorised(ServiceError):
    """API keys are configured and none, or a wrong one, was sent."""

    slug = "not-authorised"

    def __init__(self) -> None:
        super().__init__("This server needs an API key: send it as `Authorization: Bearer <key>`.")


class NotAllowed(ServiceError):
    """The API key that was sent is good for other things.

    Args:
        key: its name.
        what: it may not do, as in "ask model 'cifar10-cnn'".
    """

    slug = "not-allowed"

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"The API key {key!r} may not {what}. Send another key, or have the operator extend this one.")


class TooLarge(ServiceError):
    """Something is over a configured limit.

    Args:
        what: the thing measured, such as "The request body".
        limit: the most that is allowed, in `unit`.
        unit: "bytes", "pixels", "points", "characters".
        setting: the environment variable that raises the limit.
        actual: the size found, where it is known.
    """

    slug = "too-large"

    def __init__(self, what: str, *, limit: int, unit: str, setting: str, actual: int | None = None) -> None:
        size = f" has {actual:,} {unit}, more than" if actual is not None else " is larger than"
        super().__init__(
            f"{what}{size} the {limit:,} {unit} this server takes. Send less, or have its operator raise {setting}."
        )


class UnsupportedMedia(ServiceError):
    """A content type or content encoding that this endpoint does not take.

    Args:
        what: the header, such as "Content-Type".
        got: what it says.
        accepted: what it may say.
        hint: another sentence that helps.
    """

    slug = "unsupported-media-type"

    def __init__(self, what: str, got: str, accepted: Iterable[str], hint: str = "") -> None:
        sentences = f"{what} {quoted(got)} is not supported here. Send one of: {', '.join(accepted)}. {hint}"
        super().__init__(sentences.rstrip())


class NotAcceptable(ServiceError):
    """An answer that would have none of the content types which the client takes.

    Args:
        wanted: what it takes.
        given: content types that the answer may have.
        why: another sentence that helps.
    """

    slug = "not-acceptable"

    def __init__(self, wanted: str, given: Iterable[str], why: str = "") -> None:
        sentences = f"This is not answered as {wanted}. Accept one of: {', '.join(given)}. {why}"
        super().__init__(sentences.rstrip())


class BodyTimeout(ServiceError):
    """The client did not send its body in time."""

    slug = "body-timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"The request body did not arrive within {timeout_s:g} s. Send it faster or in smaller pieces, "
            "or have the operator raise GRIDLOOP_BODY_TIMEOUT_S."
        )


class RateLimited(ServiceError):
    """One client is over its rate limit."""

    slug = "rate-limited"
    retry_after_s = 1

    def __init__(self, per_second: float) -> None:
        super().__init__(f"More than {per_second:g} requests per second from one client. Slow down and try again.")


class ModelNotFound(ServiceError):
    """No such model or version, or it serves another task; the message lists what there is."""

    slug = "model-not-found"

    def __init__(self, asked: str, *, available: Sequence[str], what: str = "model", note: str = "") -> None:
        self._asked, self._available, self._what, self._note = asked, available, what, note
        close = get_close_matches(asked[:MAX_NAME_CHARS], available, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        there = (
            f" There are: {', '.join(available)}." if available else f" There is no {what} at all; see GET /v1/models."
        )
        super().__init__(f"There is no {what} {quoted(asked)}.{note}{hint}{there}")

    def among(self, may_hear_of: Callable[[str], bool]) -> ModelNotFound:
        """The same for a caller who may hear of some models only: of the others the message says nothing."""
        available = [name for name in self._available if may_hear_of(name.partition("@")[0])]
        return ModelNotFound(self._asked, available=available, what=self._what, note=self._note)


class ModelNotReady(ServiceError):
    """The model is known, but this server has not loaded it (yet).

    Args:
        model: as asked for.
        state: "loading", "unloaded", or "failed" when it will not become ready as it is.
        reason: why it failed.
    """

    slug = "model-not-ready"

    def __init__(self, model: str, state: str, reason: str | None) -> None:
        if state == "loading":
            super().__init__(f"Model {model!r} is loading. Try again later, or look at GET /v1/models for others.")
            self.retry_after_s = 5
            return
        if state == "unloaded":
            name = model.partition("@")[0]
            super().__init__(f"Model {model!r} is unloaded. POST /v2/repository/models/{name}/load serves it again.")
            return
        why = f": {as_sentence(reason)}" if reason else "."
        super().__init__(
            f"Model {model!r} cannot be served{why} Its operator has to mend it; GET /v1/models lists the others."
        )


class NotReady(ServiceError):
    """This server cannot answer for every model that must be there.

    Args:
        reasons: why not, by model.
        will_pass: whether waiting may help.
    """

    slug = "not-ready"

    def __init__(self, reasons: Mapping[str, str], *, will_pass: bool) -> None:
        why = " ".join(f"{what}: {as_sentence(reason)}" for what, reason in reasons.items())
        advice = "Try again in a moment." if will_pass else "The server's operator has to mend it."
        super().__init__(f"Not ready. {why} {advice}")
        self.reasons = dict(reasons)
        self.retry_after_s = 1 if will_pass else None


class NotOffered(ServiceError):
    """A part of a protocol that this server does not have.

    Args:
        what: is asked for, as the subject of a sentence in the singular.
        instead: what to do.
    """

    slug = "not-offered"

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(f"{what} is not offered by this server. {instead}")


class LoadRefused(ServiceError):
    """A model cannot be served as its folder is now.

    Args:
        model: that was to be loaded.
        reasons: why, in sentences.
    """

    slug = "load-refused"

    def __init__(self, model: str, reasons: str) -> None:
        super().__init__(f"Model {model!r} is not served as its folder says. {reasons}")


class AdminApiOff(ServiceError):
    """The routes that change the server are closed.

    Args:
        why: as part of a sentence.
        instead: what to do.
    """

    slug = "admin-api-off"

    def __init__(self, why: str, instead: str) -> None:
        super().__init__(f"Loading and unloading over HTTP is off{why}. {instead}")


class ManifestInvalid(ServiceError):
    """A model folder that cannot be served; the message names the file and the remedy."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where, self.problem = where, problem


class SettingUnusable(ServiceError):
    """A file that a setting names cannot be used.

    Args:
        setting: the environment variable.
        problem: the file's name and what is wrong with it; never its content.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}.")


class TaskUnusable(ServiceError):
    """A task that is not ours cannot be served: its file fails, or its declaration makes no sense.

    Args:
        where: the class or the file.
        problem: what is wrong with it, and what to do.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem.rstrip('.')}.")


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


MAX_RETRY_AFTER_S = 60
"""Longest time after which a caller is told to try again: by then everything may be different (seconds)."""


class Overloaded(Unavailable):
    """The model's queue is full.

    Args:
        model: whose queue.
        waiting: rows or bytes in it.
        limit: the most of them.
        unit: what is counted.
        setting: the environment variable that raises the limit.
        retry_after_s: when there should be room.
    """

    slug = "overloaded"

    def __init__(
        self,
        model: str,
        *,
        waiting: int,
        limit: int,
        unit: str = "rows",
        setting: str = "GRIDLOOP_MAX_QUEUE",
        retry_after_s: int = 1,
    ) -> None:
        super().__init__(
            f"{waiting:,} {unit} already wait for model {model!r} and its queue takes {limit:,}. Try again in a "
            f"moment, add replicas, or raise {setting}."
        )
        self.retry_after_s = min(max(1, retry_after_s), MAX_RETRY_AFTER_S)


class TooBusy(Overloaded):
    """So much is to be done before that the answer would come too late.

    Args:
        model: that would have to do it.
        needed_s: time until the answer, as it is expected.
        timeout_s: time there is.
        excess_s: when less would be to be done.
    """

    def __init__(self, model: str, *, needed_s: float, timeout_s: float, excess_s: float) -> None:
        Unavailable.__init__(
            self,
            f"Model {model!r} is too busy: the answer would take about {needed_s:.2g} s of the {timeout_s:.2g} s that "
            "there are. Try again later, allow more time with X-Request-Timeout, or add replicas.",
        )
        self.retry_after_s = min(max(1, math.ceil(excess_s)), MAX_RETRY_AFTER_S)


class TooManyConnections(Unavailable):
    """As many connections are open as may be, and none of them is idle."""

    slug = "too-many-connections"

    def __init__(self) -> None:
        super().__init__(
            "As many connections are open as this server takes, and none of them is idle. Try again in a moment, keep "
            "connections open instead of opening more, add replicas, or raise GRIDLOOP_MAX_CONNECTIONS."
        )


class TooManyBytes(Unavailable):
    """The bodies that are being received and parsed have as many bytes together as they may."""

    slug = "overloaded"

    def __init__(self, taken: int, limit: int) -> None:
        super().__init__(
            f"Bodies of {taken:,} bytes are being received and parsed already, and this server takes {limit:,} at a "
            "time. Try again in a moment, add replicas, or raise GRIDLOOP_MAX_BYTES_IN_FLIGHT."
        )


class Draining(Unavailable):
    """The server is stopping; another replica should take this request."""

    slug = "draining"

    def __init__(self) -> None:
        super().__init__("This server is shutting down. Send the request again, to another replica if there is one.")


class DeadlineExceeded(ServiceError):
    """The deadline passed before the work was done."""

    slug = "deadline-exceeded"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"The answer was not ready within {timeout_s:g} s. Allow more time with X-Request-Timeout, send less at "
            "once, or add replicas."
        )


class InferenceFailed(ServiceError):
    """The runtime refused a run; the cause is in the server's log, not in the answer."""

    slug = "inference-failed"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"Model {model!r} failed on this input. Quote the request_id to the operator: the log has the cause."
        )
