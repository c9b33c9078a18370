"""Is this the Open Inference Protocol? The checks that tell, each over HTTP against a server of two workers.

    make conformance        # or: python -m tests.conformance

prints a table of them; `tests/test_conformance.py` runs the same in the tests. The models are tiny graphs whose answers
are mental arithmetic.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from tests import graphs
from tests.test_server import Server, serving

LENGTH = "Inference-Header-Content-Length"
ELEMENTS = {
    "BOOL": (T.BOOL, "?"),
    **{f"{'U' * (sign == 'u')}INT{bits}": (getattr(T, f"{'U' * (sign == 'u')}INT{bits}"), f"<{sign}{bits // 8}") for sign in "iu" for bits in (8, 16, 32, 64)},
    "FP16": (T.FLOAT16, "<f2"), "FP32": (T.FLOAT, "<f4"), "FP64": (T.DOUBLE, "<f8"),
    "BYTES": (T.STRING, "O"),
}  # fmt: skip
"""Datatype -> ONNX's element type, and NumPy's."""


def identity(element: int) -> Callable[[Path], Path]:
    """y = x, (batch, width)."""
    axes = ["batch", "width"]
    node = helper.make_node("Identity", ["x"], ["y"])
    return lambda path: graphs.save(path, [node], [("x", element, axes)], [("y", element, axes)])


def sum_and_quotient(path: Path) -> Path:
    """sum = a + b + c and quotient = a / b, each float32 (batch, 2)."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["ab", "c"], ["sum"]),
        helper.make_node("Div", ["a", "b"], ["quotient"]),
    ]
    of = ["batch", 2]
    return graphs.save(
        path, nodes, [(name, T.FLOAT, of) for name in "abc"], [(name, T.FLOAT, of) for name in ("sum", "quotient")]
    )


def write_models(folder: Path) -> None:
    """A repository of them; `broken` cannot be served."""
    for name, (element, _) in ELEMENTS.items():
        graphs.write_model(folder / name, task="tensor", graph=identity(element))
    graphs.write_model(folder / "affine", task="tensor", graph=graphs.affine)
    graphs.write_model(folder / "affine", task="tensor", graph=identity(T.FLOAT), version="2", default_version="1")
    graphs.write_model(folder / "three", task="tensor", graph=sum_and_quotient)
    graphs.write_model(folder / "broken", task="tensor", graph=graphs.affine)
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"broken")
    graphs.colour_model(folder)


