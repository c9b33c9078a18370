"""The outputs that all versions have, and what of their graphs is alike: `image` -> `logits`, `activation_map`, `novelty`.

Tensor letters: N pictures, C features, H rows, W columns, K classes.

References:
    Zhou et al., "Learning Deep Features for Discriminative Localization" (2016), arXiv:1512.04150: activation maps.
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018), arXiv:1807.03888: the
        distance of the features to the nearest class in the novelty of a picture.
    Liu et al., "Energy-based Out-of-distribution Detection" (2020), arXiv:2010.03759: the energy in it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import torch
from torch import Tensor

from training.graph import GraphBuilder


@dataclasses.dataclass(frozen=True)
class Novelty:
    """How strange a picture is: the energy of its logits, plus how far its features are from the nearest class.

    The energy knows pictures of other things, and the distance knows what is no picture of a thing at all, such as noise.
    The distance is the squared Mahalanobis distance: `projection` (C, D) whitens the features by the covariance inside the
    classes and has the weight of the distance in it; `means` (K, D) are the classes' mean features, projected alike.
    """

    projection: Tensor
    means: Tensor

    @classmethod
    def fit(
        cls, features: Tensor, logits: Tensor, labels: Tensor, weight: float, dimensions: int | None = None
    ) -> Novelty:
        """From features (N, C), logits (N, K) and classes (N,) of training pictures; in fewer dimensions, the widest."""
        x = features.double()
        means = torch.stack([x[labels == k].mean(0) for k in range(logits.shape[1])])
        spread = x - means[labels]
        values, vectors = torch.linalg.eigh(spread.T @ spread / len(x))  # ascending
        projection = vectors / torch.sqrt(values + 0.01 * values.mean())
        projection = projection[:, -(dimensions or x.shape[1]) :]
        plain = cls(projection, means @ projection)
        scale = weight * logits.double().logsumexp(1).std() / plain.distance(x).std()
        projection = projection * scale.sqrt()
        return cls(projection.float(), (means @ projection).float())

    def distance(self, features: Tensor) -> Tensor:
        """Distance (N,) of features (N, C) to the nearest class."""
        return ((features @ self.projection)[:, None] - self.means).square().sum(2).min(1).values

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Novelty (N,) of features (N, C) with logits (N, K); larger is stranger."""
        return self.distance(features) - logits.logsumexp(1)


class Graph(GraphBuilder):
    """An ONNX graph in the making: `image` uint8 (batch, side, side, 3) -> `logits`, `activation_map` and `novelty`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.pixels = self.picture("image", side, side)
        """Float (batch, 3, side, side), 0..255."""

    def weight(self, name: str, value: Tensor | np.ndarray) -> str:
        return super().weight(name, value.detach().contiguous().numpy() if isinstance(value, Tensor) else value)

    def normalised(
        self,
        x: str,
        conv: torch.nn.Conv2d,
        norm: torch.nn.BatchNorm2d,
        name: str,
        pads: tuple[int, int] | None = None,
    ) -> str:
        """A convolution with the BatchNorm behind it folded in; `pads` before and after, if not the convolution's own."""
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).double()
        weight = (conv.weight.double() * scale[:, None, None, None]).float()
        bias = (norm.bias.double() - norm.running_mean.double() * scale).float()
        before, after = pads or (int(conv.padding[0]), int(conv.padding[0]))
        return self(
            "Conv",
            x,
            self.weight(f"{name}.weight", weight),
            self.weight(f"{name}.bias", bias),
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[before, before, after, after],
            group=conv.groups,
        )

    def spatial_mean(self, x: str, name: str = "") -> str:
        """The mean over rows and columns."""
        return self("ReduceMean", x, self.ints(2, 3), keepdims=0, name=name)

    def finished(self, features: str, novelty: Novelty, classes: int, cells: int) -> onnx.ModelProto:
        """The model, when `activation_map` (batch, classes, cells, cells) is there and so are `features` (batch, C)."""
        self.spatial_mean("activation_map", name="logits")
        projected = self("MatMul", features, self.weight("novelty.projection", novelty.projection))
        second, third = self.ints(1), self.ints(2)
        projected = self("Unsqueeze", projected, second)
        differences = self("Sub", projected, self.weight("novelty.means", novelty.means))
        squares = self("ReduceSumSquare", differences, third, keepdims=0)
        distance = self("ReduceMin", squares, second, keepdims=0)
        evidence = self("ReduceLogSumExp", "logits", second, keepdims=0)
        self("Sub", distance, evidence, name="novelty")
        self.output("logits", "logits", np.float32, ["batch", classes])
        self.output("activation_map", "activation_map", np.float32, ["batch", classes, cells, cells])
        self.output("novelty", "novelty", np.float32, ["batch"])
        return self.model("cifar10-cnn", opset=20, ir_version=9)
