"""ONNX graphs written as functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from training.graph import IR_VERSION, OPSET, GraphBuilder


def run(model: onnx.ModelProto, **inputs: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, inputs)
    return found


def test_operators_are_functions_and_numbers_constants() -> None:
    g = GraphBuilder()
    x = g.input("x", np.float32, ["batch", 2])
    g.output(g("Add", g("Mul", x, 2), 1), "y", np.float32, ["batch", 2])
    model = g.model("double_and_one")
    assert run(model, x=np.float32([[1, 2], [3, 4], [5, 6]]))[0].tolist() == [[3, 5], [7, 9], [11, 13]]
    assert (model.opset_import[0].version, model.ir_version) == (OPSET, IR_VERSION)


def test_equal_constants_are_written_once() -> None:
    g = GraphBuilder()
    assert g.constant(2) == g.constant(2.0) != g.constant(3)
    assert g.ints(2) != g.constant(2)


def test_two_weights_of_a_name_are_refused() -> None:
    g = GraphBuilder()
    g.weight("w", np.ones(3, np.float32))
    g.weight("w", np.ones(3, np.float32))
    with pytest.raises(ValueError, match="'w'"):
        g.weight("w", np.zeros(3, np.float32))


@pytest.mark.parametrize("bgr", [False, True])
def test_a_picture_is_normalised_in_the_graph(bgr: bool) -> None:
    g = GraphBuilder()
    x = g.picture("image", 2, 4, mean=(10, 20, 30), std=(2, 4, 8), bgr=bgr)
    g.output(x, "y", np.float32, ["batch", 3, 2, 4])
    pixels = np.random.default_rng(1).integers(0, 256, (3, 2, 4, 3), dtype=np.uint8)
    (found,) = run(g.model("picture"), image=pixels)
    network_order = pixels[..., ::-1] if bgr else pixels
    np.testing.assert_allclose(found, ((network_order - [10.0, 20, 30]) / [2, 4, 8]).transpose(0, 3, 1, 2), rtol=1e-6)


def test_a_branch_is_built_as_the_graph_around_it() -> None:
    g, doubled, same = GraphBuilder(), GraphBuilder("doubled_"), GraphBuilder("same_")
    x = g.input("x", np.float32, ["batch"])
    for b, factor in ((doubled, 2), (same, 1)):
        b.output(b("Mul", x, factor), f"{b.prefix}y", np.float32, [None])
    much = g("Greater", g("ReduceMax", x, keepdims=0), 10)
    y = g("If", much, then_branch=doubled.graph("doubled"), else_branch=same.graph("same"))
    g.output(y, "y", np.float32, ["batch"])
    model = g.model("branches")
    assert run(model, x=np.float32([1, 2]))[0].tolist() == [1, 2]
    assert run(model, x=np.float32([1, 20]))[0].tolist() == [2, 40]


def test_several_outputs_and_an_input_left_out() -> None:
    g = GraphBuilder()
    first, second = g.several("Split", g.input("x", np.float32, ["batch", 4]), outputs=2, axis=1, num_outputs=2)
    g.output(g("Clip", first, "", 1), "low", np.float32, ["batch", 2])
    g.output(second, "rest", np.float32, ["batch", 2])
    low, rest = run(g.model("split"), x=np.float32([[0, 5, 6, 7]]))
    assert (low.tolist(), rest.tolist()) == ([[0, 1]], [[6, 7]])


def test_an_output_of_another_shape_than_declared_is_refused() -> None:
    g = GraphBuilder()
    g.output(g("Neg", g.input("x", np.float32, ["batch", 2])), "y", np.float32, ["batch", 3])
    with pytest.raises(onnx.shape_inference.InferenceError):
        g.model("wrong")
