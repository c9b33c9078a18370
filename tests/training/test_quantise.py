"""Smaller weights whose graph still answers nearly the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from training.graph import GraphBuilder
from training.quantise import to_dynamic_int8, to_float16_storage, to_int8

DRAW = np.random.default_rng(4)
PIXELS = DRAW.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    g = GraphBuilder()
    x = g.picture("image", 8, 8, mean=(128, 128, 128), std=(64, 64, 64))
    filters = DRAW.normal(0, 0.2, (16, 3, 3, 3)).astype(np.float32)
    x = g("Relu", g("Conv", x, g.weight("stem.weight", filters), pads=[1, 1, 1, 1]))
    x = g("Reshape", x, g.ints(0, -1))
    matrix = DRAW.normal(0, 0.03, (1024, 4)).astype(np.float32)
    g.output(g("MatMul", x, g.weight("head.weight", matrix)), "logits", np.float32, ["batch", 4])
    return g.model("network")


def logits(model: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": PIXELS})[0]


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_static_ranges_are_measured_on_what_is_given(network: onnx.ModelProto) -> None:
    made = to_int8(network, [{"image": PIXELS[:8]}, {"image": PIXELS[8:]}])
    assert "QuantizeLinear" in {node.op_type for node in made.graph.node}
    assert onnx.TensorProto.INT8 in types(made).values()
    np.testing.assert_allclose(logits(made), logits(network), atol=0.1)
    assert not np.array_equal(logits(made), logits(network))


def test_what_must_stay_exact_stays_float32(network: onnx.ModelProto) -> None:
    made = to_int8(network, [{"image": PIXELS}], exact=("stem.weight",))
    np.testing.assert_array_equal(logits(made), logits(network))


def test_dynamic_ranges_need_no_data(network: onnx.ModelProto) -> None:
    made = to_dynamic_int8(network)
    assert types(made)["head.weight_quantized"] == onnx.TensorProto.INT8
    np.testing.assert_allclose(logits(made), logits(network), atol=0.1)


def test_float16_halves_the_file_and_rounds_the_weights_alone(network: onnx.ModelProto) -> None:
    made = to_float16_storage(network)
    assert types(made)["head.weight_float16"] == onnx.TensorProto.FLOAT16
    assert types(made)["stem.weight"] == onnx.TensorProto.FLOAT  # it is small
    assert made.ByteSize() < 0.7 * network.ByteSize()
    np.testing.assert_allclose(logits(made), logits(network), atol=0.01)


def test_a_weight_beyond_float16_is_refused() -> None:
    g = GraphBuilder()
    x = g("Mul", g.input("x", np.float32, ["batch", 1024]), g.weight("large", np.full(1024, 1e5, np.float32)))
    g.output(x, "y", np.float32, ["batch", 1024])
    with pytest.raises(ValueError, match="large holds 1e"):
        to_float16_storage(g.model("large"))
