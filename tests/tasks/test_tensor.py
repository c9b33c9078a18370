"""Graphs that fit no other task are served over `/v2` alone, whether or not their rows can be batched."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.registry.check import check_folder
from service.registry.registry import Registry
from tests import graphs
from tests.conftest import running
from tests.test_server import serving

make = helper.make_node


def windows(path: Path) -> Path:
    """Windows of 60 steps with 36 features in, the sigmoid of their mean out; one window a run."""
    nodes = [
        make("ReduceMean", ["args_0"], ["mean"], axes=[1, 2], keepdims=0),
        make("Unsqueeze", ["mean", "one"], ["column"]),
        make("Sigmoid", ["column"], ["Identity:0"]),
    ]
    inputs, outputs = [("args_0", T.FLOAT, [1, 60, 36])], [("Identity:0", T.FLOAT, [1, 1])]
    return graphs.save(path, nodes, inputs, outputs, {"one": np.array([1])})


def matrix(path: Path) -> Path:
    """`x` (time, 2) times a factor without axes; `total` (2,) is the sum over time: axis 0 is no batch."""
    nodes = [make("Mul", ["x", "factor"], ["y"]), make("ReduceSum", ["y", "axis"], ["total"], keepdims=0)]
    inputs = [("x", T.FLOAT, ["time", 2]), ("factor", T.FLOAT, [])]
    outputs = [("y", T.FLOAT, ["time", 2]), ("total", T.FLOAT, [2])]
    return graphs.save(path, nodes, inputs, outputs, {"axis": np.array([0])})


def cumulative(path: Path) -> Path:
    """`y[t]` = x[0] + ... + x[t] along axis 0, which looks like a batch."""
    return graphs.save(
        path, [make("CumSum", ["x", "axis"], ["y"])], [("x", T.FLOAT, ["time"])], [("y", T.FLOAT, ["time"])],
        {"axis": np.int64(0)},
    )  # fmt: skip


def text(path: Path) -> Path:
    return graphs.save(
        path, [make("Identity", ["x"], ["y"])], [("x", T.STRING, ["batch"])], [("y", T.STRING, ["batch"])]
    )


def write(models: Path, name: str, graph: Any, golden: Any = None, **manifest: Any) -> Path:
    return graphs.write_model(models / name, task="tensor", graph=graph, golden=golden, **manifest)


def given(name: str, shape: list[int], data: list[Any], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


async def infer(client: httpx.AsyncClient, model: str, *inputs: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    return {output["name"]: (output["shape"], output["data"]) for output in answer.json()["outputs"]}


async def test_a_graph_that_fits_no_task_answers_over_v2(tmp_path: Path) -> None:
    write(tmp_path, "windows", windows)
    async with running(tmp_path) as client:
        assert await infer(client, "windows", given("args_0", [1, 60, 36], [0] * 2160)) == {
            "Identity:0": ([1, 1], [0.5])
        }
        two = await infer(client, "windows", given("args_0", [2, 60, 36], [0] * 4320))
        assert two == {"Identity:0": ([2, 1], [0.5, 0.5])}
        assert (await client.get("/readyz")).status_code == 200


async def test_it_is_listed_with_its_tensors_and_has_no_endpoint_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "windows", windows)
    async with running(tmp_path) as client:
        (listed,) = (await client.get("/v1/models")).json()["models"]
        assert (listed["task"], listed["versions"][0]["state"], listed["is_default"]) == ("tensor", "ready", False)
        assert listed["inputs"] == [{"name": "args_0", "dtype": "float32", "shape": [1, 60, 36]}]
        assert listed["outputs"] == [{"name": "Identity:0", "dtype": "float32", "shape": [1, 1]}]
        assert (await client.post("/v1/tensor", json={"inputs": {}})).status_code == 404
        assert "/v1/tensor" not in (await client.get("/openapi.json")).json()["paths"]
        answer = await client.post("/v1/image-classification?model=windows", content=graphs.png())
        assert "'windows' serves tensor: POST /v2/models/windows/infer." in answer.json()["detail"]


async def test_what_cannot_be_batched_is_run_by_itself(tmp_path: Path) -> None:
    write(tmp_path, "matrix", matrix)
    inputs = given("x", [3, 2], [1, 2, 3, 4, 5, 6]), given("factor", [], [10])
    expected = {"y": ([3, 2], [10, 20, 30, 40, 50, 60]), "total": ([2], [90, 120])}
    async with running(tmp_path) as client:
        answers = await asyncio.gather(*(infer(client, "matrix", *inputs) for _ in range(20)))
        assert answers == [expected] * 20
        metadata = (await client.get("/v2/models/matrix")).json()
        assert [tensor["shape"] for tensor in metadata["inputs"]] == [[-1, 2], []]
        refused = await client.post("/v2/models/matrix/infer", json={"inputs": [inputs[0]]})
        assert refused.json() == {"error": "Inputs are missing: factor."}


async def test_the_manifest_may_say_that_axis_0_is_no_batch(tmp_path: Path) -> None:
    """Else callers share a run, and one's numbers would be summed up with another's."""
    write(tmp_path, "cumulative", cumulative, batched=False)
    async with running(tmp_path) as client:
        series = [float(number) for number in range(1, 101)]
        answers = await asyncio.gather(*(infer(client, "cumulative", given("x", [100], series)) for _ in range(10)))
    assert answers == [{"y": ([100], np.cumsum(series).tolist())}] * 10


@pytest.mark.parametrize(
    ("graph", "inputs", "outputs"),
    [
        (graphs.affine, {"x": [[1, 2], [3, 4]]}, {"y": [[3, 5], [7, 9]]}),
        (matrix, {"x": [[1, 2], [3, 4]], "factor": 2}, {"total": [8, 12]}),
        (text, {"x": ["a", "é"]}, {"y": ["a", "é"]}),
    ],
)
def test_golden_samples_are_values_by_name(tmp_path: Path, graph: Any, inputs: Any, outputs: Any) -> None:
    def detail(inputs: Any, outputs: Any) -> str:
        golden = [{"input": {"inputs": inputs}, "output": {"outputs": outputs}}]
        finding = next(f for f in check_folder(write(tmp_path, "m", graph, golden)) if f.what.startswith("version"))
        assert finding.ok == ("reproduced" in finding.detail)
        return finding.detail

    assert "1 sample(s) reproduced" in detail(inputs, outputs)
    (name, values) = next(iter(outputs.items()))
    assert f"sample 1 differs from its expected answer at outputs.{name}" in detail(inputs, {name: values[1:]})
    assert "sample 1 is refused: The graph takes " in detail({"z": 1}, outputs)
    assert "sample 1 is refused: Input x " in detail({**inputs, "x": [[[["?"]]]]}, outputs)


def test_a_row_that_depends_on_its_company_is_found_by_a_golden_sample(tmp_path: Path) -> None:
    golden = [{"input": {"inputs": {"x": [1, 2]}}, "output": {"outputs": {"y": [1, 3]}}}]
    folder = write(tmp_path, "cumulative", cumulative, golden)
    registry = Registry(tmp_path)
    registry.load()
    assert "output 'y' of one row changes with the batch it is in" in registry.get("cumulative").reason
    (folder / "manifest.toml").write_text('task = "tensor"\nbatched = false')
    registry = Registry(tmp_path)
    registry.load()
    assert registry.get("cumulative").is_ready


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_line_to_paste_is_answered(tmp_path: Path) -> None:
    write(tmp_path, "windows", windows)
    write(tmp_path, "matrix", matrix)
    write(tmp_path, "text", text)
    write(tmp_path, "half", lambda path: graphs.save(
        path, [make("Identity", ["x"], ["y"])], [("x", T.FLOAT16, [1, 40])], [("y", T.FLOAT16, [1, 40])]
    ))  # fmt: skip
    with serving(tmp_path, workers=1) as server:
        for name in ("windows", "matrix", "text", "half"):
            line = httpx.get(f"{server.url}/v1/models/{name}").json()["curl"]
            line = line.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
            assert json.loads(done.stdout)["model_name"] == name, done.stdout
