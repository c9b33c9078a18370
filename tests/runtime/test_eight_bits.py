"""8-bit products: their sums are what arithmetic says, on whatever processor the tests run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.runtime import eight_bits
from service.runtime.eight_bits import PRODUCT, keep_sums_exact, sums_are_cut_off
from service.runtime.packed import packed_copy
from service.runtime.session import OnnxSession
from tests import graphs

CHANNELS = 64
RNG = np.random.default_rng(15)


def largest(*shape: int, dtype: type) -> np.ndarray:
    """Random numbers of all sizes; the first half of the last axis as large as can be."""
    info = np.iinfo(dtype)
    values = RNG.integers(info.min + 1, info.max + 1, shape).astype(dtype)
    values[..., : shape[-1] // 2] = info.max
    return values


def product(path: Path, weights: np.ndarray) -> Path:
    """y = x W, for x uint8 (batch, 64), W int8."""
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    sizes = ("batch", CHANNELS), ("batch", weights.shape[1])
    return graphs.save(path, [node], [("x", T.UINT8, sizes[0])], [("y", T.INT32, sizes[1])], {"w": weights})


def convolution(path: Path, weights: np.ndarray, scale: float) -> Path:
    """y = x * W / scale, rounded to uint8, for x uint8 (batch, 64, 5, 5), W int8 (filters, 64, 1, 1)."""
    names = ["x", "one", "nought", "w", "one", "nought_w", "scale", "nought"]
    node = helper.make_node("QLinearConv", names, ["y"], kernel_shape=[1, 1])
    constants = {
        "w": weights,
        "one": np.float32(1),
        "scale": np.float32(scale),
        "nought": np.uint8(0),
        "nought_w": np.int8(0),
    }
    shape = ("batch", CHANNELS, 5, 5), ("batch", len(weights), 5, 5)
    return graphs.save(path, [node], [("x", T.UINT8, shape[0])], [("y", T.UINT8, shape[1])], constants)


@pytest.fixture(params=[False, True], ids=["as this processor is", "as if sums were cut off"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(eight_bits, "sums_are_cut_off", lambda: True)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("rows", [1, 7])
def test_a_matrix_product_is_exact(tmp_path: Path, rows: int) -> None:
    weights, x = largest(48, CHANNELS, dtype=np.int8).T.copy(), largest(rows, CHANNELS, dtype=np.uint8)
    got = OnnxSession(product(tmp_path / "m" / "1" / "model.onnx", weights)).run({"x": x})["y"]
    np.testing.assert_array_equal(got, x.astype(np.int32) @ weights.astype(np.int32))


@pytest.mark.usefixtures("processor")
def test_a_convolution_is_exact(tmp_path: Path) -> None:
    weights, x = largest(32, CHANNELS, dtype=np.int8), largest(2, 5, 5, CHANNELS, dtype=np.uint8)
    sums = x.astype(np.int32) @ weights.T.astype(np.int32)
    scale = 2.0 ** np.ceil(np.log2(sums.max() / 255))
    graph = convolution(tmp_path / "m" / "1" / "model.onnx", weights[..., None, None], scale)
    got = OnnxSession(graph).run({"x": x.transpose(0, 3, 1, 2).copy()})["y"]
    np.testing.assert_array_equal(got.transpose(0, 2, 3, 1), np.clip(np.rint(sums / scale), 0, 255))


def test_so_is_a_packed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, x = largest(48, CHANNELS, dtype=np.int8).T.copy(), largest(7, CHANNELS, dtype=np.uint8)
    graph = product(tmp_path / "m" / "1" / "model.onnx", weights)
    session = OnnxSession(graph)
    if copy := packed_copy(graph, "digest", {"x": x[:1]}):
        session.use_copy(copy, {"x": x[:1]})
    np.testing.assert_array_equal(session.run({"x": x})["y"], x.astype(np.int32) @ weights.astype(np.int32))


def test_the_graph_that_is_tried_is_what_its_description_says() -> None:
    model = onnx.load_model_from_string(PRODUCT)
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("MatMulInteger", ["a", "b"], ["y"])
    session = ort.InferenceSession(PRODUCT, providers=["CPUExecutionProvider"])
    assert [(a.name, a.type, a.shape) for a in [*session.get_inputs(), *session.get_outputs()]] == [
        ("a", "tensor(uint8)", [1, 4]),
        ("b", "tensor(int8)", [4, 16]),
        ("y", "tensor(int32)", [1, 16]),
    ]


def test_where_sums_are_right_the_quicker_kernels_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "session.x64quantprecision"
    for cut_off in (False, True):
        monkeypatch.setattr(eight_bits, "sums_are_cut_off", lambda cut_off=cut_off: cut_off)
        options = ort.SessionOptions()
        keep_sums_exact(options)
        if cut_off:
            assert options.get_session_config_entry(key) == "1"
        else:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(key)
    assert sums_are_cut_off() in (True, False)
