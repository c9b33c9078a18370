"""What an ONNX file says that an open session does not tell, or not before it is open: operators, files of weights.

Read with the `protobuf` library, which ONNX Runtime brings along, and with the part of ONNX's schema that is needed
here. The `onnx` package would read everything, at 12 MiB of memory in every process and a quarter of a second of every
start; serving does not have it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from service.graph import Array

# Field numbers and types of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; `*` marks repeated ones. What is
# not named here is skipped.
_SCHEMA = {
    "Model": {
        "ir_version": (1, "int64"),
        "producer_name": (2, "string"),
        "producer_version": (3, "string"),
        "graph": (7, "Graph"),
        "opset_import": (8, "*OperatorSet"),
        "metadata_props": (14, "*Entry"),
        "functions": (25, "*Function"),
    },
    "OperatorSet": {"domain": (1, "string"), "version": (2, "int64")},
    "Graph": {
        "node": (1, "*Node"),
        "name": (2, "string"),
        "initializer": (5, "*Tensor"),
        "sparse_initializer": (15, "*SparseTensor"),
        "input": (11, "*Value"),
        "output": (12, "*Value"),
    },
    "Value": {"name": (1, "string"), "type": (2, "Type")},
    "Type": {"tensor_type": (1, "TensorType")},
    "TensorType": {"elem_type": (1, "int32"), "shape": (2, "Shape")},
    "Shape": {"dim": (1, "*Dimension")},
    "Dimension": {"dim_value": (1, "int64"), "dim_param": (2, "string")},
    "Function": {
        "name": (1, "string"),
        "output": (5, "*string"),
        "node": (7, "*Node"),
        "opset_import": (9, "*OperatorSet"),
        "domain": (10, "string"),
    },
    "Node": {
        "input": (1, "*string"),
        "output": (2, "*string"),
        "op_type": (4, "string"),
        "attribute": (5, "*Attribute"),
        "domain": (7, "string"),
    },
    "Attribute": {
        "name": (1, "string"),
        "f": (2, "float"),
        "i": (3, "int64"),
        "s": (4, "bytes"),
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "floats": (7, "*float"),
        "ints": (8, "*int64"),
        "strings": (9, "*bytes"),
        "tensors": (10, "*Tensor"),
        "graphs": (11, "*Graph"),
        "type": (20, "int32"),
    },
    "Tensor": {
        "dims": (1, "*int64"),
        "data_type": (2, "int32"),
        "float_data": (4, "*float"),
        "int64_data": (7, "*int64"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "external_data": (13, "*Entry"),
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Entry": {"key": (1, "string"), "value": (2, "string")},
}

_UNCHANGED = frozenset(
    (
        *("Identity", "Cast", "CastLike", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        *("Dropout", "Clip", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators after which probabilities are probabilities still."""
_ACTIVATIONS = {
    "Softmax": "softmax",
    "QLinearSoftmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "QLinearSigmoid": "sigmoid",
    "HardSigmoid": "sigmoid",
}
_POST_TRANSFORMS = {b"SOFTMAX": "softmax", b"LOGISTIC": "sigmoid"}
"""Of the classifiers among ONNX's operators for classical machine learning."""

_NUMPY = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
"""ONNX's number of an element type -> NumPy's name of how it is stored."""
_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
"""ONNX's number of an attribute's type -> the field that has its value."""
_LISTS = ("floats", "ints", "strings")


@cache
def _model_type() -> Any:
    """The class of the outermost message."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="onnx.proto", package="onnx", syntax="proto2")
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            label = field_type.LABEL_REPEATED if kind.startswith("*") else field_type.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            if kind in _SCHEMA:
                described.field.add(name=name, number=number, label=label, type_name=f".onnx.{kind}", type=11)
            else:
                scalar = field_type.Type.Value(f"TYPE_{kind.upper()}")
                field = described.field.add(name=name, number=number, label=label, type=scalar)
                if name in ("float_data", "int64_data"):  # a graph that is written again stays as small
                    field.options.packed = True
    pool = descriptor_pool.DescriptorPool()  # not the common one, where the `onnx` package has the same names
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.Model"))


def read_model(path: Path) -> Any:
    """The `Model` message of a file, as far as `_SCHEMA` goes.

    Raises:
        google.protobuf.message.DecodeError: the file is not one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            return parse_model(view)
        finally:
            view.release()


def model_message() -> Any:
    """A `Model` message with nothing in it."""
    return _model_type()()


