"""Smaller weights: 8 bits with ranges that are known, 8 bits with ranges found in each run, or float16 in the file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

CONVOLUTIONAL = ("Conv", "MaxPool", "Clip", "Add")
"""Operators that a convolutional network has in 8 bits."""


def to_int8(
    model: onnx.ModelProto,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    *,
    exact: Sequence[str] = (),
    operators: Sequence[str] = CONVOLUTIONAL,
    seven_bits: bool = False,
    method: CalibrationMethod = CalibrationMethod.MinMax,
) -> onnx.ModelProto:
    """The graph in 8 bits (QuantizeLinear and DequantizeLinear around each operator), with a scale for each filter.

    Args:
        model: in float32.
        batches: inputs by name, of training data: the ranges of all tensors are measured on them.
        exact: nodes stay float32 that read a tensor whose name ends in one of these.
        operators: that are computed in 8 bits.
        seven_bits: weights of seven bits cannot overflow the 16-bit sums of processors without VNNI; those of eight are
            more exact, and there need a session that `keep_sums_exact` has prepared, as the service does.
        method: how a range follows from the values that were seen.
    """
    named = with_node_names(model)
    kept = [node.name for node in named.graph.node if any(name.endswith(tuple(exact)) for name in node.input)]
    rest = iter(batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(rest, None)

    return _through_files(
        named,
        lambda source, result: quantize_static(
            source,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=seven_bits,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(operators),
            nodes_to_exclude=kept if exact else [],
            calibrate_method=method,
        ),
    )


def to_dynamic_int8(
    model: onnx.ModelProto, *, operators: Sequence[str] = ("MatMul", "Gemm"), seven_bits: bool = False
) -> onnx.ModelProto:
    """The graph with weights of 8 bits; each run finds the ranges of what they are multiplied with.

    These are of the batch, so what one row gets depends a little on its company: prefer `to_int8` where it can be had.
    """
    return _through_files(
        with_node_names(model),
        lambda source, result: quantize_dynamic(
            source,
            result,
            op_types_to_quantize=list(operators),
            per_channel=True,
            reduce_range=seven_bits,
            weight_type=QuantType.QInt8,
        ),
    )


def to_float16_storage(model: onnx.ModelProto, *, least_size: int = 1024, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph with its float32 weights stored as float16: half the file, the same speed.

    A Cast turns each back, which ONNX Runtime computes once, when it opens the graph.

    Args:
        model: in float32.
        least_size: smaller weights stay (count of numbers).
        keep: weights that stay, by name.

    Raises:
        ValueError: a weight is too large for float16.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    casts = []
    for tensor in made.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in keep or np.prod(tensor.dims) < least_size:
            continue
        name, half = tensor.name, _as_half(numpy_helper.to_array(tensor), tensor.name)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"widen_{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.checker.check_model(made, full_check=True)
    return made


def with_node_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes all have names, which the quantiser tells them apart by."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for node in made.graph.node:
        node.name = node.name or f"node_{next(name for name in node.output if name)}"
    return made


def _as_half(array: NDArray[Any], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{name} holds {np.abs(array).max():.3g}, more than float16 can (65,504)")
    return half


def _through_files(model: onnx.ModelProto, work: Callable[[Path, Path], object]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        work(source, result)
        return onnx.load(result)
