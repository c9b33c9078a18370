"""What a graph computes and does not give: its activation map, and probabilities that its last operator hides.

Only outputs are added. No number of the graph is changed, and what it gave before it gives still.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.graph import Array
from service.importing.source import Source
from service.runtime.onnx_file import attributes_of

ACTIVATION_MAP = "activation_map"
MOST_BYTES = 1024 * 1024 * 1024
"""A larger file is left as it is (bytes)."""

_INT, _INTS = 2, 7
"""ONNX's numbers of the types of attributes."""
_SHAPES = ("Flatten", "Reshape", "Squeeze")
_ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")


def unzip(model: Any) -> tuple[str, ...]:
    """Give probabilities as a tensor where skl2onnx makes a list of dictionaries of them; changes the graph.

    Returns:
        Names of the outputs that are tensors now.
    """
    graph = model.graph
    changed = []
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        for value in graph.output:
            if value.name != node.output[0]:
                continue
            settings = attributes_of(node)
            names = settings.get("classlabels_strings") or settings.get("classlabels_int64s") or []
            probabilities = node.input[0]
            for other in graph.node:  # under the name that the output had
                for index, output in enumerate(other.output):
                    if output == probabilities:
                        other.output[index] = value.name
                for index, given in enumerate(other.input):
                    if given == probabilities:
                        other.input[index] = value.name
            _become_tensor(value, 1, [None, len(names) or None])
            changed.append(value.name)
        if node.output[0] in changed:
            graph.node.remove(node)
    return tuple(changed)


def _become_tensor(value: Any, elem_type: int, axes: list[int | None]) -> None:
    """Declare an output as a tensor with these axes; None is a free one."""
    name = value.name
    value.Clear()
    value.name = name
    value.type.tensor_type.elem_type = elem_type
    for axis in axes:
        dimension = value.type.tensor_type.shape.dim.add()
        if axis is not None:
            dimension.dim_value = axis


