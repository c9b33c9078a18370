"""What an ONNX file says of itself: how its outputs end, and where its weights are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.runtime.onnx_file import activations, has_free_shape, read_model, side_files
from service.runtime.session import OnnxSession
from tests import graphs

make = helper.make_node


def ending(path: Path, nodes: Sequence[Any], constants: dict[str, Any] | None = None) -> Path:
    """A graph of x float32 (batch, 5), whose nodes lead from `logits`, twice x, to `y`."""
    doubled = make("Mul", ["x", "two"], ["logits"])
    inputs, outputs = [("x", T.FLOAT, ["batch", 5])], [("y", T.FLOAT, ["batch", 5])]
    return graphs.save(path, [doubled, *nodes], inputs, outputs, {"two": np.float32(2), **(constants or {})})


CAST = [make("Cast", ["p"], ["half"], to=T.FLOAT16), make("Cast", ["half"], ["y"], to=T.FLOAT)]
SQUEEZED = [
    make("Unsqueeze", ["logits", "last"], ["column"]),
    make("Unsqueeze", ["column", "last"], ["picture"]),
    make("Softmax", ["picture"], ["p"], axis=1),
    make("Transpose", ["p"], ["turned"], perm=[0, 2, 3, 1]),
    make("Squeeze", ["turned", "inner"], ["flat"]),
    make("Identity", ["flat"], ["y"]),
]
QUANTISED = [
    make("Sigmoid", ["logits"], ["p"]),
    make("QuantizeLinear", ["p", "scale", "zero"], ["q"]),
    make("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
]
WRITTEN_OUT = [
    make("ReduceMax", ["logits"], ["top"], axes=[1]),
    make("Sub", ["logits", "top"], ["less"]),
    make("Exp", ["less"], ["powers"]),
    make("ReduceSum", ["powers", "one"], ["sum"]),
    make("Div", ["powers", "sum"], ["y"]),
]


@pytest.mark.parametrize(
    ("nodes", "constants", "activation"),
    [
        ([make("Identity", ["logits"], ["y"])], {}, None),
        ([make("Relu", ["logits"], ["y"])], {}, None),
        ([make("Softmax", ["logits"], ["y"])], {}, "softmax"),
        ([make("LogSoftmax", ["logits"], ["y"])], {}, "log_softmax"),
        ([make("Sigmoid", ["logits"], ["y"])], {}, "sigmoid"),
        ([make("HardSigmoid", ["logits"], ["y"])], {}, "sigmoid"),
        ([make("Softmax", ["logits"], ["p"]), *CAST], {}, "softmax"),
        ([make("Softmax", ["logits"], ["p"]), make("Reshape", ["p", "shape"], ["y"])], {"shape": np.array([-1, 5])}, "softmax"),
        ([make("Softmax", ["logits"], ["p"]), make("Flatten", ["p"], ["y"])], {}, "softmax"),
        ([make("Softmax", ["logits"], ["p"]), make("Clip", ["p", "low", "high"], ["y"])], {"low": np.float32(1e-7), "high": np.float32(1)}, "softmax"),
        ([make("Softmax", ["logits"], ["p"]), make("Log", ["p"], ["y"])], {}, "log_softmax"),
        ([make("LogSoftmax", ["logits"], ["p"]), make("Exp", ["p"], ["y"])], {}, "softmax"),
        ([make("Exp", ["logits"], ["y"])], {}, None),
        ([make("Softmax", ["logits"], ["p"]), make("MatMul", ["p", "weights"], ["y"])], {"weights": np.ones((5, 5), np.float32)}, None),
        ([make("Softmax", ["logits"], ["p"]), make("Div", ["logits", "p"], ["y"])], {}, None),
        (SQUEEZED, {"last": np.array([2]), "inner": np.array([1, 2])}, "softmax"),
        (QUANTISED, {"scale": np.float32(1 / 255), "zero": np.uint8(0)}, "sigmoid"),
        (WRITTEN_OUT, {"one": np.array([1])}, "softmax"),
    ],
    ids=lambda value: "-".join(node.op_type for node in value) if isinstance(value, list) else "",
)  # fmt: skip
def test_the_last_operators_say_whether_an_output_is_probabilities(
    tmp_path: Path, nodes: Any, constants: Any, activation: str | None
) -> None:
    path = ending(tmp_path / "m" / "1" / "model.onnx", nodes, constants)
    expected = {"y": activation} if activation else {}
    assert activations(read_model(path), ["y"]) == expected
    assert OnnxSession(path).signature.activations == expected


def test_a_function_of_the_file_is_looked_into(tmp_path: Path) -> None:
    """As PyTorch's exporters write them: an operator of their own, made of ONNX's."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function(
        "own", "head", ["a"], ["b"], [make("Softmax", ["a"], ["c"]), make("Identity", ["c"], ["b"])], opsets[:1]
    )
    graph = helper.make_graph(
        [make("head", ["x"], ["y"], domain="own")],
        "tiny",
        [helper.make_tensor_value_info("x", T.FLOAT, ["batch", 5])],
        [helper.make_tensor_value_info("y", T.FLOAT, ["batch", 5])],
    )
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9), str(path))
    assert OnnxSession(path).signature.activations == {"y": "softmax"}


