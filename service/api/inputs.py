"""Request bodies into a task's input: JSON, or files in a form, by themselves or as a data URL."""

from __future__ import annotations

import asyncio
import binascii
import codecs
import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any
from urllib.parse import parse_qsl

import pybase64
from pydantic import ValidationError
from pydantic_core import SchemaValidator, from_json, to_json
from python_multipart.multipart import parse_options_header

from service.api import multipart
from service.api.body import INLINE_BYTES, PARSERS
from service.api.context import RequestContext
from service.api.json_size import holds_more_fields, holds_more_values
from service.errors import BadRequest, TooLarge, UnsupportedMedia, ValidationFailed, schema_problems
from service.settings import Settings
from service.tasks import AnyTask
from service.tasks.base import MediaInput, TaskInput, Upload

MAX_UNKNOWN_FIELDS = 10_000
"""Fields that a JSON body may have beside those of its task (count): each is an error."""
MAX_OTHER_VALUES = 10_000
"""Values that a JSON body may have beside its lists as long as a series (count)."""
MAX_WRONG_ELEMENTS = 1000
"""Elements of a list, from the first wrong one on, that are looked at for others (count): errors cost far more than
what they are about."""

_DEFAULT_FORM = "application/x-www-form-urlencoded"
"""Content type that many clients send where nobody has said what the body is."""
_ANY_FILE = ("application/octet-stream", "binary/octet-stream", "application/binary", "*/*")
_UTF_8 = ("utf-8", "utf8", "us-ascii", "ascii")
_LATIN = ("iso-8859-1", "latin1", "latin-1", "windows-1252", "cp1252")
"""Charsets in which ASCII is what it is in UTF-8."""

_BOM = codecs.BOM_UTF8


async def parse_input(
    task: type[AnyTask], settings: Settings, context: RequestContext, query_string: bytes, body: bytes
) -> TaskInput:
    """A request's body and query as the task's input.

    Args:
        task: whose input it is.
        settings: the server's limits.
        context: the request's headers and deadline.
        query_string: of the URL, still encoded.
        body: decompressed.

    Raises:
        TooLarge: the body has more values than the task can take, or more files.
        UnsupportedMedia: the task does not take this content type.
        ValidationFailed: fields are missing, unknown or out of bounds.
        BadRequest: the multipart framing is broken.
        DeadlineExceeded: the deadline has passed.
    """

    def parse() -> TaskInput:
        context.check_deadline()
        return parse_small_input(task, settings, content_type, query_string, body)

    content_type = context.headers.get(b"content-type")
    if len(body) <= INLINE_BYTES or (content_type or b"").decode("latin-1") in task.media:  # a raw file is not parsed
        return parse()
    return await asyncio.get_running_loop().run_in_executor(PARSERS, parse)


def parse_small_input(
    task: type[AnyTask], settings: Settings, content_type: bytes | None, query_string: bytes, body: bytes
) -> TaskInput:
    """The same at once, in this thread: for bodies of at most `INLINE_BYTES`."""
    query = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True) if query_string else []
    if issubclass(task.Input, MediaInput):
        return _parse_media(task, settings, content_type, query, body)
    if query:
        raise ValidationFailed(
            [{"loc": ["query", name], "msg": "this endpoint takes its fields in the JSON body"} for name, _ in query]
        )
    kind, _ = _media_type(content_type or b"application/json")
    is_json = kind == "application/json" or kind.endswith("+json")
    if not is_json and not (kind == _DEFAULT_FORM and body.lstrip().startswith(b"{")):
        raise _unsupported(kind, ("application/json",))
    return _parse_json(task, settings, json_text(content_type, body))


def _parse_json(task: type[AnyTask], settings: Settings, text: bytes) -> TaskInput:
    if len(text) > MAX_OTHER_VALUES:
        _check_size(task, settings, text)
    try:
        request = _validator(task.Input).validate_json(text)
    except ValidationError as error:
        _refuse_other_charset(text)
        problems, count, at_least = _problems(task.Input, text, error)
        told = [{"loc": ["body", *problem["loc"]], "msg": _message(task, problem)} for problem in problems]
        raise ValidationFailed(told, count, at_least=at_least) from None
    _refuse_repeated_names(text, request.model_fields_set)
    assert isinstance(request, TaskInput)  # noqa: S101  what the validator makes
    return request


