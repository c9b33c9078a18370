"""What is wrong with a graph is found in its file, before the runtime sees it, and told with two ways out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from service.errors import ManifestInvalid
from service.runtime import onnx_faults
from service.runtime.session import OnnxSession
from tests import graphs

make, RUNTIME = helper.make_node, f"onnxruntime {ort.__version__}"


def changed(path: Path, change: Callable[[Any], Any]) -> Path:
    """y = 2x + 1, with something about its file changed."""
    model = onnx.load(graphs.affine(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def opset(version: int, domain: str = "") -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid(domain, version))
        if domain:
            model.opset_import.append(helper.make_opsetid("", 17))

    return change


def operator(name: str, domain: str = "") -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = name, domain

    return change


def of_the_runtime(model: Any) -> None:
    """An operator that ONNX does not have and the runtime has."""
    operator("QuickGelu", "com.microsoft")(model)
    del model.graph.node[1].input[1:]


def in_a_branch(model: Any) -> None:
    """An operator of somebody's own, deep in the branch of an If."""
    value = helper.make_tensor_value_info("inner", T.FLOAT, None)
    branch = helper.make_graph([make("Mystery", ["x"], ["inner"], domain="com.acme")], "branch", [], [value])
    model.graph.node.append(make("If", ["one"], ["z"], then_branch=branch, else_branch=branch))


def weights(dims: list[int], **external: Any) -> Callable[[Any], Any]:
    """The constant `one`, of another shape, or in another file."""

    def change(model: Any) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "one")
        tensor.dims[:] = dims
        for key, value in external.items():
            tensor.external_data.add(key=key, value=str(value))
        if external:
            tensor.data_location = T.EXTERNAL

    return change


def made_of_a_shape(kind: str, place: int) -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        shape = numpy_helper.from_array(np.array([2**20, 2**20]), "shape")
        model.graph.initializer.append(shape)
        model.graph.node.append(make(kind, [*["x"] * place, "shape"], ["z"]))

    return change


def input_of(*dims: int) -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        shape = model.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for size in dims:
            shape.dim.add(dim_value=size)

    return change


FAULTS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda model: setattr(model, "ir_version", 99), f"was exported for a newer ONNX than {RUNTIME} reads: IR version 99, and it reads up to"),
    (opset(999), f"was exported for a newer ONNX than {RUNTIME} reads: opset 999, and it reads up to"),
    (opset(99, "ai.onnx.ml"), f"was exported for a newer ONNX than {RUNTIME} reads: opset of ai.onnx.ml 99, and it reads up to"),
    (operator("Addd"), f"has an operator 'Addd', which {RUNTIME} does not have (the nearest is Add). Export it again with standard operators, or install"),
    (operator("Gelu"), "has an operator Gelu, which came with opset 20 of ONNX, and says that it uses opset 17. Export it again with opset_version=20, or without"),
    (operator("Sharpen", "com.acme"), f"has an operator 'Sharpen' of the domain 'com.acme', which {RUNTIME} does not have, and libraries of custom operators are never loaded. Export it with standard operators, or"),
    (in_a_branch, "has an operator 'Mystery' of the domain 'com.acme'"),
    (weights([2**40]), "tensor 'one' of shape [1099511627776] would need more than the"),
    (weights([-1]), "tensor 'one' of shape [-1] would need more than the"),
    (weights([2**31, 2**31, 2**31]), "tensor 'one' of shape"),
    (weights([1], location="one.data", offset=8, length=4), "its weights are in a side file that is cut short: tensor 'one' of shape [1] needs bytes 8 to 12 of 'one.data', which has 8. Copy it again, or save"),
    (weights([1], location="one.data", offset=-4), "tensor 'one' of shape [1] has a place or size in 'one.data' that is none. Export it again, or save"),
    (weights([1], location="one.data", length="all"), "tensor 'one' of shape [1] has a place or size in 'one.data' that is none"),
    (weights([3], location="one.data"), "tensor 'one' of shape [3] needs 12 bytes and has 8 in 'one.data'. Export it again, or save"),
    (weights([1], offset=0), "tensor 'one' of shape [1] is in another file, and does not say in which. Export it again, or save"),
    (made_of_a_shape("ConstantOfShape", 0), "operator ConstantOfShape makes a tensor of shape [1048576, 1048576], more than a machine can hold. Export it again, or"),
    (made_of_a_shape("Expand", 1), "operator Expand makes a tensor of shape [1048576, 1048576]"),
    (input_of(1, 3, 2**20, 2**20), "input 'x' has 3,298,534,883,328 values a row, more than any request. Export it with free axes, or"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), FAULTS, ids=[sentence[:60] for _, sentence in FAULTS])
