"""Write ONNX graphs by hand: operators as functions that take and give the names of tensors.

    g = GraphBuilder()
    x = g.picture("image", 320, 320, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    x = g("Relu", g("Conv", x, g.weight("stem.weight", weight), strides=[2, 2], pads=[1, 1, 1, 1]))
    g.output(g("ReduceMean", x, g.ints(2, 3), keepdims=0), "logits", np.float32, ["batch", 10])
    model = g.model("cells")

A network of torch can be exported instead (`training.export`). By hand, a graph is as small and as quick as its author
makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
"""Version of ONNX's operators: known to every ONNX Runtime that the service takes."""
IR_VERSION = 10
"""Version of ONNX's file format."""

Shape = Sequence[int | str | None] | None
"""Of a tensor: a number, a symbol's name or None for each axis; None where even their number is open."""


class GraphBuilder:
    """A graph in the making. Calling it adds a node and returns the name of its output.

    Args:
        prefix: of the names that are made here. Those inside a Loop or an If must differ from those around it.
        dtype: of the constants that numbers among a node's inputs become.
    """

    def __init__(self, prefix: str = "", dtype: DTypeLike = np.float32) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    # ------------------------------------------------------------------------------------------------------------ nodes

    def __call__(self, op: str, *inputs: str | float, name: str = "", **attributes: Any) -> str:
        """Add a node with one output.

        Args:
            op: ONNX's name of the operator.
            inputs: names of tensors; "" leaves one out, and a number becomes a constant.
            name: of its output, if others must find it.
            attributes: of the operator; a Loop's or an If's graphs among them.
        """
        return self.several(op, *inputs, names=[name or f"{self.prefix}{op}_{len(self.nodes)}"], **attributes)[0]

    def several(
        self, op: str, *inputs: str | float, outputs: int = 0, names: Sequence[str] = (), **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs: so many, or with these names."""
        made = list(names) or [f"{self.prefix}{op}_{len(self.nodes)}_{k}" for k in range(outputs)]
        taken = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        self.nodes.append(helper.make_node(op, taken, made, **attributes))
        return made

    def constant(self, value: ArrayLike, dtype: DTypeLike | None = None) -> str:
        """A small constant; equal ones are written once."""
        array = np.asarray(value, self.dtype if dtype is None else dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"{self.prefix}constant_{len(self._constants)}", array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """An int64 constant (count,), as axes, shapes and bounds are."""
        return self.constant(values, np.int64)

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """A weight under its own name.

        Raises:
            ValueError: there is another one of this name.
        """
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if self._weights.setdefault(name, tensor).raw_data != tensor.raw_data:
            raise ValueError(f"there are two weights named {name!r}")
        return name

    def take(self, nodes: Iterable[onnx.NodeProto], weights: Iterable[onnx.TensorProto]) -> None:
        """Add nodes and weights of another graph as they are; their names must be none of this one's."""
        self.nodes += nodes
        self._weights |= {weight.name: weight for weight in weights}

    # ---------------------------------------------------------------------------------------------- inputs and outputs

    def input(self, name: str, dtype: DTypeLike, shape: Shape) -> str:
        """An input; an axis with a symbol's name (`"batch"`) or None is free."""
        self.inputs.append(_info(name, dtype, shape))
        return name

    def output(self, tensor: str, name: str, dtype: DTypeLike, shape: Shape) -> str:
        """A tensor as an output of this name."""
        if tensor != name:
            self("Identity", tensor, name=name)
        self.outputs.append(_info(name, dtype, shape))
        return name

    def picture(
        self,
        name: str,
        height: int,
        width: int,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        bgr: bool = False,
    ) -> str:
        """An input uint8 (batch, height, width, channels), as the service gives RGB, and what a network reads of it.

        Args:
            name: of the input.
            height: in pixels.
            width: in pixels.
            mean: subtracted from each channel, in the order that the network reads; 0..255.
            std: each channel is divided by it; 0..255.
            bgr: whether the network reads blue, green, red.

        Returns:
            float32 (batch, channels, height, width).
        """
        self.input(name, np.uint8, ["batch", height, width, len(mean)])
        x = self("Transpose", self("Cast", name, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        if bgr:
            x = self("Gather", x, self.ints(2, 1, 0), axis=1)
        shape, shift, scale = (-1, 1, 1), np.asarray(mean, np.float32), np.asarray(std, np.float32)
        if shift.any():
            x = self("Sub", x, self.constant(shift.reshape(shape), np.float32))
        if (scale != 1).any():
            x = self("Mul", x, self.constant((1 / scale).reshape(shape), np.float32))
        return x

    # ------------------------------------------------------------------------------------------------------------ whole

    def graph(self, name: str) -> onnx.GraphProto:
        """What was built: the body of a Loop, or a branch of an If."""
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self._weights.values()))

    def model(
        self, name: str, *, producer: str = "gridloop", opset: int = OPSET, ir_version: int = IR_VERSION
    ) -> onnx.ModelProto:
        """The checked model.

        Raises:
            ValidationError, InferenceError: a node does not fit its inputs, or an output its declared shape.
        """
        model = helper.make_model(
            self.graph(name),
            producer_name=producer,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _info(name: str, dtype: DTypeLike, shape: Shape) -> onnx.ValueInfoProto:
    kind = TensorProto.STRING if np.dtype(dtype) == object else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
