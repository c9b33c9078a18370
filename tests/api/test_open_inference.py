"""The Open Inference Protocol: what its clients rely on, and every refusal, on the real application."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto as T
from onnx import helper

from service import __version__
from service.api.open_inference.codec import Codec, Reply
from service.api.open_inference.datatypes import DATATYPES
from service.api.open_inference.document import path_items
from service.api.open_inference.infer import match
from service.api.open_inference.values import MAX_DEPTH
from service.errors import BadRequest, ServiceError
from service.graph import Signature, Steps, TensorSpec
from service.runtime.drive import drive
from service.runtime.session import _DTYPES, OnnxSession
from service.schemas.open_inference import InferenceRequest, InferenceResponse
from service.tasks.base import ModelRef, Task, TaskInput, TaskOutput
from tests import graphs
from tests.conftest import running

LENGTH = "Inference-Header-Content-Length"


class Nothing(Task[TaskInput, TaskOutput]):
    """Serves any graph, and answers nothing but `/v2`."""

    name = "nothing"
    summary = "What is there?"
    Input = TaskInput
    Output = TaskOutput

    def steps(self, request: TaskInput) -> Steps[TaskOutput]:
        raise NotImplementedError
        yield


def identity(element: int) -> Any:
    """y = x, of an element type, (batch, width)."""

    def write(path: Path) -> Path:
        axes = ["batch", "width"]
        return graphs.save(
            path, [helper.make_node("Identity", ["x"], ["y"])], [("x", element, axes)], [("y", element, axes)]
        )

    return write


def scaled(path: Path) -> Path:
    """up = x * k + b, down = x / k, for x float32 (batch, 2), k int32 (batch, 1), b float64 (batch, 1)."""
    nodes = [
        helper.make_node("Cast", ["k"], ["kf"], to=T.FLOAT),
        helper.make_node("Cast", ["b"], ["bf"], to=T.FLOAT),
        helper.make_node("Mul", ["x", "kf"], ["product"]),
        helper.make_node("Add", ["product", "bf"], ["up"]),
        helper.make_node("Div", ["x", "kf"], ["down"]),
    ]
    inputs = [("x", T.FLOAT, ["batch", 2]), ("k", T.INT32, ["batch", 1]), ("b", T.DOUBLE, ["batch", 1])]
    return graphs.save(path, nodes, inputs, [("up", T.FLOAT, ["batch", 2]), ("down", T.FLOAT, ["batch", 2])])


def blown_up(path: Path) -> Path:
    """y = x repeated a thousand times, for x float32 (batch, 1)."""
    return graphs.save(
        path,
        [helper.make_node("Tile", ["x", "times"], ["y"])],
        [("x", T.FLOAT, ["batch", 1])],
        [("y", T.FLOAT, ["batch", 1000])],
        {"times": np.array([1, 1000])},
    )


def positions(path: Path) -> Path:
    """y = the places of the values that are not zero, (n, 2): its rows are not the input's."""
    nodes = [helper.make_node("NonZero", ["x"], ["found"]), helper.make_node("Transpose", ["found"], ["y"])]
    return graphs.save(path, nodes, [("x", T.FLOAT, ["batch", 3])], [("y", T.INT64, ["n", 2])])


def summed(path: Path) -> Path:
    """y = the sum of all x: no row of it belongs to a caller."""
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)]
    return graphs.save(path, nodes, [("x", T.FLOAT, ["batch", 1])], [("y", T.FLOAT, [1, 1])])


ELEMENTS = {
    "BOOL": T.BOOL, "UINT8": T.UINT8, "UINT16": T.UINT16, "UINT32": T.UINT32, "UINT64": T.UINT64, "INT8": T.INT8,
    "INT16": T.INT16, "INT32": T.INT32, "INT64": T.INT64, "FP16": T.FLOAT16, "FP32": T.FLOAT, "FP64": T.DOUBLE,
    "BYTES": T.STRING,
}  # fmt: skip
DTYPES = {datatype.name: datatype.dtype for datatype in DATATYPES.values()}


def model(folder: Path, name: str, graph: Any, version: str = "1", **manifest: Any) -> None:
    graphs.write_model(folder / name, task="nothing", graph=graph, version=version, **manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models whose answers are mental arithmetic; one has two versions."""
    model(tmp_path, "affine", graphs.affine)
    model(tmp_path, "affine", identity(T.FLOAT), version="2", default_version="1")
    model(tmp_path, "scaled", scaled)
    model(tmp_path, "sums", graphs.running_sum)
    model(tmp_path, "table", graphs.reciprocal_index)
    return tmp_path


def serving(folder: Path, **options: Any) -> Any:
    """The application with models of the task that serves any graph."""
    return running(folder, tasks={"nothing": Nothing}, **options)


@pytest.fixture
async def v2(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(folder) as client:
        yield client


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identities")
    for name, element in ELEMENTS.items():
        model(folder, name, identity(element))
    return folder


def codec_of(session: OnnxSession) -> Codec:
    return Codec(ModelRef(name="m", version="1"), session.signature, max_bytes=2**20, max_length=1000, max_rows=1000)


@pytest.fixture(scope="module")
def sessions(identities: Path) -> dict[str, OnnxSession]:
    return {name: OnnxSession(identities / name / "1" / "model.onnx") for name in ELEMENTS}


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    return OnnxSession(graphs.running_sum(tmp_path_factory.mktemp("sums") / "1" / "model.onnx"))


@pytest.fixture(scope="module")
def affine(tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    return OnnxSession(graphs.affine(tmp_path_factory.mktemp("affine") / "1" / "model.onnx"))


def listed(name: str, datatype: str, values: Any, shape: Any = None) -> dict[str, Any]:
    """An input whose values are in the JSON."""
    return {
        "name": name,
        "shape": list(np.shape(values)) if shape is None else shape,
        "datatype": datatype,
        "data": values,
    }


def raw_bytes(array: Any, datatype: str) -> bytes:
    """A tensor's bytes as the protocol has them, written independently of the service."""
    if datatype == "BYTES":
        return b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in np.ravel(array).tolist())
    return np.asarray(array).astype(DTYPES[datatype].newbyteorder("<")).tobytes()


def attached(name: str, datatype: str, array: Any) -> tuple[dict[str, Any], bytes]:
    """An input whose values follow the JSON, and these."""
    raw = raw_bytes(array, datatype)
    parameters = {"binary_data_size": len(raw)}
    return {"name": name, "shape": list(np.shape(array)), "datatype": datatype, "parameters": parameters}, raw


async def post(client: httpx.AsyncClient, model: str, message: Any, *raw: bytes, **headers: str) -> httpx.Response:
    """Post JSON, with the bytes of tensors after it where there are some."""
    head = json.dumps(message).encode()
    if raw:
        headers = {LENGTH: str(len(head))} | headers
    return await client.post(f"/v2/models/{model}/infer", content=b"".join([head, *raw]), headers=headers)


