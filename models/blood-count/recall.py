"""Kernel regression: what a picture is worth is what those like it among the remembered ones were worth.

A few hundred pictures are too few to train a network with. Their features, as a network that was trained on millions of
others gives them, are remembered whole instead, and a new picture is compared with each: the mean of a Gaussian process
with a squared exponential kernel.

Tensor letters: N pictures, M remembered ones, C features.

References:
    Rasmussen, Williams, *Gaussian Processes for Machine Learning* (2006), §2.2 the prediction, §5.4.2 leaving one out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]

FARTHEST = 5.0
"""Standard deviations from the mean to which a feature is cut, so that no single one decides."""


@dataclass(frozen=True)
class Kernel:
    """How alike two pictures are, and how far their truths are believed.

    Attributes:
        sharpness: how quickly likeness falls with the mean squared distance of the features.
        noise: variance of a remembered truth beside that of the function.
    """

    sharpness: float
    noise: float

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """Likeness (N, M) in 0..1 of standardised features (N, C) and (M, C)."""
        squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        return np.exp(-self.sharpness / 2 * squares / x.shape[1])


class Recall(nn.Module):
    """Features float (N, C) -> float (N,).

    Args:
        features: (M, C), of the remembered pictures; they are stored as float16, and so compared.
        truth: (M,).
        kernel: see there.
    """

    def __init__(self, features: Floats, truth: Floats, kernel: Kernel) -> None:
        super().__init__()
        mean, spread = features.mean(0), features.std(0) + 1e-6
        kept = np.clip((features - mean) / spread, -FARTHEST, FARTHEST).astype(np.float16)
        x = kept.astype(np.float64)
        inverse = np.linalg.inv(kernel(x, x) + kernel.noise * np.eye(len(x)))
        centre = float(np.median(truth))
        weights = inverse @ (truth - centre)
        self.sharpness, self.centre = kernel.sharpness, centre
        self.left_out: Floats = truth - weights / np.diag(inverse)
        """What each remembered picture would be given if it were not remembered, float64 (M,)."""
        for name, value in (("mean", mean), ("scale", 1 / spread), ("weights", weights)):
            self.register_buffer(name, torch.from_numpy(np.asarray(value)).float())
        self.register_buffer("kept", torch.from_numpy(x.T.copy()).float())
        self.register_buffer("squares", torch.from_numpy((x**2).sum(1)).float())

    def forward(self, features: Tensor) -> Tensor:
        x = ((features - self.mean) * self.scale).clamp(-FARTHEST, FARTHEST)
        squares = (x * x).sum(1, keepdim=True) + self.squares - 2 * x @ self.kept
        return self.centre + torch.exp(-self.sharpness / 2 / x.shape[1] * squares) @ self.weights


def choose(features: Floats, truth: Floats, kernels: list[Kernel], error: str) -> Recall:
    """The kernel with the smallest error where each picture is left out in turn.

    Args:
        error: `absolute`: of the truth; `percent`: of its exponential, in percent of that.
    """
    fitted = [Recall(features, truth, kernel) for kernel in kernels]
    errors = [
        np.abs(np.expm1(one.left_out - truth) if error == "percent" else one.left_out - truth).mean() for one in fitted
    ]
    best = int(np.argmin(errors))
    print(f"{kernels[best]} errs by {errors[best]:.4g} where each picture is left out", flush=True)
    return fitted[best]