def parse_model(content: bytes | memoryview) -> Any:
    """The `Model` message of a file's content, as `read_model`."""
    model = model_message()
    model.ParseFromString(content)
    return model


def graphs_of(model: Any) -> Iterator[Any]:
    """The graph, and those in its operators' attributes, such as the branches of an If; in its functions', too."""
    waiting = [model.graph, *(graph for function in model.functions for graph in _inner(function.node))]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _inner(graph.node)


def _inner(nodes: Iterable[Any]) -> list[Any]:
    """The graphs in operators' attributes."""
    graphs = []
    for attribute in _attributes(nodes):
        graphs += attribute.graphs
        if attribute.HasField("g"):
            graphs.append(attribute.g)
    return graphs


def tensors_of(model: Any) -> Iterator[Any]:
    """Every tensor of weights: initializers, and constants among the operators."""
    for graph in graphs_of(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for holder in (*graphs_of(model), *model.functions):
        for attribute in _attributes(holder.node):
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _attributes(nodes: Iterable[Any]) -> Iterator[Any]:
    return (attribute for node in nodes for attribute in node.attribute)


def side_files(model: Any) -> tuple[str, ...]:
    """Names of the files beside the graph that have weights of it, as it names them, sorted."""
    entries = (entry for tensor in tensors_of(model) for entry in tensor.external_data)
    return tuple(sorted({entry.value for entry in entries if entry.key == "location"}))


def has_free_shape(model: Any) -> bool:
    """Whether an axis of an input, but for the batch, is free: what `Signature.free_shape` will say of most graphs."""
    given = {tensor.name for tensor in model.graph.initializer}
    shapes = (value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in given)
    return any(not axis.HasField("dim_value") for shape in shapes for axis in shape[1:])


def activations(model: Any, outputs: Sequence[str]) -> dict[str, str]:
    """Which outputs come out of an activation that makes probabilities, and out of which.

    Returns:
        Output name -> `softmax`, `log_softmax` or `sigmoid`, where it is one of these.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    found = ((name, _activation(model.graph.node, name, functions)) for name in outputs)
    return {name: activation for name, activation in found if activation}


def _activation(nodes: Iterable[Any], name: str, functions: Mapping[tuple[str, str], Any]) -> str | None:
    """The activation at the end of what computes a tensor, through operators that leave probabilities alone."""
    makers = {output: node for node in nodes for output in node.output if output}
    node = makers.get(name)
    while node is not None and node.op_type in _UNCHANGED and node.input:
        name = node.input[0]
        node = makers.get(name)
    if node is None:
        return None
    if function := functions.get((node.domain, node.op_type)):
        return _activation(function.node, function.output[list(node.output).index(name)], functions)
    if node.op_type in ("Exp", "Log"):
        logarithm = {"Exp": ("log_softmax", "softmax"), "Log": ("softmax", "log_softmax")}
        inner, outer = logarithm[node.op_type]
        return outer if _activation(makers.values(), node.input[0], functions) == inner else None
    if node.op_type == "Div":  # a softmax written out
        above, below = (makers.get(value) for value in node.input)
        if above is None or below is None or (above.op_type, below.op_type) != ("Exp", "ReduceSum"):
            return None
        return "softmax" if below.input[0] == node.input[0] else None
    if node.domain == "ai.onnx.ml":
        settings = {attribute.name: attribute.s for attribute in node.attribute}
        if node.op_type == "Normalizer":
            return "softmax" if settings.get("norm") == b"L1" else None
        return _POST_TRANSFORMS.get(settings.get("post_transform", b""))
    return _ACTIVATIONS.get(node.op_type)


def numbers_of(tensor: Any) -> Array | None:
    """The values of a tensor whose bytes lie in the file; None of one in another file, or of a type of few bits."""
    dtype = _NUMPY.get(tensor.data_type)
    if dtype is None or tensor.external_data:
        return None
    listed = {1: tensor.float_data, 7: tensor.int64_data}.get(tensor.data_type)
    try:
        flat = np.array(listed, dtype) if listed else np.frombuffer(tensor.raw_data, dtype)
        return flat.reshape(list(tensor.dims))
    except ValueError:  # some are stored as others
        return None


def attributes_of(node: Any) -> dict[str, Any]:
    """An operator's settings by name: numbers, bytes, lists of them, or a tensor; graphs are left out."""
    found = {}
    for attribute in node.attribute:
        if field := _FIELDS.get(attribute.type):
            value = getattr(attribute, field)
            found[attribute.name] = list(value) if field in _LISTS else value
    return found