def _check_size(task: type[AnyTask], settings: Settings, text: bytes) -> None:
    """Refuse what holds more than the task can take, before anything is built of it."""
    most = task.Input.max_long_lists * settings.max_series_points + MAX_OTHER_VALUES
    most_fields = len(task.Input.model_fields) + MAX_UNKNOWN_FIELDS
    if holds_more_fields(text, most_fields):
        raise ValidationFailed([{"loc": ["body"], "msg": f"has more than {most_fields:,} fields"}])
    if holds_more_values(text, most):
        raise TooLarge("The JSON body", limit=most, unit="values", setting="GRIDLOOP_MAX_SERIES_POINTS")


@cache
def _validator(schema: type[TaskInput]) -> SchemaValidator:
    """Pydantic's validator of a type, which gives up a list at its first wrong element.

    What `FailFast` does where a field has it; here for every list of every task, so that nobody forgets it.
    """
    return SchemaValidator(_failing_fast(schema.__pydantic_core_schema__))


def _failing_fast(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_failing_fast(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copied = {key: _failing_fast(value) for key, value in schema.items() if key != "metadata"}
    return copied | {"fail_fast": True} if schema.get("type") == "list" and "items_schema" in schema else copied


def _problems(
    schema: type[TaskInput], text: bytes, error: ValidationError
) -> tuple[Sequence[dict[str, Any]], int, bool]:
    """Find all that breaks the schema: the first problems, how many there are, and whether there may be more.

    Of a list, the first wrong element is known. It and those that follow are validated again, for all their problems.
    """
    found, count = schema_problems(error), error.error_count()
    places = [problem["loc"] for problem in found]
    begins = {place[0]: place[1] for place in places if len(place) > 1 and type(place[1]) is int}
    if not begins:
        return found, count, False
    fields, at_least = from_json(text), False
    for name, begin in begins.items():
        end = begin + MAX_WRONG_ELEMENTS
        at_least = at_least or end < len(fields[name])
        fields[name] = fields[name][begin:end]
    try:
        schema.model_validate_json(to_json(fields))
    except ValidationError as again:
        found, count = schema_problems(again), again.error_count()
        for problem in found:
            if problem["loc"][0] in begins and len(problem["loc"]) > 1:
                problem["loc"][1] += begins[problem["loc"][0]]
    return found, count, at_least


def _refuse_repeated_names(text: bytes, names: set[str]) -> None:
    """Refuse a field that is given twice: which of the two is meant, no reader knows.

    Args:
        text: JSON, of which the last field of a name was taken.
        names: of the fields taken.
    """
    colon = -1
    for _ in names:
        colon = text.find(b":", colon + 1)
    if text.find(b":", colon + 1) < 0:  # nearly always; looking for one is ten times quicker than counting
        return
    if b"\\u" not in text and all(text.count(b'"%b"' % name.encode()) == 1 for name in names):
        return  # the other colons are in texts

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValidationFailed([{"loc": ["body", name], "msg": "is given more than once"}])
            seen.add(name)

    json.loads(text, object_pairs_hook=look)


def _message(task: type[AnyTask], problem: dict[str, Any]) -> str:
    """The sentence about a field that breaks the schema; the task may know why a field is not there."""
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return task.Input.why_not.get(problem["loc"][0], problem["msg"])
    return str(problem["msg"])


def _parse_media(
    task: type[AnyTask], settings: Settings, content_type: bytes | None, query: list[tuple[str, str]], body: bytes
) -> MediaInput:
    media, options = _media_type(content_type or b"application/octet-stream")
    fields = _unique(query)
    if media == "multipart/form-data":
        form, files = _multipart(body, options, settings.max_files)
        fields |= form
    elif media == "text/plain" and body.startswith(b"data:"):
        files = [_data_url(task, body)]
    elif _is_file(task, media) or task.recognises(body):  # what it is, its bytes say
        # As sent, with its parameters: of samples without a header, only they say what they are.
        files = [Upload(body, content_type=(content_type or b"").decode("latin-1") or media)] if body else []
    elif media == _DEFAULT_FORM and not body:
        files = []
    else:
        raise _unsupported(media, ("multipart/form-data", *task.media))
    if "files" in fields:
        raise ValidationFailed([{"loc": ["query", "files"], "msg": "Extra inputs are not permitted"}])
    try:
        parsed = task.Input.model_validate({**fields, "files": tuple(files)})
    except ValidationError as error:
        problems = [{"loc": ["query", *e["loc"]], "msg": _message(task, e)} for e in schema_problems(error)]
        raise ValidationFailed(problems, error.error_count()) from None
    assert isinstance(parsed, MediaInput)  # noqa: S101  checked by the caller
    return parsed


def _is_file(task: type[AnyTask], media: str) -> bool:
    """Whether a content type is one of those that a task takes, or an alias or a relative of one."""
    return media in task.media or media in _ANY_FILE or media.partition("/")[0] in _families(task)


@cache
def _families(task: type[AnyTask]) -> frozenset[str]:
    """The first halves of the content types that a task takes, such as "image"."""
    return frozenset(family for kind in task.media if (family := kind.partition("/")[0]) != "application")


def _unsupported(media: str, accepted: tuple[str, ...]) -> UnsupportedMedia:
    hint = ""
    if media in (_DEFAULT_FORM, "text/plain"):
        kind = next(kind for kind in accepted if kind != "multipart/form-data")
        hint = f'Many clients send this type where none is named: add -H "Content-Type: {kind}", or what else it is.'
    return UnsupportedMedia("Content-Type", media, accepted, hint)


def json_text(content_type: bytes | None, body: bytes) -> bytes:
    """A JSON body without its byte order mark, which RFC 8259 lets a reader ignore.

    Raises:
        UnsupportedMedia: it is not in UTF-8, by what its content type or its first bytes say.
    """
    charset = _charset(content_type)
    if charset not in _UTF_8 and not (charset in _LATIN and body.isascii()):
        raise _not_utf_8(charset)
    beginning = body[:4]
    if b"\0" in beginning:
        raise _not_utf_8("utf-16 or utf-32")
    return body[3:] if beginning[:3] == _BOM else body


@lru_cache(maxsize=256)
def _charset(content_type: bytes | None) -> str:
    return _media_type(content_type or b"")[1].get(b"charset", b"utf-8").decode("latin-1").lower()


def _not_utf_8(charset: str) -> UnsupportedMedia:
    return UnsupportedMedia("JSON in the charset", charset, ("UTF-8",), "RFC 8259 knows no other.")


def _refuse_other_charset(body: bytes) -> None:
    """Say so where bytes that are not UTF-8 are why JSON could not be read."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1:,} of the body is not UTF-8, which JSON must be"
        raise ValidationFailed([{"loc": ["body"], "msg": f"Invalid JSON: {place}"}]) from None


@lru_cache(maxsize=256)
def _media_type(header: bytes) -> tuple[str, Mapping[bytes, bytes]]:
    kind, options = parse_options_header(header)
    return kind.decode("latin-1").lower(), options


def _data_url(task: type[AnyTask], body: bytes) -> Upload:
    """A file as a data URL (RFC 2397), which is how pages in a browser hold images."""
    head, comma, data = body.partition(b",")
    kind, *options = head.removeprefix(b"data:").decode("latin-1").lower().split(";")
    if not _is_file(task, kind):
        raise UnsupportedMedia("Data URL of type", kind, task.media)
    if not comma or options[-1:] != ["base64"]:
        raise BadRequest("A data URL is sent as `data:<type>;base64,<data>`.")
    try:
        return Upload(pybase64.b64decode(data, validate=True), content_type=";".join([kind, *options[:-1]]))
    except binascii.Error as error:
        raise BadRequest(f"The data URL is not base64: {error}.") from None


def _unique(query: list[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in query:
        if name in fields:
            raise ValidationFailed([{"loc": ["query", name], "msg": "is given more than once"}])
        fields[name] = value
    return fields


def _multipart(body: bytes, options: Mapping[bytes, bytes], max_files: int) -> tuple[dict[str, str], list[Upload]]:
    """Parts named `file` become uploads; other parts are fields, as if they stood in the query."""
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("multipart/form-data needs a boundary parameter in Content-Type (curl -F sets it by itself).")
    fields: list[tuple[str, str]] = []
    files: list[Upload] = []
    for part in multipart.parts(body, boundary, max_files):
        if part.name == multipart.FILE:
            files.append(Upload(part.data, part.filename or None, part.content_type))
        elif part.filename is not None:
            raise ValidationFailed([{"loc": ["body", part.name], "msg": "files are sent as parts named 'file'"}])
        else:
            fields.append((part.name, part.data.decode("utf-8", "replace")))
    return _unique(fields), files