async def outputs_of(client: httpx.AsyncClient, model: str, *inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Name -> data of an answer in JSON."""
    answer = await post(client, model, {"inputs": inputs, **fields})
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def unpack(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An answer's JSON, and the bytes of its binary outputs by name."""
    assert answer.status_code == 200, answer.text
    if LENGTH.lower() not in answer.headers:
        assert answer.headers["content-type"] == "application/json"
        return answer.json(), {}
    assert answer.headers["content-type"] == "application/octet-stream"
    at = int(answer.headers[LENGTH])
    message = json.loads(answer.content[:at])
    found = {}
    for output in message["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            assert "data" not in output
            found[output["name"]] = answer.content[at : at + size]
            at += size
    assert at == len(answer.content)
    return message, found


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    """An error in the protocol's form, which names what was wrong."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    for word in words:
        assert word in answer.json()["error"], answer.json()
    assert answer.headers["x-request-id"]
    assert "infer;dur=" in answer.headers["server-timing"]


# --- metadata and health


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server_says_what_it_is(v2: httpx.AsyncClient, path: str) -> None:
    answer = await v2.get(path)
    extensions = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
    assert answer.json() == {"name": "gridloop", "version": __version__, "extensions": extensions}


async def test_a_model_says_what_it_takes_and_gives(v2: httpx.AsyncClient) -> None:
    assert (await v2.get("/v2/models")).json() == {"models": ["affine", "scaled", "sums", "table"]}
    assert (await v2.get("/v2/models/scaled")).json() == {
        "name": "scaled",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "k", "datatype": "INT32", "shape": [-1, 1]},
            {"name": "b", "datatype": "FP64", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "up", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "down", "datatype": "FP32", "shape": [-1, 2]},
        ],
    }
    inputs = {entry["name"]: entry for entry in (await v2.get("/v2/models/sums")).json()["inputs"]}
    assert [name for name, entry in inputs.items() if entry.get("parameters") == {"optional": True}] == [
        "sequence_lens",
        "h",
    ]


async def test_versions_have_paths_of_their_own(v2: httpx.AsyncClient) -> None:
    assert (await v2.get("/v2/models/affine/versions/2")).json()["versions"] == ["1", "2"]
    assert (await v2.get("/v2/models/affine/versions/2/ready")).json() == {"ready": True, "name": "affine"}
    refused(await v2.get("/v2/models/affine/versions/3"), 404, "'3'", "1, 2")
    x = {"inputs": [listed("x", "FP32", [[3]])]}
    for path, version, y in (("affine", "1", 7), ("affine/versions/1", "1", 7), ("affine/versions/2", "2", 3)):
        answer = (await post(v2, path, x)).json()
        assert (answer["model_version"], answer["outputs"][0]["data"]) == (version, [y])
    refused(await post(v2, "affine/versions/3", x), 404, "'3'")


async def test_health_is_a_status_code(v2: httpx.AsyncClient) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/affine/ready"):
        assert (await v2.get(path)).status_code == 200
    refused(await v2.get("/v2/models/nobody/ready"), 404, "nobody")


async def test_not_ready_while_a_required_model_is_missing(folder: Path) -> None:
    model(folder, "broken", graphs.affine, required=True)
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"broken")
    async with serving(folder) as client:
        answer = await client.get("/v2/health/ready")
        assert answer.status_code == 503
        assert answer.json()["ready"] is False
        assert "broken: " in answer.json()["error"]
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.get("/v2/models")).json() == {"models": ["affine", "scaled", "sums", "table"]}
        for path in ("/v2/models/broken", "/v2/models/broken/ready", "/v2/models/broken/versions/1/ready"):
            refused(await client.get(path), 503, "not an ONNX file")
        refused(await post(client, "broken", {"inputs": []}), 503, "not an ONNX file")
        assert (await post(client, "affine", {"inputs": [listed("x", "FP32", [[3]])]})).status_code == 200


async def test_while_draining_the_server_is_alive_and_not_ready(v2: httpx.AsyncClient) -> None:
    v2.app.app.state.gate.draining = True  # type: ignore[attr-defined]
    assert (await v2.get("/v2/health/live")).status_code == 200
    assert (await v2.get("/v2/health/ready")).status_code == 503
    answer = await post(v2, "affine", {"inputs": [listed("x", "FP32", [[3]])]})
    refused(answer, 503, "shutting down")
    assert "retry-after" in answer.headers


# --- values

BYTES = ["", "a\0b", "é☃𝄞", "plain"]
EDGES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    **{
        name: [0, 1, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
        for name, dtype in DTYPES.items()
        if dtype.kind in "iu"
    },
    **{
        name: [0.0, -1.5, float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)]
        for name, dtype in DTYPES.items()
        if dtype.kind == "f"
    },
    "BYTES": BYTES,
}


async def test_every_datatype_comes_back_as_it_was_sent_in_either_form(identities: Path) -> None:
    async with serving(identities) as client:
        for datatype in ELEMENTS:
            await comes_back(client, datatype)


async def comes_back(client: httpx.AsyncClient, datatype: str) -> None:
    values = EDGES[datatype]
    array = np.array(values, DTYPES[datatype]).reshape(2, -1)
    raw = raw_bytes(array, datatype)
    entry, attachment = attached("x", datatype, array)
    for send, rest in ((listed("x", datatype, values, list(array.shape)), ()), (entry, (attachment,))):
        message, _ = unpack(await post(client, datatype, {"inputs": [send]}, *rest))
        (output,) = message["outputs"]
        assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
        assert np.array(output["data"], DTYPES[datatype]).tolist() == array.ravel().tolist()
        everything = {"inputs": [send], "parameters": {"binary_data_output": True}}
        message, found = unpack(await post(client, datatype, everything, *rest))
        assert found == {"y": raw}
        shape, parameters = list(array.shape), {"binary_data_size": len(raw)}
        assert message["outputs"] == [{"name": "y", "datatype": datatype, "shape": shape, "parameters": parameters}]


async def test_nested_flat_and_half_nested_data_are_the_same(v2: httpx.AsyncClient) -> None:
    expected = None
    for data in ([1, 2.5, 3, 4], [[1, 2.5], [3, 4]], [[1, 2.5], 3, 4], [1, [2.5, 3], 4], [[[1], 2.5], [[[3]], [], 4]]):
        found = (await outputs_of(v2, "affine", listed("x", "FP32", data, [2, 2])))["y"]
        assert found == [3, 6, 7, 9]
        assert expected in (None, found)
        expected = found


async def test_integers_beyond_the_doubles_survive_json(identities: Path) -> None:
    async with serving(identities) as client:
        for datatype, value in (("INT64", 2**53 + 1), ("INT64", -(2**63)), ("UINT64", 2**64 - 1)):
            assert (await outputs_of(client, datatype, listed("x", datatype, [[value]])))["y"] == [value]


async def test_binary_and_json_inputs_may_mix_in_any_order(v2: httpx.AsyncClient) -> None:
    x, raw_x = attached("x", "FP32", [[1, 2], [3, 4]])
    k, raw_k = attached("k", "INT32", [[10], [100]])
    b = listed("b", "FP64", [[0.5], [0.25]])
    for inputs, raws in (([x, b, k], [raw_x, raw_k]), ([k, x, b], [raw_k, raw_x]), ([b, k, x], [raw_k, raw_x])):
        message, _ = unpack(await post(v2, "scaled", {"inputs": inputs}, *raws))
        assert [output["data"] for output in message["outputs"]] == [
            [10.5, 20.5, 300.25, 400.25],
            [pytest.approx(v) for v in (0.1, 0.2, 0.03, 0.04)],
        ]


async def test_outputs_come_in_the_order_and_form_asked_for(v2: httpx.AsyncClient) -> None:
    inputs = [listed("x", "FP32", [[8, 6]]), listed("k", "INT32", [[2]]), listed("b", "FP64", [[0]])]
    up, down = raw_bytes([16, 12], "FP32"), raw_bytes([4, 3], "FP32")
    yes, no = {"binary_data": True}, {"binary_data": False}
    for parameters, wanted, json_names, binary in (
        ({}, [], ["up", "down"], {}),
        ({}, [{"name": "down"}, {"name": "up", "parameters": no}], ["down", "up"], {}),
        ({}, [{"name": "down"}], ["down"], {}),
        ({}, [{"name": "down", "parameters": yes}, {"name": "up"}], ["up"], {"down": down}),
        ({"binary_data_output": True}, [{"name": "down", "parameters": no}, {"name": "up"}], ["down"], {"up": up}),
        ({"binary_data_output": True}, [], [], {"up": up, "down": down}),
        ({"binary_data_output": False}, [{"name": "up", "parameters": yes}], [], {"up": up}),
    ):
        answer = await post(v2, "scaled", {"inputs": inputs, "parameters": parameters, "outputs": wanted})
        message, found = unpack(answer)
        assert found == binary
        assert [output["name"] for output in message["outputs"] if "data" in output] == json_names
        assert [output["name"] for output in message["outputs"]] == [w["name"] for w in wanted] or ["up", "down"]


def test_only_the_outputs_wanted_are_computed_in_whatever_order_they_are_named(sums: OnnxSession) -> None:
    """So that callers who want the same share a run."""
    x = listed("x", "FP32", [[1, 2]])
    for wanted, run_outputs in (
        ([], ()),
        (["next_h"], ("next_h",)),
        (["next_h", "total"], ()),
        (["total", "next_h"], ()),
    ):
        body = json.dumps({"inputs": [x], "outputs": [{"name": name} for name in wanted]}).encode()
        run = next(codec_of(sums).steps(body, None))
        assert run.outputs == run_outputs
        assert list(run.tensors) == ["x", "sequence_lens", "h"]


async def test_a_body_of_bytes_alone_is_a_batch_of_one(v2: httpx.AsyncClient, identities: Path) -> None:
    answer = await v2.post("/v2/models/affine/infer", content=raw_bytes([1, 2, 3], "FP32"), headers={LENGTH: "0"})
    message, found = unpack(answer)
    assert message["outputs"][0]["shape"] == [1, 3]
    assert found == {"y": raw_bytes([3, 5, 7], "FP32")}
    answer = await v2.post("/v2/models/sums/infer", content=raw_bytes([1, 2, 3], "FP32"), headers={LENGTH: "0"})
    assert unpack(answer)[1] == {"total": raw_bytes([1, 3, 6], "FP32"), "next_h": raw_bytes([6], "FP32")}
    refused(
        await v2.post("/v2/models/affine/infer", content=b"12345", headers={LENGTH: "0"}),
        400,
        "5 bytes",
        "multiple of 4",
    )
    refused(
        await v2.post("/v2/models/scaled/infer", content=b"1234", headers={LENGTH: "0"}), 400, "one input", "x, k, b"
    )
    async with serving(identities) as client:
        answer = await client.post("/v2/models/BYTES/infer", content=b"text", headers={LENGTH: "0"})
        assert unpack(answer)[1] == {"y": b"\4\0\0\0text"}


@pytest.mark.parametrize(
    ("dtype", "shape", "body", "words"),
    [
        ("float32", ("batch", "height", "width"), b"1234", ("more than one free axis", "[-1, -1, -1]")),
        ("float32", ("batch", 2), b"1234", ("4 bytes", "takes 8")),
        ("float32", ("batch", 0, "width"), b"1234", ("4 bytes",)),
        ("object", ("batch", 2), b"text", ("more than one string", "[-1, 2]")),
        ("object", ("batch",), b"\xff", ("UTF-8",)),
    ],
)
def test_a_body_of_bytes_alone_must_tell_its_shape(dtype: str, shape: Any, body: bytes, words: tuple[str, ...]) -> None:
    signature = Signature({"x": TensorSpec("x", dtype, shape)}, {"y": TensorSpec("y", dtype, shape)})
    codec = Codec(ModelRef(name="m", version="1"), signature, max_bytes=100, max_length=100, max_rows=100)
    with pytest.raises(BadRequest) as caught:
        next(codec.steps(body, 0))
    for word in words:
        assert word in str(caught.value)


async def test_values_that_are_not_finite_are_null_and_counted(v2: httpx.AsyncClient) -> None:
    x, raw = attached("x", "FP32", [[math.nan, -math.inf], [1, 2]])
    rest = [listed("k", "INT32", [[1], [0]]), listed("b", "FP64", [[0], [0]])]
    message, _ = unpack(await post(v2, "scaled", {"inputs": [x, *rest]}, raw))
    assert message["outputs"][0] | {} == {
        "name": "up", "datatype": "FP32", "shape": [2, 2], "parameters": {"nonfinite_count": 2}, "data": [None, None, 0, 0],
    }  # fmt: skip
    assert message["outputs"][1]["parameters"] == {"nonfinite_count": 4}
    everything = {"inputs": [x, *rest], "parameters": {"binary_data_output": True}}
    _, found = unpack(await post(v2, "scaled", everything, raw))
    assert np.isnan(np.frombuffer(found["up"], "<f4")[0])
    assert np.frombuffer(found["down"], "<f4")[1:].tolist() == [-math.inf, math.inf, math.inf]


@pytest.mark.parametrize("shape", [[0, 3], [2, 0], [0, 0]])
async def test_a_tensor_may_be_empty(v2: httpx.AsyncClient, shape: list[int]) -> None:
    for data in ([], [[], []]):
        answer = await post(v2, "affine", {"inputs": [listed("x", "FP32", data, shape)]})
        assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": shape, "data": []}]
    entry, raw = attached("x", "FP32", np.zeros(shape))
    everything = {"inputs": [entry], "parameters": {"binary_data_output": True}}
    message, found = unpack(await post(v2, "affine", everything, raw))
    assert message["outputs"][0]["shape"] == shape
    assert found == {"y": b""}


async def test_the_id_comes_back_and_only_when_there_was_one(v2: httpx.AsyncClient) -> None:
    inputs = [listed("x", "FP32", [[1]])]
    assert (await post(v2, "affine", {"id": "a-1", "inputs": inputs})).json() == {
        "id": "a-1",
        "model_name": "affine",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [3.0]}],
    }
    for without in ({}, {"id": None}):
        assert "id" not in (await post(v2, "affine", {**without, "inputs": inputs})).json()
    assert (await post(v2, "affine", {"id": "", "inputs": inputs})).json()["id"] == ""


async def test_what_is_not_known_is_ignored(v2: httpx.AsyncClient) -> None:
    entry = listed("x", "FP32", [[1]]) | {"strides": [1], "parameters": {"content_type": "np"}}
    message = {"inputs": [entry], "model_name": "other", "parameters": {"custom": 1.5, "sequence_id": 3, "priority": 1}}
    assert (await post(v2, "affine", message)).json()["outputs"][0]["data"] == [3]


# --- refusals

X = listed("x", "FP32", [[1, 2]])
DEEP: Any = 1.0
for _ in range(MAX_DEPTH + 1):
    DEEP = [DEEP]


def x_with(**fields: Any) -> dict[str, Any]:
    entry = {**X, **fields}
    return {"inputs": [{name: value for name, value in entry.items() if value is not ...}]}


REFUSALS: list[tuple[Any, tuple[str, ...]]] = [
    ([], ("an object",)),
    (None, ("an object",)),
    ({}, ("`inputs`",)),
    ({"inputs": None}, ("`inputs`",)),
    ({"inputs": {}}, ("`inputs`",)),
    ({"inputs": []}, ("missing", "x")),
    ({"inputs": [1]}, ("`inputs`", "an object")),
    ({"inputs": [X, X]}, ("'x'", "twice")),
    ({"id": 7, "inputs": [X]}, ("`id`",)),
    ({"inputs": [X], "parameters": []}, ("`parameters`",)),
    ({"inputs": [X], "parameters": {"a": [1]}}, ("'a'",)),
    ({"inputs": [X], "parameters": {"a": None}}, ("'a'",)),
    ({"inputs": [X], "parameters": {"triton_x": 1}}, ("'triton_x'", "reserved")),
    ({"inputs": [X], "parameters": {"binary_data_output": 1}}, ("'binary_data_output'", "bool")),
    ({"inputs": [X], "parameters": {"sequence_start": "yes"}}, ("'sequence_start'", "bool")),
    ({"inputs": [X], "parameters": {"priority": "high"}}, ("'priority'", "int")),
    (x_with(name="z"), ("'z'", "the model has: x")),
    (x_with(name=None), ("None", "the model has: x")),
    (x_with(name=["x"]), ("the model has: x",)),
    (x_with(datatype="FP64"), ("'x'", "FP64", "FP32")),
    (x_with(datatype="fp32"), ("'x'", "'fp32'", "FP32")),
    (x_with(datatype=...), ("'x'", "None", "FP32")),
    (x_with(datatype=["FP32"]), ("'x'", "FP32")),
    (x_with(shape=[2]), ("'x'", "[2]", "[-1, -1]")),
    (x_with(shape=[1, 2, 1]), ("'x'", "[1, 2, 1]", "[-1, -1]")),
    (x_with(shape=[]), ("'x'", "[]", "[-1, -1]")),
    (x_with(shape=...), ("'x'", "`shape`")),
    (x_with(shape="1,2"), ("'x'", "`shape`")),
    (x_with(shape=[1, "2"]), ("'x'", "`shape`")),
    (x_with(shape=[1, 2.0]), ("'x'", "`shape`")),
    (x_with(shape=[1, -2]), ("'x'", "`shape`")),
    (x_with(shape=[1, True]), ("'x'", "`shape`")),
    (x_with(shape=[2**62, 2**62]), ("'x'", "2 values", str(2**124))),
    (x_with(shape=[0, 2**62], data=[]), ("'x'", "too large")),
    (x_with(shape=[1, 3]), ("'x'", "2 values", "has 3")),
    (x_with(shape=[1, 1]), ("'x'", "2 values", "has 1")),
    (x_with(data=...), ("'x'", "`data`", "`binary_data_size`")),
    (x_with(data=None), ("'x'", "`data`", "`binary_data_size`")),
    (x_with(data="12"), ("'x'", "`data`")),
    (x_with(data={"0": 1}), ("'x'", "`data`")),
    (x_with(data=[1, None]), ("'x'", "element 1", "null", "FP32")),
    (x_with(data=[1, "2"]), ("'x'", "element 1", '"2"', "FP32")),
    (x_with(data=[True, 2]), ("'x'", "element 0", "true", "FP32")),
    (x_with(data=[1, {}]), ("'x'", "element 1", "{}")),
    (x_with(data=[[1], ["2"]]), ("'x'", "element 1", '"2"')),
    (x_with(data=[[1], ""]), ("'x'", "element 1", '""')),
    (x_with(data=[1, 1e39]), ("'x'", "element 1", "1e+39", "FP32")),
    (x_with(data=[1, [[None]]]), ("'x'", "element 1", "null")),
    (x_with(data=DEEP, shape=[1, 1]), (str(MAX_DEPTH), "lists")),
    (x_with(data=[[[]] * 9, DEEP], shape=[1, 1]), (str(MAX_DEPTH), "lists")),
    (x_with(parameters=1), ("`parameters`", "'x'")),
    (x_with(parameters={"a": {}}), ("'a'", "'x'")),
    (x_with(parameters={"binary_data_size": 8}), ("'x'", "both")),
    (x_with(parameters={"binary_data_size": 8}, data=...), ("'x'", LENGTH)),
    (x_with(parameters={"binary_data_size": -8}, data=...), ("'x'", "`binary_data_size`")),
    (x_with(parameters={"binary_data_size": "8"}, data=...), ("'x'", "`binary_data_size`")),
    (x_with(parameters={"binary_data_size": True}, data=...), ("'x'", "`binary_data_size`")),
    (x_with(parameters={"shared_memory_region": "r"}, data=...), ("'x'", "shared memory")),
    ({"inputs": [X], "outputs": {}}, ("`outputs`",)),
    ({"inputs": [X], "outputs": "y"}, ("`outputs`",)),
    ({"inputs": [X], "outputs": ["y"]}, ("the model has: y",)),
    ({"inputs": [X], "outputs": [{"name": "z"}]}, ("'z'", "the model has: y")),
    ({"inputs": [X], "outputs": [{"name": ["y"]}]}, ("the model has: y",)),
    ({"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}, ("'y'", "twice")),
    ({"inputs": [X], "outputs": [{"name": "y", "parameters": 1}]}, ("'y'", "`parameters`")),
    ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, ("'y'", "`binary_data`")),
    ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": -3}}]}, ("'y'", "`classification`")),
    ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, ("'y'", "shared memory")),
]  # fmt: skip


def refuses(session: OnnxSession, words: tuple[str, ...], body: bytes, length: int | None = None) -> None:
    """The codec refuses a body, and says why; the routes turn this into a 400."""
    with pytest.raises(BadRequest) as caught:
        drive(session, codec_of(session).steps(body, length))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("message", "words"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_does_not_fit_is_refused_and_named(affine: OnnxSession, message: Any, words: tuple[str, ...]) -> None:
    refuses(affine, words, json.dumps(message).encode())


@pytest.mark.parametrize("shape", [[2**62, 2], [2**40, 1], [2**63 - 1, 1]])
def test_a_shape_beyond_what_can_be_counted_is_refused(sums: OnnxSession, shape: list[int]) -> None:
    """Before state and lengths that are left out are made as large as it."""
    message = {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": [1]}]}
    refuses(sums, ("rows, which is too many",), json.dumps(message).encode())


def test_a_request_that_looks_like_one_before_is_checked_as_strictly(affine: OnnxSession) -> None:
    codec = codec_of(affine)

    def answer(message: Any) -> Any:
        return json.loads(drive(affine, codec.steps(json.dumps(message).encode(), None)).body)

    good = {"inputs": [X]}
    first, again = answer(good | {"id": "1"}), answer(good | {"id": "2"})
    assert (first.pop("id"), again.pop("id")) == ("1", "2")
    assert first == again == answer(good)
    assert answer(x_with(data=[5, 6]))["outputs"] != first["outputs"]
    for shape in ([1.0, 2], [True, 2], [1, 2, 1], ["1", 2]):
        with pytest.raises(BadRequest, match="shape"):
            answer(x_with(shape=shape))
    for data in ([1], [1, 2, 3], [True, 2], ["1", 2], None):
        with pytest.raises(BadRequest, match="'x'"):
            answer(x_with(data=data))
    assert answer(good) == first


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ("JSON",)),
        (b"{", ("JSON",)),
        (b"\xff", ("JSON",)),
        (b'{"inputs": NaN}', ("JSON",)),
        (b'{"inputs": [NaN]}', ("JSON",)),
        (b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,NaN]}]}', ("'x'", "element 1", "NaN")),
        (b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1],[-Infinity]]}]}', ("'x'", "element 1")),
        (b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1e999]}]}', ("JSON",)),
        (b"[" * 100_000, ("JSON",)),
        (b'{"inputs":' + b"[" * 100_000 + b"NaN", ("JSON",)),
    ],
)
def test_a_body_that_is_no_json_is_refused(affine: OnnxSession, body: bytes, words: tuple[str, ...]) -> None:
    refuses(affine, words, body)


async def test_a_refusal_is_400_and_the_server_lives_on(v2: httpx.AsyncClient) -> None:
    refused(await post(v2, "affine", x_with(shape=[1, 3])), 400, "'x'", "2 values", "has 3")
    refused(await v2.post("/v2/models/affine/infer", content=b"{"), 400, "JSON")
    assert (await outputs_of(v2, "affine", X))["y"] == [3, 5]


@pytest.mark.parametrize("datatype", [name for name in ELEMENTS if name not in ("FP64", "BYTES")])
def test_values_outside_a_datatype_are_refused_and_named(sessions: dict[str, OnnxSession], datatype: str) -> None:
    kind = DTYPES[datatype].kind
    wrong: list[Any] = [None, "1", {}]
    if kind in "iu":
        low, high = int(np.iinfo(DTYPES[datatype]).min), int(np.iinfo(DTYPES[datatype]).max)
        wrong += [low - 1, high + 1, 1.0, 0.5, True, 2**64]
    elif kind == "f":
        wrong += [True, 10 * float(np.finfo(DTYPES[datatype]).max)]
    else:
        wrong += [0, 1, 1.0]
    fine = [True, False] if kind == "b" else [0, 1]
    for value in wrong:
        for data in ([*fine, value], [[fine[0]], [fine[1]], [value]], [*fine, [value]]):
            body = json.dumps({"inputs": [listed("x", datatype, data, [1, 3])]}).encode()
            refuses(sessions[datatype], ("'x'", "element 2", datatype), body)


def test_strings_are_texts(sessions: dict[str, OnnxSession]) -> None:
    for data in ([1], [True], [None], [{}]):
        body = json.dumps({"inputs": [listed("x", "BYTES", data, [1, 1])]}).encode()
        refuses(sessions["BYTES"], ("element 0", "BYTES"), body)
    for raw, words in (
        (b"\1\0\0\0\xff", ("element 0", "UTF-8")),
        (b"\2\0\0\0a", ("element 0", "past the end")),
        (b"\1\0\0", ("element 0", "past the end")),
        (b"\xff\xff\xff\xff", ("element 0", "past the end")),
        (b"\1\0\0\0a\0", ("element 1", "past the end")),
        (b"\1\0\0\0a\0\0\0\0", ("2 strings", "has 1")),
        (b"", ("0 strings", "has 1")),
    ):
        entry = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [entry]}).encode()
        refuses(sessions["BYTES"], ("'x'", *words), head + raw, len(head))


def test_a_bool_is_a_byte_0_or_1(sessions: dict[str, OnnxSession]) -> None:
    entry = {"name": "x", "shape": [1, 2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    head = json.dumps({"inputs": [entry]}).encode()
    refuses(sessions["BOOL"], ("'x'", "BOOL"), head + b"\1\2", len(head))


async def test_the_binary_part_must_be_what_the_json_says(v2: httpx.AsyncClient) -> None:
    entry, raw = attached("x", "FP32", [[1, 2]])
    message = {"inputs": [entry]}
    refused(await post(v2, "affine", message, raw, b"1"), 400, "1 bytes", "left over")
    refused(await post(v2, "affine", message, raw[:7]), 400, "'x'", "8", "7 bytes")
    refused(
        await post(v2, "affine", x_with(parameters={"binary_data_size": 4}, data=...), raw[:4]),
        400,
        "'x'",
        "4",
        "8 bytes",
    )
    refused(await post(v2, "affine", {"inputs": [X]}, raw), 400, "8 bytes", "left over")
    size = len(json.dumps(message))
    for wrong in ("-1", "x", "", "1.5", "9" * 9, "9" * 5000, str(size + 9), "²"):
        answer = await post(v2, "affine", message, raw, **{LENGTH: wrong.encode()})  # type: ignore[arg-type]
        refused(answer, 400, LENGTH)
    for wrong in (str(size - 1), str(size + 1), "1"):
        refused(await post(v2, "affine", message, raw, **{LENGTH: wrong}), 400, "JSON")
    assert unpack(await post(v2, "affine", message, raw))[0]["outputs"][0]["data"] == [3, 5]


async def test_inputs_that_disagree_are_refused(v2: httpx.AsyncClient) -> None:
    x, k, b = listed("x", "FP32", [[1, 2], [3, 4]]), listed("k", "INT32", [[1]]), listed("b", "FP64", [[1], [1]])
    refused(await post(v2, "scaled", {"inputs": [x, k, b]}), 400, "'k'", "[1, 1]", "batch", "2")
    refused(await post(v2, "scaled", {"inputs": [x]}), 400, "missing", "k, b")
    refused(await post(v2, "scaled", {"inputs": [listed("x", "FP32", [[1, 2, 3]])]}), 400, "'x'", "[1, 3]", "[-1, 2]")


async def test_every_error_below_v2_has_the_protocols_form(folder: Path) -> None:
    async with serving(folder, max_body_bytes=200, api_keys="key", rate_limit=1000) as client:
        refused(await client.get("/v2/models"), 401, "API key")
        assert (await client.get("/v2/health/live")).status_code == 200
        client.headers["Authorization"] = "Bearer key"
        for path in ("/v2/nothing", "/v2/models/affine/nothing", "/v2/models//infer", "/v2/models/a/b/infer"):
            refused(await client.get(path), 404)
            refused(await client.post(path), 404)
        refused(await client.get("/v2/models/nobody"), 404, "nobody")
        refused(await post(client, "nobody", {"inputs": []}), 404, "nobody")
        for verb in ("GET", "PUT", "DELETE", "PATCH"):
            answer = await client.request(verb, "/v2/models/affine/infer")
            refused(answer, 405)
            assert answer.headers["allow"] == "POST"
        for path in ("/v2", "/v2/models/affine", "/v2/health/live"):
            for verb in ("POST", "PUT", "DELETE"):
                refused(await client.request(verb, path), 405)
        assert (await client.head("/v2/models/affine/infer")).status_code == 405
        refused(
            await post(client, "affine", {"inputs": [listed("x", "FP32", [[1] * 200])]}), 413, "GRIDLOOP_MAX_BODY_BYTES"
        )
        answer = await post(client, "affine", {"inputs": [X]}, **{"Content-Encoding": "br"})
        refused(answer, 415, "br")
        assert answer.headers["accept-encoding"] == "gzip, deflate"
        refused(
            await post(client, "affine", {"inputs": [X]}, **{"X-Request-Timeout": "soon"}), 400, "X-Request-Timeout"
        )
        refused(await post(client, "affine", {"inputs": [X]}, **{"X-Request-Timeout": "1e-9"}), 504)
        assert (await client.get("/v1/nothing")).headers["content-type"] == "application/problem+json"


async def test_every_answer_has_the_callers_id(v2: httpx.AsyncClient) -> None:
    for path, body in (("affine", {"inputs": [X]}), ("affine", {}), ("nobody", {})):
        answer = await post(v2, path, body, **{"X-Request-ID": "mine-42"})
        assert answer.headers["x-request-id"] == "mine-42"
        assert "decode;dur=" in answer.headers["server-timing"]


async def test_values_that_the_graph_cannot_compute_with_are_400_and_named(v2: httpx.AsyncClient) -> None:
    refused(await post(v2, "table", {"inputs": [listed("x", "INT64", [4])]}), 400, "idx=4 must be within")
    assert (await outputs_of(v2, "table", listed("x", "INT64", [3, 0])))["y"] == [40, 10]


@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream", "text/plain"])
async def test_the_content_type_does_not_matter(v2: httpx.AsyncClient, kind: str | None) -> None:
    answer = await post(v2, "affine", {"inputs": [X]}, **({"Content-Type": kind} if kind else {}))
    assert answer.json()["outputs"][0]["data"] == [3, 5]


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_counts_its_json_uncompressed(
    v2: httpx.AsyncClient, encoding: str, encode: Any
) -> None:
    entry, raw = attached("x", "FP32", [[1, 2]])
    head = json.dumps({"inputs": [entry]}).encode()
    headers = {"Content-Encoding": encoding, LENGTH: str(len(head))}
    answer = await v2.post("/v2/models/affine/infer", content=encode(head + raw), headers=headers)
    assert answer.json()["outputs"][0]["data"] == [3, 5]


async def test_an_answer_that_would_be_far_larger_than_its_request_is_refused(tmp_path: Path) -> None:
    model(tmp_path, "blown-up", blown_up)
    async with serving(tmp_path, max_body_bytes=40_000) as client:
        assert len((await outputs_of(client, "blown-up", listed("x", "FP32", [[1]] * 10)))["y"]) == 10_000
        refused(await post(client, "blown-up", {"inputs": [listed("x", "FP32", [[1]] * 11)]}), 413, "44,000", "40,000")


async def test_a_series_that_is_too_long_or_has_no_steps_is_refused(folder: Path) -> None:
    async with serving(folder, max_series_points=4) as client:
        assert (await outputs_of(client, "sums", listed("x", "FP32", [[1, 1, 1, 1]])))["total"] == [1, 2, 3, 4]
        refused(
            await post(client, "sums", {"inputs": [listed("x", "FP32", [[1] * 5])]}), 413, "GRIDLOOP_MAX_SERIES_POINTS"
        )
        refused(
            await post(client, "sums", {"inputs": [listed("x", "FP32", [], [1, 0])]}), 400, "'time'", "at least one"
        )


# --- state


async def test_recurrent_state_and_lengths_may_be_left_out(v2: httpx.AsyncClient) -> None:
    """A stream begins at zero; what one answer gives as `next_h` goes on where it ended."""
    x = listed("x", "FP32", [[1, 2, 3], [10, 20, 30]])
    whole = await outputs_of(v2, "sums", x)
    assert whole == {"total": [1, 3, 6, 10, 30, 60], "next_h": [6, 60]}
    lengths = listed("sequence_lens", "INT32", [3, 2])
    assert (await outputs_of(v2, "sums", x, lengths))["next_h"] == [6, 30]
    first = await outputs_of(v2, "sums", listed("x", "FP32", [[1], [10]]))
    h = listed("h", "FP32", first["next_h"], [2, 1])
    second = await outputs_of(v2, "sums", h, listed("x", "FP32", [[2, 3], [20, 30]]))
    assert second == {"total": [3, 6, 30, 60], "next_h": [6, 60]}


async def test_lengths_must_lie_within_the_series(v2: httpx.AsyncClient) -> None:
    x = listed("x", "FP32", [[1, 2, 3]])
    for length in (-1, 4):
        refused(
            await post(v2, "sums", {"inputs": [x, listed("sequence_lens", "INT32", [length])]}),
            400,
            "sequence_lens",
            "3",
        )
    refused(await post(v2, "sums", {"inputs": [listed("sequence_lens", "INT32", [3])]}), 400, "missing", "x")


async def test_sequences_kept_by_the_server_are_refused_where_they_would_matter(v2: httpx.AsyncClient) -> None:
    message = {"inputs": [listed("x", "FP32", [[1]])], "parameters": {"sequence_id": 5, "sequence_start": True}}
    refused(await post(v2, "sums", message), 400, "next_h", "inputs h")
    assert (await post(v2, "affine", message)).status_code == 200


# --- batches


async def waiting(handle: Any, rows: int) -> None:
    """Until so many rows wait."""
    while handle._batcher.waiting < rows:  # noqa: ASYNC110  the queue tells nobody
        await asyncio.sleep(0.001)


async def test_callers_at_the_same_time_share_runs_and_get_their_own_rows(folder: Path) -> None:
    """Binary and JSON, one row and several, inputs in another order, and a caller who is refused: all in one batch."""
    async with serving(folder) as client:
        handle = client.app.app.state.registry.get("scaled").versions["1"].handle  # type: ignore[attr-defined]
        entered, gate, runs = threading.Event(), threading.Event(), []
        run = handle.graphs.main.run

        def held(tensors: Any, *rest: Any, **options: Any) -> Any:
            entered.set()
            assert gate.wait(10)
            runs.append(len(tensors["x"]))
            return run(tensors, *rest, **options)

        async def ask(n: int) -> list[float]:
            rows = n % 3 + 1
            x = np.full((rows, 2), n, np.float32)
            inputs = [listed("k", "INT32", [[2]] * rows), listed("b", "FP64", [[n]] * rows)]
            if n % 2:
                entry, raw = attached("x", "FP32", x)
                message, _ = unpack(await post(client, "scaled", {"inputs": [*inputs, entry], "id": str(n)}, raw))
            else:
                message, _ = unpack(
                    await post(client, "scaled", {"inputs": [listed("x", "FP32", x.tolist()), *inputs], "id": str(n)})
                )
            assert message["id"] == str(n)
            up, down = message["outputs"]
            assert up["shape"] == [rows, 2]
            assert down["data"] == [n / 2] * 2 * rows
            return list(up["data"])

        handle.graphs.main.run = held
        first = asyncio.create_task(ask(0))
        await asyncio.to_thread(entered.wait, 10)
        rest = [asyncio.create_task(ask(n)) for n in range(1, 13)]
        wrong = asyncio.create_task(post(client, "scaled", {"inputs": [X]}))
        await waiting(handle, 13)
        gate.set()
        for n, up in enumerate([await first, *[await task for task in rest]]):
            assert up == [3 * n] * 2 * (n % 3 + 1)
        refused(await wrong, 400, "missing")
        assert sum(runs) == sum(n % 3 + 1 for n in range(13))
        assert len(runs) == 2


async def test_rows_of_unequal_length_share_runs(v2: httpx.AsyncClient) -> None:
    async def ask(n: int) -> None:
        x = [[float(n)] * (n + 1)]
        found = await outputs_of(v2, "sums", listed("x", "FP32", x))
        assert found == {"total": [n * (i + 1) for i in range(n + 1)], "next_h": [n * (n + 1)]}

    await asyncio.gather(*(ask(n) for n in range(40)))


async def test_a_caller_whose_run_fails_does_not_harm_the_others(v2: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(post(v2, "table", {"inputs": [listed("x", "INT64", [n % 5])]}) for n in range(20)))
    for n, answer in enumerate(answers):
        if n % 5 == 4:
            refused(answer, 400)
        else:
            assert answer.json()["outputs"][0]["data"] == [10 * (n % 5 + 1)]


async def test_a_full_queue_is_503(folder: Path) -> None:
    """What waits is counted in rows, though nobody has read them yet."""
    async with serving(folder, max_queue=4) as client:
        handle = client.app.app.state.registry.get("affine").versions["1"].handle  # type: ignore[attr-defined]
        gate, entered, run = threading.Event(), threading.Event(), handle.graphs.main.run

        def held(*args: Any, **options: Any) -> Any:
            entered.set()
            assert gate.wait(10)
            return run(*args, **options)

        handle.graphs.main.run = held
        three = {"inputs": [listed("x", "FP32", [[1], [2], [3]])]}
        first = asyncio.create_task(post(client, "affine", three))
        await asyncio.to_thread(entered.wait, 10)
        second = asyncio.create_task(post(client, "affine", three))
        await waiting(handle, 3)
        answer = await post(client, "affine", three)
        gate.set()
        refused(answer, 503, "affine")
        assert int(answer.headers["retry-after"]) >= 1
        assert [(await task).status_code for task in (first, second)] == [200, 200]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
async def test_a_graph_of_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path, rows: int) -> None:
    model(tmp_path, "two", lambda path: graphs.affine(path, batch=2))
    async with serving(tmp_path) as client:
        assert (await client.get("/v2/models/two")).json()["inputs"][0]["shape"] == [-1, -1]
        found = await outputs_of(client, "two", listed("x", "FP32", [[n] for n in range(rows)]))
        assert found["y"] == [2 * n + 1 for n in range(rows)]


async def test_a_graph_whose_rows_belong_to_nobody_answers_every_caller_by_itself(tmp_path: Path) -> None:
    model(tmp_path, "summed", summed)
    async with serving(tmp_path) as client:
        assert (await client.get("/v2/models/summed")).json()["outputs"][0]["shape"] == [1, 1]
        bodies = [{"inputs": [listed("x", "FP32", [[n], [1]])]} for n in range(8)]
        answers = await asyncio.gather(*(post(client, "summed", body) for body in bodies))
    assert [answer.json()["outputs"][0]["data"] for answer in answers] == [[n + 1] for n in range(8)]


async def test_an_output_with_rows_of_its_own_is_an_error_and_never_cut_to_fit(tmp_path: Path) -> None:
    """Only a run shows it: the graph calls the axis free."""
    model(tmp_path, "positions", positions)
    async with serving(tmp_path) as client:
        refused(await post(client, "positions", {"inputs": [listed("x", "FP32", [[1, 0, 1]])]}), 500, "positions")


@pytest.mark.parametrize(
    ("inputs", "outputs", "problem"),
    [
        ([("batch", 3)], [("batch", 3)], None),
        ([("n", 3), (None,)], [("m", 3), ()], None),
        ([(4, 3), (4,)], [(4, 1)], None),
        ([(4, 3), (5,)], [(4, 1)], "axis 0"),
        ([("n", 3), (1,)], [("n", 3)], "axis 0"),
        ([("n", 3)], [(10,)], "axis 0"),
        ([("n", 3), ()], [("n", 3)], "no axis"),
        ([("n", "n")], [("n", 3)], "twice"),
        ([("n", 3)], [("n", "n")], "twice"),
    ],
)
def test_a_graph_can_batch_when_all_its_tensors_have_the_same_axis_0(
    inputs: Any, outputs: Any, problem: str | None
) -> None:
    signature = Signature(
        {f"i{n}": TensorSpec(f"i{n}", "float32", shape) for n, shape in enumerate(inputs)},
        {f"o{n}": TensorSpec(f"o{n}", "float32", shape) for n, shape in enumerate(outputs)},
    )
    found = signature.batch_problem
    assert found is None if problem is None else problem in str(found)


# --- laws


def any_array(datatype: str) -> st.SearchStrategy[Any]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5)
    if datatype == "BYTES":
        return arrays.arrays(object, shapes, elements=st.text(max_size=5))
    return arrays.arrays(DTYPES[datatype], shapes)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_goes_in_comes_out(sessions: dict[str, OnnxSession], data: st.DataObject) -> None:
    """Any array of any datatype, in either form, through a graph that changes nothing; finite in JSON, any in binary."""
    datatype = data.draw(st.sampled_from(list(ELEMENTS)))
    array = data.draw(any_array(datatype))
    binary_in, binary_out, nested = (data.draw(st.booleans()) for _ in range(3))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        binary_in = True
    entry, raw = attached("x", datatype, array)
    if not binary_in:
        values = array.tolist() if nested else array.ravel().tolist()
        entry, raw = listed("x", datatype, values, list(array.shape)), b""
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": binary_out}}).encode()
    session = sessions[datatype]
    reply: Reply = drive(session, codec_of(session).steps(head + raw, len(head) if binary_in else None))
    message = json.loads(reply.body[: reply.json_bytes])
    (output,) = message["outputs"]
    assert output["shape"] == list(array.shape)
    if binary_out:
        assert reply.json_bytes is not None
        assert reply.body[reply.json_bytes :] == raw_bytes(array, datatype)
    elif array.dtype.kind == "f":
        lost = int(array.size - np.isfinite(array).sum())
        assert output.get("parameters", {}).get("nonfinite_count", 0) == lost
        found = np.array([math.nan if v is None else v for v in output["data"]], array.dtype)
        np.testing.assert_array_equal(found, np.where(np.isfinite(array), array, math.nan).ravel())
    else:
        assert output["data"] == array.ravel().tolist()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
GOOD: dict[str, Any] = {
    "id": "1",
    "parameters": {"binary_data_output": True, "sequence_id": 0},
    "inputs": [
        {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2], "parameters": {}},
        {"name": "sequence_lens", "shape": [2], "datatype": "INT32", "data": [1, 1], "parameters": {}},
        {"name": "h", "shape": [2, 1], "datatype": "FP32", "data": [0.5, 1], "parameters": {}},
    ],
    "outputs": [{"name": "total", "parameters": {"binary_data": False}}, {"name": "next_h", "parameters": {}}],
}
PLACES: list[tuple[str | int, ...]] = [
    *((key,) for key in GOOD),
    *(("parameters", key) for key in GOOD["parameters"]),
    *(("inputs", n) for n in range(3)),
    *(("inputs", n, key) for n in range(3) for key in GOOD["inputs"][0]),
    *(("outputs", n) for n in range(2)),
    *(("outputs", n, key) for n in range(2) for key in GOOD["outputs"][0]),
]
LIKELY = st.sampled_from(
    [[2, 1], [2], [0, 1], [2, 0], [1, 2], [[1], [2]], [], [3, 1e39], "x", "h", "total", "FP32", "INT32", "FP64"]
) | st.builds(lambda size: {"binary_data_size": size}, st.sampled_from([0, 4, 8]))


def changed(message: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value at a place, if the place is there."""
    if not place:
        return value
    key, rest = place[0], place[1:]
    if isinstance(message, dict):
        return {**message, key: changed(message.get(key), rest, value)}
    if isinstance(message, list) and isinstance(key, int) and key < len(message):
        return [*message[:key], changed(message[key], rest, value), *message[key + 1 :]]
    return message


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.sampled_from(PLACES), JSON | LIKELY), max_size=3),
    tail=st.sampled_from([b"", b"\0\0\x80?", b"\0\0\x80?\0\0\xc0\x7f"]) | st.binary(max_size=9),
    length=st.sampled_from([None, "right", 0, 1]),
)
def test_any_body_is_answered_or_refused(sums: OnnxSession, changes: Any, tail: bytes, length: Any) -> None:
    """Nothing but an answer or an error made for the caller leaves the codec, whatever is wrong with a request."""
    message: Any = GOOD
    for place, value in changes:
        message = changed(message, place, value)
    head = json.dumps(message).encode()
    try:
        reply: Reply = drive(sums, codec_of(sums).steps(head + tail, len(head) if length == "right" else length))
    except ServiceError:
        event("refused")
    else:
        event("answered")
        assert json.loads(reply.body[: reply.json_bytes])["model_name"] == "m"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v2/models/m/infer", ("m", None)),
        ("/v2/models/m/versions/2/infer", ("m", "2")),
        ("/v2/models/infer/infer", ("infer", None)),
        ("/v2/models/versions/versions/infer/infer", ("versions", "infer")),
        ("/v2/models/m/infer/", None),
        ("/v2/models/m", None),
        ("/v2/models/infer", None),
        ("/v2/models//infer", None),
        ("/v2/models/m/versions//infer", None),
        ("/v2/models/m/versions/infer", None),
        ("/v2/models/m/version/2/infer", None),
        ("/v2/models/a/b/c/d/infer", None),
        ("/v1/models/m/infer", None),
        ("/v2/models/", None),
    ],
)
def test_paths_are_matched(path: str, found: Any) -> None:
    assert match(path) == found