@dataclass
class Caller:
    """Asks a server, as clients of the protocol do.

    Attributes:
        server: that is asked.
        http: a connection to it; it accepts no compression unless told.
    """

    server: Server
    http: httpx.Client

    def infer(self, model: str, inputs: list[dict[str, Any]], *raw: bytes, **fields: Any) -> httpx.Response:
        """Post tensors: JSON, and bytes after it where there are some; `headers` are added."""
        headers = fields.pop("headers", {})
        head = json.dumps({"inputs": inputs, **fields}).encode()
        if raw:
            headers = {LENGTH: str(len(head)), **headers}
        return self.http.post(f"/v2/models/{model}/infer", content=b"".join([head, *raw]), headers=headers)

    def refused(self, answer: httpx.Response, status: int, *words: str) -> None:
        """See that an answer is an error of the protocol that says these words; and that the server lives."""
        assert answer.status_code == status, (answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/json"
        for word in words:
            assert word in answer.json()["error"], (word, answer.text)
        assert self.http.get("/v2/health/live").status_code == 200


def listed(name: str, datatype: str, data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    """An input whose values are in the JSON."""
    return {"name": name, "shape": list(np.shape(data)) if shape is None else shape, "datatype": datatype, "data": data}


def attached(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    """An input whose values follow the JSON."""
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


def floats(*values: float) -> bytes:
    """As FP32 goes over the wire."""
    return np.array(values, "<f4").tobytes()


def strings(*values: bytes) -> bytes:
    """As BYTES goes over the wire."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def opened(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of an answer, and the bytes of each output that is not in it."""
    assert answer.status_code == 200, answer.text
    at = int(answer.headers.get(LENGTH, len(answer.content)))
    message, found = json.loads(answer.content[:at]), {}
    assert answer.headers["content-type"] == (
        "application/octet-stream" if LENGTH in answer.headers else "application/json"
    )
    for output in message["outputs"]:
        if (size := output.get("parameters", {}).get("binary_data_size")) is not None:
            assert "data" not in output
            found[output["name"]], at = answer.content[at : at + size], at + size
    assert at == len(answer.content)
    return message, found


X = listed("x", "FP32", [[1, 2], [3, 4]])
CHECKS: list[tuple[int, str, Callable[[Caller], str | None]]] = []
"""Number, title and function of every check; a function may return a note."""


def check(number: int, title: str) -> Callable[[Callable[[Caller], str | None]], Callable[[Caller], str | None]]:
    """Have a function among the checks."""

    def add(function: Callable[[Caller], str | None]) -> Callable[[Caller], str | None]:
        CHECKS.append((number, title, function))
        return function

    return add


@check(1, "Nested, flat and half-nested data are the same")
def nested_data(call: Caller) -> None:
    for data in ([[1, 2], [3, 4]], [1, 2, 3, 4], [[1, 2], 3, 4], [[[1], 2], [[3, 4]]]):
        (output,) = call.infer("affine", [listed("x", "FP32", data, [2, 2])]).json()["outputs"]
        assert (output["shape"], output["data"]) == ([2, 2], [3, 5, 7, 9])


@check(2, "Every datatype comes back from JSON and from bytes, its limits included")
def datatypes(call: Caller) -> None:
    for name, (_, kind) in ELEMENTS.items():
        dtype = np.dtype(kind)
        if name == "BYTES":
            values: list[Any] = ["", "plain", "é☃𝄞", "a\0b"]
            raw = strings(*(value.encode() for value in values))
        else:
            edges = {"b": None, "f": np.finfo, "i": np.iinfo, "u": np.iinfo}[dtype.kind]
            exact = [False, True] if edges is None else [0, 1, edges(dtype).min, edges(dtype).max]
            values, raw = np.array(exact, dtype).tolist(), np.array(exact, dtype).tobytes()
        shape, both = [1, len(values)], {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
        for inputs, rest in (([listed("x", name, [values])], ()), ([attached("x", name, shape, len(raw))], (raw,))):
            _, found = opened(call.infer(name, inputs, *rest, **both))
            assert found["y"] == raw, name
            (output,) = call.infer(name, inputs, *rest).json()["outputs"]
            assert (output["datatype"], output["shape"]) == (name, shape)
            assert np.array(output["data"], dtype).tolist() == values, name
        if name.strip("U").startswith("INT"):
            for beyond in (int(np.iinfo(kind).max) + 1, int(np.iinfo(kind).min) - 1, 0.5):
                call.refused(call.infer(name, [listed("x", name, [[beyond]])]), 400, "element 0", name)


THREE = [attached("c", "FP32", [1, 2], 8), listed("a", "FP32", [[10, 20]]), attached("b", "FP32", [1, 2], 8)]


@check(3, "Two inputs as bytes and one in the JSON, in mixed order")
def mixed_inputs(call: Caller) -> None:
    answer = call.infer("three", THREE, floats(100, 200), floats(1, 2)).json()
    assert {o["name"]: o["data"] for o in answer["outputs"]} == {"sum": [111, 222], "quotient": [10, 10]}


@check(4, "All outputs as bytes, but for one")
def mixed_outputs(call: Caller) -> None:
    outputs = [{"name": "quotient", "parameters": {"binary_data": False}}, {"name": "sum"}]
    answer = call.infer("three", THREE, floats(100, 200), floats(1, 2), outputs=outputs, parameters={"binary_data_output": True})  # fmt: skip
    message, found = opened(answer)
    assert [output["name"] for output in message["outputs"]] == ["quotient", "sum"]
    assert (message["outputs"][0]["data"], found) == ([10, 10], {"sum": floats(111, 222)})


@check(5, "gzip and deflate, both ways, with bytes after the JSON")
def compression(call: Caller) -> None:
    head = json.dumps({"inputs": [attached("x", "FP32", [1, 2], 8)], "parameters": {"binary_data_output": True}}).encode()  # fmt: skip
    pressed = {"gzip": gzip.compress, "deflate": zlib.compress}
    for sent, press in pressed.items():
        for accepted in ("gzip", "deflate", "gzip;q=0.5, deflate;q=1, identity;q=0.1"):
            headers = {LENGTH: str(len(head)), "Content-Encoding": sent, "Accept-Encoding": accepted}
            answer = call.http.post("/v2/models/affine/infer", content=press(head + floats(1, 2)), headers=headers)
            assert answer.headers["content-encoding"] == ("gzip" if accepted == "gzip" else "deflate")
            assert opened(answer)[1] == {"y": floats(3, 5)}
    for accepted in ("identity", "br", "gzip;q=0", "identity, gzip;q=0.5"):
        assert "content-encoding" not in call.infer("affine", [X], headers={"Accept-Encoding": accepted}).headers
    unknown = call.infer("affine", [X], headers={"Content-Encoding": "br"})
    call.refused(unknown, 415, "br")
    assert unknown.headers["accept-encoding"] == "gzip, deflate"


@check(6, "A body of nothing but bytes")
def raw_body(call: Caller) -> None:
    for model, body, expected in (("affine", floats(1, 2), floats(3, 5)), ("FP64", b"\0" * 16, b"\0" * 16)):
        answer = call.http.post(f"/v2/models/{model}/infer", content=body, headers={LENGTH: "0"})
        assert opened(answer)[1] == {"y": expected}
    call.refused(call.http.post("/v2/models/three/infer", content=floats(1), headers={LENGTH: "0"}), 400, "one input")


@check(7, "Empty tensors")
def empty(call: Caller) -> None:
    for shape in ([0, 2], [1, 0], [0, 0]):
        for inputs in ([listed("x", "FP32", [], shape)], [attached("x", "FP32", shape, 0)]):
            raw = (b"",) if "data" not in inputs[0] else ()
            (output,) = call.infer("affine", inputs, *raw).json()["outputs"]
            assert (output["shape"], output["data"]) == (shape, [])
            message, found = opened(call.infer("affine", inputs, *raw, parameters={"binary_data_output": True}))
            assert (message["outputs"][0]["parameters"]["binary_data_size"], found) == (0, {"y": b""})


@check(8, "Strings: empty, with a zero byte, beyond ASCII; no UTF-8 is refused")
def texts(call: Caller) -> str:
    values = [b"", b"a\0b", "é☃𝄞".encode()]
    raw = strings(*values)
    answer = call.infer("BYTES", [attached("x", "BYTES", [1, 3], len(raw))], raw, parameters={"binary_data_output": True})  # fmt: skip
    assert opened(answer)[1] == {"y": raw}
    bad = strings(b"\xff")
    call.refused(call.infer("BYTES", [attached("x", "BYTES", [1, 1], len(bad))], bad), 400, "UTF-8")
    past = (9).to_bytes(4, "little") + b"abc"
    call.refused(call.infer("BYTES", [attached("x", "BYTES", [1, 1], 7)], past), 400, "past the end")
    return "strings of ONNX graphs are UTF-8: others are 400"


@check(9, "NaN and infinity in answers: null and counted in JSON, exact as bytes; refused in a request's JSON")
def not_finite(call: Caller) -> None:
    inputs = [listed("a", "FP32", [[0, 1]]), listed("b", "FP32", [[0, 0]]), listed("c", "FP32", [[0, 0]])]
    answer = call.infer("three", inputs, outputs=[{"name": "quotient"}])
    assert "NaN" not in answer.text
    assert "Infinity" not in answer.text
    (output,) = answer.json()["outputs"]
    assert (output["data"], output["parameters"]) == ([None, None], {"nonfinite_count": 2})
    _, found = opened(call.infer("three", inputs, parameters={"binary_data_output": True}))
    assert np.array_equal(np.frombuffer(found["quotient"], "<f4"), [np.nan, np.inf], equal_nan=True)
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [NaN]}]}'
    call.refused(call.http.post("/v2/models/affine/infer", content=body), 400, "'x'", "element 0", "NaN")


@check(10, "Integers beyond 2^53 survive JSON both ways")
def large_integers(call: Caller) -> None:
    for name, values in (("INT64", [2**53 + 1, -(2**63), 2**63 - 1]), ("UINT64", [2**53 + 1, 2**63 + 1, 2**64 - 1])):
        (output,) = call.infer(name, [listed("x", name, [values])]).json()["outputs"]
        assert output["data"] == values


@check(11, "Another datatype, rank, axis or count: 400 with names and numbers")
def misfits(call: Caller) -> None:
    call.refused(call.infer("affine", [X | {"datatype": "INT64"}]), 400, "'x'", "INT64", "FP32")
    call.refused(call.infer("affine", [X | {"shape": [4]}]), 400, "'x'", "[4]", "[-1, -1]")
    call.refused(call.infer("three", [listed(n, "FP32", [[1, 2, 3]]) for n in "abc"]), 400, "'a'", "[1, 3]", "[-1, 2]")
    call.refused(call.infer("affine", [X | {"shape": [2, 3]}]), 400, "'x'", "4 values", "6")
    for shape in ([-1, 2], [2.0, 2], ["2", 2], [2**62, 2**62]):
        call.refused(call.infer("affine", [X | {"shape": shape}]), 400, "'x'")
    for data in ([1, None], [1, "2"], [1, True]):
        call.refused(call.infer("affine", [listed("x", "FP32", data, [1, 2])]), 400, "'x'", "element 1")


@check(12, "Names that are unknown, missing or given twice")
def names(call: Caller) -> None:
    call.refused(call.infer("affine", [X, X]), 400, "'x'", "twice")
    call.refused(call.infer("affine", [X | {"name": "z"}]), 400, "'z'", "x")
    call.refused(call.infer("affine", []), 400, "x")
    call.refused(call.infer("affine", [X], outputs=[{"name": "y"}, {"name": "y"}]), 400, "'y'", "twice")
    call.refused(call.infer("affine", [X], outputs=[{"name": "z"}]), 400, "'z'", "y")


@check(13, "The id comes back, and only where there was one")
def identities(call: Caller) -> None:
    assert call.infer("affine", [X], id="7").json()["id"] == "7"
    assert "id" not in call.infer("affine", [X]).json()


@check(14, "Paths with and without a version agree; an unknown version is 404")
def versions(call: Caller) -> None:
    assert call.infer("affine", [X]).json() == call.infer("affine/versions/1", [X]).json()
    assert call.infer("affine/versions/2", [X]).json()["outputs"][0]["data"] == [1, 2, 3, 4]
    call.refused(call.infer("affine/versions/3", [X]), 404, "'3'")
    for part in ("", "/ready", "/config", "/stats"):
        assert call.http.get(f"/v2/models/affine/versions/2{part}").status_code == 200
        call.refused(call.http.get(f"/v2/models/affine/versions/3{part}"), 404, "'3'")
        call.refused(call.http.get(f"/v2/models/nobody{part}"), 404, "nobody")
    assert call.http.get("/v2/models/affine").json()["versions"] == ["1", "2"]


@check(15, "Every error has `error`, on every route")
def errors(call: Caller) -> None:
    call.refused(call.http.get("/v2/nowhere"), 404)
    call.refused(call.http.post("/v2/models/affine/infer", content=b"{"), 400)
    call.refused(call.http.post("/v2/models/affine/infer", content=b"0" * (17 << 20)), 413)
    call.refused(call.http.post("/v2/repository/index", json={"ready": "yes"}), 400, "`ready`")
    call.refused(call.http.post("/v2/repository/index", content=b"["), 400)
    call.refused(call.http.post("/v2/logging", json={"log_level": 1}), 400, "log_level")


@check(16, "A header of the JSON's length that is wrong")
def header_length(call: Caller) -> None:
    def post(length: str | None, body: bytes) -> httpx.Response:
        headers = {} if length is None else {LENGTH: length}
        return call.http.post("/v2/models/affine/infer", content=body, headers=headers)

    head = json.dumps({"inputs": [attached("x", "FP32", [1, 2], 8)]}).encode()
    right = str(len(head))
    assert post(right, head + floats(1, 2)).status_code == 200
    for length in ("x", "-1", "1.5", str(len(head) + 9), str(2**31), str(2**63)):
        call.refused(post(length, head + floats(1, 2)), 400, "Inference-Header-Content-Length")
    call.refused(post(None, head), 400, "Inference-Header-Content-Length")
    call.refused(post(right, head + floats(1)), 400, "8", "4 bytes")
    call.refused(post(right, head + floats(1, 2, 3)), 400, "4 bytes are left over")
    wrong = json.dumps({"inputs": [attached("x", "FP32", [1, 2], 4)]}).encode()
    call.refused(post(str(len(wrong)), wrong + floats(1)), 400, "4", "8 bytes")


@check(17, "Health: alive with a broken model, not ready while draining")
def health(call: Caller) -> str:
    assert call.http.get("/v2/health/live").status_code == call.http.get("/v2/health/ready").status_code == 200
    assert call.http.get("/v2/models/affine/ready").status_code == 200
    call.refused(call.http.get("/v2/models/broken/ready"), 503)
    call.refused(call.infer("broken", [X]), 503, "not an ONNX file")
    with tempfile.TemporaryDirectory() as folder:
        graphs.write_model(Path(folder) / "affine", task="tensor", graph=graphs.affine)
        with serving(Path(folder), workers=1, drain_grace_s=2) as leaving:
            leaving.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert httpx.get(f"{leaving.url}/v2/health/live").status_code == 200
            assert httpx.get(f"{leaving.url}/v2/health/ready").status_code == 503
    return "while loading: tests/test_loading_server.py"


@check(18, "The index lists every version with its state and reason, and filters by `ready`")
def index(call: Caller) -> str:
    everything = call.http.post("/v2/repository/index").json()
    entries = {(entry["name"], entry.get("version")): entry for entry in everything}
    assert entries["affine", "2"] == {"name": "affine", "version": "2", "state": "READY"}
    assert entries["broken", "1"]["state"] == "UNAVAILABLE"
    assert "not an ONNX file" in entries["broken", "1"]["reason"]
    ready = call.http.post("/v2/repository/index", json={"ready": True}).json()
    assert ready == [entry for entry in everything if entry["state"] == "READY"] != everything
    call.refused(call.http.post("/v2/repository/models/broken/load"), 400, "not an ONNX file")
    call.refused(call.http.post("/v2/repository/models/nobody/load"), 404, "nobody")
    call.refused(call.http.post("/v2/repository/models/nobody/unload"), 404, "nobody")
    assert call.http.post("/v2/repository/models/three/unload", json={"parameters": {"unload_dependents": True}}).content == b""  # fmt: skip
    (entry,) = (each for each in call.http.post("/v2/repository/index").json() if each["name"] == "three")
    assert (entry["state"], "unloaded" in entry["reason"]) == ("UNAVAILABLE", True)
    call.refused(call.http.get("/v2/models/three/ready"), 503, "load")
    loaded = call.http.post("/v2/repository/models/three/load", json={"parameters": {}})
    assert (loaded.status_code, loaded.content) == (200, b"")
    assert call.http.get("/v2/models/three/ready").status_code == 200
    assert call.infer("affine", [X]).status_code == 200
    return "before, during and after loads, failed ones included; see also tests/test_swap.py"


@check(19, "Files that a load request would write outside the repository")
def escaping_files(call: Caller) -> str:
    body = {"parameters": {"config": "{}", "file:../../1/model.onnx": "AAAA"}}
    call.refused(call.http.post("/v2/repository/models/affine/load", json=body), 400, "leads out of the model's folder")
    for parameters in ({"config": "{}"}, {"config": "{}", "file:1/model.onnx": "AAAA"}):
        call.refused(call.http.post("/v2/repository/models/affine/load", json={"parameters": parameters}), 501)
    call.refused(call.http.post("/v2/repository/models/affine/load", json={"parameters": []}), 400, "parameters")
    assert call.infer("affine", [X]).status_code == 200
    return "no load request writes files: one that stays inside is 501"


@check(20, "No content type, or any")
def content_types(call: Caller) -> None:
    for headers in ({}, {"Content-Type": "application/json"}, {"Content-Type": "application/octet-stream"}):
        assert call.infer("affine", [X], headers=headers).status_code == 200


@check(21, "Another method is 405")
def methods(call: Caller) -> None:
    for method, path in (
        ("PUT", "/v2"), ("DELETE", "/v2/models/affine"), ("GET", "/v2/models/affine/infer"), ("PUT", "/v2/models/affine/infer"),
        ("GET", "/v2/repository/index"), ("DELETE", "/v2/logging"), ("POST", "/v2/models/affine/stats"),
    ):  # fmt: skip
        answer = call.http.request(method, path)
        call.refused(answer, 405)
        assert answer.headers["allow"]
    return "HEAD is GET without its body"  # type: ignore[return-value]


@check(22, "The Python client of Triton, unmodified: every call")
def tritonclient(call: Caller) -> str | None:
    if importlib.util.find_spec("tritonclient") is None:
        return "not tried: tritonclient is not installed"
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(f"127.0.0.1:{call.server.port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("affine")
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata()["name"] == "gridloop"
        assert client.get_model_metadata("affine", "2")["inputs"][0]["name"] == "x"
        assert client.get_model_config("affine")["max_batch_size"] == 10_000
        assert {"name": "affine", "version": "1", "state": "READY"} in client.get_model_repository_index()
        given = triton.InferInput("x", [1, 2], "FP32")
        for binary_in in (True, False):
            given.set_data_from_numpy(np.array([[1, 2]], np.float32), binary_data=binary_in)
            for outputs in (None, [triton.InferRequestedOutput("y", binary_data=False)]):
                for pressed in (None, "gzip", "deflate"):
                    result = client.infer("affine", [given], outputs=outputs, request_compression_algorithm=pressed, response_compression_algorithm=pressed)  # fmt: skip
                    assert result.as_numpy("y").tolist() == [[3, 5]]
        assert client.async_infer("affine", [given]).get_result().as_numpy("y").tolist() == [[3, 5]]
        assert client.get_inference_statistics("affine", "1")["model_stats"][0]["inference_count"] >= 13
        assert client.get_inference_statistics()["model_stats"]
        assert client.get_log_settings()["log_error"] is True
        assert client.get_trace_settings() == client.update_trace_settings("affine", {})
        client.unload_model("affine")
        assert not client.is_model_ready("affine")
        client.load_model("affine")
        assert client.is_model_ready("affine")
        refused = (
            lambda: client.load_model("nobody"),
            lambda: client.load_model("affine", config="{}"),
            lambda: client.update_log_settings({"log_verbose_level": 5}),
            lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
            lambda: client.infer("affine", [given], timeout=1),
        )
        for ask in refused:
            with pytest.raises(InferenceServerException) as error:
                ask()
            assert error.value.message()
    finally:
        client.close()
    return "changes of settings, and of a configuration by a load, are refused with the reason"


@check(23, "Classes: the highest values with place and label; more than there are; without labels")
def classes(call: Caller) -> None:
    image = listed("image", "UINT8", np.full((2, 2, 2, 3), [200, 0, 100], np.uint8).tolist())
    for wanted in (1, 2, 3, 9):
        asked = [{"name": "logits", "parameters": {"classification": wanted}}]
        (output,) = call.infer("colours", [image], outputs=asked).json()["outputs"]
        best = ["2.0:0:red", "1.0:2:blue", "0.0:1:green"][:wanted]
        assert output == {"name": "logits", "datatype": "BYTES", "shape": [2, len(best)], "data": best * 2}
    asked[0]["parameters"]["binary_data"] = True
    assert opened(call.infer("colours", [image], outputs=asked))[1] == {
        "logits": strings(*(b.encode() for b in best * 2))
    }
    top = [{"name": "y", "parameters": {"classification": 2}}]
    for name, values, expected in (
        ("FP32", [[0.1, 3e-7, 0.1]], ["0.1:0", "0.1:2"]),
        ("INT64", [[5, 2**53 + 1, 2**53]], [f"{2**53 + 1}:1", f"{2**53}:2"]),
        ("UINT8", [[0, 255, 7]], ["255:1", "7:2"]),
    ):
        (output,) = call.infer(name, [listed("x", name, values)], outputs=top).json()["outputs"]
        assert output["data"] == expected
    call.refused(call.infer("BYTES", [listed("x", "BYTES", [["a"]])], outputs=top), 400, "'y'", "text")
    for wrong in (-1, 1.5, True, "3"):
        asked = [{"name": "y", "parameters": {"classification": wrong}}]
        call.refused(call.infer("affine", [X], outputs=asked), 400, "`classification`")


@check(24, "Parameters: those of Triton itself are refused, a timeout is kept, others pass")
def parameters(call: Caller) -> str:
    call.refused(call.infer("affine", [X], parameters={"triton_enable_empty_final_response": True}), 400, "triton_")
    assert (
        call.infer("affine", [X], parameters={"custom": "x", "priority": 3, "timeout": 10_000_000}).status_code == 200
    )
    call.refused(call.infer("affine", [X], parameters={"timeout": 1}), 504)
    call.refused(call.infer("affine", [X], parameters={"timeout": 1}, outputs=[{"name": "y"}]), 504)
    wide = listed("x", "FP32", [0.5] * 40_000, [1, 40_000])
    call.refused(call.infer("affine", [wide], parameters={"timeout": 1}), 504)
    for name in ("timeout", "priority"):
        for wrong in (-1, "soon", 1.5, True):
            call.refused(call.infer("affine", [X], parameters={name: wrong}), 400, name)
    return "priority has no effect"


@check(25, "Statistics count requests, rows and runs")
def statistics(call: Caller) -> None:
    def stats() -> dict[str, Any]:
        (found,) = call.http.get("/v2/models/three/stats").json()["model_stats"]
        assert found in call.http.get("/v2/models/stats").json()["model_stats"]
        return found

    before = stats()
    three = [listed(name, "FP32", [[1, 2], [3, 4], [5, 6]]) for name in "abc"]
    for _ in range(2):
        assert call.infer("three", three).status_code == 200
    call.refused(call.infer("three", three[:2]), 400)
    after = stats()
    of, was = after["inference_stats"], before["inference_stats"]
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 2
    assert of["success"]["count"] - was["success"]["count"] == 2
    assert of["fail"]["count"] - was["fail"]["count"] == 1
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert of[stage]["count"] - was[stage]["count"] == 2
        assert of[stage]["ns"] > was[stage]["ns"]
    (of_three,) = (entry for entry in after["batch_stats"] if entry["batch_size"] == 3)
    assert of_three["compute_infer"]["count"] >= 2
    assert abs(after["last_inference"] / 1e3 - time.time()) < 60
    for _ in range(100):  # the other worker hears of it soon, whichever is asked
        with httpx.Client(base_url=call.server.url) as other, httpx.Client(base_url=call.server.url) as another:
            told = [each.get("/v2/models/three/stats").json()["model_stats"][0] for each in (other, another)]
        if [each["inference_count"] for each in told] == [after["inference_count"]] * 2:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(told)


@contextmanager
def ready() -> Iterator[Caller]:
    """A server with the models, and somebody who asks it."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        with (
            serving(Path(folder), workers=2, host="127.0.0.1", log_level="warning") as server,
            httpx.Client(base_url=server.url, timeout=30, headers={"Accept-Encoding": "identity"}) as http,
        ):
            yield Caller(server, http)


def main() -> int:
    """Print the table; the exit code is 1 where a check fails."""
    failed = 0
    with ready() as caller:
        for number, title, function in CHECKS:
            try:
                note, result = function(caller), "yes"
            except AssertionError as error:
                note, result, failed = f"{error}".partition("\n")[0], "NO", failed + 1
            print(f"{number:>2}  {result:<3}  {title}{f' ({note})' if note else ''}", flush=True)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
