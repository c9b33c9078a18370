"""Multipart bodies (RFC 7578) as parts with a name, a file name and data; python-multipart finds where each ends."""

from __future__ import annotations

import binascii
import contextlib
import quopri
from dataclasses import dataclass
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadRequest, TooLarge

MAX_FIELDS = 10_000
"""Parts that are no files (count): a part takes far longer to read than its few bytes to send."""

FILE = "file"
"""Name of the parts that are files."""

_CHARSETS = ("utf-8", "iso-8859-1")
"""Those that RFC 8187 asks for."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        name: of the form's field.
        filename: None where the part is no file.
        data: decoded, where it has a `Content-Transfer-Encoding`.
        content_type: as sent; None where it has none.
    """

    name: str
    filename: str | None
    data: bytes
    content_type: str | None = None


def parts(body: bytes, boundary: bytes, max_files: int) -> list[Part]:
    """All parts of a body, in the order sent; what stands before the first and after the last is for no program.

    Raises:
        TooLarge: there are more than `max_files` files; the rest is not read.
        BadRequest: it is malformed or cut short, or has very many fields.
    """
    found: list[Part] = []
    files = 0
    headers: dict[bytes, bytes] = {}
    name, value, data = bytearray(), bytearray(), bytearray()
    finished = False

    def begin_part() -> None:
        headers.clear()
        data.clear()

    def end_header() -> None:
        headers[bytes(name).lower()] = bytes(value).strip(b" \t")
        name.clear()
        value.clear()

    def end_part() -> None:
        nonlocal files
        part = _part(headers, bytes(data))
        files += part.name == FILE
        if files > max_files:
            raise TooLarge("The form", limit=max_files, unit="files", setting="GRIDLOOP_MAX_FILES")
        if len(found) - files > MAX_FIELDS:
            raise BadRequest(f"The form has more than {MAX_FIELDS:,} fields. Send fewer.")
        found.append(part)

    def finish() -> None:
        nonlocal finished
        finished = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin_part,
            "on_header_field": lambda chunk, start, end: name.extend(chunk[start:end]),
            "on_header_value": lambda chunk, start, end: value.extend(chunk[start:end]),
            "on_header_end": end_header,
            "on_part_data": lambda chunk, start, end: data.extend(memoryview(chunk)[start:end]),
            "on_part_end": end_part,
            "on_end": finish,
        },
    )
    try:
        parser.write(_without_preamble(body, b"--" + boundary))
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"The multipart body is malformed: {str(error).rstrip('.')}.") from None
    if not finished:
        raise BadRequest("The multipart body is cut short: its closing boundary is missing.")
    return found


def _without_preamble(body: bytes, delimiter: bytes) -> bytes:
    start, line = 0, b"\r\n" + delimiter
    while not (body.startswith(delimiter, start) and body.startswith((b"\r\n", b"--"), start + len(delimiter))):
        found = body.find(line, start)
        if found < 0:
            return body  # the parser says what is wrong with it
        start = found + 2
    return body[start:] if start else body


def _part(headers: dict[bytes, bytes], data: bytes) -> Part:
    disposition = headers.get(b"content-disposition", b"").decode("latin-1")
    _, options = parse_options_header(disposition)
    if b"name" not in options:
        raise BadRequest('A part of the multipart body has no name: give it Content-Disposition: form-data; name="…".')
    plain = options.get(b"filename")
    filename = _extended_filename(disposition) or (None if plain is None else plain.decode("utf-8", "replace"))
    encoding = headers.get(b"content-transfer-encoding", b"").lower()
    content_type = headers.get(b"content-type", b"").decode("latin-1") or None
    return Part(options[b"name"].decode("utf-8", "replace"), filename, _decoded(data, encoding), content_type)


def _extended_filename(disposition: str) -> str | None:
    """The file name of a parameter `filename*` (RFC 8187), which some clients send for names that are not ASCII."""
    if "*" not in disposition:
        return None
    message = Message()
    message["Content-Disposition"] = disposition
    for name, value in message.get_params([], "Content-Disposition"):
        if name == "filename" and isinstance(value, tuple):  # charset, language, and the bytes as characters
            charset, text = str(value[0]).lower(), value[2]
            with contextlib.suppress(UnicodeDecodeError):
                return text.encode("raw-unicode-escape").decode(charset) if charset in _CHARSETS else None
    return None


def _decoded(data: bytes, encoding: bytes) -> bytes:
    if encoding == b"base64":
        try:
            return binascii.a2b_base64(data)
        except binascii.Error as error:
            raise BadRequest(f"A part of the multipart body is not base64: {error}.") from None
    return quopri.decodestring(data) if encoding == b"quoted-printable" else data