def add_activation_map(source: Source, model: Any, scores: str, classes: int) -> str | None:
    """Add the class activation map of a classifier that ends in global pooling and a linear layer; changes the graph.

    The linear layer of every place's features, in place of their mean: the mean of the map is the logits (Zhou et al.,
    "Learning Deep Features for Discriminative Localization", CVPR 2016).

    Args:
        source: the graph as it is.
        model: its content, to be changed.
        scores: name of the output with the classes' scores.
        classes: of it (count).

    Returns:
        How it is made; None where the graph does not end so, or has such an output.
    """
    if ACTIVATION_MAP in {value.name for value in model.graph.output} | set(source.makers):
        return None
    _, node = source.back(scores, *_SHAPES, *_ACTIVATIONS)
    if node is None:
        return None
    if pooled := _pooled(source, node):  # the pooling is all there is: SqueezeNet
        features, channels_last = pooled
        perm = [0, 3, 1, 2] if channels_last else None
        _node(model, "Transpose" if channels_last else "Identity", [features], ACTIVATION_MAP, perm=perm)
    elif node.op_type == "Conv":
        _, pool = source.back(node.input[0])
        pooled = _pooled(source, pool) if pool is not None else None
        if pooled is None or pooled[1] or (source.shape_of_weight(node.input[1]) or ())[2:] != (1, 1):
            return None
        _node(model, "Conv", [pooled[0], *node.input[1:]], ACTIVATION_MAP)
    else:
        linear = _linear(source, node)
        _, pool = source.back(linear.given, *_SHAPES, "DynamicQuantizeLinear") if linear else ("", None)
        pooled = _pooled(source, pool) if pool is not None else None
        if linear is None or pooled is None:
            return None
        _add_linear(model, linear, *pooled)
    scores_value = next(value for value in model.graph.output if value.name == scores)
    added = model.graph.output.add()
    added.name = ACTIVATION_MAP
    _become_tensor(added, scores_value.type.tensor_type.elem_type, [None, classes, None, None])
    if scores_value.type.tensor_type.shape.dim:
        added.type.tensor_type.shape.dim[0].CopyFrom(scores_value.type.tensor_type.shape.dim[0])
    return f"the graph ends in {node.op_type} after global pooling"


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer: `given` (n, features) times weights, and a bias.

    Attributes:
        given: the tensor that it is applied to.
        weights: (features, classes), or transposed.
        bias: (classes,), if there is one.
        transposed: whether the weights are (classes, features).
        quantised: scale and zero of weights of 8 bits; empty of floats.
    """

    given: str
    weights: str
    bias: str | None = None
    transposed: bool = False
    quantised: tuple[str, ...] = ()


def _linear(source: Source, node: Any) -> _Linear | None:
    """The linear layer that ends in an operator: Gemm, MatMul, or what dynamic quantisation makes of these."""
    if node.op_type == "Gemm":
        settings = attributes_of(node)
        if any(settings.get(key, usual) != usual for key, usual in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))):
            return None
        bias = node.input[2] if len(node.input) > 2 else None
        return _Linear(node.input[0], node.input[1], bias, bool(settings.get("transB")))
    if node.op_type == "Add":
        for one, other in ((0, 1), (1, 0)):
            shape, (_, product) = source.shape_of_weight(node.input[other]), source.back(node.input[one])
            if shape is not None and len(shape) <= 2 and product is not None and product.op_type != "Add":
                found = _linear(source, product)
                return replace(found, bias=node.input[other]) if found and found.bias is None else None
        return None
    if node.op_type == "MatMul" and source.shape_of_weight(node.input[1]) is not None:
        return _Linear(node.input[0], node.input[1])
    if node.op_type == "Mul":
        for one, other in ((0, 1), (1, 0)):
            (_, product), (_, scales) = source.back(node.input[one]), source.back(node.input[other])
            if product is not None and product.op_type == "MatMulInteger" and scales is not None:
                own = [name for name in scales.input if source.shape_of_weight(name) is not None]
                if scales.op_type == "Mul" and len(own) == 1:
                    return _Linear(product.input[0], product.input[1], quantised=(own[0], *product.input[3:4]))
    return None


def _add_linear(model: Any, linear: _Linear, features: str, channels_last: bool) -> None:
    """Append a linear layer that is applied to every place of a map of features."""
    places = features if channels_last else _node(model, "Transpose", [features], "places", perm=[0, 2, 3, 1])
    weights = linear.weights
    if linear.quantised:
        weights = _node(model, "DequantizeLinear", [weights, *linear.quantised], "weights", axis=1)
    if linear.transposed:
        weights = _node(model, "Transpose", [weights], "weights", perm=[1, 0])
    scored = _node(model, "MatMul", [places, weights], "scored")
    if linear.bias:
        scored = _node(model, "Add", [scored, linear.bias], "biased")
    _node(model, "Transpose", [scored], ACTIVATION_MAP, perm=[0, 3, 1, 2])


def _pooled(source: Source, node: Any) -> tuple[str, bool] | None:
    """What a global pooling takes the mean of, and whether its channels are its last axis."""
    if node.op_type == "GlobalAveragePool":
        return node.input[0], False
    if node.op_type != "ReduceMean":
        return None
    axes = attributes_of(node).get("axes")
    if axes is None and len(node.input) > 1:
        given = source.weight(node.input[1])
        axes = None if given is None else given.ravel().tolist()
    if axes is None:
        return None
    of_four = sorted(axis % 4 for axis in axes)
    return (node.input[0], of_four == [1, 2]) if of_four in ([1, 2], [2, 3]) else None


def _node(
    model: Any, op_type: str, inputs: list[str], output: str, perm: list[int] | None = None, axis: int | None = None
) -> str:
    """Append an operator; the name of what it computes, which the graph must not have yet."""
    name = output if output == ACTIVATION_MAP else f"{ACTIVATION_MAP}.{output}"
    node = model.graph.node.add(op_type=op_type, input=inputs, output=[name])
    if perm is not None:
        node.attribute.add(name="perm", type=_INTS, ints=perm)
    if axis is not None:
        node.attribute.add(name="axis", type=_INT, i=axis)
    return name


def explains(scores: Array, activation_map: Array, activation: str | None) -> bool:
    """Whether the means of maps (n, classes, rows, columns) are the logits of scores, as they should be.

    Args:
        scores: of each class, (n, classes) but for axes of size 1.
        activation_map: of the same run.
        activation: that was made of the logits, or None.
    """
    logits = activation_map.astype(np.float64).mean(axis=(2, 3))
    scores = (
        scores.reshape(logits.shape).astype(np.float64) if scores.size == logits.size else np.full(logits.shape, np.nan)
    )
    if activation in ("softmax", "log_softmax"):
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        logits = exponents / exponents.sum(axis=1, keepdims=True)
        scores = np.exp(scores) if activation == "log_softmax" else scores
    elif activation == "sigmoid":
        logits = 1 / (1 + np.exp(-logits))
    return bool(np.allclose(logits, scores, rtol=0.05, atol=0.05 * max(1.0, float(np.abs(scores).max()))))
