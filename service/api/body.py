"""Request bodies: received within limits of size and time, decompressed, and parsed into a task's input."""

from __future__ import annotations

import asyncio
import binascii
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import pybase64
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as FormField
from python_multipart.multipart import File, FormParser, parse_options_header

from service.api.context import EXCHANGE, ClientDisconnected, Exchange
from service.errors import BadRequest, BodyTimeout, TooLarge, UnsupportedMedia, ValidationFailed, schema_problems
from service.tasks import AnyTask
from service.tasks.base import MediaInput, TaskInput, Upload

INLINE_BYTES = 64 * 1024
"""Larger bodies are parsed, and always worked on, outside the event loop: it answers probes meanwhile (bytes)."""

_ENCODINGS = ("gzip", "deflate", "identity")


Headers = Mapping[bytes, bytes]


async def receive_body(headers: Headers, scope: Any, receive: Any, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body, decompressed.

    Args:
        headers: of the request, names in lower case.
        scope: ASGI's.
        receive: ASGI's, of which nothing has been read.
        max_bytes: most bytes taken, compressed or not.
        timeout_s: time to receive it.

    Raises:
        TooLarge: more than `max_bytes`; when `Content-Length` says so, nothing is read.
        BodyTimeout: it did not arrive in time.
        UnsupportedMedia: its `Content-Encoding` is not gzip or deflate.
        BadRequest: it cannot be decompressed.
        ClientDisconnected: the client closed the connection first.
    """
    encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower() or "identity"
    if encoding not in _ENCODINGS:
        raise UnsupportedMedia("Content-Encoding", encoding, ("gzip", "deflate"))
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes, int(declared))
    exchange: Exchange | None = scope.get(EXCHANGE)
    body = exchange.whole_body() if exchange else None  # mostly it came with the head: nothing to wait for
    if body is None:
        try:
            async with asyncio.timeout(timeout_s):
                body = await _receive(receive, max_bytes)
        except TimeoutError:
            raise BodyTimeout(timeout_s) from None
    elif len(body) > max_bytes:
        raise _too_large(max_bytes, None)
    if encoding == "identity":
        return body
    return await asyncio.to_thread(_inflate, body, max_bytes)


async def _receive(receive: Any, max_bytes: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes, None)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int, actual: int | None) -> TooLarge:
    return TooLarge("The request body", limit=limit, unit="bytes", setting="GRIDLOOP_MAX_BODY_BYTES", actual=actual)


def _inflate(body: bytes, max_bytes: int) -> bytes:
    """Decompress gzip or zlib data, never producing more than `max_bytes`."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either kind of header
    try:
        data = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"The body is not what its Content-Encoding says: {error}.") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes, None)
    if not inflater.eof:
        raise BadRequest("The compressed body is cut short. Send it whole.")
    return data


async def parse_input(task: type[AnyTask], content_type: bytes | None, query_string: bytes, body: bytes) -> TaskInput:
    """A request's body and query as the task's input.

    Args:
        task: whose input it is.
        content_type: the header, where there is one.
        query_string: of the URL, still encoded.
        body: decompressed.

    Raises:
        UnsupportedMedia: the task does not take this content type.
        ValidationFailed: fields are missing, unknown or out of bounds.
        BadRequest: the multipart framing is broken.
    """
    if len(body) <= INLINE_BYTES or (content_type or b"").decode("latin-1") in task.media:  # a raw file is not parsed
        return parse_small_input(task, content_type, query_string, body)
    return await asyncio.to_thread(parse_small_input, task, content_type, query_string, body)


def parse_small_input(task: type[AnyTask], content_type: bytes | None, query_string: bytes, body: bytes) -> TaskInput:
    """The same at once, in this thread: for bodies of at most `INLINE_BYTES`."""
    kind = content_type.decode("latin-1") if content_type else None
    query = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True) if query_string else []
    return _parse(task, kind, query, body)