# --- the document


async def test_every_example_in_the_document_can_be_executed(real_models: Path) -> None:
    async with running(real_models) as client:
        await execute_examples(client)


async def execute_examples(client: httpx.AsyncClient) -> None:
    for path, item in path_items().items():
        operation = item["post"]
        names = {p["name"]: p["example"] for p in operation["parameters"] if p["in"] == "path"}
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        assert examples
        for example in examples.values():
            InferenceRequest.model_validate(example["value"])
            answer = await client.post(path.format(**names), json=example["value"])
            assert answer.status_code == 200, answer.text
            assert InferenceResponse.model_validate(answer.json(), extra="forbid")


async def test_metrics_are_labelled_with_the_route_and_not_with_the_callers_text(v2: httpx.AsyncClient) -> None:
    await post(v2, "nobody", {})
    await post(v2, "affine/versions/1", {"inputs": [X]})
    text = (await v2.get("/metrics")).text
    for status in (200, 404):
        assert f'method="POST",route="/v2/models/{{model_name}}/infer",status="{status}"' in text
    assert "nobody" not in text


async def test_the_raw_tensors_of_a_served_task_agree_with_its_own_endpoint(models: Path) -> None:
    """The classifier of colours: its logits are the mean of each channel, in hundreds."""
    image = listed("image", "UINT8", np.full((1, 2, 2, 3), (200, 0, 100), np.uint8).tolist())
    async with running(models) as client:
        logits = (await outputs_of(client, "colours", image, outputs=[{"name": "logits"}]))["logits"]
        assert logits == [2, 0, 1]
        answer = (await client.post("/v1/image-classification", content=graphs.png())).json()
    scores = {p["index"]: p["score"] for p in answer["results"][0]["predictions"]}
    exponentials = np.exp(logits)
    np.testing.assert_allclose([scores[i] for i in range(3)], exponentials / exponentials.sum(), rtol=1e-4)


def test_every_type_of_tensor_that_is_served_has_a_datatype() -> None:
    assert set(DATATYPES) == set(_DTYPES.values())
    assert set(ELEMENTS) == {datatype.name for datatype in DATATYPES.values()}
