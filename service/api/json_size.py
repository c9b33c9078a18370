"""How much a JSON text holds, told from its bytes before anything is built of them.

A number takes two bytes of JSON and fifty of memory, and an error about it takes two hundred. So what a body may hold
is counted first, against what its task takes at most. Commas, brackets and colons nearly tell: their number is never
too small, and finding it takes a few milliseconds for the largest body. Only where it is over the limit, the text is
gone through again with its strings left out.
"""

from __future__ import annotations

from collections.abc import Iterator

_WINDOW_BYTES = 64 * 1024
"""Piece of a text that is looked at in one go (bytes): others' threads run in between."""

_VALUE_MARKS = (b",", b"[", b"{")
"""Before each value but the outermost; and before the end of what is empty."""
_FIELD_MARKS = (b'":', b'" ', b'"\t', b'"\n', b'"\r')
"""How a field's name may end: with its colon, or with space before that."""


def holds_more_values(text: bytes, most: int) -> bool:
    """Whether there are more than so many values: those of fields, elements of lists, and both of these themselves.

    What is empty counts for two. Of a text that is no JSON, what stands before its fault is counted.
    """
    if len(text) <= most or not _has_more(text, _VALUE_MARKS, most - 1):
        return False
    found = 1
    for piece in _outside_strings(text):
        found += sum(map(piece.count, _VALUE_MARKS))
        if found > most:
            return True
    return False


def holds_more_fields(text: bytes, most: int) -> bool:
    """Whether all its objects together have more than so many fields."""
    if len(text) <= 4 * most or not _has_more(text, _FIELD_MARKS, most):
        return False
    found = 0
    for piece in _outside_strings(text):
        found += piece.count(b":")
        if found > most:
            return True
    return False


def _has_more(text: bytes, marks: tuple[bytes, ...], most: int) -> bool:
    """Whether there are more than so many marks, within strings or not."""
    found = 0
    for start in range(0, len(text), _WINDOW_BYTES):
        for mark in marks:
            found += text.count(mark, start, start + _WINDOW_BYTES + len(mark) - 1)
        if found > most:
            return True
    return False


def _outside_strings(text: bytes) -> Iterator[bytes]:
    """The text piece by piece, without its strings."""
    inside, escape = False, b""
    for start in range(0, len(text), _WINDOW_BYTES):
        window = escape + text[start : start + _WINDOW_BYTES]
        window = window.replace(rb"\\", b"").replace(rb"\"", b"")
        escape = window[-1:] if window.endswith(b"\\") else b""  # of what the next window begins with
        pieces = window.removesuffix(b"\\").split(b'"')
        yield b"".join(pieces[inside::2])
        inside ^= len(pieces) % 2 == 0
