"""Triton's own Python client, as it is published, gets from every model what plain ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service.registry.repository import scan
from service.tasks import discover
from tests.test_server import serving

triton = pytest.importorskip("tritonclient.http")

MODELS = Path(__file__).parents[2] / "models"
ROWS, STEPS = 2, 7
LENGTHS = {"samples": 960}
"""Of axes that cannot be so short: a graph of sound needs a frame at least."""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with serving(MODELS, workers=1) as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        yield client
        client.close()


def graphs() -> Iterator[Any]:
    """Every graph of every version, as clients name them."""
    tasks = discover()
    for model in scan(MODELS, tasks):
        assert model.manifest
        for version in model.versions:
            for graph in (stems := tasks[model.manifest.task].graphs):
                name = model.name if graph == stems[0] else f"{model.name}:{graph}"
                yield pytest.param(model.path / version / f"{graph}.onnx", name, version, id=f"{name}@{version}")


def values_for(tensor: Any, rng: np.random.Generator) -> np.ndarray:
    """Values that any graph can compute with: small ones where they may be indices."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64", "bool": "bool"}.get(kind, kind)
    free = [LENGTHS.get(axis, STEPS) if at else ROWS for at, axis in enumerate(tensor.shape)]
    shape = [axis if isinstance(axis, int) else length for axis, length in zip(tensor.shape, free, strict=True)]
    if tensor.name == "sequence_lens":
        return np.full(shape, STEPS, dtype)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


@pytest.mark.parametrize(("graph", "name", "version"), list(graphs()))
def test_every_graph_answers_as_onnxruntime_does(client: Any, graph: Path, name: str, version: str) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options)
    rng = np.random.default_rng(7)
    described = client.get_model_metadata(name, version)
    optional = {t["name"] for t in described["inputs"] if t.get("parameters", {}).get("optional")}
    feeds, inputs = {}, []
    datatypes = {tensor["name"]: tensor["datatype"] for tensor in described["inputs"]}
    for tensor in session.get_inputs():
        is_left_out = tensor.name in optional
        values = values_for(tensor, rng)
        if is_left_out and tensor.name != "sequence_lens":
            values = np.zeros_like(values)
        feeds[tensor.name] = values
        if not is_left_out:
            given = triton.InferInput(tensor.name, list(values.shape), datatypes[tensor.name])
            inputs.append((given, values))
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, feeds), strict=True))

    for binary in (True, False):
        for given, values in inputs:
            given.set_data_from_numpy(values, binary_data=binary)
        outputs = None if binary else [triton.InferRequestedOutput(output, binary_data=False) for output in names]
        for encoding in (None, "gzip", "deflate"):
            result = client.infer(
                name,
                [given for given, _ in inputs],
                model_version=version,
                outputs=outputs,
                request_compression_algorithm=encoding,
                response_compression_algorithm=encoding,
            )
            assert result.get_response()["model_version"] == version
            for output in names:
                np.testing.assert_allclose(result.as_numpy(output), expected[output], rtol=1e-5, atol=1e-5)