@pytest.mark.parametrize(("transform", "activation"), [("NONE", None), ("SOFTMAX", "softmax"), ("LOGISTIC", "sigmoid")])
def test_a_classifier_of_classical_machine_learning_says_its_transform(
    tmp_path: Path, transform: str, activation: str | None
) -> None:
    node = make(
        "LinearClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml", classlabels_ints=[0, 1, 2],
        coefficients=[0.0] * 6, intercepts=[0.0] * 3, post_transform=transform,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info("x", T.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", T.FLOAT, ["batch", 3])],
    )
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    assert OnnxSession(path).signature.activations == ({"y": activation} if activation else {})


def weights_beside(path: Path, name: str = "model.onnx.data") -> Path:
    """`y = x + weights`, whose weights are in a file of their own."""
    inputs, outputs = [("x", T.FLOAT, ["batch", 300])], [("y", T.FLOAT, ["batch", 300])]
    graphs.save(path, [make("Add", ["x", "w"], ["y"])], inputs, outputs, {"w": np.ones(300, np.float32)})
    onnx.save(onnx.load(path), str(path), save_as_external_data=True, location=name, size_threshold=0)
    return path


def test_files_with_weights_are_named(tmp_path: Path) -> None:
    path = weights_beside(tmp_path / "m" / "1" / "model.onnx")
    assert side_files(read_model(path)) == ("model.onnx.data",)
    assert OnnxSession(path).side_files == ("model.onnx.data",)
    assert OnnxSession(graphs.affine(tmp_path / "n" / "1" / "model.onnx")).side_files == ()


def with_switches(path: Path) -> Path:
    """y = x · keep_prob + shift, where `shift` has the value 3 in the graph and `training` doubles it all."""
    nodes = [
        make("Mul", ["x", "scope/keep_prob:0"], ["kept"]),
        make("Add", ["kept", "shift"], ["shifted"]),
        make("Cast", ["training"], ["number"], to=T.FLOAT),
        make("Add", ["number", "one"], ["factor"]),
        make("Mul", ["shifted", "factor"], ["y"]),
    ]
    inputs = [
        ("x", T.FLOAT, ["batch", 2]),
        ("scope/keep_prob:0", T.FLOAT, []),
        ("shift", T.FLOAT, []),
        ("training", T.BOOL, [1]),
    ]
    outputs = [("y", T.FLOAT, ["batch", 2])]
    return graphs.save(path, nodes, inputs, outputs, {"shift": np.float32(3), "one": np.float32(1)})


@pytest.mark.parametrize(
    ("constants", "expected"),
    [({}, 1 + 3), ({"training": True}, 2 * (1 + 3)), ({"scope/keep_prob:0": 0.5, "training": 0}, 0.5 + 3)],
)
def test_inputs_for_training_have_the_value_that_the_model_is_used_with(
    tmp_path: Path, constants: dict[str, Any], expected: float
) -> None:
    session = OnnxSession(with_switches(tmp_path / "m" / "1" / "model.onnx"), constants)
    assert list(session.signature.inputs) == ["x"]
    assert session.run({"x": np.ones((3, 2), np.float32)})["y"].tolist() == [[expected] * 2] * 3


def test_an_output_that_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    """As scikit-learn's exporter writes them: probabilities as a list of dictionaries."""
    nodes = [
        make("Identity", ["x"], ["y"]),
        make("ZipMap", ["x"], ["dictionaries"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    value = helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, []))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", T.FLOAT, ["batch", 2])],
        [
            helper.make_tensor_value_info("y", T.FLOAT, ["batch", 2]),
            helper.make_value_info("dictionaries", helper.make_sequence_type_proto(value)),
        ],
    )
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    session = OnnxSession(path)
    assert list(session.signature.outputs) == ["y"]
    assert session.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[1, 1]]


@pytest.mark.parametrize("graph", [graphs.affine, graphs.colours, graphs.running_sum, graphs.age, graphs.decoder])
def test_the_file_says_whether_shapes_are_free_before_it_is_open(tmp_path: Path, graph: Any) -> None:
    """A graph with free shapes is opened otherwise; to find that out it had to be opened twice."""
    path = graph(tmp_path / "m" / "1" / "model.onnx")
    assert has_free_shape(read_model(path)) == OnnxSession(path).signature.free_shape


def test_a_graph_is_opened_once(tmp_path: Path, real_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    open_session = OnnxSession._open
    monkeypatch.setattr(
        OnnxSession, "_open", lambda self, *args, **options: opened.append(self) or open_session(self, *args, **options)
    )
    for path in (*real_models.glob("*/*/model.onnx"), graphs.affine(tmp_path / "m" / "1" / "model.onnx")):
        session = OnnxSession(path)
        assert opened.pop() is session
        assert not opened
