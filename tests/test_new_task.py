"""The page on adding a task runs as printed: its blocks, one after another, are a module with three tasks."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from tests import graphs
from tests.conftest import running

PAGE = Path(__file__).parent.parent / "docs" / "adding-a-task.md"


def length(path: Path) -> Path:
    """y = |x|, Euclidean, for x float32 (batch, width)."""
    return graphs.save(
        path,
        [helper.make_node("ReduceL2", ["x"], ["y"], axes=[1], keepdims=1)],
        [("x", T.FLOAT, ["batch", "width"])],
        [("y", T.FLOAT, ["batch", 1])],
    )


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[ModuleType]:
    """A module of the page's Python blocks."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "measure.py").write_text("\n\n".join(blocks))
    spec = importlib.util.spec_from_file_location("measure", tmp_path / "measure.py")
    assert spec and spec.loader
    sys.modules["measure"] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["measure"]


async def test_the_printed_task_answers(printed: ModuleType, tmp_path: Path) -> None:
    golden = [{"input": {"values": [3, 4]}, "output": {"length": 5}}]
    graphs.write_model(tmp_path / "models" / "ruler", task="measure", graph=length, golden=golden)
    async with running(tmp_path / "models", tasks={"measure": printed.Measure}) as client:
        answer = await client.post("/v1/measure", json={"values": [1, 2, 2]})
        assert answer.json() == {"model": {"name": "ruler", "version": "1"}, "length": 3}
        operation = (await client.get("/openapi.json")).json()["paths"]["/v1/measure"]["post"]
        assert operation["requestBody"]["content"]["application/json"]["examples"]["example 1"]["value"] == {
            "values": [1.0, 2.0]
        }


async def test_the_printed_task_of_two_graphs_answers(printed: ModuleType, tmp_path: Path) -> None:
    folder = graphs.counting_model(tmp_path / "models")
    (folder / "manifest.toml").write_text('task = "count"')
    (folder / "1" / "golden.json").write_text('[{"input": {"x": 2, "steps": 3}, "output": {"count": 60}}]')
    async with running(tmp_path / "models", tasks={"count": printed.Count}) as client:
        answer = await client.post("/v1/count", json={"x": 1, "steps": 4})
        assert answer.json() == {"model": {"name": "counter", "version": "1"}, "count": 40}


async def test_the_printed_options_are_read_from_the_manifest(printed: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "ruler"
    graphs.write_model(folder, task="rounded-measure", graph=length)
    with (folder / "manifest.toml").open("a") as manifest:
        manifest.write("\n[rounding]\ndigits = 1\n")
    async with running(tmp_path / "models", tasks={"rounded-measure": printed.RoundedMeasure}) as client:
        answer = await client.post("/v1/rounded-measure", json={"values": [1, 1]})
        assert answer.json()["length"] == pytest.approx(np.round(np.sqrt(2), 1))


async def test_the_printed_task_for_files_answers_for_each(printed: ModuleType, tmp_path: Path) -> None:
    graphs.write_model(tmp_path / "models" / "meter", task="loudness", graph=length)
    async with running(tmp_path / "models", tasks={"loudness": printed.Loudness}) as client:
        files = [("file", ("a.raw", np.array([3, -4, 0, 0], "<i2").tobytes())), ("file", ("b.raw", b"x"))]
        answer = await client.post("/v1/loudness", files=files)
        loud, cut = answer.json()["results"]
        assert loud == {"filename": "a.raw", "level": 2.5}
        assert cut["error"]["detail"] == "Recording 'b.raw' is empty or cut short. Send 16-bit samples."
