"""The JSON part of a body: parsed within bounds, and searched for where its values are."""

from __future__ import annotations

import json
import math
import operator
import re
from itertools import accumulate
from typing import Any

import orjson

from service.api.json_size import holds_more_values
from service.api.open_inference.values import MAX_OTHER_VALUES, flatten
from service.errors import BadRequest, quoted

COUNTED_BYTES = 64 * 1024
"""Longer JSON is only parsed when its values have been counted (bytes)."""

MAX_SHAPES = 1000
"""Tensors that JSON may describe (count)."""

MAX_SEARCHED_BYTES = 1024 * 1024
"""In longer text that is no JSON, the place of a NaN is not looked for (bytes)."""

END_BYTES = 256
"""So far from each end of the JSON the parameter `timeout` is looked for (bytes)."""

_TIMEOUT = b'"timeout"'
_SHAPE = re.compile(rb'"shape"\s*:\s*\[([\d\s,]{0,1000})\]')


def array_of_values(body: bytes) -> tuple[int, int]:
    """Begin and end of what is, in most requests, the first array of values: the innermost one after `"data"`."""
    data = body.find(b'"data"')
    end = body.find(b"]", data) + 1
    begin = body.rfind(b"[", data, end) if data >= 0 else -1
    return (begin, end) if begin >= 0 else (0, 0)


def parse(body: bytes, json_bytes: int | None) -> dict[str, Any]:
    """The JSON part of a body."""
    text = body if json_bytes is None else body[:json_bytes]
    if len(text) > COUNTED_BYTES:
        _check_values(text)
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        _refuse_constants(text)
        raise BadRequest(f"The JSON part of the body cannot be read: {error}.") from None
    if type(message) is not dict:
        raise BadRequest("The JSON part of the body must be an object.")
    return message


def names_timeout(body: bytes, json_bytes: int | None) -> bool:
    """Whether a request has the parameter `timeout` near one of its ends, where clients write their parameters.

    Looking through all of a body would take longer than to check the request. One that has it elsewhere is told that
    it is late by the codec.

    Args:
        body: JSON, and maybe the bytes of tensors after it.
        json_bytes: length of the JSON part; None when there is nothing else.
    """
    if json_bytes is None:
        if body.startswith(b'{"inputs"') and body.endswith(b"]}"):  # nothing at either end
            return False
        json_bytes = len(body)
    return (
        body.find(_TIMEOUT, 0, min(END_BYTES, json_bytes)) >= 0
        or body.find(_TIMEOUT, max(0, json_bytes - END_BYTES), json_bytes) >= 0
    )


def timeout_s(body: bytes, json_bytes: int | None) -> float | None:
    """The time that a request's parameter `timeout` leaves for its answer (seconds; sent as microseconds).

    It is wanted before the request waits for its model, whose thread reads the rest: for the few that have the word.

    Args:
        body: JSON, and maybe the bytes of tensors after it.
        json_bytes: length of the JSON part; None where it is not known, or is all there is.

    Returns:
        None where there is none, or 0, or anything that will be refused when the body is read.
    """
    text = body if json_bytes is None else body[:json_bytes]
    try:
        if len(text) > COUNTED_BYTES:
            _check_values(text)
        timeout = orjson.loads(text)["parameters"]["timeout"]
    except (BadRequest, ValueError, TypeError, LookupError):
        return None
    return timeout / 1e6 if type(timeout) is int and timeout > 0 else None


def _check_values(text: bytes) -> None:
    """Refuse JSON that has more values than the shapes in it take, before anything is built of them."""
    most = MAX_OTHER_VALUES
    for number, match in enumerate(_SHAPE.finditer(text)):
        if number == MAX_SHAPES:
            raise BadRequest(f"The JSON part of the body describes more than {MAX_SHAPES:,} tensors.")
        sizes = [int(size) for size in match[1].split(b",") if size.strip().isdigit()]
        most += sum(accumulate(sizes, operator.mul))  # where `data` is nested, its lists are values as well
    if holds_more_values(text, most):
        raise BadRequest(
            "The JSON part of the body has more values than the shapes of its inputs. Send as many as the shapes say."
        )


def _refuse_constants(text: bytes) -> None:
    """Name the place where text that is no JSON has NaN or Infinity as a value, which is its likeliest fault."""
    if len(text) > MAX_SEARCHED_BYTES or (b"NaN" not in text and b"Infinity" not in text):
        return
    try:
        message = json.loads(text)  # takes them, unlike JSON itself
        inputs = [(entry["name"], flatten([entry.get("data")], look=True)) for entry in message["inputs"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    for name, values in inputs:
        for index, value in enumerate(values):
            if isinstance(value, float) and not math.isfinite(value):
                raise BadRequest(
                    f"Input {quoted(name)}: element {index} is {json.dumps(value)}, which is not a number in JSON. "
                    "Send the tensor in binary form, which takes it."
                )
