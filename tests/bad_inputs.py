"""Requests that are wrong, each with the status that it must get: data for `tests/test_bad_inputs.py` and docs/reliability.md.

They go to the models that `models` makes. A limit that a request exceeds is one of `SETTINGS`.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from service.state import State, pack
from tests import graphs

SETTINGS: Mapping[str, Any] = {
    "max_body_bytes": 20_000,
    "max_image_pixels": 10_000,
    "max_series_points": 500,
    "max_text_chars": 500,
}
"""Smaller limits than the defaults, so that requests beyond them are short."""


def models(folder: Path) -> None:
    """A tiny model of each task, and one that cannot be served."""
    graphs.colour_model(folder)
    graphs.detector_model(folder)
    graphs.words_model(folder)
    broken = graphs.colour_model(folder, "broken")
    (broken / "1" / "model.onnx").write_bytes(b"no graph")


@dataclass(frozen=True)
class Bad:
    """A wrong request.

    Attributes:
        what: is wrong with it, in words.
        expected: status.
        method: of HTTP.
        path: with its query.
        body: as it is sent.
        headers: besides those that every client sends.
    """

    what: str
    expected: int
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


IMAGES, SERIES, WORDS = "/v1/image-classification", "/v1/anomaly-detection", "/v1/next-word-prediction"
INFER = "/v2/models/steps/infer"


def every() -> list[Bad]:
    """All of them."""
    return [
        *_paths(),
        *_headers(),
        *_bodies(),
        *_json(),
        *_series(),
        *_words(),
        *_states(),
        *_pictures(),
        *_forms(),
        *_tensors(),
    ]


def _paths() -> Iterator[Bad]:
    yield Bad("no such path", 404, "GET", "/nothing")
    yield Bad("no such task", 404, "POST", "/v1/mind-reading", b"{}")
    yield Bad("no such version of the API", 404, "POST", "/v3/anomaly-detection", b"{}")
    yield Bad("a path that climbs", 404, "GET", "/v1/models/../../etc/passwd")
    yield Bad("a path that climbs in escapes", 404, "GET", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd")
    yield Bad("a NUL in the path", 404, "GET", "/v1/models/%00")
    yield Bad("escapes that are no UTF-8", 404, "GET", "/v1/models/%ff%fe")
    yield Bad("a script in the path", 404, "GET", "/v1/models/%3Cscript%3E")
    yield Bad("a very long name in the path", 404, "GET", "/v1/models/" + "a" * 5000)
    yield Bad("a file beside the pages", 404, "GET", "/static/../../pyproject.toml")
    for path in (IMAGES, SERIES, WORDS):
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            yield Bad("another method", 405, method, path)
    for path in ("/livez", "/readyz", "/metrics", "/v1/models", "/v2", "/openapi.json"):
        yield Bad("another method", 405, "POST", path)
    yield Bad("a method that nobody knows", 405, "BREW", SERIES)
    yield Bad("another method", 405, "GET", INFER)
    yield Bad("no such model", 404, "GET", "/v1/models/nobody")
    yield Bad("no such model", 404, "GET", "/v2/models/nobody")
    yield Bad("no such version", 404, "GET", "/v2/models/steps/versions/9")
    yield Bad("no such model", 404, "GET", "/v2/models/nobody/ready")
    yield Bad("a model that cannot be served", 503, "GET", "/v2/models/broken")
    yield Bad("a model that cannot be served", 503, "POST", f"{IMAGES}?model=broken", graphs.png())


def _headers() -> Iterator[Bad]:
    good = _of(values=[0, 0, 5])
    for value in ("0", "-1", "soon", "nan", "inf", "1e9", "3601", "", "1,5"):
        yield Bad(f"a deadline of {value!r}", 400, "POST", SERIES, good, {"X-Request-Timeout": value})
    for kind in ("text/plain", "text/html", "image/png", "application/xml", "multipart/form-data; boundary=x"):
        yield Bad(f"a series as {kind}", 415, "POST", SERIES, good, {"Content-Type": kind})
    for kind in ("application/json", "text/html", "audio/wav", "application/pdf"):
        yield Bad(f"{kind} instead of a picture", 415, "POST", IMAGES, b"no picture", {"Content-Type": kind})
    for charset in ("utf-16", "nonsense"):
        yield Bad(
            f"JSON in {charset}", 415, "POST", SERIES, good, {"Content-Type": f"application/json; charset={charset}"}
        )
    for encoding in ("br", "zstd", "nonsense", "gzip, br"):
        yield Bad(f"compressed by {encoding}", 415, "POST", SERIES, good, {"Content-Encoding": encoding})


def _bodies() -> Iterator[Bad]:
    good = _of(values=[0, 0, 5])
    whole = gzip.compress(good)
    packed = {"Content-Encoding": "gzip"}
    yield Bad("no gzip", 400, "POST", SERIES, good, packed)
    yield Bad("gzip that breaks off", 400, "POST", SERIES, whole[:-9], packed)
    yield Bad("gzip with a wrong checksum", 400, "POST", SERIES, whole[:-8] + bytes(8), packed)
    yield Bad("nothing, as gzip", 400, "POST", SERIES, b"", packed)
    yield Bad("gzip with something after it", 400, "POST", SERIES, whole + b"x" * 20, packed)
    yield Bad("deflate that breaks off", 400, "POST", SERIES, zlib.compress(good)[:-5], {"Content-Encoding": "deflate"})
    yield Bad("a bomb: 2 MB in 2 kB", 413, "POST", SERIES, gzip.compress(b" " * 2_000_000), packed)
    yield Bad("a body over the limit", 413, "POST", SERIES, b" " * 20_001)
    yield Bad("a picture over the limit", 413, "POST", IMAGES, graphs.png() + bytes(20_000))
    yield Bad("tensors over the limit", 413, "POST", INFER, b" " * 20_001)


def _json() -> Iterator[Bad]:
    bodies = {
        "nothing": b"",
        "white space": b"  \n",
        "JSON that breaks off": b'{"values": [1, 2',
        "two documents": b'{"values": [1]}{}',
        "no JSON": b"values=1",
        "single quotes": b"{'values': [1]}",
        "a comma too many": b'{"values": [1,]}',
        "bytes that are no UTF-8": b'{"values": [1], "model": "\xff"}',
        "half a surrogate pair": b'{"values": [1], "model": "\\ud800"}',
        "NaN": b'{"values": [NaN]}',
        "Infinity": b'{"values": [-Infinity]}',
        "a list": b"[1, 2, 3]",
        "a text": b'"values"',
        "null": b"null",
        "a number": b"7",
        "lists 5,000 deep": b"[" * 5_000 + b"]" * 5_000,
        "objects 2,000 deep": b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        "an empty object": b"{}",
    }
    for what, body in bodies.items():
        for path in (SERIES, WORDS):
            yield Bad(what, 422, "POST", path, body)


def _series() -> Iterator[Bad]:
    fields: dict[str, dict[str, Any]] = {
        "no values": {"values": []},
        "values: null": {"values": None},
        "values: a number": {"values": 1},
        "values: a text": {"values": "1,2,3"},
        "values: an object": {"values": {"0": 1}},
        "a text among the values": {"values": [1, "two"]},
        "a list among the values": {"values": [1, [2]]},
        "an object among the values": {"values": [1, {}]},
        "numbers too large to subtract": {"values": [1e308, -1e308]},
        "an unknown field": {"values": [1], "vlaues": [1]},
        "sensitivity below 0": {"values": [1], "sensitivity": -0.1},
        "sensitivity above 1": {"values": [1], "sensitivity": 1.1},
        "sensitivity: a text": {"values": [1], "sensitivity": "high"},
        "sensitivity: null": {"values": [1], "sensitivity": None},
        "model: a number": {"values": [1], "model": 7},
        "model: a list": {"values": [1], "model": ["steps"]},
        "too few timestamps": {"values": [1, 2], "timestamps": [1]},
        "too many timestamps": {"values": [1], "timestamps": [1, 2]},
        "timestamps that go back": {"values": [1, 2], "timestamps": [2000, 1000]},
        "a timestamp that is none": {"values": [1], "timestamps": ["yesterday"]},
        "a timestamp of a day that is none": {"values": [1], "timestamps": ["2023-02-29T00:00:00Z"]},
        "a timestamp that is a truth value": {"values": [1], "timestamps": [True]},
        "a timestamp that is null": {"values": [1], "timestamps": [None]},
        "timestamps: a text": {"values": [1], "timestamps": "2023-01-01"},
        "timestamps with and without offset": {"values": [1, 2], "timestamps": ["2023-01-01T00:00:00Z", 7]},
    }
    for what, body in fields.items():
        yield Bad(what, 422, "POST", SERIES, _of(**body))
    yield Bad("more points than the limit", 413, "POST", SERIES, _of(values=[1] * 501))
    yield Bad("no such model", 404, "POST", SERIES, _of(values=[1], model="nobody"))
    yield Bad("no such version", 404, "POST", SERIES, _of(values=[1], model="steps@9"))
    yield Bad("a model of another task", 404, "POST", SERIES, _of(values=[1], model="colours"))
    yield Bad("a query on a JSON endpoint", 422, "POST", f"{SERIES}?sensitivity=1", _of(values=[1]))


def _words() -> Iterator[Bad]:
    fields: dict[str, dict[str, Any]] = {
        "no text and no state": {"text": ""},
        "text: null": {"text": None},
        "text: a number": {"text": 7},
        "text: a list": {"text": ["the"]},
        "top_k: 0": {"text": "the ", "top_k": 0},
        "top_k: 1001": {"text": "the ", "top_k": 1001},
        "top_k: 10^30": {"text": "the ", "top_k": 10**30},
        "top_k: 1.5": {"text": "the ", "top_k": 1.5},
        "top_k: a text": {"text": "the ", "top_k": "five"},
        "words: 0": {"text": "the ", "words": 0},
        "words: 9": {"text": "the ", "words": 9},
        "complete: something else": {"text": "the ", "complete": "maybe"},
        "explain: a text": {"text": "the ", "explain": "perhaps"},
        "an unknown field": {"text": "the ", "topk": 5},
    }
    for what, body in fields.items():
        yield Bad(what, 422, "POST", WORDS, _of(**body))
    yield Bad("more characters than the limit", 413, "POST", WORDS, _of(text="a " * 251))
    yield Bad("no such model", 404, "POST", WORDS, _of(text="the ", model="nobody"))


def _states() -> Iterator[Bad]:
    array = {"state": np.zeros(1, np.float32)}
    token = pack("steps", "1", State(array))
    states: dict[str, Any] = {
        "a state of nothing": "x",
        "a state that is no base64": "§$%",
        "a state that breaks off": token[:-3],
        "a state with a changed letter": token[:10] + ("A" if token[10] != "A" else "B") + token[11:],
        "a state with something after it": token + "AAAA",
        "a state of another model": pack("words", "1", State(array)),
        "a state of another version": pack("steps", "2", State(array)),
        "a state of another shape": pack("steps", "1", State({"state": np.zeros(9, np.float32)})),
        "a state of another tensor": pack("steps", "1", State({"other": np.zeros(1, np.float32)})),
        "a state that is not finite": pack("steps", "1", State({"state": np.array([np.inf], np.float32)})),
        "a state that is far too long": "A" * 15_000,
        "state: a number": 7,
        "state: an object": {},
    }
    for what, state in states.items():
        yield Bad(what, 422, "POST", SERIES, _of(values=[1], state=state))
        if what != "a state of another model":
            yield Bad(what, 422, "POST", WORDS, _of(text="the ", state=state))


def _pictures() -> Iterator[Bad]:
    picture = {"Content-Type": "image/png"}
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        whole = graphs.png((9, 99, 199), (40, 30), form)
        kind = {"Content-Type": f"image/{form.lower()}"}
        yield Bad(f"a {form} that breaks off", 422, "POST", IMAGES, whole[: len(whole) // 2], kind)
        yield Bad(f"the first 12 bytes of a {form}", 422, "POST", IMAGES, whole[:12], kind)
    yield Bad("a picture over the limit of pixels", 413, "POST", IMAGES, graphs.png(size=(101, 100)), picture)
    yield Bad("a PNG that says it has 4 × 10⁹ pixels", 413, "POST", IMAGES, _png(65_536, 65_536), picture)
    yield Bad("a PNG without pixels", 422, "POST", IMAGES, _png(0, 0), picture)
    yield Bad("nothing", 422, "POST", IMAGES, b"", picture)
    yield Bad("a text", 422, "POST", IMAGES, b"no picture", picture)
    others = {
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "PDF": b"%PDF-1.7\n",
        "ZIP": b"PK\x03\x04" + bytes(20),
    }
    for form, body in others.items():
        yield Bad(f"a file of {form}", 422, "POST", IMAGES, body, picture)
    queries = ("top_k=0", "top_k=1001", "top_k=many", "top_k=1&top_k=2", "topk=5", "explain=perhaps", "file=x")
    for query in queries:
        yield Bad(f"?{query}", 422, "POST", f"{IMAGES}?{query}", graphs.png(), picture)
    yield Bad("no such model", 404, "POST", f"{IMAGES}?model=nobody", graphs.png(), picture)
    yield Bad("a model of another task", 404, "POST", f"{IMAGES}?model=steps", graphs.png(), picture)
    text = {"Content-Type": "text/plain"}
    yield Bad("a data URL without base64", 400, "POST", IMAGES, b"data:image/png,abc", text)
    yield Bad("a data URL of broken base64", 400, "POST", IMAGES, b"data:image/png;base64,%%", text)
    html = b"data:text/html;base64," + base64.b64encode(b"<html>")
    yield Bad("a data URL of HTML", 415, "POST", IMAGES, html, text)


def _forms() -> Iterator[Bad]:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n%s\r\n'
    png = graphs.png()
    bodies: dict[str, tuple[int, bytes]] = {
        "a form of nothing": (400, b""),
        "a form without its boundary": (400, b"nothing"),
        "a form that breaks off": (400, part % (b"file", png)),
        "a part without a name": (400, b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n"),
        "a form without parts": (422, b"--x--\r\n"),
        "a file under another name": (422, part % (b"image", png) + b"--x--\r\n"),
        "a file that is no picture": (422, part % (b"file", b"no picture") + b"--x--\r\n"),
        "an empty file": (422, part % (b"file", b"") + b"--x--\r\n"),
        "an unknown field beside the file": (
            422,
            part % (b"file", png) + b'--x\r\nContent-Disposition: form-data; name="topk"\r\n\r\n5\r\n--x--\r\n',
        ),
        "a field out of its bounds": (
            422,
            part % (b"file", png) + b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n0\r\n--x--\r\n',
        ),
    }
    for what, (status, body) in bodies.items():
        yield Bad(what, status, "POST", IMAGES, body, kind)
    yield Bad(
        "a form whose boundary is not told", 400, "POST", IMAGES, b"--x--", {"Content-Type": "multipart/form-data"}
    )


def _tensors() -> Iterator[Bad]:
    good = {"name": "values", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}
    changes: dict[str, dict[str, Any]] = {
        "an input of another name": {"name": "x"},
        "a name that is a number": {"name": 7},
        "another datatype": {"datatype": "INT8"},
        "a datatype that nobody knows": {"datatype": "FP128"},
        "datatype: null": {"datatype": None},
        "a shape that does not fit the data": {"shape": [1, 3]},
        "a shape of too many axes": {"shape": [1, 1, 2]},
        "a shape below 0": {"shape": [-1, 2]},
        "a shape of 2^62": {"shape": [2**62, 2]},
        "a shape of texts": {"shape": ["1", "2"]},
        "a shape that is a number": {"shape": 2},
        "data: null": {"data": None},
        "data: an object": {"data": {}},
        "data: texts": {"data": ["a", "b"]},
        "data of unequal lists": {"data": [[1], [2, 3]]},
        "data of truth values": {"data": [True, False]},
        "bytes that are not there": {"data": None, "parameters": {"binary_data_size": 16}},
        "a size below 0": {"parameters": {"binary_data_size": -1}},
        "shared memory": {"parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 16}},
    }
    for what, change in changes.items():
        entry = {name: value for name, value in {**good, **change}.items() if (name, value) != ("data", None)}
        yield Bad(what, 400, "POST", INFER, _of(inputs=[entry]))
    messages: dict[str, Any] = {
        "no inputs": {"inputs": []},
        "inputs: null": {"inputs": None},
        "inputs: an object": {"inputs": {}},
        "an input that is a number": {"inputs": [7]},
        "the same input twice": {"inputs": [good, good]},
        "an output that is not there": {"inputs": [good], "outputs": [{"name": "nothing"}]},
        "outputs: a text": {"inputs": [good], "outputs": "expected"},
        "id: a number": {"inputs": [good], "id": 7},
    }
    for what, message in messages.items():
        yield Bad(what, 400, "POST", INFER, _of(**message))
    for what, body in {"nothing": b"", "no JSON": b"{", "a list": b"[]", "NaN": b'{"inputs": NaN}'}.items():
        yield Bad(what, 400, "POST", INFER, body)
    length = "Inference-Header-Content-Length"
    for value in ("-1", "x", "99999", ""):
        yield Bad(f"a JSON length of {value!r}", 400, "POST", INFER, _of(inputs=[good]), {length: value})
    yield Bad("no such model", 404, "POST", "/v2/models/nobody/infer", _of(inputs=[good]))
    yield Bad("no such version", 404, "POST", "/v2/models/steps/versions/9/infer", _of(inputs=[good]))
    yield Bad("a model that cannot be served", 503, "POST", "/v2/models/broken/infer", _of(inputs=[good]))
    yield Bad("no such path below /v2", 404, "POST", "/v2/models/steps/explain", b"{}")


def _of(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, of a few pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