def test_a_fault_is_told_before_the_runtime_sees_the_graph(tmp_path: Path, change: Any, sentence: str) -> None:
    path = changed(tmp_path / "m" / "1" / "model.onnx", change)
    (path.parent / "one.data").write_bytes(bytes(8))
    with pytest.raises(ManifestInvalid) as refused:
        OnnxSession(path)
    assert str(refused.value).startswith(f"m/1/model.onnx: {sentence}")
    assert refused.value.__cause__ is None  # the runtime has said nothing
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("change", [opset(17), opset(5, "ai.onnx.ml"), of_the_runtime, operator("Sub", "ai.onnx")])
def test_what_the_runtime_has_is_no_fault(tmp_path: Path, change: Any) -> None:
    OnnxSession(changed(tmp_path / "m" / "1" / "model.onnx", change))


def location(name: str) -> Callable[[Any], Any]:
    return lambda tensor: (
        tensor.external_data.add(key="location", value=name),
        setattr(tensor, "data_location", T.EXTERNAL),
    )


def initializer(model: Any) -> Any:
    return model.graph.initializer[0]


def attribute(model: Any) -> Any:
    model.graph.node.append(make("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(1, np.float32), "c")))
    return model.graph.node[-1].attribute[0].t


def sparse(model: Any) -> Any:
    values, indices = (numpy_helper.from_array(np.zeros(1, kind), "s") for kind in (np.float32, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return model.graph.sparse_initializer[0].values


def subgraph(model: Any) -> Any:
    value = helper.make_tensor_value_info("c", T.FLOAT, None)
    branch = helper.make_graph([], "branch", [], [value], [numpy_helper.from_array(np.zeros(1, np.float32), "c")])
    model.graph.node.append(make("If", ["one"], ["z"], then_branch=branch, else_branch=branch))
    return model.graph.node[-1].attribute[0].g.initializer[0]


@pytest.mark.parametrize("tensor_of", [initializer, attribute, sparse, subgraph])
@pytest.mark.parametrize("name", ["{outside}", "../../../secret.data", "link.data", "gone.data"])
def test_weights_of_any_tensor_lie_in_the_models_folder(tmp_path: Path, tensor_of: Any, name: str) -> None:
    outside = tmp_path / "secret.data"
    outside.write_bytes(bytes(64))
    path = tmp_path / "models" / "m" / "1" / "model.onnx"
    changed(path, lambda model: location(name.format(outside=outside))(tensor_of(model)))
    (path.parent / "link.data").symlink_to(outside)
    with pytest.raises(ManifestInvalid) as refused:
        OnnxSession(path)
    told = (
        "is missing, and model.onnx has weights in it: put it back, or"
        if "gone" in name
        else "leads out of the model's folder; copy the file to this place, or"
    )
    assert told in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert refused.value.__cause__ is None


def test_an_empty_file_and_one_beyond_the_format_are_told_by_their_size(tmp_path: Path) -> None:
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ManifestInvalid, match="is not an ONNX file: it is empty. Copy it again, or"):
        OnnxSession(path)
    with path.open("r+b") as file:
        file.truncate(onnx_faults.MAX_FILE_BYTES + 1)  # a hole: it takes no place
    with pytest.raises(ManifestInvalid, match=r"has 2,147,483,648 bytes; .* \(external data\), or quantise them"):
        OnnxSession(path)


def test_libraries_of_operators_are_loaded_nowhere() -> None:
    found = subprocess.run(
        ["grep", "-rIl", "--include=*.py", "register_custom_ops", "."],
        cwd=Path(__file__).parents[2] / "service",
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""
