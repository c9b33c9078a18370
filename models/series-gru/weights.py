"""The weights of the forecaster, apart from the framework that found them.

They are read from a checkpoint of `train.py`, or from a published graph: what follows the GRU can be changed, and the graph
written anew, where the checkpoint is not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class Weights:
    """A GRU with H units over I inputs, and a linear head over both with O outputs; float32, gates in the order reset, update, new.

    Attributes:
        weight_ih: (3 H, I).
        weight_hh: (3 H, H).
        bias_ih: (3 H,).
        bias_hh: (3 H,).
        head_weight: (O, H + I).
        head_bias: (O,).
    """

    weight_ih: np.ndarray
    weight_hh: np.ndarray
    bias_ih: np.ndarray
    bias_hh: np.ndarray
    head_weight: np.ndarray
    head_bias: np.ndarray

    @property
    def hidden(self) -> int:
        return self.weight_hh.shape[1]

    @property
    def count(self) -> int:
        """How many numbers they are."""
        return sum(array.size for array in vars(self).values())

    @classmethod
    def from_checkpoint(cls, state: Mapping[str, object]) -> Weights:
        """From the state dict of the torch module."""
        arrays = {name: np.asarray(tensor.detach().numpy()) for name, tensor in state.items()}
        gru = (arrays[f"gru.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return cls(*gru, arrays["head.weight"], arrays["head.bias"])

    @classmethod
    def from_graph(cls, file: Path) -> Weights:
        """From a graph that `train.py` wrote."""
        graph = onnx.load(file).graph
        constants = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
        gru = next(node for node in graph.node if node.op_type == "GRU")
        weight_ih, weight_hh, bias = (constants[name][0] for name in gru.input[1:4])
        product = next(
            node
            for node in graph.node
            if node.op_type == "MatMul" and getattr(constants.get(node.input[1]), "dtype", None) == np.float32
        )
        offset = next(node for node in graph.node if node.op_type == "Add" and product.output[0] in node.input)

        def reordered(gates: np.ndarray) -> np.ndarray:
            """ONNX keeps the gates as update, reset, new."""
            z, r, n = np.split(gates, 3)
            return np.concatenate([r, z, n])

        bias_ih, bias_hh = np.split(bias, 2)
        return cls(
            *map(reordered, (weight_ih, weight_hh, bias_ih, bias_hh)),
            constants[product.input[1]].T,
            constants[offset.input[1]],
        )

    def run(self, x: np.ndarray) -> np.ndarray:
        """The head's outputs for series that begin here: x (N, T, I) -> (N, T, O), float32."""
        h = np.zeros((len(x), self.hidden), np.float32)
        y = np.empty((*x.shape[:2], self.hidden), np.float32)
        from_inputs = x @ self.weight_ih.T + self.bias_ih
        for t in range(x.shape[1]):
            ir, iz, inew = np.split(from_inputs[:, t], 3, axis=1)
            hr, hz, hnew = np.split(h @ self.weight_hh.T + self.bias_hh, 3, axis=1)
            r, z = 1 / (1 + np.exp(-(ir + hr))), 1 / (1 + np.exp(-(iz + hz)))
            h = y[:, t] = (1 - z) * np.tanh(inew + r * hnew) + z * h
        return np.concatenate([y, x], -1) @ self.head_weight.T + self.head_bias
