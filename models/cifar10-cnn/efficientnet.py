"""EfficientNet-Lite0 with a row of its classifier for each kind that ImageNet knows of the ten classes.

Tensor letters: N pictures, C channels, H rows, W columns, K classes, J kinds.

References:
    Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), arXiv:1905.11946; Lite
        variants: Liu, "Higher accuracy on vision models with EfficientNet-Lite" (2020).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data import sha256

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of `efficientnet-lite0-57934424.pth`."""
KINDS = {
    "airplane": (404, 895),
    "automobile": (436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "deer": (351, 352, 353),
    "dog": tuple(range(151, 269)),
    "frog": (30, 31, 32),
    "horse": (339,),
    "ship": (403, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914, 472, 484),
    "truck": (555, 569, 675, 717, 734, 864, 867),
}
"""Which of ImageNet's 1,000 classes are kinds of ours; antelopes stand for deer."""


class ConvNorm(nn.Module):
    """A convolution padded as TensorFlow's "SAME" pads, BatchNorm, and ReLU6 where `active`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.active = active

    def padding(self, side: int) -> tuple[int, int]:
        """Zeros before and after a side of so many pixels."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        needed = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        return needed // 2, needed - needed // 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.padding(x.shape[3]) + self.padding(x.shape[2]))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.active else x


class InvertedResidual(nn.Module):
    """Widen by `expansion`, filter each channel, narrow; what went in is added where it has the same shape."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.units = nn.Sequential(
            *([ConvNorm(inputs, wide)] if expansion > 1 else []),
            ConvNorm(wide, wide, kernel, stride, groups=wide),
            ConvNorm(wide, outputs, active=False),
        )
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.units(x) if self.skip else self.units(x)


class Network(nn.Module):
    """EfficientNet-Lite0. Pictures float (N, C, H, W), 0..255 -> logits (N, K): each the log-sum-exp of its kinds' ones."""

    stages = (  # expansion, kernel, stride, channels, blocks
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self.counts = counts
        """Kinds of each class."""
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, inputs = [], 32
        for expansion, kernel, stride, outputs, count in self.stages:
            for i in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, kernel, stride if i == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(inputs, 1280)
        self.classifier = nn.Conv2d(1280, sum(counts), 1)

    def body(self, x: Tensor) -> Tensor:
        """What the last layer but one reads: (N, C, H, W) -> (N, 320, h, w)."""
        maps: Tensor = self.blocks(self.stem((x - 127) / 128))
        return maps

    def features(self, x: Tensor) -> Tensor:
        """What the classifier reads: (N, C, H, W) -> (N, 1280, h, w)."""
        return self.head(self.body(x))

    def kinds(self, features: Tensor) -> Tensor:
        """Logits of the kinds (N, J) from mean features (N, 1280)."""
        return F.linear(features, self.classifier.weight[:, :, 0, 0], self.classifier.bias)

    def classes(self, kinds: Tensor) -> Tensor:
        """Logits of the classes (N, K) from those of the kinds (N, J)."""
        return torch.stack([own.logsumexp(1) for own in kinds.split(self.counts, 1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.kinds(self.features(x).mean((2, 3))))


def pretrained(path: Path, names: list[str]) -> Network:
    """The network as ImageNet taught it, with the classifier's rows for the kinds of our classes."""
    digest = sha256(path)
    if digest != WEIGHTS_SHA256:
        raise SystemExit(f"{path} is not the expected file: its sha256 is {digest}, not {WEIGHTS_SHA256}")
    state = torch.load(path, weights_only=True, map_location="cpu")
    weight, bias = state.pop("_fc.weight"), state.pop("_fc.bias")
    rows = [row for name in names for row in KINDS[name]]
    network = Network([len(KINDS[name]) for name in names])
    own = [name for name in network.state_dict() if not name.startswith("classifier.")]
    renamed = dict(zip(own, state.values(), strict=True))  # both are in the order of the layers
    renamed |= {"classifier.weight": weight[rows][:, :, None, None], "classifier.bias": bias[rows]}
    network.load_state_dict(renamed)
    return network.eval().to(memory_format=torch.channels_last)


def average(before: Network, after: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights with that share of those after training, and the rest of those before."""
    state = before.state_dict()
    return {
        name: value.lerp(after[name], share) if value.is_floating_point() else value for name, value in state.items()
    }


@torch.no_grad()
def maps_and_features(network: Network, images: np.ndarray, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Activation maps (N, K, h, w) and mean features (N, 1280), float32, of uint8 pictures (N, H, W, C).

    The logit of a class is not linear in its kinds' maps, but its gradient splits it exactly: each kind's map weighs as
    much as the kind has of the class's probability, and what is left, the entropy of these shares, is spread evenly. So
    the spatial mean is the logit, divided by the temperature.
    """
    maps, features = [], []
    for rows in torch.from_numpy(np.ascontiguousarray(images)).split(50):
        own = network.features(rows.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last))
        mean = own.mean((2, 3))
        kinds = network.kinds(mean)
        logits = network.classes(kinds)
        shares = torch.cat([part.softmax(1) for part in kinds.split(network.counts, 1)], 1)
        weighted = network.classifier(own) * shares[:, :, None, None]
        split = torch.stack([part.sum(1) for part in weighted.split(network.counts, 1)], 1)
        maps.append((split + (logits - split.mean((2, 3)))[:, :, None, None]) / temperature)
        features.append(mean)
    return torch.cat(maps), torch.cat(features)


@torch.no_grad()
def logits_of(network: Network, images: np.ndarray) -> Tensor:
    """Logits (N, K) for uint8 pictures (N, H, W, C)."""
    parts = [
        network(rows.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last))
        for rows in torch.from_numpy(np.ascontiguousarray(images)).split(50)
    ]
    return torch.cat(parts)