def _parse(task: type[AnyTask], content_type: str | None, query: list[tuple[str, str]], body: bytes) -> TaskInput:
    try:
        if issubclass(task.Input, MediaInput):
            return _parse_media(task, content_type, query, body)
        if query:
            raise ValidationFailed(
                [
                    {"loc": ["query", name], "msg": "this endpoint takes its fields in the JSON body"}
                    for name, _ in query
                ]
            )
        kind = (content_type or "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedMedia("Content-Type", kind, ("application/json",))
        return task.Input.model_validate_json(body)
    except ValidationError as error:
        place = "query" if issubclass(task.Input, MediaInput) else "body"
        problems = [{"loc": [place, *e["loc"]], "msg": _message(task, e)} for e in schema_problems(error)]
        raise ValidationFailed(problems, error.error_count()) from None


def _message(task: type[AnyTask], problem: dict[str, Any]) -> str:
    """What to say of a field that breaks the schema; the task may know why a field is not there."""
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return task.Input.why_not.get(problem["loc"][0], problem["msg"])
    return str(problem["msg"])


def _parse_media(
    task: type[AnyTask], content_type: str | None, query: list[tuple[str, str]], body: bytes
) -> MediaInput:
    media, options = _media_type(content_type or "application/octet-stream")
    fields = _unique(query)
    if media == "multipart/form-data":
        form, files = _multipart(body, options, task)
        fields |= form
    elif media in task.media:
        files = [Upload(body, content_type=media)] if body else []
    elif media == "text/plain" and body.startswith(b"data:"):
        files = [_data_url(task, body)]
    else:
        raise UnsupportedMedia("Content-Type", media, ("multipart/form-data", *task.media))
    if "files" in fields:
        raise ValidationFailed([{"loc": ["query", "files"], "msg": "Extra inputs are not permitted"}])
    parsed = task.Input.model_validate({**fields, "files": tuple(files)})
    assert isinstance(parsed, MediaInput)  # noqa: S101  checked by the caller
    return parsed


@lru_cache(maxsize=256)
def _media_type(header: str) -> tuple[str, Mapping[bytes, bytes]]:
    kind, options = parse_options_header(header)
    return kind.decode("latin-1").lower(), options


def _data_url(task: type[AnyTask], body: bytes) -> Upload:
    """A file as a data URL (RFC 2397), which is how pages in a browser hold images."""
    head, comma, data = body.partition(b",")
    kind, *options = head.removeprefix(b"data:").decode("latin-1").split(";")
    if kind not in task.media:
        raise UnsupportedMedia("Data URL of type", kind, task.media)
    if not comma or options[-1:] != ["base64"]:
        raise BadRequest("A data URL is sent as `data:<type>;base64,<data>`.")
    try:
        return Upload(pybase64.b64decode(data, validate=True), content_type=kind)
    except binascii.Error as error:
        raise BadRequest(f"The data URL is not base64: {error}.") from None


def _unique(query: list[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in query:
        if name in fields:
            raise ValidationFailed([{"loc": ["query", name], "msg": "is given more than once"}])
        fields[name] = value
    return fields


def _multipart(body: bytes, options: Mapping[bytes, bytes], task: type[AnyTask]) -> tuple[dict[str, str], list[Upload]]:
    """Parts named `file` become uploads; other parts are fields, as if they stood in the query."""
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("multipart/form-data needs a boundary parameter in Content-Type (curl -F sets it by itself).")
    fields: list[tuple[str, str]] = []
    files: list[Upload] = []

    def add_field(field: FormField) -> None:
        name, value = (field.field_name or b"").decode("utf-8", "replace"), field.value or b""
        if name == "file":
            files.append(Upload(value))
        else:
            fields.append((name, value.decode("utf-8", "replace")))

    def add_file(file: File) -> None:
        name = (file.field_name or b"").decode("utf-8", "replace")
        if name != "file":
            raise ValidationFailed([{"loc": ["body", name], "msg": "files are sent as parts named 'file'"}])
        file.file_object.seek(0)
        filename = (file.file_name or b"").decode("utf-8", "replace") or None
        files.append(Upload(file.file_object.read(), filename))

    config: Any = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # never to disk: the body is in memory anyway
    finished = False

    def finish() -> None:
        nonlocal finished
        finished = True

    try:
        parser = FormParser("multipart/form-data", add_field, add_file, finish, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"The multipart body is malformed: {error}.") from None
    if not finished:
        raise BadRequest("The multipart body is cut short: its closing boundary is missing.")
    return _unique(fields), files
